"""This module rebuilds the trained tensors from a log alone: it needs no data and no forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.parts import load_part
from ..core.run import Run
from ..core.types import AbstractNoise, Key, Leaf, Space
from ..errors import DamagedError, DataError, IdentityError
from ..recipe.recipe import Recipe
from .identity import check_part_ids, check_replayable, is_optimizer_log, recipe_from_header

if TYPE_CHECKING:
    from torch import Tensor

    from ..log.header import Header
    from ..log.packed import AnyLog
    from ..scoring.models.base import Base


def rounding_bits() -> Callable[[Key, Leaf], Tensor]:
    """Return the function of (key, leaf) that draws the random bits of stochastic rounding, [n] int32."""
    from ..methods.noise._uniform import draw_rounding_bits

    return draw_rounding_bits


def initial_noise(noise: AbstractNoise) -> AbstractNoise:
    """Return the noise that initial values are drawn from: the run's, or normal if that leaves elements out."""
    return noise if noise.dense else load_part("noise", "normal")()


def load_log_base(log: AnyLog, recipe: Recipe, source: str | None = None, **changes: Any) -> Base:
    """Load a log's base from `source`, else from where the recipe says, with some changes to the recipe's `model`.

    Raises:
        IdentityError: what is there is another base.
    """
    from ..scoring.models.loading import load_base

    base = load_base(recipe.model.model_copy(update=changes | ({"source": source, "revision": None} if source else {})))
    if base.digest != log.header.base:
        raise IdentityError(
            f"{log.path}: the base in {base.path} is not the one that was trained on (sha256 {log.header.base[:4].hex()}.."
            f" -> {base.digest[:4].hex()}..). Name that one's folder with --base."
        )
    return base


def attach_replayed(run: Run, log: AnyLog, source: str | None = None) -> Space:
    """Attach a replayed run's values to its base, which is loaded from `source`, else from where the recipe says."""
    recipe = recipe_from_header(log.header, str(log.path))
    return copy_values(
        recipe.space.attach(load_log_base(log, recipe, source), run.seed, initial_noise(recipe.noise)), run.space
    )


def build_replay_run(log: AnyLog, device: str = "cpu", base: str | None = None) -> Run:
    """Build from a log alone the half of a run that needs no data and no forward pass.

    Args:
        log: its header has the recipe.
        device: cpu or cuda, where the trained values lie.
        base: where the base is (a folder or another source), for a space whose first values are the base's own; None:
            where the recipe says. Of an optimiser's log, the parameters' values at its start.

    Raises:
        IdentityError: the base is another, or this machine's noise or arithmetic would give other bits.
        DamagedError: the header's description is not of what was trained.
        DataError: memory cannot hold it.
    """
    if is_optimizer_log(log.header):
        from .parameters import make_replay_run

        return make_replay_run(log, device, base)
    recipe = recipe_from_header(log.header, str(log.path))
    header = log.header
    check_part_ids(log, recipe.noise, recipe.rule)
    about = header.about.get("space")
    if recipe.space.elements(about) != header.elements:  # before anything is allocated by it
        raise DamagedError(
            f"{log.path}: its description of what is trained is not one of {header.elements:,} elements."
        )
    own = recipe.space.own_start
    space = attach_own_start(log, recipe, device, base) if own else build_blank_space(log, recipe, device)
    check_replayable(log, space, recipe.noise, recipe.rule)
    return Run(header.seed, recipe.train.steps, log, space, recipe.noise, recipe.rule, bits=rounding_bits())


def build_blank_space(log: AnyLog, recipe: Recipe, device: str) -> Space:
    """Build the recipe's space from the log's description alone. DataError: memory cannot hold what it describes."""
    import psutil

    header = log.header
    wanted, free = 4 * header.elements, psutil.virtual_memory().available
    try:
        if device == "cpu" and wanted > free:  # the kernel would promise more than it has, and then kill us
            raise MemoryError
        return recipe.space.blank(header.about["space"], header.seed, initial_noise(recipe.noise), device)
    except (MemoryError, RuntimeError) as e:  # torch's own, of either kind of memory, is a RuntimeError
        raise DataError(
            f"{log.path}: what it trains, {header.elements:,} elements, needs {wanted / 1e9:,.1f} GB of memory: "
            f"{free / 1e9:,.1f} GB are free."
        ) from e


def copy_values(space: Space, to: Space) -> Space:
    """Give a space the values of another one with the same tensors, and its start, and return it."""
    for ours, theirs in zip(space.leaves(), to.leaves()):
        ours.value.copy_(theirs.value)
    if to.options is not None and to.options.wants_start:
        space.take_start(to.describe())
    return space


def take_logged_start(space: Space, header: Header) -> None:
    """Give a space the start that stands in a log's header. DamagedError: what stands there cannot be read."""
    if space.options is None or not space.options.wants_start:
        return
    try:
        space.take_start(header.about["space"])
    except (KeyError, TypeError, ValueError) as e:
        raise DamagedError(f"{header.where}: the start in its header cannot be read: {e}.") from None


def attach_own_start(log: AnyLog, recipe: Recipe, device: str, source: str | None) -> Space:
    """Attach a space to its base as the run found it, in the type that the log says: `auto` may be another one here."""
    stored = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[log.header.about["space"]["storage"]]
    base = load_log_base(log, recipe, source, device=device, compute_dtype=stored)
    return recipe.space.attach(base, log.header.seed, initial_noise(recipe.noise))
