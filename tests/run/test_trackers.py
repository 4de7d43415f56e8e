"""log.trackers: what accelerate's trackers are told, and that whatever they do is never the end of a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking

from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import trackers

TOLD: list[tuple[Any, ...]] = []


class Fake(tracking.GeneralTracker):  # type: ignore[misc]
    """accelerate's own base class, keeping what it is told. fails: the call that raises."""

    name, requires_logging_directory, fails = "tensorboard", True, ""

    def __init__(self, run_name: str, logging_dir: str):
        super().__init__()
        self._told("made", run_name, logging_dir)

    def _told(self, *what: Any) -> None:
        TOLD.append(what)
        if what[0] == self.fails:
            raise ConnectionError("no route to \x1b[31m host")

    @property
    def tracker(self) -> Any:
        return self

    def start(self) -> None:
        self._told("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._told("config", values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._told("log", step, values)

    def finish(self) -> None:
        self._told("finish")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Fake)
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    monkeypatch.setattr(Fake, "fails", "")
    TOLD.clear()
    return Fake


ON = "log.trackers=[tensorboard]"


def test_what_it_is_told(zoedge: Any, recipe_file: Path, fake: type[Fake], tmp_path: Path) -> None:
    done = zoedge("finetune", recipe_file, ON, "eval.select=last", "--plain")
    assert done.code == 0, done.err
    made, start, config, *logged, finish = TOLD
    assert made == ("made", "tiny", str(tmp_path / "runs" / "tiny" / "trackers")) and start == ("start",)
    assert config[1]["rule.lr"] == 0.01 and config[1]["space.targets"] == "['q_proj', 'v_proj']"
    assert all(isinstance(v, (bool, int, float, str)) for v in config[1].values())
    assert finish == ("finish",) and all(kind == "log" for kind, *_ in logged)
    with Log.open(tmp_path / "runs" / "tiny" / "run.zlog") as log:
        records = list(log)
    steps = {step: values for _, step, values in logged if "train/loss" in values}
    assert list(steps) == [10, 20, 24]
    last = records[20:24]
    assert steps[24]["train/loss"] == pytest.approx(sum(sum(r.losses) / 2 for r in last) / 4)
    assert steps[24]["train/gamma"] == pytest.approx(sum(abs(r.g[0]) for r in last) / 4)
    assert steps[24]["train/lr"] == last[-1].lr
    scores = [(step, {name.partition("/")[0] for name in values}) for _, step, values in logged if step not in steps or "train/loss" not in values]  # fmt: skip  # noqa: E501
    assert scores == [(0, {"test"}), (10, {"valid"}), (20, {"valid"}), (24, {"test"})]
    (found,) = [values for _, step, values in logged if step == 10 and "valid/loss" in values]
    assert 0 <= found["valid/accuracy"] <= 1 and "valid/calibrated" in found


def test_the_run_is_the_same_with_and_without(zoedge: Any, recipe_file: Path, fake: type[Fake], tmp_path: Path) -> None:
    assert zoedge("finetune", recipe_file, "--quiet", "--run-dir", tmp_path / "a").code == 0
    assert not TOLD
    assert zoedge("finetune", recipe_file, ON, "--quiet", "--run-dir", tmp_path / "b").code == 0
    with Log.open(tmp_path / "a" / "run.zlog") as a, Log.open(tmp_path / "b" / "run.zlog") as b:
        assert list(a) == list(b) and a.header.recipe == b.header.recipe and a.state.end == b.state.end


@pytest.mark.parametrize("fails", ["made", "start", "config", "log", "finish"])
def test_a_failure_is_a_note(fails: str, zoedge: Any, recipe_file: Path, fake: type[Fake]) -> None:
    fake.fails = fails
    done = zoedge("finetune", recipe_file, ON, "train.steps=12", "eval.at_start=false", "--plain")
    assert done.code == 0, done.err
    notes = [line for line in done.out.splitlines() if "the tracker tensorboard has failed" in line]
    if fails == "finish":
        assert not notes
        return
    (note,) = notes
    assert note.startswith("note: ") and note.endswith("ConnectionError: no route to \\x1b[31m host")
    assert sum(kind == "log" for kind, *_ in TOLD) == (fails == "log"), "it is left alone from there on"


def test_a_resumed_run_goes_on_telling(zoedge: Any, recipe_file: Path, fake: type[Fake], tmp_path: Path) -> None:
    assert zoedge("finetune", recipe_file, ON, "eval.select=last", "--quiet").code == 0
    log = tmp_path / "runs" / "tiny" / "run.zlog"
    with Log.open(log) as whole:
        kept = whole.header.length + whole.header.slot_size * (whole[14].seq + 1)
    log.write_bytes(log.read_bytes()[:kept])
    TOLD.clear()
    assert zoedge("resume", tmp_path / "runs" / "tiny", "--quiet").code == 0
    assert [step for kind, *rest in TOLD if kind == "log" for step in rest[:1]] == [20, 20, 24, 24]


def test_a_missing_package_is_said_before_anything_is_loaded(zoedge: Any, recipe_file: Path, tmp_path: Path) -> None:
    missing = [w for w in ("comet_ml", "aim") if importlib.util.find_spec(w) is None]
    if len(missing) < 2:
        pytest.skip("these trackers are installed")
    done = zoedge("finetune", recipe_file, "log.trackers=[comet_ml, aim]", "model.source=nowhere")
    assert done.code == 2 and not (tmp_path / "runs").exists()
    assert done.err == (
        "zoedge: log.trackers: comet_ml, aim: no such package here. Install it: pip install comet-ml aim; or leave it out.\n"
    )


def test_an_unknown_word_gets_its_line(zoedge: Any, recipe_file: Path) -> None:
    text = recipe_file.read_text().replace("{hash_every: 5}", "{hash_every: 5, trackers: [tensorbord]}")
    recipe_file.write_text(text)
    done = zoedge("finetune", recipe_file, "--dry-run")
    assert done.code == 2 and ".yaml:13:33: log.trackers.0: " in done.err and "did you mean 'tensorboard'?" in done.err
    done = zoedge("finetune", recipe_file, "report_to=wandb", "--dry-run")
    assert "report_to: unknown key - zoedge calls this 'log.trackers" in done.err


def test_recipes_without_trackers_keep_their_digests(recipe_file: Path) -> None:
    plain, told = read_recipe(str(recipe_file)), read_recipe(str(recipe_file), [ON])
    assert "trackers" not in plain.resolved()["log"] and told.resolved()["log"]["trackers"] == ["tensorboard"]
    assert plain.semantic() == told.semantic()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboards_own_files(zoedge: Any, recipe_file: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert zoedge("finetune", recipe_file, ON, "--quiet").code == 0
    events = EventAccumulator(str(tmp_path / "runs" / "tiny" / "trackers" / "tiny")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [10, 20, 24]
    assert {"train/gamma", "train/lr", "valid/accuracy", "test/loss"} <= set(events.Tags()["scalars"])
