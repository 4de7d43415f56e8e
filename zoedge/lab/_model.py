"""One loaded model for many runs: each starts at the same point of its seed and sees the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..core.engine import play
from ..core.memory import MemoryLog
from ..core.run import Run
from ..core.types import AbstractEstimator, AbstractNoise, AbstractRule, Record
from ..methods.noise.normal import Normal
from ..recipe.recipe import Recipe
from ..run.evaluate import Score, evaluate
from ..run.setup import Measuring


class SharedModel:
    """A recipe's base, rows and space. folder: for the lower layers' outputs, computed once."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.bench = recipe, Measuring.build(recipe)
        texts = self.bench.texts
        for examples in (texts.train, texts.valid, texts.test, texts.train.head(recipe.eval.calibrate)):
            if examples is not None:
                for _ in self.bench.base.keep(examples, folder):
                    pass

    @property
    def trained(self) -> int:
        return len(self.bench.space.value)

    def trial(
        self, noise: AbstractNoise, estimator: AbstractEstimator, rule: AbstractRule, steps: int, seed: int
    ) -> Iterator[Record]:
        """A run from the start; the space stays where it ends. Initial values are the seed's, whatever the noise."""
        recipe, space = self.recipe, self.bench.space
        space.value.copy_(recipe.space.blank(space.describe(), seed, Normal()).value)
        task = recipe.task.over(self.bench.texts.train, seed, recipe.train.batch)
        yield from play(Run(seed, steps, MemoryLog(), space, noise, rule, estimator, task, self.bench.base), steps)  # type: ignore[arg-type]

    def score(self) -> Score:
        """On the test rows, where the last trial ended."""
        b = self.bench
        return evaluate(b.space, b.task, b.base, b.texts.test, self.recipe.eval.calibrate)
