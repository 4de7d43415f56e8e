"""The one loop. Training, resume and replay are `play`: where the log has a record it is applied, where it ends one is
measured, and after that both go the same way. A second function that changes theta would be a bug.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from ..errors import DataError, DivergedError, exhausted
from .storage import point
from .types import (
    CLIPPED,
    HALVES,
    ROUND,
    SKIPPED,
    SPLIT,
    AbstractNoise,
    AbstractRule,
    Batch,
    Direction,
    Estimator,
    Journal,
    Key,
    Leaf,
    Part,
    Point,
    Record,
    Shift,
    Slots,
    Space,
    Task,
    Workers,
    bits16,
    mean,
)
from .watchdog import PATIENCE, Watchdog, limit, promise, skips

LARGEST = 2.0**64  # a weight beyond it is no estimate, and would leave float32


@dataclass
class Run:
    """Everything that `play` needs. task, model and estimator are for measuring: replay has none."""

    seed: int
    steps: int
    log: Journal
    space: Space
    noise: AbstractNoise
    rule: AbstractRule
    estimator: Estimator | None = None
    task: Task | None = None
    model: Any = None
    rows: int = 2048  # token rows in one forward: more than ~2,000 gain nothing and cost memory
    bits: Callable[[Key, Leaf], Any] | None = None  # random bits for leaves in 16-bit storage
    most: float = math.inf  # token rows in one forward that memory has been found to hold
    watchdog: Watchdog | None = None
    rewound: Callable[[], Any] | None = None  # puts the space to its value at step 0
    workers: Workers | None = None  # the processes that share the steps
    slots: dict[str, Slots] = field(default_factory=dict)
    _drawn: dict[tuple[int, int, str], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = {leaf.name: self.rule.slots(leaf, self.steps) for leaf in self.space.leaves()}

    def restart(self) -> None:
        """Space and slots as before step 0."""
        assert self.rewound is not None
        self.rewound()
        self._drawn.clear()
        self.__post_init__()

    def direction(self, seq: int, query: int, leaf: Leaf) -> Direction | None:
        """What is probed and what is moved along: one function for both. None: the leaf rests."""
        if self._drawn and next(iter(self._drawn))[0] != seq:
            self._drawn.clear()
        if (place := (seq, query, leaf.name)) not in self._drawn:
            if self.space.lean and self._drawn and next(iter(self._drawn))[2] != leaf.name:
                self._drawn.clear()  # a step's directions would be another copy of the model: one leaf's are kept
            keys = (Key(self.seed, seq, query * self.rule.draws + i) for i in range(self.rule.draws))
            noise = tuple(z for key in keys if (z := self.noise.draw(key, leaf)) is not None)
            z = self.rule.direction(self.slots[leaf.name], *noise) if noise else None
            self._drawn[place] = None if z is None else Direction(z, noise)
        return self._drawn[place]


@dataclass
class Scorer:
    """The oracle of one step: turns points into losses of the step's batch, as many points in a forward as fit."""

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
        if (workers := self.run.workers) is None:
            found = [mean(row) for row in self._scored(points, self.batch)]
        else:
            found, flags = workers.means(
                len(points), len(self.batch), lambda some, rows: (self._share(points[some], rows), self.flags)
            )
            self.flags |= flags
        self.asked += found
        return found

    def _share(self, points: Sequence[Point], rows: slice) -> list[list[float]]:
        whole = rows.start == 0 and rows.stop == len(self.batch)
        return self._scored(points, self.batch if whole else self.batch.part(rows.start, rows.stop))

    def _scored(self, points: Sequence[Point], batch: Batch) -> list[list[float]]:
        """A point, its examples' losses: as many points in a forward as the space and memory hold."""
        tokens = max(1, batch.tokens)
        held = max(1, min(self.run.space.width, self.run.rows // tokens))
        found: list[list[float]] = []
        while left := points[len(found) :][:held]:
            some, parts = left, 1
            if len(left) * tokens > self.run.most:
                self.flags |= SPLIT
                some = left[: max(1, int(self.run.most // tokens))]
                parts = math.ceil(tokens / self.run.most)
            try:
                found += self._forward(some, batch, parts)
                continue
            except (MemoryError, RuntimeError) as e:
                if not exhausted(e):
                    raise
            # outside of `except`, whose traceback holds what the forward had allocated
            if len(some) == 1 and parts >= len(batch):
                raise DataError(
                    f"Out of memory in a forward of one example ({tokens // len(batch):,} token rows). The log is "
                    "safe. Lower data.max_length, set model.quantization: nf4, or free memory, and go on."
                )
            self.run.most = len(some) * tokens / parts / 2
        return found

    def _forward(self, points: Sequence[Point], batch: Batch, parts: int) -> list[list[float]]:
        """The examples' losses at some points, in one forward for each of so many parts of the batch."""
        task, size = self.run.task, math.ceil(len(batch) / parts) if parts > 1 else 0
        assert task is not None
        pieces = [batch.part(i, i + size) for i in range(0, len(batch), size)] if size else [batch]
        with self.run.space.visit([self._shift(point) for point in points]):
            scores = [task.score(self.run.model, piece, len(points)).tolist() for piece in pieces]
        return [list(chain(*row)) for row in zip(*scores)]

    def dot(self, a: int, b: int) -> float:
        return self.gain(a) * self.gain(b) * self._inner(a, b)

    def sign(self, query: int) -> float:
        """The last bit of a hash: Philox is the noise's, and the loop knows no kind of noise."""
        name = f"{self.run.seed} {self.seq} {query}".encode()
        return 1.0 if hashlib.sha256(name).digest()[0] & 1 else -1.0

    def clip(self, g: float, limit: float) -> float:
        if limit < abs(g) < math.inf:  # a loss that is not finite is no large one
            self.flags |= CLIPPED
            return math.copysign(limit, g)
        return g

    def gain(self, query: int) -> float:
        """What the noise of a query is multiplied by: in points, and in the weights that are logged."""
        if query not in self._gains:
            elements = sum(len(leaf.value) for leaf in self.run.space.leaves())
            self._gains[query] = self.run.noise.gain(elements, partial(self._inner, query, query))
        return self._gains[query]

    def _inner(self, a: int, b: int) -> float:
        pairs = ((self.run.direction(self.seq, q, leaf) for q in (a, b)) for leaf in self.run.space.leaves())
        return math.fsum(float((x.z * y.z).sum(dtype=x.z.dtype)) for x, y in pairs if x is not None and y is not None)

    def _shift(self, point: Point) -> Shift:
        delta, rule = partial(self._delta, point), self.run.rule
        if len(point) != 1 or rule.draws != 1 or type(rule).direction is not AbstractRule.direction:
            return Shift(delta)
        ((c, query),) = point
        return Shift(delta, (self.run.noise, Key(self.run.seed, self.seq, query), c * self.gain(query)))

    def _delta(self, point: Point, leaf: Leaf) -> Any:
        delta = None
        for c, query in point:
            if (d := self.run.direction(self.seq, query, leaf)) is not None:
                part = d.z * (c * self.gain(query))
                delta = part if delta is None else delta + part
        return delta


def measure(run: Run, step: int) -> Record:
    """The half that needs the model: a step's record. Changes nothing."""
    assert run.task is not None and run.estimator is not None
    batch = run.task.batch(step)
    lr = run.rule.rate(step, run.steps)
    if run.watchdog is not None:
        lr = bits16(lr / 2**run.log.state.rewinds)
    oracle = Scorer(run, batch, step, run.steps, run.log.next_seq, lr)
    g = run.estimator.measure(oracle, run.log)  # type: ignore[arg-type]
    try:
        weights = tuple(bits16(w * oracle.gain(query)) for query, w in enumerate(g))
        if run.watchdog is not None:
            options, loss = run.watchdog.options, min(filter(math.isfinite, oracle.asked), default=math.inf)
            most = promise(options.trust, loss, lr)
            limits = (min(most, limit(options.clip, run.log, step, q)) for q in range(len(weights)))
            weights = tuple(bits16(oracle.clip(w, x)) for w, x in zip(weights, limits))
    except (ValueError, OverflowError):
        weights = (math.inf,)
    if any(abs(w) > LARGEST for w in weights):
        weights, oracle.flags = (0.0,) * len(g), oracle.flags & SPLIT | SKIPPED
    return Record(step, oracle.seq, lr, weights, tuple(oracle.asked), oracle.flags, batch.check, run.rule.decay(lr))


def advance(run: Run, record: Record) -> None:
    """The half that needs only the log: theta and slots after a record."""
    if record.flags & SKIPPED:
        return
    for leaf in run.space.leaves():
        found = [run.direction(record.seq, query, leaf) for query in range(len(record.g))]
        here = record._replace(g=tuple(g for d, g in zip(found, record.g) if d is not None))
        if here.g:  # else the leaf rests
            delta = run.rule.update(run.slots[leaf.name], [d for d in found if d is not None], here)
            point("apply.mid")
            if leaf.storage in HALVES:
                assert run.bits is not None
                bits = partial(run.bits, Key(run.seed, record.seq, 0, ROUND))
                run.space.add(leaf, delta, record.decay, bits)
            else:
                run.space.add(leaf, delta, record.decay)


def play(run: Run, until: int, start: int = 0) -> Iterator[Record]:
    """Train, resume and replay: every record of start .. until - 1 in order, each applied before it is yielded.

    After a rewind, the records from its target on follow: those before it were applied again, by this very loop.
    """
    step, trains = start, run.estimator is not None and run.log.writable
    while True:
        here = step == len(run.log)
        if here and trains and (back := judge(run)) is not None:
            run.log.rewind(back)
            run.restart()
            for _ in play(run, back):
                pass
            step = back
            continue
        if step >= until:
            return
        record = run.log.append(measure(run, step)) if here else run.log[step]
        advance(run, record)
        run.log.seal(step + 1, partial(agreed, run))
        yield record
        step += 1


def judge(run: Run) -> int | None:
    """The step that the run must go back to; None: go on. DivergedError: it went back often enough, or may not."""
    done, lost = len(run.log), skips(run.log)
    over = run.watchdog.look(run.log) if run.watchdog is not None else 0
    if lost < PATIENCE and (run.watchdog is None or over < run.watchdog.options.patience):
        return None
    if run.watchdog is not None and run.log.state.rewinds < run.watchdog.options.rewinds:
        return run.watchdog.target(run.log, max(lost, over))
    what = "not finite" if lost >= min(max(over, 1), PATIENCE) else "far over its best"
    tried = f", after {run.log.state.rewinds} rewinds with half the lr" if run.watchdog is not None else ""
    radius = "rho" if hasattr(run.estimator, "rho") else "eps"
    raise DivergedError(
        f"The loss is {what} at steps {done - max(lost, over)}..{done - 1}{tried}. The log is safe up to there. Lower "
        f"rule.lr or estimator.{radius}, or set model.compute_dtype: fp32, and start a new run."
    )


def agreed(run: Run) -> bytes:
    """The state's digest, which every worker has arrived at."""
    found = digest(run.space)
    return found if run.workers is None else run.workers.agree(found)


def digest(space: Space) -> bytes:
    """SHA-256 over the trained values' bytes as they are stored, in manifest order."""
    whole = hashlib.sha256()
    for leaf in space.leaves():
        whole.update(host(leaf.value))
    return whole.digest()


def demand(estimator: Estimator, steps: int) -> tuple[int, int]:
    """(weights, forward passes) of a step, found by asking the estimator on an oracle of zeros."""

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

    zeros: Any = Zeros()
    zeros.steps = steps
    return len(estimator.measure(zeros, [])), zeros.asked


def capacity(estimator: Estimator, steps: int) -> int:
    """Directions that a log slot must hold: each has room for a weight and two losses. The smallest slot holds two."""
    weights, passes = demand(estimator, steps)
    return max(2, weights, -(-passes // 2))


def selftest(noise: AbstractNoise, rule: AbstractRule, zeros: Any) -> bytes:
    """SHA-256 of golden noise and golden updates, computed where `zeros` ([1024] float32) lies.

    A device whose digest is another than the header's would not replay the same bits.
    """
    leaf = Leaf("selftest", 128, zeros, (Part("selftest", 128, (32, 32)),), 1280)
    whole, slots, value = hashlib.sha256(), rule.slots(leaf, 3), zeros
    for step in range(3):
        drawn = [noise.draw(Key(0x5EED, step, i), leaf) for i in range(rule.draws)]
        noises = tuple(z for z in drawn if z is not None)
        if not noises:
            continue
        for z in noises:
            whole.update(host(z))
        along = Direction(rule.direction(slots, *noises), noises)
        record = Record(step, step, bits16(1e-3), (bits16((-1) ** step * 0.7310585 / (step + 1)),), ())
        value = value * rule.decay(record.lr) + rule.update(slots, [along], record)
        whole.update(host(value))
    return whole.digest()


def host(array: Any) -> memoryview:
    """The bytes of a tensor or an array. numpy has no bfloat16: 16-bit tensors are seen as integers."""
    if hasattr(array, "cpu"):
        array = array.cpu()
        if array.itemsize == 2:
            from torch import int16

            array = array.view(int16)
        array = array.numpy()
    return memoryview(array).cast("B")
