"""g = (f(theta + eps z[q]) - f(theta)) / (eps queries std) a query: one-sided, divided by the losses' spread (FZOO).

FZOO (arXiv 2506.09034) measures many Rademacher directions in one forward, and divides by the standard deviation (std) of
their losses, so that it takes long steps where the loss is flat. The deviation falls with eps: choose lr and eps together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc
from annotated_types import Ge

from ...core.types import AbstractEstimator, Oracle, Positive, Record


@dataclass(frozen=True)
class Fzoo(AbstractEstimator):
    """The estimator of FZOO, and its options."""

    auto = ("eps",)
    eps: Annotated[Positive, Doc("The smoothing radius: how far from theta a loss is measured.")] = 3e-3
    queries: Annotated[int, Ge(2), Doc("Directions of a step: at least two, or their losses have no spread.")] = 8

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        here, *there = oracle.losses([(), *(((self.eps, q),) for q in range(self.queries))])
        mean = math.fsum(there) / self.queries
        spread = math.sqrt(math.fsum((f - mean) ** 2 for f in there) / (self.queries - 1))
        if spread == 0.0:
            return [0.0] * self.queries
        return [(f - here) / (self.eps * self.queries * spread) for f in there]
