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
from zoedge.errors import DamagedError
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
    # the checksum of the next look shows that one is missing
    assert [x["step"] for x in found] == [4, 16, 20, 0, 8, 12, 24]
    assert found[-3] | {"sum": 0} == json.loads(lost) | {"sum": 0}
    losses = run_folder.validation_losses(first.folder, Log.open(first.folder / run_folder.LOG_FILE))
    assert losses[best.at] == min(losses.values()) and best.at == min(losses, key=losses.__getitem__)
    assert (first.folder / run_folder.LOG_FILE).read_bytes() == log
    assert (tune("run").at, tune("run").after) == (24, first.after)


EDITS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "a loss": lambda looks: looks[2].update(loss=1e-4),
    "a step": lambda looks: looks[2].update(step=16),
    "a loss and the checksum of another line": lambda looks: looks[2].update(loss=1e-4, sum=looks[1]["sum"]),
    "a loss, its checksum gone": lambda looks: (looks[2].update(loss=1e-4), looks[2].pop("sum")),
    "a look that was added": lambda looks: looks.append(looks[2] | {"loss": 1e-4}),
    "a look that was removed": lambda looks: looks.pop(2),
    "the last look removed": lambda looks: looks.pop(),
    "two looks swapped": lambda looks: looks.insert(1, looks.pop(2)),
    "another run's look": lambda looks: looks[2].update(sum="0123456789abcdef"),
}


def test_a_look_that_was_edited_chooses_nothing(
    tune: Callable[..., Outcome], zoedge: Callable[..., Any], tmp_path: Path
) -> None:
    """Every command that delivers refuses, with exit code 5; a resumed run looks again and ends as it had."""
    folder = tune("run", "eval.select=best").folder
    path, adapter = folder / run_folder.METRICS_FILE, (folder / "adapter" / WEIGHTS).read_bytes()
    whole, lines = path.read_bytes(), run_folder.read_metrics(folder)
    log = Log.open(folder / run_folder.LOG_FILE)
    before, at = run_folder.validation_looks(folder, log), run_folder.resolve_step(log, None)
    done = zoedge("verify", folder)
    assert f"delivers step {at}, " in done.out and "(7 looks, checksums right)" in done.out, done.out
    for what, edit in EDITS.items():
        looks = [dict(x) for x in lines if x["event"] == "valid"]
        edit(looks)
        rest = [x for x in lines if x["event"] != "valid"]
        path.write_text("".join(json.dumps(x) + "\n" for x in [*rest[:-1], *looks, rest[-1]]))
        with pytest.raises(DamagedError, match=r"the looks choose the step that is delivered\. Name a"):
            run_folder.resolve_step(log, None)
        assert run_folder.resolve_step(log, "last") == 24 and run_folder.resolve_step(log, "8") == 8, what
        run_folder.mend_looks(folder, log)
        again = run_folder.validation_looks(folder, log)
        assert again.items() <= before.items() and len(again) >= 4 and run_folder.mend_looks(folder, log) == 0, what
    path.write_bytes(whole.replace(b'"step": 8, "seq"', b'"step": 9, "seq"'))
    for command in (["verify"], ["replay", "-o", tmp_path / "r"], ["pack", "-o", tmp_path / "p.zoe"]):
        done = zoedge(command[0], folder, *command[1:])
        assert done.code == 5 and "the look after step 9" in done.err, done.out
    assert tune("run", "eval.select=best").at == at and (folder / "adapter" / WEIGHTS).read_bytes() == adapter
    assert run_folder.validation_looks(folder, log) == before
    path.write_text(
        "".join(json.dumps({k: v for k, v in x.items() if k not in ("sum", "looks")}) + "\n" for x in lines)
    )
    assert run_folder.resolve_step(log, None) == at, "a run of an earlier version has no checksums"


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
    kept = [x for x in run_folder.read_metrics(folder) if x["event"] not in ("valid", "finished") or x.get("step") == 0]
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
