"""theta <- theta - lr * sum g[q] z[q]: stochastic gradient descent on the estimate (MeZO Definition 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.types import AbstractRule, Direction, Record, RuleSlots

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sgd(AbstractRule):
    """The rule of stochastic gradient descent. It has no state."""

    rule = 1  # frozen: the rule id in a log's header
    linear = True

    def update(self, slots: RuleSlots, directions: Iterable[Direction], record: Record) -> Tensor:
        """Return the sum of -lr g[q] z[q]."""
        first, *rest = (d.z * c for d, c in zip(directions, record.coefficients))
        return sum(rest, first)
