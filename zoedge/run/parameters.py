"""Replay a log that `zoedge.optim.ZerothOrder` wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from ..core import run
from ..errors import DamagedError, DataError, IdentityError, UsageError, ZoedgeError, make_printable, suggest_nearest
from ..methods.spaces._parameters import ParameterSpace, dtype_name
from ..recipe.parts import restore_part
from . import identity

UNBOUNDED_STEPS = 2**31 - 1  # steps of a run that does not say how many


# -- replay


def make_replay_run(log: Any, device: str, start: Any) -> run.Run:
    """A run that needs no closure: the log, from the parameters' values at its start.

    start: those, by name (a state_dict, a module, a .safetensors file), or in the log's order. DataError: none, or they
    cannot be read. IdentityError: they are others.
    """
    about = log.header.about
    try:
        settings = about["optimizer"]
        made = {key: restore_part(key, settings[key]) for key in ("noise", "estimator", "rule")}
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
    there = tensors_by_name(start, list(wanted))
    found = []
    for name, (type_, shape) in wanted.items():
        if name not in there:
            raise IdentityError(
                f"{log.path}: the values at its start lack '{make_printable(name)}'{suggest_nearest(name, there)}."
            )
        p = there[name]
        if (dtype_name(p), tuple(p.shape)) != (type_, shape):
            raise IdentityError(
                f"{log.path}: at its start '{make_printable(name)}' was {make_printable(str(type_))} "
                f"{list(shape)}, not {dtype_name(p)} "
                f"{list(p.shape)}."
            )
        found.append((name, p.detach().to(device, copy=True).contiguous()))
    space = ParameterSpace(found)
    identity.check_part_ids(log, made["noise"], made["rule"])
    identity.check_replayable(log, space, made["noise"], made["rule"])
    return run.Run(log.header.seed, steps, log, space, made["noise"], made["rule"])


def tensors_by_name(start: Any, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Tensors by name, of whatever holds them."""
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
    found = start if isinstance(start, Mapping) else dict(zip(names, start))
    if not all(isinstance(p, Tensor) for p in found.values()):
        raise UsageError("base: tensors by name are wanted, such as module.state_dict().")
    return found
