"""The drift stands beside every score, and a limit of it decides which step `select: best` chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import METHODS

from zoedge.commands.finetune import train
from zoedge.errors import UsageError
from zoedge.recipe.reading import read_recipe
from zoedge.run import evaluate
from zoedge.run import folder as run_folder
from zoedge.run.display import Plain, make_display
from zoedge.run.evaluate import Score, format_scores
from zoedge.run.folder import Look, choose_best, explain_choice
from zoedge.run.outcome import Outcome

VALID = 10  # rows of the recipe's validation set
STEPS = [0, 4, 8, 12, 16, 20, 24]


@pytest.fixture
def falling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each validation loss is lower than the one before, so that the last step would be the best."""
    real, looks = evaluate.evaluate, iter(range(1000))

    def fake(space: Any, task: Any, model: Any, examples: Any, calibrate: int) -> Score:
        score = real(space, task, model, examples, calibrate)
        return replace(score, loss=1000.0 - next(looks)) if len(examples) == VALID else score

    monkeypatch.setattr(evaluate, "evaluate", fake)


@pytest.fixture
def tune(recipe_file: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """24 steps of it, looked at every 4, in a folder of that name."""

    def run(name: str, *overrides: str, show: Plain | None = None) -> Outcome:
        settings = ["rule.lr=0.05", "eval.every=4", "eval.select=best", *overrides]
        return train(read_recipe(str(recipe_file), settings), tmp_path / name, show or make_display("quiet"))

    return run


def noted(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in run_folder.read_metrics(folder) if line["event"] == event]


def test_the_limit_changes_the_step_that_is_delivered(
    falling: None, tune: Callable[..., Outcome], zoedge: Callable[..., Any]
) -> None:
    free = tune("free")
    drifts = {line["step"]: line["drift"] for line in noted(free.folder, "valid")}
    assert (
        [*drifts] == STEPS
        and drifts.pop(0) == 0
        and all(x > 0 for x in drifts.values())
        and (free.at, free.chosen) == (24, "")
    )
    limit = (min(drifts.values()) + drifts[24]) / 2
    assert drifts[24] > limit, "the last step is the one that the limit is to exclude"
    want = max(step for step, x in drifts.items() if x <= limit)
    held = tune("held", f"eval.drift={limit!r}")
    assert (held.at, held.better) == (want, None)
    assert held.chosen == f"of the lowest validation loss where the drift is at most {limit:g}"
    assert noted(held.folder, "after")[0]["step"] == want
    assert tune("held", f"eval.drift={limit!r}") == held, "from what was noted"
    assert json.loads((held.folder / "adapter" / "zoedge.json").read_text())["steps"] == want
    for at in ([], ["--at", "best"]):
        assert zoedge("export", held.folder, "--to", "peft", "-o", held.folder / f"e{len(at)}", *at).code == 0
        assert json.loads((held.folder / f"e{len(at)}" / "zoedge.json").read_text())["steps"] == want


def write_as_older(path: Path, changed: Callable[[dict[str, Any]], bool]) -> None:
    """Take the drift off the lines that `changed` chooses, and the checksums of looks off all, as older versions wrote them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for key in ("sum", "looks", *(["drift"] if changed(line) else [])):
            line.pop(key, None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_another_limit_trains_nothing_anew(falling: None, tune: Callable[..., Outcome]) -> None:
    """Looks of an older version, which had no drift, are made up for."""
    first = tune("run")
    log = (first.folder / run_folder.LOG_FILE).read_bytes()
    path = first.folder / run_folder.METRICS_FILE
    drifts = {line["step"]: line["drift"] for line in noted(first.folder, "valid")}
    write_as_older(path, lambda line: line.get("step") != 8)
    held = tune("run", f"eval.drift={max(drifts.values()) + 1!r}")
    again = noted(first.folder, "valid")[len(STEPS) :]
    assert [line["step"] for line in again] == [0, 4, 12, 16, 20, 24]
    assert {line["step"]: line["drift"] for line in again} == {step: drifts[step] for step in (0, 4, 12, 16, 20, 24)}
    assert held.at == 24 and (first.folder / run_folder.LOG_FILE).read_bytes() == log


def test_where_no_step_is_within_the_start_is_delivered(
    falling: None, tune: Callable[..., Outcome], zoedge: Callable[..., Any]
) -> None:
    done = tune("run", "eval.drift=1e-9")
    why = "the start: no step that was looked at and drifted by at most 1e-09 had a lower validation loss"
    assert (done.at, done.chosen) == (0, why)
    path = done.folder / run_folder.METRICS_FILE
    write_as_older(path, lambda line: True)
    told = zoedge("export", done.folder, "--to", "peft", "-o", done.folder / "e2")
    assert told.code == 2 and "no drift is noted beside it (metrics.jsonl), so no step is the best" in told.err


def test_a_start_that_drifts_too_far_is_delivered_with_a_note(
    falling: None, tune: Callable[..., Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    done = tune("run", "space.start=probe", "eval.drift=1e-9", show=make_display("plain"))
    drifts = {line["step"]: line["drift"] for line in noted(done.folder, "valid")}
    least = min(drifts, key=drifts.__getitem__)
    why = f"of the least drift ({drifts[least]:.3f}): no look was within eval.drift, which is 1e-09"
    assert drifts[0] > 0 and (done.at, done.chosen) == (least, why)
    assert f"note: step {least} is delivered, {why}" in capsys.readouterr().out


def test_every_score_has_it(recipe_file: Path, zoedge: Callable[..., Any]) -> None:
    done = zoedge("finetune", recipe_file, "rule.lr=0.05", "eval.closed_form=true", "--plain")
    assert done.code == 0
    folder = recipe_file.parent / "runs" / "tiny"
    before, after = noted(folder, "before")[0], noted(folder, "after")[0]
    base = before["base_text"]
    assert (before["drift"], before["text"], after["base_text"]) == (0.0, base, base) and after["drift"] > 0
    assert after["text"] not in (base, None)
    look = noted(folder, "valid")[1]
    assert look["drift"] > 0 and (look["text"], look["base_text"]) == (None, None)
    assert f", drift 0.000, text {base:.3f} (20 test rows)" in done.out
    assert f", drift {look['drift']:.3f} (10 validation rows)" in done.out
    lines = done.out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("zero-shot")]
    head, zero, closed, trained = lines[at - 1 : at + 3]
    assert closed.startswith("closed form ") and float(closed.split()[-2]) > 0
    assert head.split()[-2:] == ["drift", "text"]
    assert zero.split()[-2:] == ["0.000", f"{base:.3f}"]
    assert trained.split()[-2:] == [f"{after['drift']:.3f}", f"{after['text']:.3f}"]
    assert f"nats a token of an ordinary text (base {base:.3f})" in done.out
    scores = json.loads(zoedge("eval", folder, "--json").out)
    assert [scores["zero-shot"][k] for k in ("drift", "text")] == [0.0, base]
    for name in ("drift", "text", "base_text"):
        assert scores["after 24 steps"][name] == pytest.approx(after[name], rel=1e-5)
    assert f"{after['drift']:.3f}" in zoedge("eval", folder).out
    assert noted(folder, "time")[0]["drift"] > 0


@pytest.mark.parametrize("space", ["prompt", "prefix", "scales", "several", "full", "full bf16"])
def test_every_space_has_it_and_a_log_alone_gives_it_again(
    space: str, recipe_file: Path, tmp_path: Path, zoedge: Callable[..., Any]
) -> None:
    """`eval` measures the base anew, also where training moves the base's own weights."""
    done = train(
        read_recipe(str(recipe_file), [*METHODS[space], "eval.select=last"]), tmp_path / "run", make_display("quiet")
    )
    assert done.before is not None and done.after is not None
    assert done.before.drift == 0.0 and done.after.drift and 0 < done.after.drift < 10
    scores = json.loads(zoedge("eval", done.folder, "--json").out)
    for name in ("drift", "text", "base_text"):
        assert scores["after 24 steps"][name] == pytest.approx(vars(done.after)[name], rel=1e-4)


def test_the_report_shows_it_and_old_notes_are_still_read(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from zoedge.commands.report import render_page
    from zoedge.commands.report.facts import read_facts

    run = tmp_path / "tiny"
    run.mkdir()
    for name in (run_folder.LOG_FILE, run_folder.METRICS_FILE, run_folder.RECIPE_FILE):
        (run / name).write_bytes((finished / "runs" / "tiny" / name).read_bytes())
    now = read_facts(run)
    assert now.before is not None and now.after is not None and now.after.drift
    page = render_page([now])
    assert "Drift from the base" in page and f"{now.after.drift:.4f}" in page and "Ordinary text" in page
    path = run / run_folder.METRICS_FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for name in ("drift", "text", "base_text"):
            line.pop(name, None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    old = read_facts(run)
    assert old.after == replace(now.after, drift=None, text=None, base_text=None)
    assert [s for s, _ in old.valid] == [s for s, _ in now.valid]
    assert "Drift from the base" not in render_page([old])
    assert old.before is not None
    table = format_scores({"zero-shot": old.before, "after": old.after}, "rows")
    assert len(table) == 4 and "drift" not in table[0]
    mixed = format_scores({"old": old.before, "new": now.after}, "rows")
    assert len(mixed[1].split()) == len(mixed[2].split()) - 2


def test_a_model_that_fills_masks_has_none(roberta: Path, recipe_file: Path, zoedge: Callable[..., Any]) -> None:
    task = "task={name: mlm, prompt: '{text} It was{mask}.', options: {negative: ' terrible', positive: ' great'}}"
    words = ["finetune", recipe_file, f"model.source={roberta}", task, "space.targets=all", "train.steps=4"]
    done = zoedge(*words, "--plain")
    assert done.code == 0 and "drift" not in done.out
    folder = recipe_file.parent / "runs" / "tiny"
    assert noted(folder, "after")[0]["drift"] is noted(folder, "after")[0]["text"] is None
    told = zoedge(*words, "eval.select=best", "eval.drift=0.1")
    assert told.code == 2 and "eval.drift: a model that fills masks has none" in told.err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["eval.select=best", "eval.drift=0"], r"eval\.drift: 0.* greater than 0"),
        (["eval.select=best", "eval.drift=-0.1"], r"eval\.drift: -0\.1.* greater than 0"),
        (["eval.select=best", "eval.drift=little"], r"eval\.drift: 'little' is not"),
        (
            ["eval.drift=0.1", "data.valid=null"],
            r"eval\.drift: the drift is measured on validation rows - write data\.valid",
        ),
        (
            ["eval.drift=0.1", "eval.select=last"],
            r"eval\.drift: limits which step is the best - write eval\.select: best",
        ),
    ],
)
def test_a_limit_that_cannot_be_meant(settings: list[str], sentence: str, recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_recipe(str(recipe_file), settings)


def test_a_recipe_without_a_limit_keeps_its_bytes(recipe_file: Path) -> None:
    plain, held = (read_recipe(str(recipe_file), ["eval.select=best", *more]) for more in ([], ["eval.drift=0.2"]))
    assert "drift" not in plain.resolved()["eval"] and held.resolved()["eval"]["drift"] == 0.2
    assert plain.semantic() == held.semantic()


def test_the_choice() -> None:
    looks = {4: Look(3.0, 0.1), 8: Look(2.0, 0.2), 12: Look(1.0, 0.4), 16: Look(0.5, None)}
    assert [choose_best(looks, limit) for limit in (None, 0.4, 0.3, 0.2, 0.15, 0.05)] == [16, 12, 8, 8, 4, 4]
    assert explain_choice(looks, 16, None) == "of the lowest validation loss"
    assert explain_choice(looks, 4, 0.05) == (
        "of the least drift (0.100): no look was within eval.drift, which is 0.05"
    )
