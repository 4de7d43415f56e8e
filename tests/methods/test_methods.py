"""Every noise x estimator x rule that a recipe may name: measured, logged, resumed and replayed to the same bits.

The tests iterate over the files there are: a new method is tested by being there.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.methods import (
    check_direction,
    check_passes,
    check_replays,
    check_slope,
    run_of,
)
from torch import Tensor

from zoedge.core import oracle as core_oracle
from zoedge.core.parts import PART_FOLDERS, list_words, load_part
from zoedge.core.types import Key, Leaf, Part

N = {kind: list_words(PART_FOLDERS[kind]) for kind in ("noise", "estimator", "rule")}


def allowed(noise: str, estimator: str, rule: str) -> bool:
    """As recipe.check decides it: what each part says it goes with."""
    chosen = {"noise": noise, "estimator": estimator, "rule": rule}
    rules = [getattr(load_part(kind, word), "only_with", {}) for kind, word in chosen.items()]
    return all(chosen[kind] in those for one in rules for kind, those in one.items() if kind in chosen)


TRIPLES = [t for t in itertools.product(N["noise"], N["estimator"], N["rule"]) if allowed(*t)]


def test_there_are_methods() -> None:
    assert len(N["noise"]) >= 9 and len(N["estimator"]) >= 10 and len(N["rule"]) >= 6 and len(TRIPLES) > 100


@pytest.mark.parametrize("triple", TRIPLES, ids=" ".join)
def test_train_resume_and_replay_end_in_the_same_bits(triple: tuple[str, str, str], tmp_path: Path) -> None:
    check_replays(triple, tmp_path)


@pytest.mark.parametrize("triple", TRIPLES, ids=" ".join)
def test_the_direction_moved_along_is_the_direction_probed(triple: tuple[str, str, str], tmp_path: Path) -> None:
    check_direction(triple, tmp_path)


def test_directions_are_kept_for_a_step_or_for_a_leaf_of_it() -> None:
    """A lean space's are another copy of the model: those of one leaf are in memory."""
    for lean, kept in ((False, {"first", "second"}), (True, {"second"})):
        run = run_of(("rademacher", "two_sided", "sgd"), None)
        run.space.lean = lean
        for leaf in run.space.leaves():
            first = [run.direction(5, query, leaf) for query in (0, 1)]
            assert all(run.direction(5, query, leaf) is z for query, z in enumerate(first)), "not drawn again"
        assert set(run._drawn) == {(5, query, name) for query in (0, 1) for name in kept}
        run.direction(6, 0, leaf)
        assert set(run._drawn) == {(6, 0, "second")}


def test_an_estimators_own_signs_are_these_for_ever() -> None:
    """Another version that goes on with a run asks for the same points."""
    oracle = core_oracle.StepOracle(SimpleNamespace(seed=7), None, 0, 1, 3)  # type: ignore[arg-type]
    assert "".join("+-"[oracle.sign(query) < 0] for query in range(32)) == "+-+-+--+--+-------+-+--+--++-+++"


@pytest.mark.parametrize("noise", N["noise"])
def test_noise_is_the_same_in_torch_and_numpy_in_pieces_and_of_few_bits(noise: str) -> None:
    made = load_part("noise", noise)()
    whole = Leaf("x", 0, torch.zeros(600), (), 600)
    for query in range(3):
        z = made.draw(Key(5, 9, query), whole)
        other = made.draw(Key(5, 9, query), Leaf("x", 0, np.zeros(600, np.float32), (), 600))
        assert z is not None and other is not None and z.numpy().tobytes() == other.tobytes()
        mantissas = np.frexp(z.double().numpy())[0] * 256
        assert (mantissas == mantissas.round()).all()
        if noise != "low_rank":  # whose matrices are no pieces
            pieces = [made.draw(Key(5, 9, query), Leaf("x", i, torch.zeros(150), (), 600)) for i in range(0, 600, 150)]
            joined = torch.cat([torch.zeros(150) if p is None else p for p in pieces])
            assert torch.equal(joined, z)


def scaled(made: Any, key: Key, n: int) -> Tensor:
    leaf = Leaf("x", 0, torch.zeros(n), (Part("x", 0, (n // 4, 4)),), n)
    z = made.draw(key, leaf)
    assert z is not None
    return z.double() * made.gain(n, lambda: float((z.double() ** 2).sum()))


@pytest.mark.parametrize("noise", sorted(set(N["noise"]) - {"uniform_raw", "sparse", "block"}))
def test_directions_have_unit_covariance(noise: str) -> None:
    """E[s s'] = I within five standard errors of 1,500 draws in 16 dimensions."""
    made, n, draws = load_part("noise", noise)(), 16, 1500
    if noise == "low_rank":
        made = load_part("noise", noise)(refresh=1)
    s = torch.stack([scaled(made, Key(1, i, 0), n) for i in range(draws)])
    covariance = s.T @ s / draws
    spread = (s[:, :, None] * s[:, None, :]).std(0) / math.sqrt(draws)
    assert ((covariance - torch.eye(n)).abs() <= 5 * spread + 1e-3).all()


PASSES: list[tuple[str, dict[str, Any], int]] = [  # ALGORITHMS 0.1: forward passes of a step
    ("two_sided", {}, 2), ("two_sided", {"queries": 5}, 10), ("one_sided", {}, 2), ("one_sided", {"queries": 5}, 6),
    ("residual", {}, 1), ("stp", {}, 3), ("s2p", {"option": 1}, 2), ("s2p", {"option": 3}, 2),
    ("s2p", {"option": 2}, 4), ("s2p", {"option": 4}, 4), ("s2p", {"option": 2, "trial": "sign", "rho": 0.1}, 2),
    ("s2p", {"option": 4, "trial": "sign", "rho": 0.1}, 2), ("as2p", {}, 2), ("conservative", {}, 5),
    ("fzoo", {"queries": 8}, 9), ("dap", {"first": 1, "second": 1}, 3), ("dap", {"first": 3, "second": 5}, 9),
    ("curved", {}, 3), ("gauss_newton", {}, 5), ("gauss_newton", {"queries": 16}, 17),
    ("forward", {}, 2), ("forward", {"queries": 3}, 6),  # a value and its tangent cost two
]  # fmt: skip


@pytest.mark.parametrize(("estimator", "options", "passes"), PASSES)
def test_forward_passes_are_the_tables(estimator: str, options: dict[str, Any], passes: int) -> None:
    check_passes(estimator, options, passes)


@pytest.mark.parametrize("estimator", ["two_sided", "one_sided", "curved", "conservative", "forward"])
def test_differences_are_the_slope_on_a_linear_function(estimator: str) -> None:
    check_slope(estimator)
