"""`Run` holds everything that the loop needs, and makes the random directions of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from .memory import Journal
from .tasks import TrainingTask
from .types import (
    AbstractEstimator,
    AbstractNoise,
    AbstractRule,
    Direction,
    Key,
    Leaf,
    RuleSlots,
    Space,
)
from .watchdog import Watchdog


class Workers(Protocol):
    """The processes that share a run's steps (run/workers.py has the class)."""

    def means(
        self, points: int, rows: int, score: Callable[[slice, slice], tuple[list[list[float]], int]]
    ) -> tuple[list[float], int]:
        """Return the mean loss of each point, and flags. Each worker scores a share of points or rows; all hear the same."""

    def examples(
        self, points: int, rows: int, width: int, score: Callable[[slice], tuple[list[list[list[float]]], int]]
    ) -> tuple[list[list[list[float]]], int]:
        """Return `width` numbers of each example at each point, and flags. Each worker scores a share of the rows."""

    def agree(self, digest: bytes) -> bytes:
        """Return the digest if every worker has the same. ReplayError: another worker has another."""


@dataclass
class Run:
    """Everything that `play` needs. A replay has no task, model or estimator: these are for measuring."""

    seed: int
    steps: int
    log: Journal
    space: Space
    noise: AbstractNoise
    rule: AbstractRule
    estimator: AbstractEstimator | None = None
    task: TrainingTask | None = None
    model: Any = None
    rows: int = 2048  # token rows in one forward: more than about 2,000 are no faster, and need memory
    bits: Callable[[Key, Leaf], Any] | None = None  # random bits for leaves in 16-bit storage
    most: float = math.inf  # the most token rows in one forward that memory was seen to hold
    watchdog: Watchdog | None = None
    rewound: Callable[[], Any] | None = None  # puts the space back to its values at step 0
    workers: Workers | None = None  # the processes that share the steps
    slots: dict[str, RuleSlots] = field(default_factory=dict)
    _drawn: dict[tuple[int, int, str], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = {leaf.name: self.rule.slots(leaf, self.steps) for leaf in self.space.leaves()}

    def restart(self) -> None:
        """Put the space and the rule's slots back to before step 0."""
        assert self.rewound is not None
        self.rewound()
        self._drawn.clear()
        self.__post_init__()

    def direction(self, seq: int, query: int, leaf: Leaf) -> Direction | None:
        """Return the direction that a leaf is both probed and moved along; None: the noise leaves this leaf out."""
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
