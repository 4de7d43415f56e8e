"""`auto`: what is not told is found before the run, the same every time, and is in the log as a number."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.paths import FIXTURES

from zoedge.commands.finetune import train
from zoedge.core import digests, engine, oracle
from zoedge.core.exact import bits16
from zoedge.core.memory import MemoryLog
from zoedge.core.run import Run
from zoedge.core.types import CLIPPED, Record
from zoedge.core.watchdog import Watchdog, trust_limit
from zoedge.errors import DivergedError, IdentityError, UsageError
from zoedge.lab._bench import ArraySpace, FunctionTask
from zoedge.log.log import Log
from zoedge.methods.estimators.two_sided import TwoSided
from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.rules.sgd import Sgd
from zoedge.recipe.check import check
from zoedge.recipe.reading import list_shipped, read_recipe
from zoedge.recipe.recipe import dump_recipe
from zoedge.recipe.sections import WatchdogOptions as Options
from zoedge.recipe.strict_yaml import read_yaml
from zoedge.run import auto, identity, setup
from zoedge.run import folder as run_folder
from zoedge.run import replay as run_replay
from zoedge.run.display import make_display


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory, llama: Path, reviews: Path) -> Callable[..., Any]:
    """A recipe of the tiny LLaMA that leaves eps and lr to be found, with overrides."""
    path = tmp_path_factory.mktemp("auto") / "tiny.yaml"
    path.write_text(
        f"""version: 1
