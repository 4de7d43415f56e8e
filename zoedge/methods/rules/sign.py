"""theta <- theta - lr sign(sum g[q] z[q]), elementwise (ZO-SGD-Sign, arXiv 2402.11592); `scalar`: sign(g) z, as its code.

`scalar` takes the sign of the weight g alone, which is what the code of that paper computes. With Rademacher noise and one
query both are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_doc import Doc

from ...core.exact import elementwise_sign
from ...core.types import AbstractRule, Direction, Record, RuleSlots

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sign(AbstractRule):
    """The rule of sign descent, and its option."""

    rule = 3  # frozen: the rule id in a log's header
    scalar: Annotated[bool, Doc("Take the sign of the weight g, not of the estimate's elements.")] = False

    def update(self, slots: RuleSlots, directions: Iterable[Direction], record: Record) -> Tensor:
        """Return -lr times the sign of the estimate, or the sum of -lr sign(g[q]) z[q]."""
        weights = [math.copysign(1.0, g) if g else 0.0 for g in record.g] if self.scalar else record.g
        first, *rest = (d.z * w for d, w in zip(directions, weights))
        total = sum(rest, first)
        return (total if self.scalar else elementwise_sign(total)) * -record.lr
