"""g = (d/de) f(theta + e z) / queries a query, the derivative itself: forward-mode differentiation (Wengert 1964).

Beside every value x of the forward stands its derivative dx along z, and both go through every operation: a product y = x W'
with a direction dW has dy = dx W' + x dW'. Nothing is kept for a backward pass, so that the memory is that of two points.
It is the forward gradient of Baydin et al. (arXiv 2202.08587), to which a two-point estimate tends as eps goes to 0. There is
no eps to choose, and no difference of two rounded losses, so that bf16 is exact enough where a difference in bf16 is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc

from ...core.types import AbstractEstimator, Natural, Oracle, Record


@dataclass(frozen=True)
class Forward(AbstractEstimator):
    """The derivative along each direction, and its option."""

    only_with = {"task.objective": ("loss",)}  # accuracies and rewards are steps, whose derivative is 0
    slope = True  # g is the derivative along z
    differentiates = True
    radius_option = ""
    queries: Annotated[Natural, Doc("Directions of a step.")] = 1

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        return [slope / self.queries for slope in oracle.slopes(self.queries)]