seed: 7
model: {{source: "{llama}", quantization: none}}
data: {{train: "{reviews}", max_length: 64}}
space: {{name: lora, rank: 4, alpha: 8, targets: [q_proj, v_proj]}}
train: {{steps: 24, batch: 4, threads: 1}}
log: {{hash_every: 5}}
output: {{export: []}}
"""
    )
    return lambda *overrides: read_recipe(str(path), list(overrides))


@pytest.fixture(scope="module")
def whole(fast: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, to be looked at only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(fast(), folder)
    return folder


def run(recipe: Any, folder: Path) -> Any:
    return train(recipe, folder, make_display("quiet"))


def bench_of(recipe: Any, folder: Path) -> setup.Measuring:
    bench = setup.Measuring.build(recipe)
    folder.mkdir(exist_ok=True)
    sum(bench.base.cache_trunk(bench.texts.train, folder))
    return bench


def said(folder: Path) -> dict[str, dict[str, Any]]:
    return {line["key"]: line for line in run_folder.read_metrics(folder) if line["event"] == "auto"}


def test_what_is_not_told_is_found_and_is_a_number_in_the_log(fast: Any, whole: Path) -> None:
    assert fast().auto == {"estimator.eps", "rule.lr", "train.watchdog"} and fast().rule.schedule == "linear"
    found = said(whole)
    with Log.open(whole / run_folder.LOG_FILE) as log:
        table = log.header.about["recipe"]
        assert len(log) == 24 and log[0].lr == bits16(table["rule"]["lr"]) > log[20].lr > 0
    assert table["estimator"]["eps"] == found["estimator.eps"]["value"] in auto.EPS_LADDER
    tried = {float(k): v for k, v in found["rule.lr"]["tried"].items()}
    best = min((lr for lr in tried if tried[lr] is not None), key=lambda lr: tried[lr])
    assert table["rule"]["lr"] == found["rule.lr"]["value"] == pytest.approx(best / auto.CAUTION_FACTOR, rel=0.05)
    assert table["train"]["watchdog"] and read_recipe(str(whole / run_folder.RECIPE_FILE)).auto == frozenset()
    assert {f"lr-{lr:g}.zlog" for lr in tried} == {path.name for path in (whole / auto.SEARCH_FOLDER).iterdir()}


def test_every_trial_replays_from_its_log(whole: Path) -> None:
    ended = 0
    for path in (whole / auto.SEARCH_FOLDER).iterdir():
        with Log.open(path) as log:
            replay = run_replay.build_replay_run(log)
            for _ in engine.play(replay, len(log)):
                pass
            lr = log.header.about["recipe"]["rule"]["lr"]
            assert lr == float(path.stem.removeprefix("lr-")) and bits16(lr) == log[0].lr
            if log.state.end is not None:
                ended += 1
                assert digests.digest(replay.space).startswith(log.state.end)
    assert ended >= 2


@pytest.mark.parametrize("number", [1, 11, 17, 60])
def test_a_search_that_is_killed_goes_on_and_finds_the_same(
    fast: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Killed before and in the first trial, between two, and later."""
    real, calls = engine.measure, 0

    def measure(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "measure", measure)
        run(fast(), tmp_path)
    run(fast(), tmp_path)
    for path in whole.rglob("*.zlog"):
        assert (tmp_path / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def test_a_trial_of_another_recipe_or_a_damaged_one_is_begun_anew(fast: Any, whole: Path, tmp_path: Path) -> None:
    """Left by a search that was killed, and whose recipe was then changed."""
    bench = bench_of(fast("seed=8", "estimator.eps=1e-3"), tmp_path)
    (tmp_path / auto.SEARCH_FOLDER).mkdir()
    raw = (whole / auto.SEARCH_FOLDER / "lr-0.001.zlog").read_bytes()
    (tmp_path / auto.SEARCH_FOLDER / "lr-0.001.zlog").write_bytes(raw)
    (tmp_path / auto.SEARCH_FOLDER / "lr-0.003.zlog").write_bytes(raw[:-30] + bytes(3) + raw[-27:])
    found = auto.find_learning_rate(bench, tmp_path / auto.SEARCH_FOLDER)
    assert found == auto.find_learning_rate(bench, tmp_path / auto.SEARCH_FOLDER)
    for path in (tmp_path / auto.SEARCH_FOLDER).glob("*.zlog"):
        with Log.open(path) as log:
            assert log.header.seed == 8


def test_numbers_that_are_told_are_taken_without_a_search(fast: Any, tmp_path: Path) -> None:
    run(fast("rule.lr=1e-2", "estimator.eps=1e-2"), tmp_path / "told")
    assert not (tmp_path / "told" / auto.SEARCH_FOLDER).exists() and not said(tmp_path / "told")
    run(fast("estimator.eps=1e-2"), tmp_path / "half")
    assert set(said(tmp_path / "half")) == {"rule.lr"}


def test_a_run_goes_on_with_its_own_numbers(
    fast: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same recipe again: what it leaves to be found is what the log says. Another value that is told is refused."""
    monkeypatch.setattr(auto, "resolve_numbers", None)  # nothing is looked for
    shutil.copytree(whole, tmp_path / "run")
    assert run(fast(), tmp_path / "run").steps == 24
    (tmp_path / "run" / run_folder.METRICS_FILE).unlink()  # so that it is not known to be finished
    monkeypatch.setattr(setup, "describe_environment", lambda base: {"cpu": "another"})  # nothing follows a log's end
    assert run(fast(), tmp_path / "run").steps == 24
    assert (tmp_path / "run" / run_folder.LOG_FILE).read_bytes() == (whole / run_folder.LOG_FILE).read_bytes()
    for override, what in {"rule.lr=0.5": r"rule\.lr .* -> 0\.5", "seed=8": "seed 7 -> 8"}.items():
        with pytest.raises(IdentityError, match=what):
            run(fast(override), tmp_path / "run")


def test_verify_and_branches_take_the_logs_numbers(
    fast: Any, whole: Path, tmp_path: Path, zoedge: Callable[..., Any]
) -> None:
    text = dump_recipe(fast())
    assert "eps: auto" in text and "lr: auto" in text
    (tmp_path / "auto.yaml").write_text(text)
    done = zoedge("verify", whole, "--against", tmp_path / "auto.yaml")
    assert done.code == 0, done.err
    branch = tmp_path / "branch"
    done = zoedge("finetune", tmp_path / "auto.yaml", "--from", f"{whole}@10", "--run-dir", branch, "--quiet")
    assert done.code == 0, done.err
    assert (branch / run_folder.LOG_FILE).is_file() and not (branch / auto.SEARCH_FOLDER).exists()


def test_passes_that_are_told_are_those_that_were_made(
    fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = oracle.StepOracle.losses, 0

    def losses(self: Any, points: Any) -> Any:
        nonlocal made
        made += len(points) * len(self.batch)
        return real(self, points)

    monkeypatch.setattr(oracle.StepOracle, "losses", losses)
    bench = bench_of(fast(), tmp_path / "run")
    before = digests.digest(bench.space)
    found = auto.find_radius(bench)
    assert found.passes == made
    made = 0
    assert auto.find_learning_rate(bench, tmp_path / "run" / auto.SEARCH_FOLDER).passes == made > 0
    assert digests.digest(bench.space) == before and bench.recipe == fast(), "the search leaves nothing behind"


@pytest.mark.parametrize("space", ["{name: full}", "{name: prefix, tokens: 2}", "{name: scales}"])
def test_a_search_leaves_any_space_as_it_was(fast: Any, tmp_path: Path, space: str) -> None:
    quantization = "nf4" if "scales" in space else "none"
    recipe = fast(f"space={space}", f"model.quantization={quantization}", "model.compute_dtype=bf16")
    bench = bench_of(recipe, tmp_path / "run")
    before, kept = digests.digest(bench.space), list(getattr(bench.space, "kept", ()))
    assert math.isfinite(auto.find_learning_rate(bench, tmp_path / "run" / auto.SEARCH_FOLDER).value)
    assert digests.digest(bench.space) == before and list(getattr(bench.space, "kept", ())) == kept


# -- what is chosen


@pytest.mark.parametrize("best", [1e-6, 3e-5, 1e-3, 3e-3, 0.3])
def test_a_bracket_ends_at_the_lowest_of_its_rungs(best: float) -> None:
    """A valley in log lr that ends in a wall, as far as twelve trials reach."""

    def trial(lr: float) -> float:
        return math.inf if lr > 2 * best else 1 + abs(math.log(lr / best))

    tried = auto.bracket_minimum(1e-3, trial, auto.MAX_TRIALS)
    assert min(tried, key=lambda lr: tried[lr]) == best
    assert len(tried) <= 3 + abs(round(2 * math.log10(best / 1e-3)))
    assert all(re.fullmatch(r"[13]e-\d\d|0\.0*[13]|[13]0*", f"{lr:g}") for lr in tried)


def test_a_bracket_gives_up_and_says_so(fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(auto.bracket_minimum(1e-3, lambda lr: math.inf, 5)) == 5
    assert len(auto.bracket_minimum(1e-3, lambda lr: -lr, 5)) == 5
    bench = bench_of(fast(), tmp_path / "run")
    monkeypatch.setattr(auto, "run_trial", lambda *args: (math.inf, 0))
    with pytest.raises(DivergedError, match=r"rule.lr: auto: every trial from 0.001 down to 3e-09 diverged"):
        auto.find_learning_rate(bench, tmp_path / "run" / auto.SEARCH_FOLDER)


@pytest.mark.parametrize(
    ("noise", "bend", "chosen"),
    [(1e-9, 0.0, 1e-3), (1e-3, 0.0, 1e-2), (1e-2, 0.0, 1e-1), (2e-4, 1e2, 3e-3), (9, 0, None)],
)
def test_eps_is_the_smallest_that_noise_does_not_drown(
    fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float, bend: float, chosen: float | None
) -> None:
    """Losses of a slope of 1 with a term of third order, each off by a fixed bit of noise."""
    bench, count = bench_of(fast(), tmp_path / "run"), 0

    def losses(self: Any, points: Any) -> list[float]:
        nonlocal count
        found = []
        for ((c, _),) in points:
            count += 1
            found.append(c + bend * c**3 + noise * math.sin(7.0 * count * count))
        return found

    monkeypatch.setattr(oracle.StepOracle, "losses", losses)
    found = auto.find_radius(bench)
    assert found.value == chosen or chosen is None
    assert found.value == min(found.tried, key=lambda eps: found.tried[eps])
    assert all(ratio >= auto.MAX_SLOPE_NOISE for eps, ratio in found.tried.items() if eps < found.value)


def test_of_losses_that_never_differ_the_widest_radius_is_taken(fast: Any, tmp_path: Path) -> None:
    """Accuracy of an adapter that starts at zero: no prediction flips at a small radius."""
    bench = bench_of(fast(), tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle.StepOracle, "losses", lambda self, points: [0.5] * len(points))
        assert auto.find_radius(bench).value == auto.EPS_LADDER[-1]


# -- what the recipe says


def test_defaults_are_auto_and_parts_that_fix_a_number_have_it() -> None:
    bare = {"version": 1, "model": {"source": "x"}, "data": {"train": "y"}, "space": "lora"}
    recipe = check(bare, {}, "r")
    assert recipe.auto == {"estimator.eps", "rule.lr", "train.watchdog"} and recipe.train.watchdog is not None
    assert check(bare | {"train": {"watchdog": None}}, {}, "r").train.watchdog is None
    told = check(bare | {"rule": {"name": "sgd", "lr": 1e-2}}, {}, "r")
    assert told.auto == {"estimator.eps"} and told.train.watchdog is None and told.rule.schedule == "constant"
    fixed = check(bare | {"estimator": "as2p"}, {}, "r")
    assert fixed.rule.lr == 1.0 and fixed.auto == frozenset() and fixed.train.watchdog is None
    table, _ = read_yaml(dump_recipe(recipe), "r")
    again = check(table, {}, "r")
    assert again.resolved() == recipe.resolved() and {"estimator.eps", "rule.lr"} <= again.auto


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("estimator.eps=outo", "estimator.eps: 'outo' is not a number or 'auto' - did you mean 'auto'?"),
        ("rule.lr=-1", "rule.lr: -1 is not greater than 0 or 'auto'."),
        ("rule.lr=0", "rule.lr: 0 is not greater than 0 or 'auto'."),
        ("rule.weight_decay=auto", "rule.weight_decay: 'auto' is not a number."),
        ("train.steps=auto", "train.steps: 'auto' is not a whole number."),
    ],
)
def test_what_is_neither_a_number_nor_auto_gets_a_sentence(recipe_file: Path, override: str, what: str) -> None:
    with pytest.raises(UsageError) as e:
        read_recipe(str(recipe_file), [override])
    assert str(e.value) == f"{recipe_file} (key=value): {what}"


def test_shipped_recipes_decide_the_same_numbers_as_ever() -> None:
    """Their digests as of before defaults could be auto: a changed default must be written out in them."""
    known = json.loads((FIXTURES / "shipped.json").read_text())
    found = {path.stem: identity.recipe_digest(read_recipe(str(path))).hex()[:16] for path in list_shipped()}
    assert len(known) >= 49 and {name: found[name] for name in known} == known


# -- the guard


def past(levels: list[float], rewinds: int = 0) -> Any:
    """A journal of steps with those losses."""
    some = [Record(i, i, 1e-2, (1.0,), (loss, loss + 0.1)) for i, loss in enumerate(levels)]

    class Journal(list[Record]):
        state = SimpleNamespace(rewinds=rewinds, hashes={})

    return Journal(some)


def test_a_mean_loss_far_over_its_lowest_sends_a_run_back() -> None:
    """No single loss is 3 times the best; it is known whether the records are seen one by one or all at once."""
    options = Options(rise=1.5, patience=20, rewinds=8)
    levels = [2.0] * 10 + [1.0, 1.2] * 25 + [1.7, 2.3] * 20
    one, sent = Watchdog(options), []
    for n in range(1, len(levels) + 1):
        if (over := one.look(past(levels[:n]))) >= options.patience:
            sent.append(n)
        assert over == Watchdog(options).look(past(levels[:n])), "a function of the records alone"
    assert sent[0] in range(60 + 10, 60 + 20)
    for other in (past(levels, rewinds=8), past([1.0, 1.2] * 60)):
        assert Watchdog(options).look(other) < options.patience, "no reason to give up; none to go back"
    assert Watchdog(Options(patience=20)).look(past(levels)) < options.patience, "off, if not told"


@pytest.mark.parametrize(
    ("trust", "loss", "lr", "most"),
    [(0.01, 2.0, 0.02, 1.0), (0.01, 0.5, 0.02, 0.5), (None, 2.0, 0.02, math.inf), (0.01, 0.0, 1.0, math.inf),
     (0.01, math.inf, 1.0, math.inf), (0.01, -1.0, 1.0, math.inf), (0.01, 1.0, 0.0, math.inf)],
)  # fmt: skip
def test_the_most_that_a_slope_may_be(trust: float | None, loss: float, lr: float, most: float) -> None:
    assert trust_limit(trust, loss, lr) == pytest.approx(most)


def test_no_step_promises_more_than_it_may(fast: Any, tmp_path: Path) -> None:
    """Ten times and more of what was found: only the guarded run's records keep the bound."""
    for name, guard in {"free": "null", "guarded": "{trust: 0.01}"}.items():
        told = ("rule.lr=3", "estimator.eps=1e-3", "train.steps=24", f"train.watchdog={guard}")
        run(fast(*told), tmp_path / name)
        with Log.open(tmp_path / name / run_folder.LOG_FILE) as log:
            promised = [record.lr * record.g[0] ** 2 / min(record.losses) for record in log]
            assert (max(promised) <= 0.0101) == (name == "guarded")
            assert any(record.flags & CLIPPED for record in log) == (name == "guarded")


@pytest.mark.parametrize("seed", range(5))
def test_a_step_that_is_too_long_is_bounded(seed: int) -> None:
    """In a bowl, five times beyond what ends: a guarded step raises the loss by a share, a free one by any factor.

    Where a model's run ends after such steps is chance: rounding, which is each CPU's own, grows with the loss. Here
    it does not: a step of lr w z adds at most lr^2 w^2 |z|^2 / 2 <= trust * lr |z|^2 / 2 of the loss.
    """
    size, lr, trust, ends = 50, 0.2, 0.01, {}
    for name, guard in {"free": None, "guarded": Watchdog(Options(clip=0, trust=trust, factor=1e9))}.items():
        space, task = ArraySpace(np.ones(size)), FunctionTask(lambda points: 0.5 * (points**2).sum(1))
        log: Any = MemoryLog()
        log.state = SimpleNamespace(rewinds=0, hashes={})
        parts = (Rademacher(), Sgd(lr=lr), TwoSided(eps=1e-3), task, space)
        losses = [size / 2]
        for _ in engine.play(Run(seed, 60, log, space, *parts, watchdog=guard), 60):
            losses.append(0.5 * float(space.value @ space.value))
        risen = max(after / before for before, after in pairwise(losses))
        assert (risen <= 1.01 + trust * lr * size / 2) == (name == "guarded")
        assert any(record.flags & CLIPPED for record in log) == (name == "guarded")
        ends[name] = losses[-1]
    assert 1e6 * ends["guarded"] < ends["free"]


def test_what_was_not_told_is_guarded_by_its_promise_where_g_is_a_slope() -> None:
    bare = {"version": 1, "model": {"source": "x"}, "data": {"train": "y"}}
    for estimator, rule, trust in (
        ("two_sided", "sgd", 0.03), ("one_sided", "sgd", 0.03), ("two_sided", "adam", None), ("fzoo", "sgd", None),
    ):  # fmt: skip
        guard = check(bare | {"estimator": estimator, "rule": rule}, {}, "r").train.watchdog
        assert guard is not None and guard.trust == trust and guard.rise == 1.5
