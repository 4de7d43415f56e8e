"""This module puts together, from a recipe, what training and evaluation need, and begins a run in its folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.canonical import encode_canonical
from ..core.oracle import slot_capacity
from ..core.run import Run
from ..core.storage import write_durably
from ..core.watchdog import Watchdog
from ..errors import LockedError
from ..log.header import Header
from ..log.log import Log
from ..recipe.recipe import Recipe, dump_recipe
from ..recipe.sections import parse_size
from ..scoring.sources.file_digests import file_sha256
from ..scoring.texts import Datasets, load_datasets
from .display import Plain
from .folder import LOG_FILE, RECIPE_FILE
from .identity import recipe_digest
from .replay import build_replay_run, copy_values, rounding_bits
from .trained import Trained, attach_space
from .trust import note_own_log
from .visits import list_visited_sequences

if TYPE_CHECKING:
    from ..log.packed import AnyLog
    from ..scoring.models.base import Base
    from ..scoring.models.trunk_store import TrunkStore
    from ..scoring.tasks._training import AbstractTraining
    from .branch import Parent
    from .workers import Workers


@dataclass
class Measuring(Trained):
    """A base with its space, and the rows and the task by which its losses are measured.

    Attributes:
        texts: the tokenised rows of each set.
        task: the recipe's task over the training rows.
    """

    texts: Datasets
    task: AbstractTraining

    @classmethod
    def build(cls, recipe: Recipe, begun: Header | None = None) -> Measuring:
        """Load the base, attach the space, and read and tokenise the rows. DataError: what is wrong with one of them.

        begun: the header of the run's log, where it has begun: the space takes its start from it.
        """
        base, space = attach_space(recipe, begun)  # attached first: virtual tokens take their share of the context
        limit = Trained(recipe, base, space).limit
        vocabulary = base.model.config.vocab_size
        texts = load_datasets(recipe.data, recipe.task, recipe.seed, base.tokenizer, limit, vocabulary)
        return cls(recipe, base, space, texts, recipe.task.make_training(texts.train, recipe.seed, recipe.train.batch))

    def header(self) -> Header:
        """Return the header of a log that begins here."""
        recipe, state = self.recipe, self.digests()
        return Header(
            block=encode_canonical(
                {"recipe": recipe.resolved(), "space": self.space.describe(), "inputs": self.describe_inputs()}
            ),
            directions=slot_capacity(recipe.estimator, recipe.train.steps),
            noise=recipe.noise.scheme,
            rule=recipe.rule.rule,
            seed=recipe.seed,
            elements=sum(leaf.value.numel() for leaf in self.space.leaves()),
            hash_every=recipe.log.hash_every,
            sync_every=recipe.log.sync_every,
            recipe=recipe_digest(recipe),
            base=state.base,
            tokenizer=state.tokenizer,
            data=self.texts.train.digest(),
            manifest=state.manifest,
            initial=state.initial,
            selftest=state.selftest,
        )

    def describe_inputs(self) -> dict[str, Any]:
        """Return what of the base and of the held-out rows the header's digests leave out, by name."""
        sets = {"valid": self.texts.valid, "test": self.texts.test}
        rows = {which: examples.digest().hex()[:32] for which, examples in sets.items() if examples is not None}
        return {**self.base.inputs, **rows}

    def run(self, log: AnyLog, workers: Workers | None = None) -> Run:
        """Return the run that the engine plays: it goes on where `log` ends. workers: who share its steps."""
        r = self.recipe
        return Run(
            r.seed,
            r.train.steps,
            log,
            self.space,
            r.noise,
            r.rule,
            r.estimator,
            self.task,
            self.base,
            r.train.rows,
            rounding_bits(),
            watchdog=Watchdog(r.train.watchdog) if r.train.watchdog else None,
            rewound=lambda: copy_values(self.space, build_replay_run(log).space),
            workers=workers,
        )


def describe_environment(base: Base) -> dict[str, Any]:
    """Return what the bits of a forward pass may depend on, by name. The log's SESSION record holds its digest."""
    from ..methods.noise import _fused
    from ..scoring.models import environment

    own = {"kernel": _fused.triton_version()} if base.device.type == "cuda" else {}
    if base.inputs["quantization"] != "none":  # another library may give other codes
        own["codes"] = hashlib.sha256(
            "".join(map(file_sha256, sorted(base.path.glob("*.safetensors")))).encode()
        ).hexdigest()
    return {**environment.describe_environment(base), **own}


# -- opening


def begin_run(measuring: Measuring, folder: Path, parent: Parent | None = None) -> Log:
    """Begin a run in its folder: write recipe.yaml and the log's header, both durable; a branch gets its parent's steps.

    Raises:
        LockedError: another process has begun the run meanwhile.
    """
    from . import branch

    if parent is not None:
        branch.begin_branch(parent, measuring.header(), measuring.recipe, folder / LOG_FILE)
    write_durably(folder / RECIPE_FILE, dump_recipe(measuring.recipe).encode())
    try:
        log = Log.create(folder / LOG_FILE, measuring.header()) if parent is None else Log.resume(folder / LOG_FILE)
    except FileExistsError:
        raise LockedError(
            f"{folder / LOG_FILE}: another zoedge process has just begun this run. Wait for it, or stop it."
        ) from None
    note_own_log(log.header)
    return log


def cache_trunk(measuring: Measuring, folder: Path, show: Plain) -> None:
    """Let the lower layers' outputs be computed once, on all threads; the steps take as many threads as the recipe says.

    Those of held-out rows, which are all scored, are computed now, and those of training rows as they are read.
    """
    base, recipe, texts = measuring.base, measuring.recipe, measuring.texts
    open_trunk(measuring, folder)
    for which, examples in {"valid": texts.valid, "test": texts.test}.items():
        if examples is not None:
            show.track(base.cache_trunk(examples, folder), len(examples.tokens), f"lower layers, once ({which})")
    if recipe.train.threads:
        import torch

        torch.set_num_threads(recipe.train.threads)


def open_trunk(measuring: Measuring, folder: Path) -> None:
    """Let the lower layers' outputs of training rows be kept as they are read, and in the cache, with those of other sets."""
    base, recipe, train = measuring.base, measuring.recipe, measuring.texts.train
    if base.store is None:
        base.store = make_store(recipe)
    base.open_trunk(train, folder, list_visited_sequences(recipe, train) if base.cut else None)


def make_store(recipe: Recipe) -> TrunkStore | None:
    """Return where a recipe keeps lower layers' outputs between runs; None: it keeps none."""
    from ..scoring.models.trunk_store import TrunkStore

    limit = parse_size(recipe.cache.limit)
    return TrunkStore(limit, recipe.model.source) if limit else None


def close_store(base: Base) -> None:
    """Remove from the cache what is beyond its limit, also of what this process has opened: it needs that no more."""
    if base.store is not None:
        base.store.trim(base.store.limit, spare_own=False)


def fill_trunk(measuring: Measuring, rows: list[int], folder: Path, show: Plain) -> None:
    """Compute the lower layers' outputs of some training rows now, because they are all read next, and show the progress."""
    examples = measuring.texts.train
    if (cache := measuring.base.open_trunk(examples, folder)) is not None:
        numbers = [row * examples.sequences_each + j for row in rows for j in range(examples.sequences_each)]
        blocks = {cache.block_of[number] for number in numbers}
        total = sum(len(cache.blocks[block].numbers) for block in blocks)
        show.track(cache.fill(numbers), total, "lower layers, once (train)")
