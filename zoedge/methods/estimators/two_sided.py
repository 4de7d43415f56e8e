"""g = (f(theta + eps z) - f(theta - eps z)) / (2 eps queries) a query: SPSA, MeZO Definition 1 (arXiv 2305.17333)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from ...core.types import AbstractEstimator, Natural, Oracle, Positive, Record


@dataclass(frozen=True)
class TwoSided(AbstractEstimator):
    """eps: the smoothing radius. queries: directions a step, averaged (n-SPSA); combine: sum where each has a block.

    clip: the most that |f+ - f-| / (2 eps) counts (QZO, arXiv 2505.13430: 100); 0: all of it.
    """

    auto = ("eps",)
    slope = True  # g is the derivative along z
    eps: Positive = 3e-3
    queries: Natural = 1
    combine: Literal["mean", "sum"] = "mean"
    clip: Annotated[float, Ge(0)] = 0.0

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        losses = oracle.losses([((sign * self.eps, q),) for q in range(self.queries) for sign in (1.0, -1.0)])
        share = self.queries if self.combine == "mean" else 1
        if not self.clip:
            return [(up - down) / (2.0 * self.eps * share) for up, down in zip(losses[::2], losses[1::2])]
        slopes = [(up - down) / (2.0 * self.eps) for up, down in zip(losses[::2], losses[1::2])]
        return [oracle.clip(slope, self.clip) / share for slope in slopes]
