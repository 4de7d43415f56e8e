"""This module has what all experiments need: a space of one array, a task made of a function, a run, and an outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..core.engine import play
from ..core.memory import MemoryLog
from ..core.run import Run
from ..core.tasks import TrainingTask
from ..core.types import (
    AbstractEstimator,
    AbstractNoise,
    AbstractRule,
    Leaf,
    Part,
    Record,
    Space,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray | Tensor


class Claim(NamedTuple):
    """A claim of a paper, compared with what was measured here."""

    paper: str  # what the paper says
    here: str  # what was measured here
    holds: bool  # whether the two agree


@dataclass
class Outcome:
    """What came of an experiment."""

    numbers: dict[str, Any]  # JSON
    claims: list[Claim]
    draw: Callable[[], Figure]  # makes a figure of the numbers


def create_axes(count: int, x: str, y: str, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Return (figure, `count` axes with labels), without a display. The ids in its SVG are the same in every run."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "zoedge"
    from matplotlib import pyplot

    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(max(7, 4.2 * columns), max(4.2, 3.4 * rows)), squeeze=False)
    for i, ax in enumerate(grid.flat):
        ax.set_visible(i < count)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel(x)
        ax.set_ylabel(y)
    figure.set_layout_engine("tight")
    return figure, list(grid.flat)[:count]


class ArraySpace(Space):
    """A space whose theta is one float64 array of numpy, or one tensor of torch.

    Attributes:
        value: [d].
        points: [copies, d], the points that are being visited.
    """

    lean = False
    width = 1 << 16

    def __init__(self, start: Array):
        self.value: Any = start.copy() if isinstance(start, np.ndarray) else start.clone()
        size = len(self.value)
        value = cast("Tensor", self.value)  # or numpy's array: the engine takes both
        self._leaves = [Leaf("theta", 0, value, (Part("theta", 0, (size,)),), size)]
        self.points: Any = None

    def leaves(self) -> Sequence[Leaf]:
        """Return the one leaf, which is the array."""
        return self._leaves

    def describe(self) -> dict[str, Any]:
        """Return the number of elements."""
        return {"size": len(self.value)}

    def add(self, leaf: Leaf, delta: Array, decay: float, bits: Callable[[Leaf], Tensor] | None = None) -> None:
        """Set the array to value * decay + delta."""
        self.value *= decay
        self.value += delta

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Any]]) -> Iterator[None]:
        """Put the points into `points` while the context is open."""
        values = [delta(self._leaves[0]) for delta in deltas]
        rows: list[Any] = [self.value if value is None else self.value + value for value in values]
        self.points = np.stack(rows) if isinstance(self.value, np.ndarray) else torch.stack(rows)
        try:
            yield
        finally:
            self.points = None


class FunctionTask(NamedTuple):
    """A task made of a function f: [copies, d] -> [copies] losses."""

    f: Callable[..., Any]
    stochastic: bool = False  # f takes (points, step), and its losses are those of the step's batch

    def batch(self, step: int) -> StepBatch:
        """Return a batch that says only which step it is of."""
        return StepBatch(step)

    @property
    def option_count(self) -> int:
        return 0

    def score(self, model: ArraySpace, batch: StepBatch, copies: int) -> Array:
        """Return the losses [copies, 1] at the points that the space visits."""
        losses: Array = self.f(model.points, batch.check) if self.stochastic else self.f(model.points)
        return losses.reshape(copies, 1)


class StepBatch(NamedTuple):
    """The batch of a step of a function, whose `check` is the step."""

    check: int
    tokens: int = 0


def descend(
    space: ArraySpace,
    task: TrainingTask | FunctionTask,
    noise: AbstractNoise,
    estimator: AbstractEstimator,
    rule: AbstractRule,
    steps: int,
    seed: int,
) -> Iterator[Record]:
    """Run the engine's loop on a small problem. Each record is applied to `space` before it is yielded."""
    return play(Run(seed, steps, MemoryLog(), space, noise, rule, estimator, task, space), steps)  # type: ignore[arg-type]
