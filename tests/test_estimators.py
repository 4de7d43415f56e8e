"""What an estimate g z is on average, for every estimator and every noise, on a function whose gradient is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from zoedge import engine
from zoedge.lab._bench import Memory, Problem, Space
from zoedge.load import FOLDERS, part, words
from zoedge.types import Leaf, Part

D = 12
RNG = np.random.default_rng(3)
ROOT = RNG.normal(size=(D, D)) / math.sqrt(D)
H, SLOPE, THETA = ROOT @ ROOT.T, RNG.normal(size=D), RNG.normal(size=D)
GRADIENT = H @ THETA + SLOPE
BOWL = Problem(lambda points: 0.5 * np.einsum("ci,ij,cj->c", points, H, points) + points @ SLOPE)
# of the gradient, on average: 1 if E[z z'] = I
SHARE = {"uniform_raw": (1 - 2**-16) / 3, "sparse": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {
    "low_rank": {"refresh": 1},  # else a window's draws are of one V
    "two_sided": {"queries": 2}, "one_sided": {"queries": 2}, "s2p": {"option": 2},
}  # fmt: skip
# chosen steps and normalised estimates are not the gradient on average, and no paper says they are
BIASED = {"stp", "s2p", "as2p", "conservative", "fzoo"}


def estimates(noise: Any, estimator: Any, rule: Any, count: int) -> np.ndarray:
    """[count, D] of sum g[q] z[q] at THETA, from the records that a run would log and along what it would move."""
    space = Space(THETA)
    space._leaves = [Leaf("x", 0, space.value, (Part("x", 0, (4, 3)),), D)]
    run = engine.Run(1, count, Memory(), space, noise, rule, estimator, BOWL, space)  # type: ignore[arg-type]
    found = np.zeros((count, D))
    for step in range(count):
        record = run.log.append(engine.measure(run, step))
        for query, weight in enumerate(record.g):
            d = run.direction(record.seq, query, space.leaves()[0])
            if d is not None and not (estimator_of(estimator) == "curved" and query == 1):  # that weight is a curvature
                found[step] += weight * np.asarray(d.z, dtype=float)
    return found


def estimator_of(estimator: Any) -> str:
    return type(estimator).__module__.rpartition(".")[2]


def agrees(found: np.ndarray, wanted: np.ndarray) -> None:
    """The mean is within 5 standard errors in every element, and the test could tell half from whole."""
    error = found.std(0, ddof=1) / math.sqrt(len(found))
    assert (abs(found.mean(0) - wanted) < 5 * error + 1e-4 * abs(wanted)).all()
    assert np.linalg.norm(5 * error) < 0.6 * np.linalg.norm(wanted)


@pytest.mark.parametrize("noise", words(FOLDERS["noise"]))
def test_two_sided_estimates_are_the_gradient_on_average(noise: str) -> None:
    """Antithetic differences are exact on a quadratic, so the mean is E[z z'] times the gradient."""
    made = part("noise", noise)(**OPTIONS.get(noise, {}))
    options = {"queries": made.blocks, "combine": "sum"} if noise == "block" else {}
    found = estimates(made, part("estimator", "two_sided")(eps=1e-3, **options), part("rule", "sgd")(), 1500)
    agrees(found, SHARE.get(noise, 1.0) * GRADIENT)


@pytest.mark.parametrize("estimator", sorted(set(words(FOLDERS["estimator"])) - BIASED))
@pytest.mark.parametrize("noise", ["normal", "rademacher"])
def test_an_estimator_is_unbiased(estimator: str, noise: str) -> None:
    """Also one-sided and aligned ones: z is symmetric, and a direction aligned with g0 has covariance I given g0."""
    made = part("estimator", estimator)(**({"eps": 1e-3} | OPTIONS.get(estimator, {})))
    rule = getattr(made, "only_with", {}).get("rule", ("sgd",))[0]
    if noise not in getattr(part("rule", rule), "only_with", {}).get("noise", [noise]):
        pytest.skip("a pair that is refused")
    count = 1500
    if estimator == "residual":  # f itself is in its spread: with eps 1e-3 that would be a thousand times the gradient
        made, count = part("estimator", estimator)(eps=1.0), 15_000
    agrees(estimates(part("noise", noise)(), made, part("rule", rule)(), count), GRADIENT)


def test_biased_estimators_are_named_because_they_are() -> None:
    assert set(words(FOLDERS["estimator"])) >= BIASED
