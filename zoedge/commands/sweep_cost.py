"""This module predicts what a sweep will cost, before it is begun: points, forward passes and seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..core.oracle import count_evaluations
from ..errors import ZoedgeError
from ..run import folder as run_folder
from .sweep import SweepPoint, is_finished


class SweepPlan(NamedTuple):
    """What a sweep will cost.

    Attributes:
        points: how many it has.
        finished: those that are trained already.
        passes: the forward passes of a row that the others' steps take.
        seconds: the predicted time of these steps and of their scoring; None: it cannot be predicted here.
        why: the reason for that; "": there is none.
    """

    points: int
    finished: int
    passes: int
    seconds: float | None
    why: str = ""


def plan_sweep(points: Sequence[SweepPoint]) -> SweepPlan:
    """Return what the points will cost that are not finished yet. Models are not loaded; rows are tokenised."""
    left = [point for point in points if not is_finished(run_folder.run_folder(point.recipe))]
    passes = 0
    for point in left:
        train, estimator = point.recipe.train, point.recipe.estimator
        passes += count_evaluations(estimator, train.steps)[1] * train.steps * train.batch
    finished = len(points) - len(left)
    try:
        return SweepPlan(len(points), finished, passes, sum(predict_seconds(left)))
    except ZoedgeError as e:
        return SweepPlan(len(points), finished, passes, None, str(e).splitlines()[0])


def predict_seconds(points: Sequence[SweepPoint]) -> Iterator[float]:
    """Yield the predicted seconds of each point, without its search. Points that differ in the rule alone cost the same."""
    from .estimate import fit
    from .estimate.time import estimate_seconds

    known: dict[str, float] = {}
    for point in points:
        table = point.recipe.resolved()
        key = str(
            {name: value for name, value in table.items() if name not in ("name", "seed", "rule", "output", "log")}
        )
        if key not in known:
            seconds = estimate_seconds(fit.make_plan(point.recipe))
            known[key] = sum(value for name, value in seconds.items() if name != "step")
        yield known[key]
