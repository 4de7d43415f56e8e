"""The lab's flat-logistic and flat-svm: margins' calculus against autograd, the data's reader, a tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoedge.commands import lab
from zoedge.errors import DataError
from zoedge.lab import _flat, flat_logistic, flat_svm

TORCH = {
    "logistic": (flat_logistic.LOGISTIC_LOSS, lambda m: torch.nn.functional.softplus(-m)),
    "svm": (flat_svm.SQUARED_HINGE_LOSS, lambda m: (1 - m).clamp(min=0) ** 2),
}


def rows(count: int, seed: int) -> _flat.LabelledRows:
    rng = np.random.RandomState(seed)
    x = (rng.rand(count, 6) < 0.4).astype(np.float32)
    x[:, 5] = 1.0  # constant, as columns of a1a are
    return _flat.LabelledRows(x, np.where(x[:, 0] + rng.rand(count) > 1, 1.0, -1.0))


def objective(phi: _flat.MarginLoss, count: int = 9) -> tuple[_flat.MarginObjective, np.ndarray]:
    """A small objective, and its X."""
    train, test = rows(30, 0), rows(20, 1)
    features = _flat.RandomFeatures.make(train.x, test.x, count, np.random.RandomState(2))
    x = np.concatenate([np.ones((30, 1)), features.rows @ features.mix], axis=1)
    return _flat.MarginObjective(phi, features, train.y, test.y), x


def test_features_are_standardised_random_projections() -> None:
    made, x = objective(flat_svm.SQUARED_HINGE_LOSS)
    assert np.abs(x[:, 1:].mean(0)).max() < 1e-12 and np.abs(x[:, 1:].std(0) - 1).max() < 1e-12
    w = np.random.RandomState(3).randn(2, 10)
    assert np.allclose(made.features.times(w), w @ x.T)
    assert np.allclose(made.features.transposed(x @ w[0]), x.T @ (x @ w[0]))
    assert np.allclose(made.squares, (x**2).sum(1))
    tests = np.concatenate([np.ones((20, 1)), made.features.tests @ made.features.mix], axis=1)
    assert np.allclose(made.features.predict(w[0]), tests @ w[0], atol=1e-5)


@pytest.mark.parametrize("name", TORCH)
def test_loss_gradient_and_trace_are_autograds(name: str) -> None:
    phi, same = TORCH[name]
    made, x = objective(phi)
    w = 0.3 * np.random.RandomState(4).randn(10)
    tx, ty = torch.from_numpy(x), torch.from_numpy(made.y)

    def f(v: torch.Tensor) -> torch.Tensor:
        return same(ty * (tx @ v)).mean()

    at = torch.from_numpy(w).requires_grad_()
    assert made.losses(w[None])[0] == pytest.approx(f(at).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(f(at), at)
    assert np.allclose(made.gradient(w), gradient.numpy())
    hessian = torch.autograd.functional.hessian(f, at.detach())
    assert made.trace(w) == pytest.approx(float(hessian.trace()), rel=1e-9)


def test_losses_are_finite_far_out() -> None:
    far = np.array([-1e4, -800.0, 0.0, 800.0, 1e4])
    for phi, _ in TORCH.values():
        with np.errstate(over="raise", invalid="raise"):
            assert all(np.isfinite(f(far)).all() for f in phi)
    assert flat_logistic.LOGISTIC_LOSS.value(far)[0] == 1e4


def test_sam_takes_the_gradient_uphill() -> None:
    made, _ = objective(flat_svm.SQUARED_HINGE_LOSS)
    w = 0.1 * np.random.RandomState(5).randn(10)
    g = made.gradient(w)
    (stepped,) = _flat.gradient_descent(made, w, 0.01, 0.5, 1)
    assert np.allclose(stepped, w - 0.01 * made.gradient(w + 0.5 * g / np.linalg.norm(g)))


def test_the_trace_at_a_loss() -> None:
    curve = {"loss": [4.0, 2.0, 1.0], "trace": [10.0, 20.0, 40.0], "accuracy": []}
    assert [_flat.trace_at_loss(curve, level) for level in (5.0, 3.0, 1.5, 1.0)] == [10.0, 15.0, 30.0, 40.0]


def test_the_reader_takes_a_table_with_a_header() -> None:
    x, y = _flat.parse_table("0,1,2\n-1,0.0,1.0\n1,1.0,0.5\n")
    assert x.tolist() == [[0.0, 1.0], [1.0, 0.5]] and y.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("name", ["flat-logistic", "flat-svm"])
def test_a_tiny_run(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(_flat, "load_adult", lambda: (rows(40, 0), rows(30, 1)))
    made = lab.make_experiment(name, ["features=20", "steps=40", "points=8"])
    first, second = (lab.run_experiment(name, made, 3, tmp_path / part) for part in "ab")
    assert first.numbers == second.numbers and len(first.claims) == 6
    found = json.loads((tmp_path / "a" / f"{name}.json").read_text())
    assert found["numbers"]["curves"].keys() == {"ZO", _flat.SMALL_LAMBDA, "GD", "SAM"}
    assert all(c["loss"][-1] < c["loss"][0] for c in found["numbers"]["curves"].values())
    assert "<svg" in (tmp_path / "a" / f"{name}.svg").read_text()


@pytest.mark.real
def test_the_packaged_data() -> None:
    try:
        train, test = _flat.load_adult()
    except DataError as e:
        pytest.skip(str(e))
    assert train.x.shape == (1605, 123) and test.x.shape == (30956, 123)
    assert (train.y > 0).sum() == 395 and (test.y > 0).sum() == 7446
