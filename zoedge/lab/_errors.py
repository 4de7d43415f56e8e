"""This module has two functions of DAP's notebook, and measures the error of the gradients that zoedge's engine estimates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..core.engine import measure
from ..core.memory import MemoryLog
from ..core.run import Run
from ..core.types import AbstractEstimator, AbstractNoise
from ..methods.estimators.dap import Dap
from ..methods.estimators.one_sided import OneSided
from ..methods.noise.normal import Normal
from ..methods.noise.rademacher import Rademacher
from ..methods.noise.sphere import Sphere
from ..methods.rules.sgd import Sgd
from ._aligned import Aligned
from ._bench import ArraySpace, FunctionTask

DIRECTION_KINDS = "gauss", "sphere", "rademacher", "DAP exact", "DAP estimated", "DAP second"


class ToyFunction(NamedTuple):
    """A function with its exact gradient, at a point where few of its partial derivatives are large."""

    at: np.ndarray  # [n]: the point where the gradient is estimated
    f: Callable[[np.ndarray], np.ndarray]  # [copies, n] -> [copies]
    gradient: Callable[[np.ndarray], np.ndarray]
    threshold: float

    @property
    def high(self) -> np.ndarray:
        """Where the partial derivative is above the paper's threshold, [n] booleans."""
        return np.abs(self.gradient(self.at)) >= self.threshold


def make_product() -> ToyFunction:
    """Return f = prod x_i with n = 16, at a point whose first element is 0: only one partial derivative is not zero."""
    at = np.random.RandomState(42).randn(16)
    at[0] = 0.0

    def gradient(x: np.ndarray) -> np.ndarray:
        return np.array([np.prod(np.delete(x, i)) for i in range(len(x))])

    return ToyFunction(at, lambda points: points.prod(1), gradient, 1e-4)


def make_quadratic() -> ToyFunction:
    """Return f = x'W x with n = 8, W diagonal and indefinite, half of x zero; drawn in the notebook's order."""
    rng = np.random.RandomState(42)
    rng.uniform(-1, 1, (8, 8))  # drawn by the notebook and not used
    w = rng.uniform(-1, 1, 8)
    at = rng.normal(0, 10, 8)
    at[rng.choice(8, 4, replace=False)] = 0.0
    return ToyFunction(at, lambda points: (points**2 * w).sum(1), lambda x: 2 * w * x, 0.01)


class MeanError(NamedTuple):
    """Mean square errors over (all, the high, the low) coordinates, averaged over trials, with their standard errors."""

    mean: list[float]
    se: list[float]


def make_parts(kind: str, function: ToyFunction, batch: int, eps: float) -> tuple[AbstractNoise, AbstractEstimator]:
    """Return the noise and the estimator of a kind with `batch` directions; an estimated gradient takes half of them."""
    if kind == "DAP estimated":
        return Sphere(), Dap(eps=eps, first=batch // 2, second=batch - batch // 2)
    if kind == "DAP second":
        return Sphere(), Dap(eps=eps, first=batch // 2, second=batch - batch // 2, combine="second")
    noises: dict[str, AbstractNoise] = {
        "gauss": Normal(),
        "sphere": Sphere(),
        "rademacher": Rademacher(),
        "DAP exact": Aligned(function.gradient),
    }
    return noises[kind], OneSided(eps=eps, queries=batch)


def estimate_gradient(run: Run, trial: int) -> np.ndarray:
    """Return the gradient estimate of one step, [n] in float64."""
    leaf, record = run.space.leaves()[0], measure(run, trial)
    total = np.zeros(len(leaf.value))
    for query, g in enumerate(record.g):
        if (direction := run.direction(record.seq, query, leaf)) is not None:
            total += g * np.asarray(direction.z, dtype="f8")
    run.log.append(record)  # the next step draws other directions
    return total


def measure_error(kind: str, function: ToyFunction, batch: int, trials: int, eps: float, seed: int) -> MeanError:
    """Return the error of a kind of gradient estimate against the exact gradient, over so many trials."""
    noise, estimator = make_parts(kind, function, batch, eps)
    space = ArraySpace(function.at)
    task: Any = FunctionTask(function.f)  # the engine asks for parts of a batch only where a forward is too large
    run = Run(seed, trials, MemoryLog(), space, noise, Sgd(), estimator, task, space)
    truth, high = function.gradient(function.at), function.high
    squares = np.stack([(estimate_gradient(run, trial) - truth) ** 2 for trial in range(trials)])
    parts = np.stack([squares.mean(1), squares[:, high].mean(1), squares[:, ~high].mean(1)])
    return MeanError(parts.mean(1).tolist(), (parts.std(1) / np.sqrt(trials)).tolist())
