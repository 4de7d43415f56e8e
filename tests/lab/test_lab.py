"""The lab: what every experiment must be, and the first of them against the paper's own trajectory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from zoedge.cli import app
from zoedge.commands import lab
from zoedge.errors import UsageError
from zoedge.lab._bench import ArraySpace, FunctionTask, descend
from zoedge.lab.flat_minima import GOLDEN_TRACES, FlatMinima
from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.rules.momentum import Momentum

NAMES = [name for name, _ in lab.list_experiments()]


def test_there_are_experiments() -> None:
    assert "flat-minima" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_a_frozen_dataclass_that_says_what_it_asks(name: str) -> None:
    made = lab.make_experiment(name, [])
    assert dataclasses.is_dataclass(made) and made.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert type(made).__name__ == "".join(w.capitalize() for w in name.split("-"))
    about = dict(lab.list_experiments())[name]
    assert 20 < len(about) < 128 and dataclasses.fields(made)


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        ("flat-minim", [], "did you mean 'flat-minima'"),
        ("flat-minima", ["stpes=3"], "stpes: unknown key - did you mean 'steps'?"),
        ("flat-minima", ["steps=0"], "steps: 0 is not at least 1"),
        ("flat-minima", ["steps"], "is not key=value"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(name: str, overrides: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence.replace("?", r"\?")):
        lab.make_experiment(name, overrides)


def test_flat_minima_follows_the_papers_trajectory(tmp_path: Path) -> None:
    """ALGORITHMS 8.3 at 1,000 steps, to its last printed digit; the same draws again give the same numbers."""
    runner = CliRunner()
    done = runner.invoke(app, ["lab", "run", "flat-minima", "steps=1000", "every=500", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "flat-minima.json").read_text())
    assert found["numbers"]["start"] == pytest.approx(216.889, abs=5e-4)
    for name, golden in GOLDEN_TRACES.items():
        assert found["numbers"]["trace"][name][1] == pytest.approx(golden[0], abs=6e-4)
    assert all(claim["holds"] for claim in found["claims"][:-1]) and "reproduced" in done.output
    assert (tmp_path / "flat-minima.svg").read_text().startswith("<?xml")
    again = lab.run_experiment("flat-minima", FlatMinima(1000, 500), 0, tmp_path / "again")
    assert json.loads(json.dumps(again.numbers)) == found["numbers"]
    assert (tmp_path / "again" / "flat-minima.json").exists()


@pytest.mark.slow
def test_flat_minima_follows_it_to_the_end() -> None:
    """100,000 steps a run, within 1 % everywhere; about two minutes."""
    outcome = FlatMinima().run(0)
    assert len(outcome.claims) == len(GOLDEN_TRACES) + 1 and all(claim.holds for claim in outcome.claims)


def test_another_seed_is_another_run_and_a_wrong_finding_is_told() -> None:
    one, two = FlatMinima(1000, 500).run(0), FlatMinima(1000, 500).run(1)
    assert one.numbers["trace"]["lambda 0.1"] == two.numbers["trace"]["lambda 0.1"], (
        "the paper's draws have their own seed"
    )
    ours = "lambda 0.1, zoedge's noise"
    assert one.numbers["trace"][ours] != two.numbers["trace"][ours]
    traces = {name: [1.0, 1.0] for name in one.numbers["trace"]}
    assert not any(claim.holds for claim in FlatMinima(1000, 500).claims(traces, 1.0))


def test_a_lab_run_is_the_engines() -> None:
    """Momentum on a bowl, against the recursion written out: float64 master, 16-bit weights."""
    from zoedge.core.exact import bits16
    from zoedge.core.types import Key
    from zoedge.methods.estimators.two_sided import TwoSided

    start = np.linspace(-1, 1, 7)
    space = ArraySpace(start)
    bowl = FunctionTask(lambda points: 0.5 * (points**2).sum(1))
    theta, m = start.copy(), np.zeros(7)
    for record in descend(space, bowl, Rademacher(), TwoSided(eps=1e-3), Momentum(lr=2**-6, mu=0.5), 20, 3):
        z = Rademacher().draw(Key(3, record.step, 0), space.leaves()[0]).astype(float)  # type: ignore[union-attr, attr-defined]
        assert record.g[0] == pytest.approx(bits16(float(theta @ z)), rel=2e-4)
        m = 0.5 * m + record.g[0] * z
        theta = theta - 2**-6 * m
        assert np.allclose(space.value, theta, atol=1e-12)
