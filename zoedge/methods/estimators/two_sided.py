"""g = (f(theta + eps z) - f(theta - eps z)) / (2 eps queries) a query: SPSA, MeZO Definition 1 (arXiv 2305.17333)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc
from annotated_types import Ge

from ...core.types import AbstractEstimator, Natural, Oracle, Positive, Record


@dataclass(frozen=True)
class TwoSided(AbstractEstimator):
    """The two-point estimate, and its options."""

    auto = ("eps",)
    slope = True  # g is the derivative along z
    eps: Annotated[Positive, Doc("The smoothing radius: how far from theta a loss is measured.")] = 3e-3
    queries: Annotated[Natural, Doc("Directions of a step (n-SPSA).")] = 1
    combine: Annotated[
        Literal["mean", "sum"],
        Doc(
            "mean averages the directions of a step; sum adds them, for directions that each have a block of their own."
        ),
    ] = "mean"
    clip: Annotated[
        float, Ge(0), Doc("The most that |f+ - f-| / (2 eps) counts (100 in QZO, arXiv 2505.13430). 0 sets no limit.")
    ] = 0.0

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        losses = oracle.losses([((sign * self.eps, q),) for q in range(self.queries) for sign in (1.0, -1.0)])
        share = self.queries if self.combine == "mean" else 1
        if not self.clip:
            return [(up - down) / (2.0 * self.eps * share) for up, down in zip(losses[::2], losses[1::2])]
        slopes = [(up - down) / (2.0 * self.eps) for up, down in zip(losses[::2], losses[1::2])]
        return [oracle.clip(slope, self.clip) / share for slope in slopes]
