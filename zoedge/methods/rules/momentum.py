"""m <- mu m + sum g[q] z[q]; theta <- theta - lr m: heavy ball on the estimate (ZO-SGD-MMT, arXiv 2402.11592)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_doc import Doc
from annotated_types import Ge, Lt

from ...core.types import AbstractRule, Direction, Leaf, Record, RuleSlots

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Momentum(AbstractRule):
    """The rule of the heavy ball, and its option."""

    rule = 2  # frozen: the rule id in a log's header
    mu: Annotated[
        float, Ge(0), Lt(1), Doc("The share of the last step that is kept. There is no dampening, as in torch's SGD.")
    ] = 0.9

    def slots(self, leaf: Leaf, steps: int) -> RuleSlots:
        """Return m = 0."""
        return {"m": leaf.zeros()}

    def update(self, slots: RuleSlots, directions: Iterable[Direction], record: Record) -> Tensor:
        """Bring m up to date with the estimate, and return -lr m."""
        m = slots["m"] * self.mu
        for d, g in zip(directions, record.g):
            m = m + d.z * g
        slots["m"] = m
        return m * -record.lr
