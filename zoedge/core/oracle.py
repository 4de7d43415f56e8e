"""The oracle of one step: it turns the points that an estimator asks about into mean losses of the step's batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, cast

from ..errors import DataError, is_out_of_memory
from .exact import mean
from .run import Run
from .tasks import Batch, OptionTask, Outputs, TrainingTask
from .types import (
    CLIPPED,
    MICRO_BATCHED,
    AbstractEstimator,
    AbstractRule,
    Key,
    Leaf,
    Perturbation,
    Point,
)

# (model, batch, copies) -> [copies, B] or [copies, B, C], a tensor or an array
Measure = Callable[[Any, Any, int], Any]


@dataclass
class StepOracle:
    """The oracle of one step: it turns points into losses of the step's batch, as many points in a forward pass as fit.

    Attributes:
        asked: every loss that was given so far, in the order of asking.
        flags: what befell the step (types.CLIPPED, types.MICRO_BATCHED).
    """

    run: Run
    batch: Any
    step: int
    steps: int
    seq: int
    lr: float = 0.0
    asked: list[float] = field(default_factory=list)
    flags: int = 0
    _gains: dict[int, float] = field(default_factory=dict)

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Return the mean loss of the batch at each point."""
        if (workers := self.run.workers) is None:
            found = [mean(row) for row in self._scored(points, self.batch, self._task.score)]
        else:
            found, flags = workers.means(
                len(points), len(self.batch), lambda some, rows: (self._share(points[some], rows), self.flags)
            )
            self.flags |= flags
        self.asked += found
        return found

    def each(self, points: Sequence[Point]) -> list[list[float]]:
        """Return the loss of each example of the batch at each point, [points][B]."""

        def measure(model: Any, batch: Any, copies: int) -> Any:
            return self._task.score(model, batch, copies)[..., None]

        losses = [[loss for (loss,) in row] for row in self._examples(points, measure, 1)]
        self.asked += [mean(row) for row in losses]
        return losses

    def outputs(self, points: Sequence[Point]) -> Outputs | None:
        """Return the options' logits and the right options of the batch; None: the task has no options."""
        if not (count := self._task.option_count):
            return None
        task = cast(OptionTask, self._task)
        labels = task.right_options(self.batch)
        logits = self._examples(points, task.outputs, count)
        self.asked += [mean([cross_entropy(row, label) for row, label in zip(rows, labels)]) for rows in logits]
        return Outputs(logits, labels)

    def slopes(self, queries: int) -> list[float]:
        """Return the derivative of the batch's mean loss along each query's direction."""
        pairs = self._examples([((1.0, q),) for q in range(queries)], None, 2)
        self.asked.append(mean([value for value, _ in pairs[0]]))
        return [
            mean([slope for _, slope in row]) if all(map(math.isfinite, chain(*row))) else math.nan for row in pairs
        ]

    @property
    def _task(self) -> TrainingTask:
        assert self.run.task is not None
        return self.run.task

    def _examples(self, points: Sequence[Point], measure: Measure | None, width: int) -> list[list[list[float]]]:
        """Return `width` numbers of each example at each point.

        measure: the method of the task that gives them; None: the loss at theta, and its derivative along the point's shift.
        """
        if (workers := self.run.workers) is None:
            return self._scored(points, self.batch, measure)

        def score(rows: slice) -> tuple[list[list[list[float]]], int]:
            return self._scored(points, self.batch.slice_examples(rows.start, rows.stop), measure), self.flags

        values, flags = workers.examples(len(points), len(self.batch), width, score)
        self.flags |= flags
        return values

    def _share(self, points: Sequence[Point], rows: slice) -> list[list[float]]:
        whole = rows.start == 0 and rows.stop == len(self.batch)
        batch = self.batch if whole else self.batch.slice_examples(rows.start, rows.stop)
        return self._scored(points, batch, self._task.score)

    def _scored(self, points: Sequence[Point], batch: Batch, measure: Measure | None) -> list[Any]:
        """Return what `measure` says at each point, an item an example, with as many points in a pass as memory holds."""
        tokens = max(1, batch.tokens) * (1 if measure else 2)  # a tangent needs as much room as a point
        held = max(1, min(self.run.space.width, self.run.rows // tokens))
        found: list[Any] = []
        while left := points[len(found) :][:held]:
            some, parts = left, 1
            if len(left) * tokens > self.run.most:
                self.flags |= MICRO_BATCHED
                some = left[: max(1, int(self.run.most // tokens))]
                parts = math.ceil(tokens / self.run.most)
            try:
                found += self._forward(some, batch, parts, measure)
                continue
            except (MemoryError, RuntimeError) as e:
                if not is_out_of_memory(e):
                    raise
            # outside of `except`, whose traceback holds what the forward had allocated
            if len(some) == 1 and parts >= len(batch):
                raise DataError(
                    f"Out of memory in a forward of one example ({tokens // len(batch):,} token rows). The log is "
                    "safe. Lower data.max_length, set model.quantization: nf4, or free memory, and go on."
                )
            self.run.most = len(some) * tokens / parts / 2
        return found

    def _forward(self, points: Sequence[Point], batch: Batch, parts: int, measure: Measure | None) -> list[Any]:
        """Return what `measure` says at each point, an item an example, by one pass for each of `parts` parts."""
        size = math.ceil(len(batch) / parts) if parts > 1 else 0
        pieces = [batch.slice_examples(i, i + size) for i in range(0, len(batch), size)] if size else [batch]
        model, space, shifts = self.run.model, self.run.space, [self._shift(point) for point in points]
        if measure is None:
            with model.differentiate() as split, space.visit_duals(shifts):
                scores = [split(self._task.score(model, piece, len(points))).tolist() for piece in pieces]
        else:
            with space.visit(shifts):
                scores = [measure(model, piece, len(points)).tolist() for piece in pieces]
        return [list(chain(*row)) for row in zip(*scores)]

    def dot(self, a: int, b: int) -> float:
        """Return the inner product of two queries' directions over all trained elements."""
        return self.gain(a) * self.gain(b) * self._inner(a, b)

    def sign(self, query: int) -> float:
        """Return -1 or +1, drawn by a hash of (seed, seq, query): the loop knows no kind of noise that could draw it."""
        name = f"{self.run.seed} {self.seq} {query}".encode()
        return 1.0 if hashlib.sha256(name).digest()[0] & 1 else -1.0

    def clip(self, g: float, limit: float) -> float:
        """Return g with its size limited. A limit that bites is noted in the step's flags."""
        if limit < abs(g) < math.inf:  # an infinite g is no large one: it is a loss that is not finite
            self.flags |= CLIPPED
            return math.copysign(limit, g)
        return g

    def gain(self, query: int) -> float:
        """Return the factor of a query's noise, in points and in the weights that are logged."""
        if query not in self._gains:
            elements = sum(len(leaf.value) for leaf in self.run.space.leaves())
            self._gains[query] = self.run.noise.gain(elements, partial(self._inner, query, query))
        return self._gains[query]

    def _inner(self, a: int, b: int) -> float:
        pairs = ((self.run.direction(self.seq, q, leaf) for q in (a, b)) for leaf in self.run.space.leaves())
        return math.fsum(float((x.z * y.z).sum(dtype=x.z.dtype)) for x, y in pairs if x is not None and y is not None)

    def _shift(self, point: Point) -> Perturbation:
        delta, rule = partial(self._delta, point), self.run.rule
        if len(point) != 1 or rule.draws != 1 or type(rule).direction is not AbstractRule.direction:
            return Perturbation(delta)
        ((c, query),) = point
        return Perturbation(delta, (self.run.noise, Key(self.run.seed, self.seq, query), c * self.gain(query)))

    def _delta(self, point: Point, leaf: Leaf) -> Any:
        delta = None
        for c, query in point:
            if (d := self.run.direction(self.seq, query, leaf)) is not None:
                part = d.z * (c * self.gain(query))
                delta = part if delta is None else delta + part
        return delta


def cross_entropy(logits: Sequence[float], label: int) -> float:
    """Return -log softmax(logits)[label]."""
    most = max(logits)
    return most + math.log(math.fsum(math.exp(x - most) for x in logits)) - logits[label]


def count_evaluations(estimator: AbstractEstimator, steps: int) -> tuple[int, int]:
    """Return how many weights and forward passes a step has, by running the estimator on an oracle whose losses are 0."""

    class Zeros:
        step, lr, asked = 0, 1.0, 0

        def dot(self, a: int, b: int) -> float:
            return float(a == b)

        def sign(self, query: int) -> float:
            return 1.0

        def clip(self, g: float, limit: float) -> float:
            return g

        def losses(self, points: Sequence[Point]) -> list[float]:
            self.asked += len(points)
            return [0.0] * len(points)

        def each(self, points: Sequence[Point]) -> list[list[float]]:
            return [[loss] for loss in self.losses(points)]

        def outputs(self, points: Sequence[Point]) -> None:
            return None

        def slopes(self, queries: int) -> list[float]:
            self.asked += 2 * queries  # a value and its tangent cost two forward passes
            return [0.0] * queries

    zeros: Any = Zeros()
    zeros.steps = steps
    return len(estimator.measure(zeros, [])), zeros.asked


def slot_capacity(estimator: AbstractEstimator, steps: int) -> int:
    """Return how many directions a log slot must hold: each has room for a weight and two losses; two at least."""
    weights, passes = count_evaluations(estimator, steps)
    return max(2, weights, -(-passes // 2))
