"""What the experiments stand on: a space of one plain array, a task from a function, a log in memory, an outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..core.engine import play
from ..core.memory import MemoryLog
from ..core.run import Run
from ..core.types import AbstractEstimator, AbstractNoise, AbstractRule, Leaf, Part, Record, Space


class Claim(NamedTuple):
    """What the paper says, what was measured here, and whether that agrees."""

    paper: str
    here: str
    holds: bool


@dataclass
class Outcome:
    """numbers: JSON. draw: makes a matplotlib figure of them."""

    numbers: dict[str, Any]
    claims: list[Claim]
    draw: Callable[[], Any]


def create_axes(count: int, x: str, y: str, columns: int = 3) -> tuple[Any, list[Any]]:
    """(figure, `count` axes with labels) without a display; ids in the SVG are the same in every run."""
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
    """theta is one 1-D numpy float64 array (or torch tensor); `points` are those being visited, [copies, d]."""

    lean = False
    width = 1 << 16

    def __init__(self, start: Any):
        value: Any = start.copy() if isinstance(start, np.ndarray) else start.clone()
        self.value = value
        size = len(self.value)
        self._leaves = [Leaf("theta", 0, value, (Part("theta", 0, (size,)),), size)]
        self.points: Any = None

    def leaves(self) -> Sequence[Leaf]:
        return self._leaves

    def describe(self) -> dict[str, Any]:
        return {"size": len(self.value)}

    def add(self, leaf: Leaf, delta: Any, decay: float, bits: Any = None) -> None:
        self.value *= decay
        self.value += delta

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Any]]) -> Iterator[None]:
        found = [make(self._leaves[0]) for make in deltas]
        rows: list[Any] = [self.value if delta is None else self.value + delta for delta in found]
        self.points = np.stack(rows) if isinstance(self.value, np.ndarray) else torch.stack(rows)
        try:
            yield
        finally:
            self.points = None


class FunctionTask(NamedTuple):
    """A task from f: [copies, d] -> [copies] losses (or, with batches, f(points, step)); every step sees all of it."""

    f: Callable[..., Any]
    stochastic: bool = False

    def batch(self, step: int) -> Any:
        return _Batch(step)

    def score(self, model: ArraySpace, batch: Any, copies: int) -> Any:
        losses = self.f(model.points, batch.check) if self.stochastic else self.f(model.points)
        return losses.reshape(copies, 1)


class _Batch(NamedTuple):
    check: int
    tokens: int = 0


def descend(
    space: ArraySpace,
    task: Any,
    noise: AbstractNoise,
    estimator: AbstractEstimator,
    rule: AbstractRule,
    steps: int,
    seed: int,
) -> Iterator[Record]:
    """The engine's loop on a small problem: each record is applied to `space` before it is yielded."""
    return play(Run(seed, steps, MemoryLog(), space, noise, rule, estimator, task, space), steps)
