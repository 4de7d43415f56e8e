"""|a| = rho_k / (eta_b sigma / |gamma| + eta_b / eta_a(k)), down the slope (AS2P, arXiv 2402.01621, Algorithm 2).

gamma is the slope between theta + rho z and theta - rho z, and sigma is the spread of the signed gammas of the last tenth
of the run. The step is lr * g with g = sign(gamma) |a|, so the rule's lr must be 1 and its schedule constant. Line 7 of the
paper's algorithm has the opposite sign: as it is printed, it ascends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc
from annotated_types import Ge

from ...core.types import AbstractEstimator, Oracle, Positive, Record

MIN_GAMMAS = 8  # with fewer gammas, sigma is their root mean square instead of their standard deviation


def cosine_schedule(start: float, end: float, step: int, steps: int) -> float:
    """Return the value of half a cosine from `start` at step 0 to `end` after `steps`."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class As2p(AbstractEstimator):
    """The estimator of AS2P, and its options."""

    only_with = {"rule": ("sgd",), "rule.lr": (1.0,), "rule.schedule": ("constant",)}  # g is a chosen step, no estimate
    bound = True  # to the records of the steps before
    radius_option = "rho"
    rho: Annotated[Positive, Doc("The probing radius at the first step.")] = 1e-3
    rho_end: Annotated[Positive, Doc("The probing radius at the last step.")] = 1e-4
    eta_a: Annotated[Positive, Doc("The limit of a step; a lower one clips more.")] = 5.0
    eta_b: Annotated[
        Positive, Doc("Divides the step: 50 for language models, 5 for vision (the paper's Tables 3 and 4).")
    ] = 50.0
    window: Annotated[Positive, Doc("The share of the run, or of its steps so far, that sigma looks back on.")] = 0.1
    window_of: Annotated[
        Literal["run", "elapsed"],
        Doc("Whether `window` is a share of the whole run or of the steps that have elapsed."),
    ] = "run"
    sigma: Annotated[
        Literal["signed", "abs"], Doc("Whether sigma is the spread of the signed gammas or of their absolute values.")
    ] = "signed"
    step_decay_end: Annotated[float, Ge(0), Doc("Where the limit of a step falls to, from rho.")] = 0.0
    full_batch: Annotated[bool, Doc("If true, the step does not decay.")] = False

    def _radius(self, step: int, steps: int) -> float:
        return self.rho if self.full_batch else cosine_schedule(self.rho, self.rho_end, step, steps)

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        step, steps = oracle.step, oracle.steps
        rho = self._radius(step, steps)
        up, down = oracle.losses([((rho, 0),), ((-rho, 0),)])
        gamma = (up - down) / (2.0 * rho)
        if not math.isfinite(gamma):
            return [gamma]
        sigma = self._spread([gamma, *self._recent(past, step, steps)])
        if gamma == 0.0 or sigma < 1e-12:
            return [0.0]
        eta_a = self.eta_a * (1.0 if self.full_batch else cosine_schedule(2.0, 1.0, step, steps))
        reach = rho if self.full_batch else cosine_schedule(rho, self.step_decay_end, step, steps)
        size = reach / (self.eta_b * sigma / abs(gamma) + self.eta_b / eta_a)
        return [math.copysign(size, gamma)]

    def _recent(self, past: Sequence[Record], step: int, steps: int) -> list[float]:
        """Return the gammas of the window, computed from the losses of the log: there is no other memory of them."""
        width = max(10, math.ceil(self.window * (steps if self.window_of == "run" else step)))
        some = (past[i] for i in range(max(0, step - width + 1), step))
        return [(r.losses[0] - r.losses[1]) / (2.0 * self._radius(r.step, steps)) for r in some if not r.flags & 1]

    def _spread(self, gammas: list[float]) -> float:
        values = [abs(g) for g in gammas] if self.sigma == "abs" else gammas
        mean = math.fsum(values) / len(values) if len(values) >= MIN_GAMMAS else 0.0
        return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
