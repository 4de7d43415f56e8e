"""Sweeps: which points a file means, every mistake with its place, and runs that go on where a sweep was stopped."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zoedge as package
from zoedge.commands import runs, sweep
from zoedge.core import child
from zoedge.errors import UsageError, ZoedgeError
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import folder, identity


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with my.yaml, its rows and its model, and no runs."""
    shutil.copy(finished / "my.yaml", tmp_path)
    for name in ("rows.jsonl", "model"):
        (tmp_path / name).symlink_to(finished / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs are trained in this process, which has loaded torch already; the commands that were given."""
    from zoedge.cli import app

    given: list[list[str]] = []

    def run(self: Any, args: list[str]) -> int:
        given.append(args)
        try:
            app([*args, "--quiet"], standalone_mode=False)
        except ZoedgeError as e:
            return e.exit_code
        return 0

    monkeypatch.setattr(child.ChildRunner, "run_zoedge", run)
    return given


def points(text: str, draws: int = 0, seed: int = 0, overrides: list[str] | None = None) -> list[sweep.SweepPoint]:
    Path("s.yaml").write_text(text)
    return sweep.build_points("my.yaml", Path("s.yaml"), overrides, None, draws, seed)


# -- which points


def test_a_grid_is_every_pair_and_paired_values_stay_together(here: Path) -> None:
    found = points("rule.lr: [1e-3, 1e-2]\n_: [{estimator.eps: 1e-3, seed: 1}, {estimator.eps: 1e-2, seed: 2}]\n")
    assert [(p.values["rule.lr"], p.values["estimator.eps"], p.values["seed"]) for p in found] == [
        (1e-3, 1e-3, 1), (1e-3, 1e-2, 2), (1e-2, 1e-3, 1), (1e-2, 1e-2, 2),
    ]  # fmt: skip
    for p in found:
        assert (p.recipe.rule.lr, p.recipe.estimator.eps, p.recipe.seed) == tuple(p.values.values())
        assert folder.run_folder(p.recipe) == Path("runs/s") / p.name and p.recipe.name == p.name
    assert found[0].name == "lr-0.001_eps-0.001_seed-1"


def test_a_point_is_the_run_that_the_recipe_would_be(here: Path) -> None:
    (found,) = points("rule.lr: [3e-3]", overrides=["train.steps=7"])
    assert identity.recipe_digest(found.recipe) == identity.recipe_digest(
        read_recipe("my.yaml", ["rule.lr=3e-3", "train.steps=7"])
    )


def test_values_that_are_no_words_have_a_digest_in_their_name(here: Path) -> None:
    text = "space.targets: [[q_proj], [q_proj, v_proj]]\nrule: [sgd, {name: momentum, lr: 1e-2}]"
    found = points(text)
    assert len({p.name for p in found}) == 4 and all(len(p.name) <= sweep.MAX_NAME_LENGTH for p in found)
    assert [p.recipe.space.targets for p in found[::2]] == [["q_proj"], ["q_proj", "v_proj"]]
    assert {type(p.recipe.rule).__name__ for p in found} == {"Sgd", "Momentum"}
    assert [p.name for p in points(text)] == [p.name for p in found]
    assert len(points('task.prompt: ["{text} It was", "{text}  It was"]')) == 2, "cleaned, both have one name"


def test_random_points_are_a_function_of_the_seed(here: Path) -> None:
    text = "rule.lr: {low: 1e-5, high: 1e-1, log: true}\ntrain.batch: {low: 2, high: 4}\nestimator.eps: [1e-3, 1e-2]"
    some, more = points(text, 8), points(text, 40)
    assert [p.values for p in more[:8]] == [p.values for p in some], "a longer sweep begins with a shorter one's"
    assert [p.values for p in points(text, 8, seed=1)] != [p.values for p in some]
    rates = [p.values["rule.lr"] for p in more]
    assert all(1e-5 <= x <= 1e-1 and x == float(f"{x:.4g}") for x in rates)
    assert 10 <= sum(x < 1e-3 for x in rates) <= 30, "half of them below the middle of the logarithms"
    assert {p.values["train.batch"] for p in more} == {2, 3, 4} and {p.values["estimator.eps"] for p in more} == {
        1e-3,
        1e-2,
    }
    ends = [sweep.Axis([], "x", low=1, high=9).draw(u)["x"][0] for u in (0.0, math.nextafter(1.0, 0.0))]
    assert ends == [1, 9]


@pytest.mark.parametrize(
    "text,said",
    [
        ("rule.learning_rate: [1]", "s.yaml:1:22: rule.learning_rate: unknown key - zoedge calls this 'rule.lr'."),
        ("rule.lr: [1e-3,\n  -1]", "s.yaml:2:3: rule.lr: -1 is not greater than 0 or 'auto'."),
        ("train.stepz: [1]", "s.yaml:1:15: train.stepz: unknown key - did you mean 'steps'?"),
        ("rule.lr: 1e-3", "s.yaml:1:1: rule.lr: 0.001 is no list of values, and no range such as {low: 1e-4, "),
        ("rule.lr: []", "s.yaml:1:1: rule.lr: an empty list. Write values, such as [1e-3, 1e-4], or remove it."),
        ("name: [a]", "s.yaml:1:1: name: a sweep names its runs and folders itself; --dir says where they go."),
        ("rule.lr: {low: 2, high: 1}", "s.yaml:1:1: rule.lr: low and high are two numbers, the lower first."),
        ("rule.lr: {low: 0, high: 1, log: true}", "s.yaml:1:1: rule.lr: log is true or false, and where it is true, low"),
        ("rule.lr: {low: 1, high: 2}", "s.yaml:1:1: rule.lr: a range has no list of values to make a grid of. Add --random"),
        ("_: [1]", "s.yaml:1:1: _: a list of tables of keys that go together, such as [{rule.lr: 1e-3, seed: 1}]."),
        ("rule.lr: [1]\n_: [{rule.lr: 2}]", "s.yaml:1:1: rule.lr stands twice, under _ and alone."),
        ("seed.x: [1]", "s.yaml:1:10: seed: "),
        ("rule..lr: [1]", "s.yaml:1:12: 'rule..lr' is no recipe key, such as rule.lr."),
        ("[1]", "s.yaml: a sweep is a table of recipe keys and lists of values, such as 'rule.lr: [1e-3, 1e-4]'."),
        ("a: &x [1]", "s.yaml:1:4: anchors and aliases are not read. Write the value out."),
        (f"seed: {list(range(40))}\nrule.lr: {list(range(1, 40))}", "s.yaml: a grid of 1,560 points, where 1,000 is the most."),
    ],
)  # fmt: skip
def test_every_mistake_and_its_place(text: str, said: str, here: Path, zoedge: Callable[..., Any]) -> None:
    (here / "s.yaml").write_text(text)
    done = zoedge("sweep", "my.yaml", "s.yaml")
    first = done.err.splitlines()[0]
    assert (done.code, done.out) == (2, "") and first.startswith(f"zoedge: {said}")
    assert not (here / "runs").exists()


def test_all_mistakes_at_once_and_the_recipes_own_first(here: Path, zoedge: Callable[..., Any]) -> None:
    (here / "s.yaml").write_text("rule.lr: [-1, -2]\ntrain.stepz: [1, 2]\n")
    lines = zoedge("sweep", "my.yaml", "s.yaml").err.splitlines()
    assert len(lines) == 4 and len(set(lines)) == 4, "each once, whatever it is combined with"
    done = zoedge("sweep", "my.yaml", "s.yaml", "train.batch=0")
    assert "my.yaml (key=value): train.batch: 0 is not at least 1." in done.err and "s.yaml" not in done.err
    assert (
        zoedge("sweep", "my.yaml", "none.yaml").err == "zoedge: none.yaml: cannot be read: No such file or directory.\n"
    )


# -- running them


def test_a_sweep_runs_what_is_not_finished_and_goes_on_after_one_that_diverges(
    here: Path, inside: list[list[str]], zoedge: Callable[..., Any]
) -> None:
    (here / "s.yaml").write_text("rule.lr: [1e-2, 1e30]\ntrain.steps: [12]\n")
    done = zoedge("sweep", "my.yaml", "s.yaml")
    assert done.code == 0, done.err
    assert "[2/2] lr-1e30_steps-12: diverged; the sweep goes on" in done.out
    states = {e.name: e.state for e in runs.list_runs(here / "runs")}
    assert states == {"s/lr-0.01_steps-12": "ended", "s/lr-1e30_steps-12": "stopped"}
    rows = done.out[done.out.index("\n\n") :].strip().splitlines()
    assert rows[0].split()[:2] == ["lr", "steps"] and rows[1].endswith("finished") and rows[2].endswith("diverged")
    assert "best     runs/s/lr-0.01_steps-12" in done.out and "report   runs/s/report.html" in done.out
    page = (here / "runs" / "s" / "report.html").read_text()
    assert "lr-0.01_steps-12" in page and "rule.lr" in page
    again = zoedge("sweep", "my.yaml", "s.yaml")
    assert "[1/2] lr-0.01_steps-12: finished before" in again.out and ": diverged before" in again.out
    assert len(inside) == 2, "nothing was run twice"
    (here / "s.yaml").write_text("rule.lr: [1e-2, 2e-2]\ntrain.steps: [12]\n")
    assert zoedge("sweep", "my.yaml", "s.yaml").code == 0 and len(inside) == 3, "one more value, one more run"
    done = zoedge("sweep", "my.yaml", "s.yaml", "--json")
    results = [json.loads(line) for line in done.out.splitlines()]
    assert {result["name"] for result in results} == {"lr-0.01_steps-12", "lr-0.02_steps-12"}
    assert (
        results[0]["state"] == "finished"
        and results[0]["values"]["train.steps"] == 12
        and results[0]["valid"]["loss"] > 0
    )
    assert "finished before" in done.err


def test_a_point_is_trained_to_the_bits_that_it_has_alone(here: Path, inside: Any, zoedge: Callable[..., Any]) -> None:
    (here / "s.yaml").write_text("rule.lr: [2e-2]\n")
    assert zoedge("sweep", "my.yaml", "s.yaml", "--dir", "elsewhere").code == 0
    alone = zoedge(
        "finetune", "my.yaml", "rule.lr=2e-2", "name=lr-0.02", "output.dir=elsewhere", "--run-dir", "x", "--quiet"
    )
    assert alone.code == 0
    assert (here / "x" / folder.LOG_FILE).read_bytes() == (
        here / "elsewhere" / "lr-0.02" / folder.LOG_FILE
    ).read_bytes()


def test_the_table_is_sorted_by_the_validation_loss(here: Path, inside: Any) -> None:
    found = points("rule.lr: [1e-2, 5e-1]\ntrain.steps: [6]")
    sweep.run_points(found, [], lambda text: None, "zoedge sweep")
    results = sweep.collect_results(found)
    losses = [r.valid.loss for r in results if r.valid]
    assert len(losses) == 2 and losses[0] < losses[1] and all(r.test is None for r in results), "there are no test rows"
    for r in results:
        last = [line for line in folder.read_metrics(folder.run_folder(r.point.recipe)) if line["event"] == "after"][-1]
        assert r.valid and r.valid.loss == last["loss"], "of the validation rows, at the end"
    lines = sweep.format_table(results)
    assert (
        lines[1].split()[0] == f"{results[0].point.values['rule.lr']}"
        and len({len(x.rstrip()) for x in lines[1:]}) == 1
    )


def test_a_run_that_cannot_be_run_stops_the_sweep(
    here: Path, inside: list[list[str]], zoedge: Callable[..., Any]
) -> None:
    (here / "s.yaml").write_text("rule.lr: [1e-2, 2e-2]\n")
    assert zoedge("sweep", "my.yaml", "s.yaml", "train.steps=2").code == 0
    log = here / "runs" / "s" / "lr-0.02" / folder.LOG_FILE
    log.write_bytes(log.read_bytes()[:-64])  # its END
    with Log.resume(log):
        done = zoedge("sweep", "my.yaml", "s.yaml", "train.steps=2")
    assert done.code == 6
    assert "lr-0.02: its run ended with exit code 6. Mend that, and go on with: zoedge sweep my.yaml s.yaml" in done.err
    done = zoedge("sweep", "my.yaml", "s.yaml", "train.steps=2")
    assert done.code == 0 and "[2/2] lr-0.02: goes on" in done.out and len(inside) == 4


def test_another_base_is_no_continuation(here: Path, inside: list[list[str]], zoedge: Callable[..., Any]) -> None:
    (here / "s.yaml").write_text("rule.lr: [1e-2]\n")
    assert zoedge("sweep", "my.yaml", "s.yaml", "train.steps=2").code == 0
    done = zoedge("sweep", "my.yaml", "s.yaml", "train.steps=3")
    assert (done.code, done.out, len(inside)) == (4, "", 1)
    assert done.err.startswith("zoedge: Cannot resume runs/s/lr-0.01: what was trained on changed: train.steps 2 -> 3.")


def test_a_point_that_does_not_fit_is_told_and_tried_again(
    here: Path, inside: list[list[str]], zoedge: Callable[..., Any]
) -> None:
    (here / "s.yaml").write_text("data.max_length: [8, 64]\n")
    for count in (2, 3):
        done = zoedge("sweep", "my.yaml", "s.yaml")
        assert done.code == 0 and "max_length-8: did not fit, or its data is wrong; the sweep goes on" in done.out
        assert len(inside) == count
    (here / "t.yaml").write_text("data.max_length: [8]\n")
    done = zoedge("sweep", "my.yaml", "t.yaml")
    assert done.code == 2 and done.err == "zoedge: No run of the sweep took a step; their sentences stand above.\n"


def test_points_are_printed_and_nothing_is_run(here: Path, inside: list[list[str]], zoedge: Callable[..., Any]) -> None:
    (here / "s.yaml").write_text("rule.lr: [1e-2, 2e-2]\n")
    done = zoedge("sweep", "my.yaml", "s.yaml", "--dry-run")
    *names, cost = done.out.splitlines()
    assert (done.code, names, inside) == (0, ["lr-0.01", "lr-0.02"], []) and not (here / "runs").exists()
    assert cost.startswith("2 points, 0 of them finished; 64 forward passes of a row, about 0:")
    plan = json.loads(zoedge("sweep", "my.yaml", "s.yaml", "--dry-run", "--json").out)
    assert plan["runs"][1] == {"name": "lr-0.02", "rule.lr": 0.02}
    assert (plan["points"], plan["passes"], plan["why"]) == (2, 64, "") and plan["seconds"] > 0
    missing = zoedge("sweep", "my.yaml", "s.yaml", "data.train=nowhere.jsonl", "--dry-run")
    assert missing.code == 0 and "no time is predicted: data.train: no file 'nowhere.jsonl'" in missing.out


def test_a_signal_is_passed_on_once_and_nothing_more_is_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that notes what it was sent, in the place of Python."""
    fake = here / "fake"
    fake.write_text("#!/bin/sh\ntrap 'echo x >> sent; exit 143' TERM\ntouch begun\nwhile :; do sleep 0.02; done\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))

    def send() -> None:
        while not (here / "begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    former, lines = signal.getsignal(signal.SIGTERM), list[str]()
    with pytest.raises(sweep.Stopped, match="Go on with: zoedge sweep x") as caught:
        sweep.run_points(points("rule.lr: [1e-3, 2e-3]"), [], lines.append, "zoedge sweep x")
    thread.join()
    assert caught.value.exit_code == 143 and lines == ["[1/2] lr-0.001"] and (here / "sent").read_text() == "x\n"
    assert signal.getsignal(signal.SIGTERM) is former and sweep.read_exit_codes(here / "runs" / "s") == {}


@pytest.mark.slow
def test_a_signal_stops_the_run_after_a_whole_step_and_says_how_to_go_on(here: Path) -> None:
    """In processes of their own: the first run is stopped by the signal that the sweep was sent, and goes on after it."""
    (here / "s.yaml").write_text("rule.lr: [1e-3, 2e-3]\n")
    command = [sys.executable, "-m", "zoedge", "sweep", "my.yaml", "s.yaml", "train.steps=20000"]
    path = str(Path(package.__file__).parent.parent)
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = here / "runs" / "s" / "lr-0.001" / folder.LOG_FILE
    try:
        end = time.monotonic() + 150
        while not (log.exists() and log.stat().st_size > 8000):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert err.splitlines()[-1] == (
        "zoedge: Stopped; nothing is lost. Go on with: zoedge sweep my.yaml s.yaml train.steps=20000"
    )
    assert out == "[1/2] lr-0.001\n" and not (here / "runs" / "s" / "lr-0.002").exists()
    (entry,) = runs.list_runs(here / "runs")
    assert entry.state == "stopped" and 0 < entry.steps < 20000


def test_a_draw_and_a_name() -> None:
    with pytest.raises(UsageError):
        sweep.read_axes(Path("no/such/file.yaml"))
    assert sweep.clean_name("..my sweep!") == "my-sweep-" and sweep.clean_name("") == "sweep"
    assert sweep.name_point({"a.b": True, "c": 1e-3}) == "b-true_c-0.001"
