"""The lab's variance: the notebook's points, aligned directions' identities, a tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zoedge.commands import lab
from zoedge.core.memory import MemoryLog
from zoedge.core.run import Run
from zoedge.core.types import AbstractNoise, Key, Leaf
from zoedge.lab import _errors
from zoedge.lab._aligned import Aligned
from zoedge.lab._bench import ArraySpace, FunctionTask
from zoedge.methods.noise.normal import Normal
from zoedge.methods.noise.sphere import Sphere
from zoedge.methods.rules.sgd import Sgd


def test_the_notebooks_points() -> None:
    q, p = _errors.make_quadratic(), _errors.make_product()
    assert np.round(q.at, 3).tolist() == [0, 0, -8.392, 0, 3.313, 9.755, -4.792, 0]
    assert float((q.gradient(q.at) ** 2).sum()) == pytest.approx(565.27, abs=0.005)
    assert q.high.tolist() == [x != 0 for x in q.at] and p.high.tolist() == [True] + [False] * 15


@pytest.mark.parametrize("function", [_errors.make_product(), _errors.make_quadratic()], ids=["product", "quadratic"])
def test_gradients_are_those_of_the_functions(function: _errors.ToyFunction) -> None:
    n = len(function.at)
    up, down = (function.f(function.at + sign * 1e-5 * np.eye(n)) for sign in (1, -1))
    assert np.allclose((up - down) / 2e-5, function.gradient(function.at), atol=1e-8)


@pytest.mark.parametrize("of", [Normal(), Sphere()], ids=["normal", "sphere"])
def test_aligned_directions(of: AbstractNoise) -> None:
    """<a, v> = xi |a| to rounding; E[v] = 0 and E[v v'] = I within five standard errors of 4,000 draws."""
    theta, draws = np.linspace(-1, 2, 6), 4000
    noise, leaf = Aligned(lambda x: 3 * x, of), Leaf("theta", 0, theta, (), 6)
    v = np.stack([noise.draw(Key(1, i, 0), leaf) for i in range(draws)])
    a = 3 * theta
    xi = v @ a / np.linalg.norm(a)
    assert np.allclose(np.abs(xi), 1) and abs(xi.mean()) < 5 / draws**0.5
    outer = v[:, :, None] * v[:, None, :]
    for found, wanted in ((v, np.zeros(6)), (outer, np.eye(6))):
        assert (np.abs(found.mean(0) - wanted) <= 5 * found.std(0) / draws**0.5 + 1e-3).all()
    assert np.array_equal(noise.draw(Key(1, 7, 0), leaf), v[7])


def test_aligned_without_a_gradient_is_its_noise() -> None:
    leaf = Leaf("theta", 0, np.zeros(6), (), 6)
    assert np.array_equal(Aligned(lambda x: x).draw(Key(1, 2, 3), leaf), Normal().draw(Key(1, 2, 3), leaf))


def test_estimates_are_what_training_moves_along() -> None:
    """sum g z of one aligned direction is xi^2 a plus what lies across."""
    function = _errors.make_quadratic()
    a = function.gradient(function.at)
    noise, estimator = _errors.make_parts("DAP exact", function, 1, 1e-6)
    space = ArraySpace(function.at)
    run = Run(5, 1, MemoryLog(), space, noise, Sgd(), estimator, FunctionTask(function.f), space)  # type: ignore[arg-type]
    found = _errors.estimate_gradient(run, 0)
    assert found @ a == pytest.approx(a @ a, rel=1e-4)
    assert np.array_equal(space.value, function.at)


def test_errors_are_those_of_the_theory() -> None:
    """(n + 1) |a|^2 / b for Gaussian directions in total, (n - 1) |a|^2 / b on the sphere."""
    function = _errors.make_quadratic()
    for kind, factor in (("gauss", 9), ("sphere", 7)):
        found = _errors.measure_error(kind, function, 4, 300, 1e-6, 2)
        assert abs(found.mean[0] - factor * 565.27 / 4 / 8) < 4 * found.se[0]


def test_a_tiny_run(tmp_path: Path) -> None:
    made = lab.make_experiment("variance", ["trials=40", "most=8"])
    outcome = lab.run_experiment("variance", made, 1, tmp_path)
    found = json.loads((tmp_path / "variance.json").read_text())["numbers"]["errors"]
    assert found["product"].keys() == set(_errors.DIRECTION_KINDS) and found["quadratic"]["sphere"].keys() == {"8"}
    (aligned,) = [claim for claim in outcome.claims if "no error" in claim.paper]
    assert aligned.holds
    assert "<svg" in (tmp_path / "variance.svg").read_text()


def test_a_run_below_the_golden_batches_claims_nothing(tmp_path: Path) -> None:
    outcome = lab.run_experiment("variance", lab.make_experiment("variance", ["trials=4", "most=2"]), 1, tmp_path)
    assert outcome.claims == []
