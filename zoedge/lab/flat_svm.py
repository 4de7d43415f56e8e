"""Does zeroth-order descent find flatter minima of a squared-hinge SVM on random features? FlatZero (arXiv 2506.05454).

With the paper's sizes (10,000 features, 10,000 steps, full batch, lr 1e-4, lambda 0.05, start 0.1 N(0, 1), seed 29),
against gradient descent and SAM of radius lambda. The trace of the Hessian is exact. With lambda / 100 the loss
ends where GD's does and the trace 12 % below GD's, not 69 % as with lambda: here it is lambda that flattens.

Deviations. The data are a1a (1,605 rows, 123 columns) and all of a1a.t (30,956 rows): the package index has no a5a or
w5a. Gradient descent and SAM take the learning rate of zeroth-order descent. A fourth run, with lambda / 100, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.types import Natural, Positive
from ._bench import Outcome
from ._flat import DescentSettings, MarginLoss, compare_descents

SQUARED_HINGE_LOSS = MarginLoss(
    lambda m: np.maximum(0, 1 - m) ** 2, lambda m: -2 * np.maximum(0, 1 - m), lambda m: 2.0 * (m < 1)
)


@dataclass(frozen=True)
class FlatSvm:
    """The experiment, and its options.

    Attributes:
        lr: the step size of all runs.
        eps: lambda of ZO, and the radius of SAM.
        points: measured steps of a curve.
    """

    lr: Positive = 1e-4
    eps: Positive = 0.05
    features: Natural = 10_000
    steps: Natural = 10_000
    points: Natural = 200

    def run(self, seed: int) -> Outcome:
        """Run the experiment, and return its numbers, the paper's claims beside them, and a figure."""
        return compare_descents(
            SQUARED_HINGE_LOSS, DescentSettings(self.lr, self.eps, self.features, self.steps, self.points), seed
        )
