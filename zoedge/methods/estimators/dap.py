"""v = X - <g0, X> g0 / |g0|^2 + xi g0 / |g0|, xi = +-1: perturbations aligned with an estimated gradient g0 (DAP).

arXiv 2510.19975, section 4. `first` one-sided differences estimate g0; then `second` directions X are turned to align with
it. The projection is over everything that is trained. Every v is a sum of directions that can be drawn again, so its
factors go into the weights and no vector is stored. With as many forward passes, its total error is that of `noise: sphere`
unless the gradient is known: the lab's experiment `variance` shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc

from ...core.types import AbstractEstimator, Natural, Oracle, Positive, Record

MIN_RELATIVE_NORM = (
    1e-20  # |g0|^2 relative to the largest |g0|^2 that its differences allow: below it there is no direction
)


@dataclass(frozen=True)
class Dap(AbstractEstimator):
    """The estimator of DAP, and its options."""

    auto = ("eps",)
    eps: Annotated[Positive, Doc("The smoothing radius: how far from theta a loss is measured.")] = 3e-3
    first: Annotated[Natural, Doc("How many directions estimate g0.")] = 4
    second: Annotated[Natural, Doc("How many directions are aligned with g0.")] = 4
    combine: Annotated[
        Literal["average", "second"], Doc("Whether the two estimates are averaged, or the second is taken alone.")
    ] = "average"

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        a, b = self.first, self.second
        here, *there = oracle.losses([(), *(((self.eps, q),) for q in range(a))])
        g0 = [(f - here) / (self.eps * a) for f in there]
        if not all(map(math.isfinite, g0)):
            return [math.nan] * (a + b)
        gram = [[oracle.dot(i, j) if i <= j else 0.0 for j in range(a)] for i in range(a)]
        norm2 = math.fsum(g0[i] * g0[j] * gram[min(i, j)][max(i, j)] for i in range(a) for j in range(a))
        most = math.fsum(map(abs, g0)) ** 2 * max(gram[i][i] for i in range(a))
        kappas = [0.0] * b
        if norm2 > MIN_RELATIVE_NORM * most:
            for j in range(b):
                inner = math.fsum(c * oracle.dot(i, a + j) for i, c in enumerate(g0))
                kappas[j] = -inner / norm2 + oracle.sign(a + j) / math.sqrt(norm2)
        points = [((self.eps, a + j), *((self.eps * k * c, i) for i, c in enumerate(g0))) for j, k in enumerate(kappas)]
        e = [(f - here) / (self.eps * b) for f in oracle.losses(points)]
        along = math.fsum(x * k for x, k in zip(e, kappas))
        half = 0.5 if self.combine == "average" else 1.0
        keep = 0.5 if self.combine == "average" else 0.0
        return [(keep + half * along) * c for c in g0] + [half * x for x in e]
