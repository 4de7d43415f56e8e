"""u = z / sqrt H; theta <- theta - lr g u; H <- (1 - a) H + a |h H z^2|: a running diagonal Hessian (HiZOO).

arXiv 2402.15173, Algorithm 1. h = (f+ + f- - 2 f) / (2 eps^2) is the second weight that `estimator: curved` logs. A step
moves along the direction that was probed, so a new H counts from the next step on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_doc import Doc
from annotated_types import Gt, Lt

from ...core.exact import bits16, exact_sqrt
from ...core.types import AbstractRule, Direction, Leaf, Record, RuleSlots

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Hizoo(AbstractRule):
    """The rule of HiZOO, and its options."""

    rule = 6  # frozen: the rule id in a log's header
    only_with = {"estimator": ("curved",), "noise": ("rademacher", "normal", "uniform_raw")}
    a: Annotated[
        float, Gt(0), Lt(1), Doc("How fast the Hessian follows the measured curvature (1e-8 in the paper).")
    ] = 1e-6
    least: Annotated[float, Gt(0), Doc("The least value that the Hessian may take; it starts at 1.")] = 1e-4

    def slots(self, leaf: Leaf, steps: int) -> RuleSlots:
        """Return the diagonal Hessian H = 1."""
        return {"h": leaf.zeros() + 1.0}

    def direction(self, slots: RuleSlots, *noise: Tensor) -> Tensor:
        """Return u = z / sqrt H."""
        return noise[0] / exact_sqrt(slots["h"])

    def update(self, slots: RuleSlots, directions: Iterable[Direction], record: Record) -> Tensor:
        """Return -lr g u, and bring H up to date with the curvature h, the second weight of the record."""
        (u, (z,)), h = next(iter(directions)), slots["h"]
        curve = abs(record.g[1]) if len(record.g) > 1 else 0.0
        h = h * bits16(1.0 - self.a) + h * (z * z) * bits16(self.a * curve)
        slots["h"] = h.clip(self.least, None)
        return u * record.coefficients[0]
