"""This module lets many runs share one loaded model: all start at the point of their seed, and see the same batches."""

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
from ..run.replay import copy_values
from ..run.setup import Measuring


class SharedModel:
    """The base, rows and space of a recipe. folder: where the outputs of the lower layers are kept, computed once."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.measuring = recipe, Measuring.build(recipe)
        texts = self.measuring.texts
        for examples in (texts.train, texts.valid, texts.test):
            if examples is not None:
                for _ in self.measuring.base.cache_trunk(examples, folder):
                    pass

    @property
    def trained(self) -> int:
        """The number of trained elements."""
        return sum(len(leaf.value) for leaf in self.measuring.space.leaves())

    def trial(
        self, noise: AbstractNoise, estimator: AbstractEstimator, rule: AbstractRule, steps: int, seed: int
    ) -> Iterator[Record]:
        """Yield the records of a run from the start; the space stays where the run ends.

        Initial values depend on the seed alone, not on the noise.
        """
        recipe, space = self.recipe, self.measuring.space
        copy_values(space, recipe.space.blank(space.describe(), seed, Normal()))
        task = recipe.task.make_training(self.measuring.texts.train, seed, recipe.train.batch)
        yield from play(Run(seed, steps, MemoryLog(), space, noise, rule, estimator, task, self.measuring.base), steps)

    def score(self) -> Score:
        """Return the score of the test rows where the last trial ended."""
        b = self.measuring
        assert b.texts.test is not None, "the lab's recipes have test rows"
        return evaluate(b.space, b.task, b.base, b.texts.test, self.recipe.eval.calibrate)
