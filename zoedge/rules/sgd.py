"""theta <- theta - lr * sum g[q] z[q]: stochastic gradient descent on the estimate (MeZO Definition 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..types import AbstractRule, Record, Slots

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sgd(AbstractRule):
    rule = 1  # frozen: the rule id in a log's header

    def update(self, slots: Slots, zs: Iterable[Tensor], record: Record) -> Tensor:
        first, *rest = (z * c for z, c in zip(zs, record.coefficients))
        return sum(rest, first)
