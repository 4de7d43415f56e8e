"""Adam on the estimate: m, v of ghat = sum g[q] z[q]; theta <- theta - lr mhat / (sqrt vhat + eps) (Kingma & Ba 2015).

This is MeZO-Adam and ZO-Adam. The corrections of the moments' bias come from repeated multiplication in float64. Square
roots are taken in float64, because on some CPUs the float32 root is off by one unit in the last place in 17-20 % of values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_doc import Doc
from annotated_types import Ge, Lt

from ...core.exact import bits16, exact_sqrt
from ...core.types import AbstractRule, Direction, Leaf, Positive, Record, RuleSlots

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Adam(AbstractRule):
    """The rule of Adam, and its options."""

    rule = 4  # frozen: the rule id in a log's header
    beta1: Annotated[float, Ge(0), Lt(1), Doc("The share of the first moment that a step keeps.")] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1), Doc("The share of the second moment that a step keeps.")] = 0.999
    eps: Annotated[Positive, Doc("What is added to the divisor, so that it is never 0.")] = 1e-8

    def slots(self, leaf: Leaf, steps: int) -> RuleSlots:
        """Return m = v = 0, and the powers b1 = b2 = 1 by which the bias of the moments is corrected."""
        return {"m": leaf.zeros(), "v": leaf.zeros(), "b1": 1.0, "b2": 1.0}

    def update(self, slots: RuleSlots, directions: Iterable[Direction], record: Record) -> Tensor:
        """Bring m and v up to date with the estimate, and return -lr mhat / (sqrt vhat + eps)."""
        first, *rest = (d.z * g for d, g in zip(directions, record.g))
        ghat = sum(rest, first)
        slots["m"] = slots["m"] * self.beta1 + ghat * (1.0 - self.beta1)
        slots["v"] = slots["v"] * self.beta2 + (ghat * ghat) * (1.0 - self.beta2)
        slots["b1"] *= self.beta1
        slots["b2"] *= self.beta2
        size = exact_sqrt(slots["v"]) * math.sqrt(1.0 / (1.0 - slots["b2"])) + self.eps
        return slots["m"] / size * bits16(-record.lr / (1.0 - slots["b1"]))
