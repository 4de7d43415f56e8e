"""Which step is delivered: the last, or the one of the lowest validation loss; the log is the same either way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from zoedge.commands.finetune import train
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import evaluate
from zoedge.run import folder as run_folder
from zoedge.run.display import make_display
from zoedge.run.evaluate import Score
from zoedge.run.outcome import Outcome

WEIGHTS = "adapter_model.safetensors"
VALID = 10  # rows of the recipe's validation set; the test set has 20


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Validation losses are these, look by look, and test losses what they are."""

    def say(*losses: float) -> None:
        left, real = list(losses), evaluate.evaluate

        def fake(space: Any, task: Any, model: Any, examples: Any, calibrate: int) -> Score:
            found = real(space, task, model, examples, calibrate)
            return replace(found, loss=left.pop(0)) if len(examples) == VALID else found

        monkeypatch.setattr(evaluate, "evaluate", fake)

    return say


@pytest.fixture
def tune(recipe_file: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """24 steps of it, looked at every 4, in a folder of that name."""

    def run(name: str, *overrides: str) -> Outcome:
        recipe = read_recipe(str(recipe_file), ["rule.lr=0.05", "eval.every=4", "eval.select=last", *overrides])
        return train(recipe, tmp_path / name, make_display("quiet"))

    return run


def noted(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in run_folder.read_metrics(folder) if line["event"] == event]


def test_the_best_step_is_delivered_and_the_log_is_the_same(
    looked: Callable[..., None], tune: Callable[..., Outcome], zoedge: Callable[..., Any], tmp_path: Path
) -> None:
    last = tune("last")
    assert (last.at, [x["step"] for x in noted(last.folder, "valid")]) == (24, [4, 8, 12, 16, 20])
    looked(4.0, 3.0, 1.0, 2.0, 1.0, 2.0, 2.0)
    best = tune("best", "eval.select=best")
    log = Log.open(best.folder / run_folder.LOG_FILE)
    assert (best.at, best.better, [*run_folder.validation_losses(best.folder, log)]) == (
        8,
        None,
        [0, 4, 8, 12, 16, 20, 24],
    )
    with (
        Log.open(last.folder / run_folder.LOG_FILE) as one,
        Log.open(best.folder / run_folder.LOG_FILE) as two,
    ):  # the setting stands in a header
        assert one.header.recipe == two.header.recipe and list(one) == list(two)
        assert (one.state.hashes, one.state.end) == (two.state.hashes, two.state.end) and one.state.end is not None
    assert best.after != last.after and noted(best.folder, "after")[0]["step"] == 8
    assert tune("best", "eval.select=best") == best  # from what was noted

    for name, at in (("8", ["--at", 8]), ("best", ["--at", "best"]), ("said", []), ("last", ["--at", "last"])):
        assert zoedge("export", best.folder, "--to", "peft", "-o", tmp_path / f"e-{name}", *at).code == 0
        assert zoedge("replay", best.folder, "-o", tmp_path / f"r-{name}", *at).code == 0
    delivered = {p.name: p.read_bytes() for p in (best.folder / "adapter").iterdir()}
    for name in ("8", "best", "said"):
        assert {p.name: p.read_bytes() for p in (tmp_path / f"e-{name}").iterdir()} == delivered
        assert (tmp_path / f"r-{name}" / WEIGHTS).read_bytes() == delivered[WEIGHTS]
    assert json.loads(delivered["zoedge.json"])["steps"] == 8
    end = load_file(last.folder / "adapter" / WEIGHTS)
    for name in ("e-last", "r-last"):
        found = load_file(tmp_path / name / WEIGHTS)
        assert found.keys() == end.keys() and all(found[key].equal(end[key]) for key in end)
    for at, code in (([], 0), (["--at", 8], 0), (["--at", "last"], 8)):
        assert zoedge("verify", best.folder, "--replay", "--adapter", best.folder / "adapter", *at).code == code
    scores = json.loads(zoedge("eval", last.folder, "--at", 8, "--json").out)
    assert best.after is not None and scores["after 8 steps"]["loss"] == best.after.loss


def test_all_weights_go_back_too(looked: Callable[..., None], tune: Callable[..., Outcome], zoedge: Any) -> None:
    """They are the base's own, moved in place: the replayed ones are copied over them."""
    full = ("space=full", "model.quantization=none", "output.export=[merged]")
    looked(4.0, 3.0, 1.0, 2.0, 2.0, 2.0, 2.0)
    best = tune("best", "eval.select=best", *full)
    assert zoedge("replay", best.folder, "--at", 8, "-o", best.folder / "again").code == 0
    one, two = (best.folder / name / "model.safetensors" for name in ("merged", "again"))
    assert best.at == 8 and one.read_bytes() == two.read_bytes()
    scores = json.loads(zoedge("eval", best.folder, "--json").out)
    assert best.after is not None and scores["after 8 steps"]["loss"] == best.after.loss


def test_what_a_kill_lost_is_looked_at_again(tune: Callable[..., Outcome]) -> None:
    """Another choice trains nothing anew: the run is replayed, and looks that are missing are made up for."""
    first = tune("run")
    path = first.folder / run_folder.METRICS_FILE
    whole, log = path.read_text().splitlines(), (first.folder / run_folder.LOG_FILE).read_bytes()
    lost = next(line for line in whole if '"valid"' in line and '"step": 8,' in line)
    path.write_text("\n".join(line for line in whole if line != lost) + "\n")
    best = tune("run", "eval.select=best")
    found = noted(first.folder, "valid")
    assert [x["step"] for x in found] == [4, 12, 16, 20, 0, 8, 24] and found[-2] == json.loads(lost)
    losses = run_folder.validation_losses(first.folder, Log.open(first.folder / run_folder.LOG_FILE))
    assert losses[best.at] == min(losses.values()) and best.at == min(losses, key=losses.__getitem__)
    assert (first.folder / run_folder.LOG_FILE).read_bytes() == log
    assert (tune("run").at, tune("run").after) == (24, first.after)


@pytest.mark.parametrize(
    ("losses", "told"), [((3.0, 1.0, 2.0, 2.0), True), ((3.0, 2.0, 1.0, 2.0), False), ((4.0, 3.0, 2.0, 1.0), False)]
)
def test_a_better_step_is_told(
    looked: Callable[..., None], recipe_file: Path, zoedge: Callable[..., Any], losses: tuple[float, ...], told: bool
) -> None:
    """After two looks that were worse, not after one."""
    looked(*losses)
    done = zoedge("finetune", recipe_file, "eval.every=5", "eval.select=last", "--plain")
    line = f"better   step 10 by the validation loss: zoedge export {recipe_file.parent}/runs/tiny --at best"
    assert done.code == 0 and (line in done.out) == told == ("--at best" in done.out)


def test_notes_of_steps_that_the_log_lost_do_not_count(tmp_path: Path) -> None:
    """Neither steps after its end nor those that it went back over."""
    for step, loss in ((4, 2.0), (8, 1.0), (12, 0.5), (4, 3.0), (8, float("nan"))):
        run_folder.append_metric(tmp_path, event="valid", step=step, loss=loss)
    run_folder.append_metric(tmp_path, event="after", step=8, loss=0.1)
    log = [SimpleNamespace(seq=10 + i) for i in range(12)]
    assert (
        run_folder.validation_losses(tmp_path, log[:11]) == {4: 3.0, 8: 1.0}
        and run_folder.validation_losses(tmp_path, log)[12] == 0.5
    )
    for seq, loss in ((13, 4.0), (3, 0.1)):  # of step 4's record, and of one that was dropped
        run_folder.append_metric(tmp_path, event="valid", step=4, seq=seq, loss=loss)
    assert run_folder.validation_losses(tmp_path, log)[4] == 4.0


def test_a_log_that_nothing_was_noted_of_is_read_to_its_end(
    tune: Callable[..., Outcome], zoedge: Callable[..., Any], tmp_path: Path
) -> None:
    """A log without its folder, and a run that was stopped before a look at a step."""
    folder = tune("run", "eval.select=best").folder
    alone = tmp_path / "alone.zlog"
    alone.write_bytes((folder / run_folder.LOG_FILE).read_bytes())
    done = zoedge("replay", alone)
    assert done.code == 0 and "24 steps" in done.out, done.out
    kept = [line for line in run_folder.read_metrics(folder) if line["event"] != "valid" or line["step"] == 0]
    (folder / run_folder.METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in kept))
    with Log.open(folder / run_folder.LOG_FILE) as log:
        assert run_folder.resolve_step(log, None) == 24 and run_folder.resolve_step(log, "best") == 0


def test_steps_that_cannot_be_meant(
    tune: Callable[..., Outcome], recipe_file: Path, zoedge: Callable[..., Any]
) -> None:
    done = zoedge("finetune", recipe_file, "eval.select=best", "data.valid=")
    assert done.code == 2 and "eval.select: best is chosen on validation rows - write data.valid: {split" in done.err
    folder = tune("run", "data.valid=").folder
    done = zoedge("export", folder, "--to", "peft", "--at", "best")
    assert (
        done.code == 2 and "no validation loss is noted beside it (metrics.jsonl), so no step is the best" in done.err
    )
    for at in ("25", "-1", "nine", "9" * 5000):
        done = zoedge("replay", folder, "--at", at)
        assert done.code == 2 and "not last, best or a number of steps; the log has 24." in done.err
