"""This module replays a log that `zoedge.optim.ZerothOrder` wrote, from the values that its parameters began with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..core import run
from ..errors import DamagedError, DataError, IdentityError, UsageError, ZoedgeError, make_printable, suggest_nearest
from ..methods.spaces._parameters import ParameterSpace, dtype_name
from ..recipe.parts import restore_part
from . import identity

if TYPE_CHECKING:
    from ..log.packed import AnyLog

UNBOUNDED_STEPS = 2**31 - 1  # the length of a run that is given none


def make_replay_run(log: AnyLog, device: str, start: Any) -> run.Run:
    """Return a run that replays the log without a closure, from the parameters' values at its start.

    Args:
        start: these values by name (a state_dict, a module, a .safetensors file), or in the log's order.

    Raises:
        DataError: there are none, or they cannot be read. IdentityError: the log began with others.
    """
    about = log.header.about
    try:
        settings = about["optimizer"]
        parts = {key: restore_part(key, settings[key]) for key in ("noise", "estimator", "rule")}
        wanted = {name: (kind, tuple(shape)) for name, kind, *shape in about["space"]["shapes"]}
        steps = UNBOUNDED_STEPS if settings["steps"] is None else int(settings["steps"])
    except (KeyError, TypeError, ValueError, ZoedgeError) as e:
        raise DamagedError(
            f"{log.path}: what its header says of the optimiser cannot be read ({type(e).__name__})."
        ) from None
    if start is None:
        raise DataError(
            f"{log.path} is the log of a zoedge.optim.ZerothOrder: replay begins with the values that its parameters had "
            "before the first step. Give them: base=state_dict, or --base FILE.safetensors."
        )
    given = tensors_by_name(start, list(wanted))
    copies = []
    for name, (type_, shape) in wanted.items():
        if name not in given:
            raise IdentityError(
                f"{log.path}: the values at its start lack '{make_printable(name)}'{suggest_nearest(name, given)}."
            )
        p = given[name]
        if (dtype_name(p), tuple(p.shape)) != (type_, shape):
            raise IdentityError(
                f"{log.path}: at its start '{make_printable(name)}' was {make_printable(str(type_))} "
                f"{list(shape)}, not {dtype_name(p)} "
                f"{list(p.shape)}."
            )
        copies.append((name, p.detach().to(device, copy=True).contiguous()))
    space = ParameterSpace(copies)
    identity.check_part_ids(log, parts["noise"], parts["rule"])
    identity.check_replayable(log, space, parts["noise"], parts["rule"])
    return run.Run(log.header.seed, steps, log, space, parts["noise"], parts["rule"])


def tensors_by_name(start: Any, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Return the tensors by name of a module, a .safetensors file, a mapping, or a sequence in the order of `names`."""
    if isinstance(start, nn.Module):
        return dict(chain(start.named_parameters(), start.named_buffers()))
    if isinstance(start, (str, os.PathLike)):
        import safetensors.torch

        try:
            return safetensors.torch.load_file(start)
        except (OSError, safetensors.SafetensorError, ValueError) as e:
            raise DataError(
                f"{make_printable(str(start))}: not a readable .safetensors file ({make_printable(str(e))})."
            ) from None
    tensors = start if isinstance(start, Mapping) else dict(zip(names, start))
    if not all(isinstance(p, Tensor) for p in tensors.values()):
        raise UsageError("base: tensors by name are wanted, such as module.state_dict().")
    return tensors
