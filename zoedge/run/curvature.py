"""This module estimates the sharpness of the loss where training stands: tr H, by random directions u, which are normal.

The source is FlatZero (arXiv 2506.05454, section 5).

    antithetic   mean over u of (f(x + d u) + f(x - d u) - 2 f(x)) / d^2
    paper        (2 / d^2) |mean over u of f(x + d u) - f(x)|

In the first, the gradient cancels. The spread of the second is (2 / d) |grad f| / sqrt(directions), which buries tr H
wherever the gradient is not zero. The directions have a stream of their own, so that measuring leaves a run's log as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.types import CURVATURE_STREAM, Key, Leaf, Space
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
    from ..methods.noise.normal import Normal  # here: it imports torch, which a lookup of zoedge.finetune needs not

    count = min(options.rows, len(examples))
    batches = examples.sorted_batches(
        max(1, FORWARD_TOKENS // (2 * max(map(len, examples.tokens)) * examples.sequences_each)), count
    )
    signs = (1.0, -1.0) if options.estimator == "antithetic" else (1.0,)

    def losses(points: list[Any]) -> list[float]:
        means: list[float] = []
        while held := points[len(means) :][: space.width]:
            with space.visit(held):
                scores = [task.score(model, examples.collate(chosen), len(held)) for chosen in batches]
            means += [math.fsum(x for score in scores for x in score[i].tolist()) / count for i in range(len(held))]
        return means

    def delta(leaf: Leaf, key: Key, size: float) -> Any:
        return Normal().draw(key, leaf) * size

    (loss,) = losses([lambda leaf: None])
    curvatures = []  # by direction
    for query in range(options.directions):
        key = Key(seed, step, query, CURVATURE_STREAM)
        moved = losses([partial(delta, key=key, size=sign * options.delta) for sign in signs])
        curvatures.append((math.fsum(moved) - len(moved) * loss) * 2 / (len(moved) * options.delta**2))
    mean = math.fsum(curvatures) / len(curvatures)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in curvatures) / max(1, len(curvatures) - 1))
    error = spread / math.sqrt(len(curvatures))
    return HessianTrace(abs(mean) if options.estimator == "paper" else mean, error, loss)
