"""g = (f(theta + eps z) - f(theta)) / (eps queries) a query: forward differences, queries + 1 forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc

from ...core.types import AbstractEstimator, Natural, Oracle, Positive, Record


@dataclass(frozen=True)
class OneSided(AbstractEstimator):
    """The forward difference, and its options."""

    auto = ("eps",)
    slope = True  # g is the derivative along z
    eps: Annotated[Positive, Doc("The smoothing radius: how far from theta a loss is measured.")] = 3e-3
    queries: Annotated[Natural, Doc("Directions of a step. Their estimates are averaged; they share f(theta).")] = 1

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        here, *there = oracle.losses([(), *(((self.eps, q),) for q in range(self.queries))])
        return [(f - here) / (self.eps * self.queries) for f in there]
