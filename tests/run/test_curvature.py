"""The curvature tracker: right where tr H is known, and a run's log does not feel it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zoedge.commands.finetune import train
from zoedge.errors import UsageError
from zoedge.lab._bench import ArraySpace
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.sections import Curvature
from zoedge.run import folder as run_folder
from zoedge.run.curvature import estimate_trace
from zoedge.run.display import make_display

D = 60
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(D, D)) / np.sqrt(D)
H, SLOPE = ROOT @ ROOT.T, RNG.normal(size=D)


class Quadratic:
    """Row i's loss is x'Hx/2 + slope'x, shifted by i: the mean over rows has the Hessian H."""

    def score(self, model: ArraySpace, batch: Any, copies: int) -> np.ndarray:
        f = 0.5 * np.einsum("ci,ij,cj->c", model.points, H, model.points) + model.points @ SLOPE
        return f[:, None] + np.array(batch, float)[None]


class Rows:
    sequences_each, tokens = 1, [[0] * 900] * 5  # two rows a forward

    def __len__(self) -> int:
        return 5

    def sorted_batches(self, size: int, count: int) -> list[list[int]]:
        return [list(range(i, min(i + size, count))) for i in range(0, count, size)]

    def collate(self, chosen: list[int]) -> list[int]:
        return chosen


def test_the_trace_of_a_quadratic_within_its_error_and_the_papers_form_drowned() -> None:
    space = ArraySpace(RNG.normal(size=D))
    before = space.value.copy()
    options = Curvature(directions=400, delta=1e-2, rows=4)
    found = estimate_trace(space, Quadratic(), space, Rows(), options, 5, 0)
    assert found.error < 0.05 * np.trace(H) and abs(found.trace - np.trace(H)) < 5 * found.error
    # of u'Hu, u normal: 2 tr H^2 a direction
    assert found.error == pytest.approx(np.sqrt(2 * np.trace(H @ H) / 400), rel=0.2)
    x = before
    assert found.loss == pytest.approx(0.5 * x @ H @ x + SLOPE @ x + 1.5)
    paper = estimate_trace(space, Quadratic(), space, Rows(), options.model_copy(update={"estimator": "paper"}), 5, 0)
    slope = np.linalg.norm(H @ x + SLOPE)
    assert paper.error == pytest.approx(2 / 1e-2 * slope / np.sqrt(400), rel=0.2) and paper.error > np.trace(H)
    assert np.array_equal(space.value, before)
    again = estimate_trace(space, Quadratic(), space, Rows(), options, 5, 0)
    other = estimate_trace(space, Quadratic(), space, Rows(), options, 5, 1)
    assert again == found and other.trace != found.trace, "a function of (seed, step)"


def test_a_tracked_runs_log_is_the_untracked_ones(recipe_file: Path, tmp_path: Path) -> None:
    found = []
    for words in ([], ["eval.curvature={every: 8, directions: 2, rows: 6}"]):
        recipe = read_recipe(str(recipe_file), [*words, "eval.at_start=false"])
        folder = tmp_path / str(len(words))
        train(recipe, folder, make_display("quiet"))
        with Log.open(folder / run_folder.LOG_FILE) as log:
            found.append((list(log), log.state.end, log.state.hashes, log.header.recipe, log.header.identity()))
    plain, tracked = found
    assert plain[:4] == tracked[:4], "records, state hashes and the recipe's digest"
    lines = [line for line in run_folder.read_metrics(tmp_path / "1") if line["event"] == "curvature"]
    assert [line["step"] for line in lines] == [0, 8, 16, 24]
    assert all(abs(line["trace"]) > 0 and line["error"] > 0 and line["loss"] > 0 for line in lines)
    assert not [line for line in run_folder.read_metrics(tmp_path / "0") if line["event"] == "curvature"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("rows=0", "eval.curvature.rows: 0 is not at least 1"),
        ("direction=3", "did you mean 'directions'"),
        ("estimator=other", "'antithetic' or 'paper'"),
    ],
)
def test_a_wrong_option_is_answered(recipe_file: Path, word: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_recipe(str(recipe_file), [f"eval.curvature.{word}"])


def test_points_are_left_behind_when_the_score_fails() -> None:
    space = ArraySpace(np.zeros(D))

    def score(*_: Any) -> Any:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        estimate_trace(space, SimpleNamespace(score=score), space, Rows(), Curvature(rows=1), 0, 0)
    assert space.points is None and not space.value.any()


@pytest.mark.parametrize("space", ["lora", "scales"])
def test_it_asks_for_no_more_points_than_a_space_holds(recipe_file: Path, space: str) -> None:
    """Scales hold one at a time, LoRA both of a direction."""
    from zoedge.run import setup

    bench = setup.Measuring.build(read_recipe(str(recipe_file), [f"space={space}", "output.export=[]"]))
    some = Curvature(rows=4, directions=2)
    found = estimate_trace(bench.space, bench.task, bench.base, bench.texts.train, some, 0, 0)
    assert np.isfinite(found.trace) and found.error > 0
