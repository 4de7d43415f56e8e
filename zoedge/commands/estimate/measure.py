"""This module measures the memory of a real step, in a process of its own (`zoedge estimate --measure`)."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...core.child import answer_parent, ask_python
from ...core.types import Record
from ...recipe.recipe import Recipe
from .machine import read_peak_memory, read_resident_memory, reset_peak_memory

if TYPE_CHECKING:
    from ...run.setup import Measuring
    from ...scoring.tasks._examples import Examples

T = TypeVar("T")


def measure_in_child(recipe: Recipe) -> dict[str, dict[str, int]]:
    """Load the base and take the step with the longest batch in a new process. Return {moment: {"before", "peak"}} in bytes.

    ZoedgeError: what the run itself would raise. Nothing remains on the disk but the quantised weights in the cache.
    """
    measured: dict[str, dict[str, int]] = ask_python(
        ["-m", __name__], "--measure: the process that took the step", recipe.resolved()
    )
    return measured


def measure_own_memory(recipe: Recipe) -> dict[str, dict[str, int]]:
    """Do in this process what `measure_in_child` does in a new one, and return the same."""
    import torch

    from ...core import engine
    from ...run import setup
    from ...scoring.models import loading
    from ...scoring.sources import resolve
    from .work import find_longest_step

    cuda = loading.resolve_device(recipe.model).type == "cuda"
    moments: dict[str, dict[str, int]] = {}

    def moment(name: str, act: Callable[[], T]) -> T:
        """Note the memory before and at the peak of a call, and return what it returned."""
        reset_peak_memory()
        before = torch.cuda.memory_reserved() if cuda else read_resident_memory()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        result = act()
        most = torch.cuda.max_memory_reserved() if cuda else read_peak_memory()
        # Linux counts a process's pages in batches, so that the peak it reports may lag behind what is resident
        moments[name] = {"before": before, "peak": max(before, most)}
        return result

    from ...scoring.models.libraries import import_bitsandbytes

    import_bitsandbytes()  # now, as a run imports it, so that its memory is not counted as the base's
    import transformers  # noqa: F401

    loading.auto_class(resolve.resolve_model(recipe.model.source, recipe.model.revision))
    moment("loading", lambda: loading.prepare_folder(recipe.model))
    measuring = moment("base", lambda: setup.Measuring.build(recipe))
    with tempfile.TemporaryDirectory() as folder:
        if measuring.base.cut:
            # the longest sequences come first
            batches = measuring.base.cache_trunk(measuring.texts.train, Path(folder))
            moment("lower layers", lambda: next(batches))
            for _ in batches:
                pass
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        run, at = measuring.run(EmptyLog()), find_longest_step(recipe, measuring.texts.train)  # type: ignore[arg-type]

        def step() -> None:
            for seq in range(2):
                run.log.next_seq = seq  # type: ignore[misc]
                engine.advance(run, engine.measure(run, at)._replace(flags=0))

        moment("step", step)
        for examples in (measuring.texts.valid, measuring.texts.test):
            if examples is not None and len(examples):
                few = examples.head(len(examples))
                moment("look", lambda: score_longest_batch(measuring, few))
    return moments


def score_longest_batch(measuring: Measuring, examples: Examples) -> None:
    """Score the longest batch of some held-out rows."""
    from ...scoring.tasks._training import evaluation_batches

    longest = list(evaluation_batches(examples))[-1]
    measuring.task.score(measuring.base, examples.collate(longest), 1)


class EmptyLog:
    """A log without steps, with what estimators and rules may ask of a log."""

    writable, next_seq = True, 0

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Record]:
        return iter(())


def answer_with_memory(table: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Measure a step in the child of `measure_in_child`, of a recipe that is given as its resolved table."""
    from ...recipe.check import check

    return measure_own_memory(check(table, {}, "the recipe"))


if __name__ == "__main__":
    sys.exit(answer_parent(answer_with_memory))
