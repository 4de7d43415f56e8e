"""`auto`: what is not told is found before the run, the same every time, and is in the log as a number."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoedge import auto, engine, runs
from zoedge.display import display
from zoedge.errors import DivergedError, IdentityError, UsageError
from zoedge.log import Log
from zoedge.recipe import check, dump, read, read_yaml, shipped
from zoedge.train import train
from zoedge.types import bits16

AUTO = ["estimator.eps=auto", "rule.lr=auto"]


@pytest.fixture
def fast(recipe_file: Path) -> Callable[..., Any]:
    """The tiny recipe, with overrides, without looks or exports."""

    def recipe(*overrides: str) -> Any:
        return read(str(recipe_file), ["data.valid=null", "data.test=null", "output.export=[]", *overrides])

    return recipe


def run(recipe: Any, folder: Path) -> Any:
    return train(recipe, folder, display("quiet"))


def bench_of(recipe: Any, folder: Path) -> runs.Bench:
    bench = runs.Bench.build(recipe)
    folder.mkdir(exist_ok=True)
    sum(bench.base.keep(bench.texts.train, folder))
    return bench


def said(folder: Path) -> dict[str, dict[str, Any]]:
    return {line["key"]: line for line in runs.notes(folder) if line["event"] == "auto"}


def test_what_is_not_told_is_found_once_and_is_a_number_in_the_log(fast: Any, tmp_path: Path) -> None:
    recipe = fast(*AUTO)
    assert recipe.auto == {"estimator.eps", "rule.lr", "train.watchdog"} and recipe.rule.schedule == "linear"
    for name in "ab":
        assert run(recipe, tmp_path / name).steps == 24
    logs = [sorted((tmp_path / name).rglob("*.zlog")) for name in "ab"]
    assert [p.name for p in logs[0]] == [p.name for p in logs[1]] and len(logs[0]) >= 4
    for one, other in zip(*logs):
        assert one.read_bytes() == other.read_bytes(), one.name
    found = said(tmp_path / "a")
    with Log.open(tmp_path / "a" / runs.LOG) as log:
        table = log.header.about["recipe"]
        assert all(record.lr <= table["rule"]["lr"] for record in log) and log[0].lr > 0
    assert table["estimator"]["eps"] == found["estimator.eps"]["value"] in auto.LADDER
    tried = {float(k): v for k, v in found["rule.lr"]["tried"].items()}
    best = min((lr for lr in tried if tried[lr] is not None), key=lambda lr: tried[lr])
    assert table["rule"]["lr"] == found["rule.lr"]["value"] == pytest.approx(best / auto.CAUTION, rel=0.05)
    assert table["train"]["watchdog"] and read(str(tmp_path / "a" / runs.RECIPE)).auto == frozenset()
    assert f"lr-{best:g}.zlog" in [p.name for p in logs[0]]


def test_every_trial_replays_from_its_log(fast: Any, tmp_path: Path) -> None:
    run(fast(*AUTO), tmp_path / "run")
    ended = 0
    for path in (tmp_path / "run" / auto.SEARCH).glob("*.zlog"):
        with Log.open(path) as log:
            replay = runs.replayer(log)
            for _ in engine.play(replay, len(log)):
                pass
            lr = log.header.about["recipe"]["rule"]["lr"]
            assert lr == float(path.stem.removeprefix("lr-")) and bits16(lr) == log[0].lr
            if log.state.end is not None:
                ended += 1
                assert engine.digest(replay.space).startswith(log.state.end)
    assert ended >= 2


@pytest.mark.parametrize("number", [1, 11, 17, 45, 70])
def test_a_search_that_is_killed_goes_on_and_finds_the_same(
    fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Killed in the first trial, between two, in a later one, and in the run."""
    run(fast(*AUTO), tmp_path / "whole")
    real, calls = engine.measure, 0

    def measure(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "measure", measure)
        run(fast(*AUTO), tmp_path / "killed")
    run(fast(*AUTO), tmp_path / "killed")
    for path in (tmp_path / "whole").rglob("*.zlog"):
        assert (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path.name


def test_numbers_that_are_told_are_taken_without_a_search(fast: Any, tmp_path: Path) -> None:
    run(fast(), tmp_path / "told")
    assert not (tmp_path / "told" / auto.SEARCH).exists() and not said(tmp_path / "told")
    run(fast("rule.lr=auto"), tmp_path / "half")
    assert set(said(tmp_path / "half")) == {"rule.lr"}


def test_a_run_goes_on_with_its_own_numbers(fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same recipe again: what it leaves to be found is what the log says. Another value that is told is refused."""
    whole = run(fast(*AUTO), tmp_path / "run").fingerprint
    monkeypatch.setattr(auto, "resolve", None)
    assert run(fast(*AUTO), tmp_path / "run").fingerprint == whole
    (tmp_path / "run" / runs.METRICS).unlink()  # so that it is not known to be finished
    assert run(fast(*AUTO), tmp_path / "run").fingerprint == whole
    with pytest.raises(IdentityError, match=r"rule\.lr "):
        run(fast("estimator.eps=auto"), tmp_path / "run")
    with pytest.raises(IdentityError, match="seed 7 -> 8"):
        run(fast(*AUTO, "seed=8"), tmp_path / "run")


def test_verify_and_branches_take_the_logs_numbers(
    fast: Any, recipe_file: Path, tmp_path: Path, zoedge: Callable[..., Any]
) -> None:
    run(fast(*AUTO), tmp_path / "run")
    text = dump(fast(*AUTO))
    assert "eps: auto" in text and "lr: auto" in text
    (tmp_path / "auto.yaml").write_text(text)
    done = zoedge("verify", tmp_path / "run", "--against", tmp_path / "auto.yaml")
    assert done.code == 0, done.err
    done = zoedge(
        "finetune",
        tmp_path / "auto.yaml",
        "--from",
        f"{tmp_path / 'run'}@10",
        "--run-dir",
        tmp_path / "branch",
        "--quiet",
    )
    assert done.code == 0, done.err
    assert not (tmp_path / "branch" / auto.SEARCH).exists()


def test_passes_that_are_told_are_those_that_were_made(
    fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = engine.Scorer.losses, 0

    def losses(self: Any, points: Any) -> Any:
        nonlocal made
        made += len(points) * len(self.batch)
        return real(self, points)

    monkeypatch.setattr(engine.Scorer, "losses", losses)
    bench = bench_of(fast(*AUTO), tmp_path / "run")
    before = engine.digest(bench.space)
    found = auto.radius(bench)
    assert found.passes == made
    made = 0
    assert auto.rate(bench, tmp_path / "run" / auto.SEARCH).passes == made > 0
    assert engine.digest(bench.space) == before and bench.recipe == fast(*AUTO), "the search leaves nothing behind"


@pytest.mark.parametrize("space", ["{name: full}", "{name: prefix, tokens: 2}", "{name: scales}"])
def test_a_search_leaves_any_space_as_it_was(fast: Any, tmp_path: Path, space: str) -> None:
    quantization = "nf4" if "scales" in space else "none"
    recipe = fast(f"space={space}", f"model.quantization={quantization}", "model.compute_dtype=bf16", "rule.lr=auto")
    bench = bench_of(recipe, tmp_path / "run")
    before, kept = engine.digest(bench.space), list(getattr(bench.space, "kept", ()))
    assert math.isfinite(auto.rate(bench, tmp_path / "run" / auto.SEARCH).value)
    assert engine.digest(bench.space) == before and list(getattr(bench.space, "kept", ())) == kept


# -- what is chosen


@pytest.mark.parametrize("best", [1e-6, 3e-5, 1e-3, 3e-3, 0.3])
def test_a_bracket_ends_at_the_lowest_of_its_rungs(best: float) -> None:
    """A valley in log lr that ends in a wall, as far as twelve trials reach."""

    def trial(lr: float) -> float:
        return math.inf if lr > 2 * best else 1 + abs(math.log(lr / best))

    tried = auto.bracket(1e-3, trial, auto.TRIALS)
    assert min(tried, key=lambda lr: tried[lr]) == best
    assert len(tried) <= 3 + abs(round(2 * math.log10(best / 1e-3)))
    assert all(re.fullmatch(r"[13]e-\d\d|0\.0*[13]|[13]0*", f"{lr:g}") for lr in tried)


def test_a_bracket_gives_up_and_says_so(fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(auto.bracket(1e-3, lambda lr: math.inf, 5)) == 5
    assert len(auto.bracket(1e-3, lambda lr: -lr, 5)) == 5
    bench = bench_of(fast(*AUTO), tmp_path / "run")
    monkeypatch.setattr(auto, "attempt", lambda *args: (math.inf, 0))
    with pytest.raises(DivergedError, match=r"rule.lr: auto: every trial from 0.001 down to 3e-09 diverged"):
        auto.rate(bench, tmp_path / "run" / auto.SEARCH)


@pytest.mark.parametrize(
    ("noise", "bend", "chosen"),
    [(1e-9, 0.0, 1e-3), (1e-3, 0.0, 1e-2), (1e-2, 0.0, 1e-1), (2e-4, 1e2, 3e-3), (9, 0, None)],
)
def test_eps_is_the_smallest_that_noise_does_not_drown(
    fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float, bend: float, chosen: float | None
) -> None:
    """Losses of a slope of 1 with a term of third order, each off by a fixed bit of noise."""
    bench, count = bench_of(fast(*AUTO), tmp_path / "run"), 0

    def losses(self: Any, points: Any) -> list[float]:
        nonlocal count
        found = []
        for ((c, _),) in points:
            count += 1
            found.append(c + bend * c**3 + noise * math.sin(7.0 * count * count))
        return found

    monkeypatch.setattr(engine.Scorer, "losses", losses)
    found = auto.radius(bench)
    assert found.value == chosen or chosen is None
    assert found.value == min(found.tried, key=lambda eps: found.tried[eps])
    assert all(ratio >= auto.STABLE for eps, ratio in found.tried.items() if eps < found.value)


def test_of_losses_that_never_differ_the_widest_radius_is_taken(fast: Any, tmp_path: Path) -> None:
    """Accuracy of an adapter that starts at zero: no prediction flips at a small radius."""
    bench = bench_of(fast(*AUTO), tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Scorer, "losses", lambda self, points: [0.5] * len(points))
        assert auto.radius(bench).value == auto.LADDER[-1]


# -- what the recipe says


def test_defaults_are_auto_and_parts_that_fix_a_number_have_it() -> None:
    bare = {"version": 1, "model": {"source": "x"}, "data": {"train": "y"}}
    recipe = check(bare, {}, "r")
    assert recipe.auto == {"estimator.eps", "rule.lr", "train.watchdog"} and recipe.train.watchdog is not None
    assert check(bare | {"train": {"watchdog": None}}, {}, "r").train.watchdog is None
    told = check(bare | {"rule": {"name": "sgd", "lr": 1e-2}}, {}, "r")
    assert told.auto == {"estimator.eps"} and told.train.watchdog is None and told.rule.schedule == "constant"
    fixed = check(bare | {"estimator": "as2p"}, {}, "r")
    assert fixed.rule.lr == 1.0 and fixed.auto == frozenset() and fixed.train.watchdog is None
    table, _ = read_yaml(dump(recipe), "r")
    again = check(table, {}, "r")
    assert again.resolved() == recipe.resolved() and {"estimator.eps", "rule.lr"} <= again.auto


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("estimator.eps=outo", "estimator.eps: 'outo' is not a number or 'auto'. Did you mean 'auto'?"),
        ("rule.lr=-1", "rule.lr: -1 is not greater than 0 or 'auto'."),
        ("rule.lr=0", "rule.lr: 0 is not greater than 0 or 'auto'."),
        ("rule.weight_decay=auto", "rule.weight_decay: 'auto' is not a number."),
        ("train.steps=auto", "train.steps: 'auto' is not a whole number."),
    ],
)
def test_what_is_neither_a_number_nor_auto_gets_a_sentence(recipe_file: Path, override: str, what: str) -> None:
    with pytest.raises(UsageError) as e:
        read(str(recipe_file), [override])
    assert str(e.value) == f"{recipe_file} (key=value): {what}"


def test_shipped_recipes_decide_the_same_numbers_as_ever() -> None:
    """Their digests as of before defaults could be auto: a changed default must be written out in them."""
    known = json.loads((Path(__file__).parent / "fixtures" / "shipped.json").read_text())
    found = {path.stem: runs.recipe_digest(read(str(path))).hex()[:16] for path in shipped()}
    assert len(known) >= 50 and {name: found[name] for name in known} == known
