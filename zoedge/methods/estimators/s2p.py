"""theta <- the lower of theta + a s and theta - a s (S2P, arXiv 2402.01621, Algorithm 1; A = B = 1.01).

The size a is a multiple of the rule's lr, which stands for the constant of the paper's option:

    option 1: a = lr                                   lr = alpha_0 / sqrt(K d)
    option 2: a = lr |gamma|                           lr = 1 / (L d)
    option 3: a = lr                                   lr = sqrt 2 / (B L1 sqrt(d K))
    option 4: a = lr |gamma| / (A + curve |gamma|)     lr = 1 / (L0 d), curve = sqrt 2 B L1 / L0

with gamma = (f(theta + rho s) - f(theta - rho s)) / 2 rho.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc
from annotated_types import Ge

from ...core.types import AbstractEstimator, Oracle, Positive, Record


@dataclass(frozen=True)
class S2p(AbstractEstimator):
    """The estimator of S2P, and its options."""

    only_with = {"rule": ("sgd",)}  # g is a chosen step, not an estimate
    radius_option = "rho"
    option: Annotated[
        Literal[1, 2, 3, 4], Doc("How the size a of a step is chosen: one of the paper's four options.")
    ] = 1
    rho: Annotated[Positive, Doc("The probing radius of options 2 and 4.")] = 1e-3
    trial: Annotated[
        Literal["exact", "sign"],
        Doc("exact measures the loss at both ends of the step; sign takes gamma's sign instead (a <= rho)."),
    ] = "exact"
    curve: Annotated[float, Ge(0), Doc("How the size a falls with |gamma| in option 4.")] = 0.0

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        size, gamma = 1.0, 0.0
        if self.option in (2, 4):
            up, down = oracle.losses([((self.rho, 0),), ((-self.rho, 0),)])
            gamma = (up - down) / (2.0 * self.rho)
            if not math.isfinite(gamma):
                return [gamma]
            size = abs(gamma) if self.option == 2 else abs(gamma) / (1.01 + self.curve * abs(gamma))
        if self.trial == "sign" and self.option in (2, 4) and size * oracle.lr <= self.rho:
            return [math.copysign(size, gamma) if gamma else 0.0]
        reach = size * oracle.lr
        up, down = (math.inf if math.isnan(x) else x for x in oracle.losses([((reach, 0),), ((-reach, 0),)]))
        if math.isinf(up) and math.isinf(down):
            return [0.0]
        return [-size if up <= down else size]
