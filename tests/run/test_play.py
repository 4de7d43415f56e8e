"""Train, resume and replay are one function, and end in the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.runs import train

from zoedge.core import digests, engine, oracle
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import auto, replay, setup
from zoedge.run import folder as run_folder


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8", "none"])
@pytest.mark.parametrize("layers", ["all", "last 2"])
def test_replay_from_the_log_alone_gives_the_same_bits(
    recipe_file: Path, tmp_path: Path, quantization: str, layers: str
) -> None:
    overrides = [f"model.quantization={quantization}", f"space.layers={layers}"]
    final, _ = train(recipe_file, tmp_path / "run", overrides=overrides)
    log = Log.open(tmp_path / "run" / run_folder.LOG_FILE)
    run = replay.build_replay_run(log)
    assert run.task is None and run.model is None
    assert digests.digest(run.space) != final
    for _ in engine.play(run, len(log)):
        pass
    assert digests.digest(run.space) == final
    assert log.state.end == final[:24]


def test_a_resumed_run_ends_in_the_uninterrupted_runs_bytes(recipe_file: Path, tmp_path: Path) -> None:
    whole = train(recipe_file, tmp_path / "a")
    train(recipe_file, tmp_path / "b", until=7)
    train(recipe_file, tmp_path / "b", until=13)
    assert train(recipe_file, tmp_path / "b") == whole


@pytest.mark.parametrize(
    ("estimator", "name"), [("two_sided, eps: 1e-2", "eps"), ("residual, eps: 1e-2", "eps"), ("s2p, rho: 1e-2", "rho")]
)
@pytest.mark.parametrize(
    ("slopes", "warns"), [((2.0, 2.2), False), ((2.0, 9.0), True), ((0.0, 0.0), True), ((2.0, -2.0), True)]
)
def test_a_radius_that_rounding_drowns_is_told(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, estimator: str, name: str, slopes: Any, warns: bool
) -> None:
    """Told by gamma at the radius and at half of it, whatever the estimator makes of losses."""
    bench = setup.Measuring.build(read_recipe(str(recipe_file), [f"estimator={{name: {estimator}}}"]))
    left = list(slopes)

    def losses(self: Any, points: Any) -> list[float]:
        g = left.pop(0)
        return [1.0 + g * c for ((c, _),) in points]

    monkeypatch.setattr(oracle.StepOracle, "losses", losses)
    said = auto.diagnose_radius(bench, name)
    assert bool(said) == warns and (f"estimator.{name}" in said) == warns and not left
