"""Training faults: losses that explode or are not finite, memory that runs out, signals. The log holds all there is."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.recipes import tiny_recipe
from helpers.runs import GUARD, METHODS, kinds, train

from zoedge.commands import verify
from zoedge.commands.export import peft as export_peft
from zoedge.commands.finetune import train as whole_run
from zoedge.core import digests, engine, oracle
from zoedge.core.canonical import encode_canonical
from zoedge.core.types import CLIPPED, MICRO_BATCHED, SKIPPED
from zoedge.core.watchdog import CLIP_WINDOW, MIN_STEPS
from zoedge.errors import DataError, DivergedError, IdentityError, ReplayError
from zoedge.log import packed
from zoedge.log.header import DIGEST_FIELDS
from zoedge.log.log import Log
from zoedge.log.slots import REWIND
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.recipe import Recipe
from zoedge.run import evaluate, identity, replay, setup
from zoedge.run import folder as run_folder
from zoedge.run.display import make_display
from zoedge.run.signals import Stopped
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.trunk_file import BlockFile


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_went_back_resumes_and_replays_to_the_same_bits(
    recipe_file: Path, tmp_path: Path, worse: Callable[..., None], method: str
) -> None:
    """Whatever has slots or reads the past sees the effective steps alone; killed anywhere, the log is the same."""
    worse(100.0, range(14, 26))
    options = [GUARD, "train.steps=16", "rule.schedule=constant", *METHODS[method]]
    final, raw = train(recipe_file, tmp_path / "whole", overrides=options)
    path = tmp_path / "whole" / run_folder.LOG_FILE
    found = kinds(raw, path)
    back = found.index(REWIND)
    log = Log.open(path)
    assert log.state.rewinds == found.count(REWIND) >= 1 and len(log) == 16
    whole = identity.recipe_from_header(log.header, "log").rule.rate(15, 16)
    assert log[15].lr == whole / 2**log.state.rewinds, "the rule's lr, halved at every rewind"
    assert [record.seq for record in log] == sorted({record.seq for record in log}), "no direction is used twice"
    for slots in (3, back, back + 1, back + 2):  # back: killed before, + 1: right after it
        again = tmp_path / f"cut-{slots}"
        again.mkdir()
        (again / run_folder.LOG_FILE).write_bytes(raw[: log.header.length + slots * log.header.slot_size])
        assert train(recipe_file, again, overrides=options) == (final, raw), slots
    verify.check_integrity(log)
    assert digests.digest(verify.check_states(log)[0].space) == final
    (tmp_path / "log.zpack").write_bytes(packed.pack_log(log))
    assert digests.digest(verify.check_states(packed.PackedLog.open(tmp_path / "log.zpack"))[0].space) == final


def test_before_any_state_is_logged_it_goes_back_to_the_beginning(
    recipe_file: Path, tmp_path: Path, worse: Callable[..., None]
) -> None:
    worse(100.0, range(4, 8))
    options = [GUARD, "train.steps=9", "log.hash_every=100"]
    final, raw = train(recipe_file, tmp_path / "whole", overrides=options)
    found = kinds(raw, tmp_path / "whole" / run_folder.LOG_FILE)
    log = Log.open(tmp_path / "whole" / run_folder.LOG_FILE)
    assert found[8] == REWIND and log[0].seq == 9 and log.state.rewinds == 1
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / run_folder.LOG_FILE).write_bytes(raw[: log.header.length + 9 * 64])
    assert train(recipe_file, tmp_path / "cut", overrides=options) == (final, raw), "killed right after the REWIND"
    assert digests.digest(verify.check_states(log)[0].space) == final


@pytest.mark.parametrize(("factor", "says"), [(100.0, "far over its best"), (float("nan"), "not finite")])
def test_a_run_that_went_back_often_enough_stops_and_stays_stopped(
    recipe_file: Path, tmp_path: Path, worse: Callable[..., None], factor: float, says: str
) -> None:
    worse(2.0, range(4))  # so that the beginning is not the best
    worse(factor, range(18, 10**6))
    options = [GUARD, "train.steps=100", "log.hash_every=2"]
    for _ in range(2):
        with pytest.raises(DivergedError, match=rf"{says} at steps \d+\.\.\d+, after 2 rewinds.*rule\.lr") as e:
            train(recipe_file, tmp_path / "run", overrides=options)
        assert e.value.exit_code == 7
        log = Log.open(tmp_path / "run" / run_folder.LOG_FILE)
        assert log.state.rewinds == 2 and log.state.end is None and len(log) < 40
        verify.check_states(log)


SPACES = ["lora", "prompt", "prefix", "scales", "full", "several"]


@pytest.mark.parametrize("space", SPACES)
def test_eight_losses_that_are_not_finite_end_a_run_and_change_nothing(
    recipe_file: Path, tmp_path: Path, worse: Callable[..., None], space: str
) -> None:
    worse(float("nan"), range(4, 10**6))
    options = ["log.hash_every=100", *METHODS.get(space, [])]
    with pytest.raises(DivergedError, match=r"not finite at steps 4\.\.11\. .*rule\.lr or estimator\.eps"):
        train(recipe_file, tmp_path / "run", overrides=options)
    log = Log.open(tmp_path / "run" / run_folder.LOG_FILE)
    assert [r.flags for r in log] == [0] * 4 + [SKIPPED] * 8 and not any(r.g[0] for r in log if r.flags)
    run = replay.build_replay_run(log)
    states = [digests.digest(run.space) for _ in engine.play(run, len(log))]
    assert len(set(states[:4])) == 4 and set(states[3:]) == {states[3]}


def test_a_derivative_far_over_the_median_is_clipped(
    recipe_file: Path, tmp_path: Path, worse: Callable[..., None]
) -> None:
    """What is logged is the clipped value; a run that is never clipped has the log of one without a watchdog."""
    options = ["train.watchdog={clip: 4, factor: 1e9}", "log.hash_every=100", "estimator.queries=2"]
    plain, raw = train(recipe_file, tmp_path / "plain", overrides=options[1:])
    loose, other = train(recipe_file, tmp_path / "loose", overrides=["train.watchdog={clip: 1e6}", *options[1:]])
    assert plain == loose and raw != other, "the same steps; the header names the watchdog"
    worse(1000.0, range(15, 16))
    final, raw = train(recipe_file, tmp_path / "run", overrides=options)
    log = Log.open(tmp_path / "run" / run_folder.LOG_FILE)
    assert [r.step for r in log if r.flags & CLIPPED and r.step < 16] == [15]
    for query in (0, 1):
        past = sorted(abs(r.g[query]) for r in log if r.step < 15)
        assert abs(log[15].g[query]) == pytest.approx(4 * past[7], rel=2**-15)
    assert digests.digest(verify.check_states(log)[0].space) == final
    assert MIN_STEPS < 15 < CLIP_WINDOW


TASKS = {
    "classify": [],
    "options of several tokens": ['task.options={negative: " very dull", positive: " great fun"}'],
    "accuracy": ["task.objective=accuracy"],
    "lm": ["task={name: lm}", "output.export=[]"],
}
FAULTS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory"),
    "host": MemoryError(),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """A forward of more than so many sequences runs out of memory, in its midst; the sizes that were tried."""

    def holds(sequences: int, fault: Exception) -> list[int]:
        tried: list[int] = []
        real = Base.hidden_states

        def hidden_states(self: Any, batch: Any, copies: int) -> Any:
            found = real(self, batch, copies)
            tried.append(copies * len(batch.index))
            if tried[-1] > sequences:
                raise fault
            return found

        monkeypatch.setattr(Base, "hidden_states", hidden_states)
        return tried

    return holds


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("space", SPACES)
def test_out_of_memory_the_step_is_measured_again_in_smaller_pieces(
    recipe_file: Path, tmp_path: Path, memory: Callable[..., list[int]], task: str, space: str
) -> None:
    """First fewer points in a forward, then fewer rows; theta is as it was, and the losses up to the kernels' rounding."""
    per = 2 if "several" in task else 1
    options = ["train.steps=2", "estimator.queries=2", *METHODS.get(space, []), *TASKS[task]]
    train(recipe_file, tmp_path / "whole", overrides=options)
    tried = memory(2 * per, FAULTS["cuda"])
    train(recipe_file, tmp_path / "split", overrides=options)
    whole, split = (Log.open(tmp_path / name / run_folder.LOG_FILE) for name in ("whole", "split"))
    assert split[0].losses == pytest.approx(whole[0].losses, abs=1e-5) and split[0].check == whole[0].check
    assert [r.flags for r in split] == [MICRO_BATCHED, MICRO_BATCHED] and not any(r.flags for r in whole)
    first = next(i for i, n in enumerate(tried) if n <= 2 * per)
    assert tried[: first + 1] == sorted(tried[: first + 1], reverse=True) and max(tried[first:]) <= 2 * per
    verify.check_states(split)


