"""g = (f(theta + eps z) - f(theta)) / (eps queries) a query: forward differences, queries + 1 forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.types import AbstractEstimator, Natural, Oracle, Positive, Record


@dataclass(frozen=True)
class OneSided(AbstractEstimator):
    """eps: the smoothing radius. queries: directions a step, averaged; they share f(theta)."""

    auto = ("eps",)
    slope = True  # g is the derivative along z
    eps: Positive = 3e-3
    queries: Natural = 1

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        here, *there = oracle.losses([(), *(((self.eps, q),) for q in range(self.queries))])
        return [(f - here) / (self.eps * self.queries) for f in there]
