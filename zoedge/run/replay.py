"""Rebuild the trained tensors from a log alone: no data and no forward pass."""

from __future__ import annotations

from typing import Any

from ..core.parts import load_part
from ..core.run import Run
from ..errors import DamagedError, DataError, IdentityError
from ..log.log import Log
from ..recipe.recipe import Recipe
from .identity import check_part_ids, check_replayable, is_optimizer_log, recipe_from_header


def rounding_bits() -> Any:
    """Where stochastic rounding's random bits come from: a function of (key, leaf)."""
    from ..methods.noise._uniform import draw_rounding_bits

    return draw_rounding_bits


def initial_noise(noise: Any) -> Any:
    """What initial values are drawn from: the run's noise, unless that leaves elements out or is of another variance."""
    return noise if noise.dense else load_part("noise", "normal")()


def load_log_base(log: Log, recipe: Recipe, source: str | None = None, **changes: Any) -> Any:
    """A log's base, loaded from `source`, else as the recipe says. IdentityError: it is another."""
    from ..scoring.models.loading import load_base

    base = load_base(recipe.model.model_copy(update=changes | ({"source": source, "revision": None} if source else {})))
    if base.digest != log.header.base:
        raise IdentityError(
            f"{log.path}: the base in {base.path} is not the one that was trained on (sha256 {log.header.base[:4].hex()}.."
            f" -> {base.digest[:4].hex()}..). Name that one's folder with --base."
        )
    return base


def attach_replayed(run: Run, log: Log, source: str | None = None) -> Any:
    """A replayed run's space over its base, which is loaded from `source`, else as the log's recipe says."""
    recipe = recipe_from_header(log.header, str(log.path))
    return copy_values(
        recipe.space.attach(load_log_base(log, recipe, source), run.seed, initial_noise(recipe.noise)), run.space
    )


def build_replay_run(log: Log, device: str = "cpu", base: str | None = None) -> Run:
    """The half of a run that needs no data and no forward, from the log alone. IdentityError: arithmetic or noise differ.

    A space whose first values are the base's own takes them from `base` (a folder or another source), else from where
    the recipe says. IdentityError: that is another base.
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


def build_blank_space(log: Log, recipe: Recipe, device: str) -> Any:
    """The recipe's space from the log's description alone. DataError: memory cannot hold what the log describes."""
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


def copy_values(space: Any, to: Any) -> Any:
    """The space, at the value that another one of the same tensors has."""
    for ours, theirs in zip(space.leaves(), to.leaves()):
        ours.value.copy_(theirs.value)
    return space


def attach_own_start(log: Log, recipe: Recipe, device: str, source: str | None) -> Any:
    """A space over its base as the run found it, stored as the log says: `auto` may be another type on this device."""
    stored = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[log.header.about["space"]["storage"]]
    base = load_log_base(log, recipe, source, device=device, compute_dtype=stored)
    return recipe.space.attach(base, log.header.seed, initial_noise(recipe.noise))