@pytest.mark.parametrize("fault", FAULTS)
def test_where_one_example_does_not_fit_a_sentence_says_the_way_out(
    recipe_file: Path, tmp_path: Path, memory: Callable[..., list[int]], fault: str
) -> None:
    tried = memory(0, FAULTS[fault])
    with pytest.raises(DataError, match=r"Out of memory in a forward of one example \(\d+ token rows\).*max_length"):
        train(recipe_file, tmp_path / "run")
    assert tried == [8, 4, 2, 1] and len(Log.open(tmp_path / "run" / run_folder.LOG_FILE)) == 0


def test_other_errors_of_a_forward_are_not_taken_for_it(
    recipe_file: Path, tmp_path: Path, memory: Callable[..., list[int]]
) -> None:
    tried = memory(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        train(recipe_file, tmp_path / "run")
    assert tried == [8]


def test_losses_of_parts_are_those_of_the_whole(recipe_file: Path) -> None:
    """Where the model's forward gives equal bits, so do any parts: a sum correctly rounded has no order."""
    bench = setup.Measuring.build(read_recipe(str(recipe_file), TASKS["lm"]))
    batch = bench.task.batch(0)
    whole = bench.task.score(bench.base, batch, 2)
    for size in (1, 2, 3):
        parts = [bench.task.score(bench.base, batch.slice_examples(i, i + size), 2) for i in range(0, len(batch), size)]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5) and torch.cat(parts, 1).shape == whole.shape


