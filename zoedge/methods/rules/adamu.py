"""u = b1 z1 + (1 - b1) z2, z1 ~ N(0, a), z2 ~ N(m, 1 - a); theta <- theta - lr g u / sqrt(b2 z1^2 + (1 - b2) z2^2 + s).

ZO-AdaMU (arXiv 2312.15184, Eqs. 4-7 as in its algorithm) puts the momentum m into the perturbation u. As in the authors'
code, m becomes sign(g) u and so points downhill; `signed: false` follows the paper's text, where m is a walk of noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le

from ...core.exact import bits16, cospi, exact_sqrt
from ...core.types import AbstractRule, Direction, Leaf, Positive, Record, RuleSlots

if TYPE_CHECKING:
    from torch import Tensor

UnitShare = Annotated[float, Gt(0), Le(1)]
PHI = Fraction(1, 10), Fraction(1), Fraction(3, 2)  # of a, b1, b2 in Eq. 7, as its Figure 1 needs (the text swaps two)


@dataclass(frozen=True, kw_only=True)
class Adamu(AbstractRule):
    """The rule of ZO-AdaMU, and its options."""

    rule = 5  # frozen: the rule id in a log's header
    draws = 2
    bound = True  # to the length of the run
    only_with = {"noise": ("normal", "rademacher"), "estimator": ("two_sided", "one_sided"), "estimator.queries": (1,)}
    a: Annotated[UnitShare, Doc("Where the schedule of a ends; it begins at 1.")] = 0.5
    b1: Annotated[UnitShare, Doc("Where the schedule of b1 ends; it begins at 1.")] = 0.1
    b2: Annotated[UnitShare, Doc("Where the schedule of b2 ends; it begins at 1.")] = 0.01
    warm: Annotated[int, Ge(0), Doc("How many steps the schedules stay at 1.")] = 1024
    settled: Annotated[UnitShare, Doc("The share of the run after which the schedules rest.")] = 0.8
    floor: Annotated[Positive, Doc("The s that is added under the root.")] = 1e-8
    signed: Annotated[bool, Doc("Whether the momentum takes the sign of g.")] = True
    anneal: Annotated[Literal["cosine", "paper_fig1"], Doc("Half a cosine to those ends, or Eq. 7.")] = "cosine"

    def _rates(self, step: int, steps: int) -> list[float]:
        """Return [a, b1, b2] with the same bits on every machine. ValueError: Eq. 7 has a pole here."""
        t2 = max(1, int(self.settled * steps))
        t1 = min(self.warm, t2 - 1)
        x = max(0, min(step, t2) - t1)
        ends, below = [self.a, self.b1, self.b2], [Fraction(t2 - t1)] * 3
        if self.anneal == "paper_fig1":
            ends, below = [0.0] * 3, [steps - phi * x * (steps - t2) / (t2 - t1) for phi in PHI]
        if min(below) <= 0:
            raise ValueError(f"anneal: paper_fig1 divides by {float(min(below)):.3g} at step {step}. Use cosine")
        return [bits16(end + (1.0 - end) * (0.5 + 0.5 * cospi(x / b))) for end, b in zip(ends, below)]

    def check(self, steps: int) -> None:
        self._rates(steps, steps)  # what is divided by falls until the schedules rest

    def slots(self, leaf: Leaf, steps: int) -> RuleSlots:
        return {"m": leaf.zeros(), "step": 0, "steps": steps, "rates": self._rates(0, steps)}

    def _parts(self, slots: RuleSlots, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        """Return z1 ~ N(0, a) and z2 ~ N(m, 1 - a), made of two draws with unit variance."""
        a = slots["rates"][0]
        return z1 * bits16(math.sqrt(a)), z2 * bits16(math.sqrt(1.0 - a)) + slots["m"]

    def direction(self, slots: RuleSlots, *noise: Tensor) -> Tensor:
        z1, z2 = self._parts(slots, *noise)
        return z1 * slots["rates"][1] + z2 * bits16(1.0 - slots["rates"][1])

    def update(self, slots: RuleSlots, directions: Iterable[Direction], record: Record) -> Tensor:
        (u, noise), (g,), b2 = next(iter(directions)), record.g, slots["rates"][2]
        z1, z2 = self._parts(slots, *noise)
        size = exact_sqrt(z1 * z1 * b2 + z2 * z2 * bits16(1.0 - b2) + self.floor)
        slots["step"] += 1
        slots["rates"] = self._rates(slots["step"], slots["steps"])
        if g:
            slots["m"] = u if g > 0 or not self.signed else u * -1.0
        return u / size * record.coefficients[0]
