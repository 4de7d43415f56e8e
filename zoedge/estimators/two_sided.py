"""g = (f(theta + eps z) - f(theta - eps z)) / (2 eps queries) a query: SPSA, MeZO Definition 1 (arXiv 2305.17333)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..types import Natural, Oracle, Positive, Record


@dataclass(frozen=True)
class TwoSided:
    """eps: the smoothing radius. queries: directions a step, averaged (n-SPSA); combine: sum where each has a block."""

    eps: Positive = 3e-3
    queries: Natural = 1
    combine: Literal["mean", "sum"] = "mean"

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        losses = oracle.losses([((sign * self.eps, q),) for q in range(self.queries) for sign in (1.0, -1.0)])
        share = self.queries if self.combine == "mean" else 1
        return [(up - down) / (2.0 * self.eps * share) for up, down in zip(losses[::2], losses[1::2])]
