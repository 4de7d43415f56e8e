"""Does zeroth-order descent find flatter minima of logistic regression on random features? FlatZero (arXiv 2506.05454).

With the paper's sizes (10,000 features, 10,000 steps, full batch, lr 0.01, lambda 0.1, start 0.1 N(0, 1), seed 29),
against gradient descent and SAM of radius lambda. The trace of the Hessian is exact. With lambda / 100 the trace falls
as low: here it is the noise of the steps that flattens, by driving the margins up (rms 57 at the end, 9 of GD).

Deviations. The data are a1a (1,605 rows, 123 columns) and all of a1a.t (30,956 rows): the package index has no a5a or
w5a. Gradient descent and SAM take the learning rate of zeroth-order descent. A fourth run, with lambda / 100, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.types import Natural, Positive
from ._bench import Outcome
from ._flat import DescentSettings, MarginLoss, compare_descents


def sigmoid(m: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-m)) as exp(-log(1 + exp(-m))), which does not overflow."""
    return np.exp(-np.logaddexp(0, -m))


LOGISTIC_LOSS = MarginLoss(lambda m: np.logaddexp(0, -m), lambda m: -sigmoid(-m), lambda m: sigmoid(m) * sigmoid(-m))


@dataclass(frozen=True)
class FlatLogistic:
    """The experiment, and its options.

    Attributes:
        lr: the step size of all runs.
        eps: lambda of ZO, and the radius of SAM.
        points: measured steps of a curve.
    """

    lr: Positive = 0.01
    eps: Positive = 0.1
    features: Natural = 10_000
    steps: Natural = 10_000
    points: Natural = 200

    def run(self, seed: int) -> Outcome:
        """Run the experiment, and return its numbers, the paper's claims beside them, and a figure."""
        return compare_descents(
            LOGISTIC_LOSS, DescentSettings(self.lr, self.eps, self.features, self.steps, self.points), seed
        )
