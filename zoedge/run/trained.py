"""This module loads a trained model to use: a log's base, with the space where the log's steps have moved it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..core import engine
from ..core.canonical import encode_canonical
from ..core.digests import selftest
from ..core.run import Run
from ..core.types import Space
from ..recipe.recipe import Recipe, part_name
from ..recipe.sections import Model
from . import folder
from .identity import (
    check_same_base,
    identity_differences,
    initial_digest,
    input_differences,
    logged_inputs,
    manifest_digest,
    recipe_from_header,
)
from .replay import initial_noise, rounding_bits, take_logged_start

if TYPE_CHECKING:
    from ..log.header import Header
    from ..log.packed import AnyLog
    from ..scoring.models.base import Base


class StateDigests(NamedTuple):
    """The digests of all that a trained state depends on besides the log, 32 bytes each, as a log's header has them.

    Attributes:
        manifest: of the names, places, shapes and types of the trained tensors.
        initial: of their first values.
        selftest: of this device's arithmetic.
    """

    base: bytes
    tokenizer: bytes
    manifest: bytes
    initial: bytes
    selftest: bytes


@dataclass
class Trained:
    """A base with the space that a recipe trains on it: at its start, or where a log's steps have moved it.

    Attributes:
        recipe: what is trained; of a log, the recipe in its header.
        base: the frozen model.
        space: what is trained, attached to the base.
    """

    recipe: Recipe
    base: Base
    space: Space

    @property
    def limit(self) -> int:
        """The most tokens of a sequence. Beyond its context LLaMA computes garbage without an error, and OPT raises."""
        return min(self.recipe.data.max_length, self.base.context_length)

    def digests(self) -> StateDigests:
        """Return the digests of this base, tokenizer, space (at its start) and arithmetic."""
        from ..scoring.models.checkpoint import tokenizer_digest

        first = self.space.leaves()[0].value
        return StateDigests(
            base=self.base.digest,
            tokenizer=tokenizer_digest(self.base.tokenizer),
            manifest=manifest_digest(self.space),
            initial=initial_digest(self.space),
            selftest=selftest(self.recipe.noise, self.recipe.rule, first[:1].float().new_zeros(1024)),
        )

    def header_here(self, begun: Header) -> Header:
        """Return the header of a log as it would be if it were begun here, with its own recipe and rows."""
        block = encode_canonical({**begun.about, "inputs": {**logged_inputs(begun), **self.base.inputs}})
        return replace(begun, block=block, **self.digests()._asdict())

    def play(self, log: AnyLog, steps: int) -> None:
        """Move the space, which stands at its start, along a log's first `steps` records."""
        recipe = self.recipe
        last, bits = recipe.train.steps, rounding_bits()
        run = Run(recipe.seed, last, log, self.space, recipe.noise, recipe.rule, bits=bits)
        for _ in engine.play(run, steps):
            pass


def attach_space(recipe: Recipe, begun: Header | None = None) -> tuple[Base, Space]:
    """Load a recipe's base and attach its space at its start. DataError: the base, or a space that does not go with it.

    begun: the header of a log, whose start the space takes, and whose type of the forward stands for `auto`.
    """
    from ..scoring.models.families import check_head
    from ..scoring.models.loading import load_base

    base = load_base(recipe.model if begun is None else fill_compute_type(recipe.model, begun))
    check_head(part_name(recipe.task), recipe.task.head, base.facts)
    space = recipe.space.attach(base, recipe.seed, initial_noise(recipe.noise))
    base.lower_trunk(recipe.model.trunk_dtype)
    if begun is not None:
        take_logged_start(space, begun)
    return base, space


def fill_compute_type(model: Model, begun: Header) -> Model:
    """Return a model section in which `compute_dtype: auto` is what it was where a log began.

    A run that goes on, and whatever is compared with it, computes in the same type on every device.
    """
    known = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(str(logged_inputs(begun).get("compute")))
    return model.model_copy(update={"compute_dtype": known}) if known and model.compute_dtype == "auto" else model


def load_trained(run: str, at: str | None = None) -> tuple[Trained, AnyLog, int]:
    """Load what a run trained: its base, and its space where it is after as many steps as `at` says.

    Args:
        run: the run's folder or name, or its log.
        at: a number of steps, last or best; None: as the run's eval.select says.

    Returns:
        The trained model, the log, and the number of steps.

    Raises:
        UsageError: there is no such run or step.
        IdentityError: base, tokenizer or arithmetic here are not those of the log.
    """
    log = folder.open_any_log(run)
    steps = folder.resolve_step(log, at)
    recipe = recipe_from_header(log.header, run)
    trained = Trained(recipe, *attach_space(recipe, log.header))
    check_same_base(log.header, trained.header_here(log.header), run)
    trained.play(log, steps)
    return trained, log, steps


def find_base_folder(log: AnyLog, source: str | None = None) -> tuple[Path, list[str]]:
    """Find the folder of a log's base, and compare it with the log. Only files are hashed, and the tokenizer is loaded.

    Args:
        log: its header has the digests of the base and of the tokenizer.
        source: where the base is; None: where the log's recipe says.

    Returns:
        The folder, and what in it differs from what the log says, a phrase each.
    """
    from ..scoring.models.checkpoint import base_identity, check_files, other_digests, tokenizer_digest
    from ..scoring.models.loading import load_tokenizer
    from ..scoring.sources.resolve import resolve_model

    model = recipe_from_header(log.header, str(log.path)).model
    if source:
        model = model.model_copy(update={"source": source, "revision": None})
    base_folder = resolve_model(model.source, model.revision)
    check_files(base_folder)
    present = replace(log.header, base=base_identity(base_folder, model))
    if differences := identity_differences(log.header, present):
        return base_folder, differences
    present = replace(present, tokenizer=tokenizer_digest(load_tokenizer(base_folder)))
    files = {**logged_inputs(log.header), "files": other_digests(base_folder)}
    return base_folder, identity_differences(log.header, present) + input_differences(log.header, files)
