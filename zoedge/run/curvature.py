"""The sharpness of the loss where training stands: tr H by random directions (FlatZero, arXiv 2506.05454, section 5).

antithetic: mean over u of (f(x + d u) + f(x - d u) - 2 f(x)) / d^2, u normal: the gradient cancels.
paper: (2 / d^2) |mean over u of f(x + d u) - f(x)|: its spread is (2 / d) |grad f| / sqrt(directions), which buries tr H
wherever the gradient is not zero. The directions have a stream of their own: a run's log is the same with and without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.types import CURVATURE_STREAM, Key, Leaf, Space
from ..methods.noise.normal import Normal
from ..recipe.sections import Curvature

if TYPE_CHECKING:
    from ..scoring.models.base import Base
    from ..scoring.tasks._examples import Examples
    from ..scoring.tasks._training import AbstractTraining

FORWARD_TOKENS = 2048  # token rows in one forward pass


@dataclass(frozen=True)
class HessianTrace:
    """An estimate of the trace of the Hessian over all that is trained, its standard error, and the loss f(x)."""

    trace: float
    error: float
    loss: float


def estimate_trace(
    space: Space, task: AbstractTraining, model: Base, examples: Examples, options: Curvature, seed: int, step: int
) -> HessianTrace:
    """Estimate tr H of the mean loss of the first `options.rows` examples.

    It takes one forward pass of them, and two more for each direction (estimator: paper, one more).
    """
    count = min(options.rows, len(examples))
    batches = examples.sorted_batches(
        max(1, FORWARD_TOKENS // (2 * max(map(len, examples.tokens)) * examples.sequences_each)), count
    )
    signs = (1.0, -1.0) if options.estimator == "antithetic" else (1.0,)

    def losses(points: list[Any]) -> list[float]:
        found: list[float] = []
        while some := points[len(found) :][: space.width]:
            with space.visit(some):
                scores = [task.score(model, examples.collate(chosen), len(some)) for chosen in batches]
            found += [math.fsum(x for score in scores for x in score[i].tolist()) / count for i in range(len(some))]
        return found

    def delta(leaf: Leaf, key: Key, size: float) -> Any:
        return Normal().draw(key, leaf) * size

    (here,) = losses([lambda leaf: None])
    found = []
    for query in range(options.directions):
        key = Key(seed, step, query, CURVATURE_STREAM)
        there = losses([partial(delta, key=key, size=sign * options.delta) for sign in signs])
        found.append((math.fsum(there) - len(there) * here) * 2 / (len(there) * options.delta**2))
    mean = math.fsum(found) / len(found)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in found) / max(1, len(found) - 1))
    return HessianTrace(abs(mean) if options.estimator == "paper" else mean, spread / math.sqrt(len(found)), here)
