"""This module lets many runs share one loaded model: all start at the point of their seed, and see the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.engine import play
from ..core.memory import MemoryLog
from ..core.run import Run
from ..core.types import AbstractEstimator, AbstractNoise, AbstractRule, Record
from ..methods.noise.normal import Normal
from ..recipe.recipe import Recipe
from ..run.evaluate import Score, evaluate
from ..run.setup import Bench


class SharedModel:
    """The base, rows and space of a recipe. folder: where the outputs of the lower layers are kept, computed once."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.bench = recipe, Bench.build(recipe)
        texts = self.bench.texts
        for examples in (texts.train, texts.valid, texts.test, texts.train.head(recipe.eval.calibrate)):
            if examples is not None:
                for _ in self.bench.base.keep(examples, folder):
                    pass

    @property
    def trained(self) -> int:
        """The number of trained elements."""
        return len(self.bench.space.value)

    def trial(
        self, noise: AbstractNoise, estimator: AbstractEstimator, rule: AbstractRule, steps: int, seed: int
    ) -> Iterator[Record]:
        """Yield the records of a run from the start; the space stays where the run ends.

        Initial values depend on the seed alone, not on the noise.
        """
        recipe, space = self.recipe, self.bench.space
        start: Any = recipe.space.blank(space.describe(), seed, Normal())
        space.value.copy_(start.value)
        task = recipe.task.over(self.bench.texts.train, seed, recipe.train.batch)
        yield from play(Run(seed, steps, MemoryLog(), space, noise, rule, estimator, task, self.bench.base), steps)  # type: ignore[arg-type]

    def score(self) -> Score:
        """Return the score of the test rows where the last trial ended."""
        b = self.bench
        return evaluate(b.space, b.task, b.base, b.texts.test, self.recipe.eval.calibrate)
