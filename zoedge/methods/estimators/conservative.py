"""theta <- argmin of f at {theta, theta - lr g z, theta + lr g z}, g two-sided (ZO-SGD-Cons, arXiv 2402.11592).

A step measures five losses: two for g, then those of the three candidates. All are measured at points around theta, which
itself does not move before the winner is known. If losses are equal or not a number, theta stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc

from ...core.types import AbstractEstimator, Oracle, Positive, Record


@dataclass(frozen=True)
class Conservative(AbstractEstimator):
    """The conservative estimator, and its option."""

    only_with = {"rule": ("sgd",)}  # g is a chosen step, not an estimate
    auto = ("eps",)
    eps: Annotated[Positive, Doc("The smoothing radius of the estimate that sizes the two trial steps.")] = 3e-3

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        up, down = oracle.losses([((self.eps, 0),), ((-self.eps, 0),)])
        g = (up - down) / (2.0 * self.eps)
        if not math.isfinite(g):
            return [g]
        here, ahead, behind = oracle.losses([(), ((-oracle.lr * g, 0),), ((oracle.lr * g, 0),)])
        best, chosen = here, 0.0
        for loss, weight in ((ahead, g), (behind, -g)):
            if loss < best:
                best, chosen = loss, weight
        return [chosen]
