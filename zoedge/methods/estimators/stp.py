"""theta <- argmin of f at {theta, theta + a s, theta - a s}: stochastic three points (Bergou et al. 2020).

a is the rule's step size (choose rule: sgd with schedule: cosine), so the weight g is -1, +1 or 0. A step takes three
forward passes, and there is no smoothing radius. If losses are equal, theta stays. A loss that is not a number counts
as infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.types import AbstractEstimator, Oracle, Record


@dataclass(frozen=True)
class Stp(AbstractEstimator):
    """The estimator of stochastic three points, which has no options."""

    only_with = {"rule": ("sgd",)}  # g is a chosen step, not an estimate
    radius_option = ""

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        up, down, here = oracle.losses([((oracle.lr, 0),), ((-oracle.lr, 0),), ()])
        best, g = here if not math.isnan(here) else math.inf, 0.0
        for loss, choice in ((up, -1.0), (down, 1.0)):
            if loss < best:
                best, g = loss, choice
        return [g]
