"""g = (f+ - f-) / 2 eps, and the curvature along z, h = (f+ + f- - 2 f) / (2 eps^2), as a second weight: three passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc

from ...core.types import AbstractEstimator, Oracle, Positive, Record


@dataclass(frozen=True)
class Curved(AbstractEstimator):
    """The two-point estimate with a curvature, for rules that use it (rule: hizoo)."""

    only_with = {"rule": ("hizoo",)}
    auto = ("eps",)
    eps: Annotated[Positive, Doc("The smoothing radius: how far from theta a loss is measured.")] = 3e-3

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        up, down, here = oracle.losses([((self.eps, 0),), ((-self.eps, 0),), ()])
        return [(up - down) / (2.0 * self.eps), (up + down - 2.0 * here) / (2.0 * self.eps**2)]