STAGES: dict[str, tuple[Any, str, int]] = {  # where a signal comes; at which call
    "loading": (setup, "load_datasets", 0),
    "the header": (setup, "write_durably", 0),
    "the trunk": (BlockFile, "holds", 0),
    "the first look": (evaluate, "evaluate", 0),
    "measuring": (oracle.StepOracle, "losses", 12),
    "advancing": (engine, "advance", 5),
    "logging": (Log, "append", 5),
    "a look on the way": (evaluate, "evaluate", 1),
    "after the last step": (Log, "finish", 0),
    "going back to the best": (replay, "build_replay_run", 0),
    "the export": (export_peft, "write_peft", 0),
    "the last look": (evaluate, "evaluate", 4),
}


@pytest.fixture
def struck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """At some call of a function, that signal comes, so many times."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that was started by `&` has it ignored

    def at(owner: Any, name: str, call: int, number: int, times: int = 1) -> None:
        real, left = getattr(owner, name), [call]

        def function(*args: Any, **named: Any) -> Any:
            left[0] -= 1
            for _ in range(times if left[0] == -1 else 0):
                os.kill(os.getpid(), number)
            return real(*args, **named)

        monkeypatch.setattr(owner, name, function)

    yield at
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, llama: Path, reviews: Path) -> tuple[Recipe, Path]:
    """(a recipe, the folder of its run)"""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = read_recipe(str(tiny_recipe(folder, llama, reviews)), ["eval.every=8", "eval.select=best"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOEDGE_CACHE", str(tmp_path_factory.getbasetemp() / "zoedge-cache"))
        whole_run(recipe, folder / "whole", make_display("quiet"))
    return recipe, folder / "whole"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_loses_nothing(
    undisturbed: tuple[Recipe, Path], tmp_path: Path, struck: Callable[..., None], stage: str, number: int
) -> None:
    recipe, whole = undisturbed
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    folders = [whole, tmp_path / "struck"]
    struck(*STAGES[stage], number)
    with pytest.raises(Stopped, match=r"before the first step|nothing is lost. Go on with: zoedge resume") as e:
        whole_run(recipe, folders[1], make_display("quiet"))
    assert e.value.exit_code == 128 + number
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    if stage in ("measuring", "advancing", "logging"):
        with Log.open(folders[1] / run_folder.LOG_FILE) as log:
            assert len(log) > 0 and f"after step {len(log)}" in str(e.value) and log.torn == 0
    whole_run(recipe, folders[1], make_display("quiet"))
    for name in (run_folder.LOG_FILE, run_folder.RECIPE_FILE, "adapter/adapter_model.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    seen = [[(x["event"], x["step"], x["loss"]) for x in run_folder.read_metrics(f) if "loss" in x] for f in folders]
    assert sorted(set(seen[0])) == sorted(set(seen[1])), "no look is missing"
    assert {p.name for p in folders[0].iterdir()} == {p.name for p in folders[1].iterdir()}


@pytest.mark.parametrize("stage", ["measuring", "logging"])
def test_a_second_signal_exits_at_once(
    recipe_file: Path, tmp_path: Path, struck: Callable[..., None], stage: str
) -> None:
    struck(*STAGES[stage], signal.SIGTERM, 2)
    with pytest.raises(SystemExit) as e:
        whole_run(read_recipe(str(recipe_file)), tmp_path / "run", make_display("quiet"))
    assert e.value.code == 143
    with Log.resume(tmp_path / "run" / run_folder.LOG_FILE) as log:
        assert 0 < len(log) < 24 and log.torn == 0


def test_a_signal_that_is_ignored_stays_ignored(recipe_file: Path, tmp_path: Path, struck: Callable[..., None]) -> None:
    """As a shell does for what it starts with `&`, or nohup for a hangup."""
    struck(*STAGES["measuring"], signal.SIGINT)
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert whole_run(read_recipe(str(recipe_file)), tmp_path / "run", make_display("quiet")).steps == 24
    finally:
        signal.signal(signal.SIGINT, old)


CHANGES = {
    "recipe": ("rule.lr 0.01 -> 0.02", "rule.lr=0.02"),
    "watchdog": (r"train.watchdog None -> \{'clip': 10.0", "train.watchdog={}"),
    "base": ("model.quantization nf4 -> int8, the base model", "model.quantization=int8"),
    "data": ("data.train content", "data.limit=40"),
    "tensors": ("space.rank 4 -> 2, .*the trained tensors .*their initial values", "space.rank=2"),
    "seed": ("seed 7 -> 8, .*their initial values", "seed=8"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_of_something_else_is_not_gone_on_with(
    recipe_file: Path, tmp_path: Path, zoedge: Callable[..., Any], change: str
) -> None:
    """Refused with what differs, and the log is not touched."""
    train(recipe_file, tmp_path / "run", until=3)
    raw, (says, option) = (tmp_path / "run" / run_folder.LOG_FILE).read_bytes(), CHANGES[change]
    with Log.open(tmp_path / "run" / run_folder.LOG_FILE) as log:
        found = identity.identity_differences(
            log.header, setup.Measuring.build(read_recipe(str(recipe_file), [option])).header()
        )
    assert re.search(says, ", ".join(found))
    done = zoedge("finetune", recipe_file, option, "--run-dir", tmp_path / "run", "--quiet")
    assert done.code == 4 and "what was trained on changed" in done.err and re.search(says.partition(", ")[0], done.err)
    assert (tmp_path / "run" / run_folder.LOG_FILE).read_bytes() == raw


@pytest.mark.parametrize("name", DIGEST_FIELDS)
def test_each_digest_of_the_header_is_compared_and_named(recipe_file: Path, tmp_path: Path, name: str) -> None:
    train(recipe_file, tmp_path / "run", until=1)
    with Log.open(tmp_path / "run" / run_folder.LOG_FILE) as log:
        other = replace(log.header, **{name: bytes(32)})
        if name == "recipe":
            table = log.header.about
            table["recipe"]["train"]["batch"] = 5
            other = replace(other, block=encode_canonical(table))
        (said,) = identity.identity_differences(log.header, other)
        words = {"recipe": "train.batch 4 -> 5", "data": "data.train content", "tokenizer": "the tokenizer (sha256"}
        assert words.get(name, "sha256") in said
        with pytest.raises(IdentityError, match="Undo the change, or start a new run"):
            identity.check_same_run(log.header, other, tmp_path)


def test_a_tokenizer_that_changed_is_told(recipe_file: Path, tmp_path: Path, llama: Path) -> None:
    """Same weights, same rows; one token of the vocabulary has another meaning."""
    shutil.copytree(llama, tmp_path / "model")
    source = f"model.source={tmp_path / 'model'}"
    train(recipe_file, tmp_path / "run", until=1, overrides=[source])
    file = tmp_path / "model" / "tokenizer.json"
    table = json.loads(file.read_text())
    words = [w for w in table["model"]["vocab"] if w.startswith("~") or w == "|"]
    table["model"]["vocab"][words[0]], table["model"]["vocab"]["}"] = (
        table["model"]["vocab"]["}"],
        table["model"]["vocab"][words[0]],
    )
    file.write_text(json.dumps(table))
    with pytest.raises(
        IdentityError, match=r"changed: the tokenizer \(sha256 \w{8}\.\. -> \w{8}\.\.\), tokenizer.json of "
    ):
        whole_run(read_recipe(str(recipe_file), [source]), tmp_path / "run", make_display("quiet"))


@pytest.mark.parametrize("method", ["sgd", "prompt", "prefix", "scales", "full", "full bf16", "several", "adam"])
def test_replay_that_differs_is_traced_to_a_step_a_tensor_and_an_element(
    recipe_file: Path, tmp_path: Path, worse: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """In every space, over a REWIND: an ulp off in one element after one step, which only the next state hash can show."""
    worse(100.0, range(14, 20))
    train(recipe_file, tmp_path / "run", overrides=[GUARD, "train.steps=16", *METHODS[method]])
    log = Log.open(tmp_path / "run" / run_folder.LOG_FILE)
    assert log.state.rewinds and "torch and numpy agree here at every step" in verify.find_difference(log)
    kind = type(replay.build_replay_run(log).space)
    real, count = kind.add, [0]
    leaves = len(replay.build_replay_run(log).space.leaves())

    def add(self: Any, leaf: Any, *rest: Any) -> None:
        real(self, leaf, *rest)
        count[0] += 1
        if count[0] % (16 * leaves) == 12 * leaves:  # the last leaf of step 11, of each replay of 16 steps
            leaf.value.view(-1)[3] = leaf.value.view(-1)[3] * 1.5 + 1.0

    monkeypatch.setattr(kind, "add", add)
    last = replay.build_replay_run(log).space.leaves()[-1]
    with pytest.raises(ReplayError) as e:
        verify.check_states(log)
    named = re.search(r"differ first at step (\d+), (.+), element (\d+)", str(e.value))
    assert named, str(e.value)
    count[0] = 0
    found = re.search(r"differ first at step 11, (.+), element 3:", verify.find_difference(log))
    assert found and found[1] == last.parts[0].name


def test_sigterm_in_any_command(
    recipe_file: Path, tmp_path: Path, struck: Callable[..., None], zoedge: Callable[..., Any]
) -> None:
    """Exit 143, and half-written files are taken away."""
    train(recipe_file, tmp_path / "run", overrides=["train.steps=2"])
    old, before = signal.getsignal(signal.SIGTERM), {p.name for p in tmp_path.iterdir()}
    try:
        struck(export_peft, "write_durably", 1, signal.SIGTERM)
        done = zoedge("export", tmp_path / "run", "--to", "peft", "-o", tmp_path / "out")
        assert done.code == 143 and {p.name for p in tmp_path.iterdir()} == before
    finally:
        signal.signal(signal.SIGTERM, old)


@pytest.mark.parametrize("fault", FAULTS)
def test_out_of_memory_elsewhere_is_no_bug(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Callable[..., Any], fault: str
) -> None:
    def build(*given: Any) -> Any:
        raise FAULTS[fault]

    monkeypatch.setattr(setup.Measuring, "build", build)
    done = zoedge("finetune", recipe_file, "--quiet")
    assert done.code == 3 and done.err.startswith("zoedge: memory ended.") and done.err.count("\n") == 1
