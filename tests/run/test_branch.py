"""`finetune RECIPE --from RUN@STEP`: the branch's log holds the parent's steps, and replays alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import GUARD, METHODS, kinds, replay_to, train

from zoedge.commands import verify
from zoedge.commands.finetune import train as whole_run
from zoedge.core import digests
from zoedge.core.canonical import encode_canonical
from zoedge.errors import DamagedError, IdentityError, LockedError, UsageError
from zoedge.log import packed
from zoedge.log.log import Log
from zoedge.log.slots import HASH, NOTE, STEP
from zoedge.recipe.reading import read_recipe
from zoedge.run import branch, identity, setup
from zoedge.run import folder as run_folder
from zoedge.run.display import make_display

OTHER = ["rule.lr=3e-3", "rule.schedule=constant", "train.batch=3", "rule.weight_decay=0.1"]


@pytest.mark.parametrize("method", ["sgd", "adamu", "hizoo", "residual", "several", "full bf16"])
def test_a_branch_goes_on_from_the_parents_state_and_replays_alone(
    recipe_file: Path,
    tmp_path: Path,
    worse: Callable[..., None],
    method: str,
) -> None:
    """Of a parent that itself went back; killed and resumed; and from the packed parent, the same bytes."""
    worse(100.0, range(14, 21))
    own = METHODS[method]
    train(recipe_file, tmp_path / "parent", overrides=[GUARD, "train.steps=16", *own])
    parent = Log.open(tmp_path / "parent" / run_folder.LOG_FILE)
    assert parent.state.rewinds
    free = OTHER[:-1] if method == "hizoo" else OTHER
    options = ["train.steps=16", *own, *free]
    final = train(recipe_file, tmp_path / "a", 16, options, branch.Parent(parent, 12))[0]
    train(recipe_file, tmp_path / "b", 13, options, branch.Parent(parent, 12))
    assert train(recipe_file, tmp_path / "b", 16, options, branch.Parent(parent, 12))[0] == final
    raw = (tmp_path / "a" / run_folder.LOG_FILE).read_bytes()
    assert raw == (tmp_path / "b" / run_folder.LOG_FILE).read_bytes()
    log = Log.open(tmp_path / "a" / run_folder.LOG_FILE)
    assert list(log)[:12] == list(parent)[:12] and len(log) == 16 and not log.state.rewinds
    assert all(r.lr == identity.recipe_from_header(log.header, "log").rule.rate(12, 16) for r in list(log)[12:])
    state = digests.digest(replay_to(parent, 12))
    assert digests.digest(replay_to(log, 12)) == state and log.state.hashes[12] == state[:24]
    assert {s: d for s, d in parent.state.hashes.items() if s < 12}.items() <= log.state.hashes.items()
    join = log[11].seq + 1
    found = kinds(raw, log.path)
    assert found[join] == HASH and found[:join].count(STEP) == 12 and NOTE in found[:join]
    assert any("its first 12 steps" in line for line in verify.check_integrity(log))
    assert digests.digest(verify.check_states(log)[0].space) == final
    if method != "residual":
        (tmp_path / "p.zpack").write_bytes(packed.pack_log(parent))
        again = branch.Parent(packed.PackedLog.open(tmp_path / "p.zpack"), 12)
        train(recipe_file, tmp_path / "c", 12, options, again)
        other = Log.open(tmp_path / "c" / run_folder.LOG_FILE)
        assert [r._replace(losses=(), check=0) for r in list(log)[:12]] == list(other)[:12]
    second = train(recipe_file, tmp_path / "d", 16, [*options, "rule.lr=1e-4"], branch.Parent(log, 14))[0]
    assert (
        digests.digest(verify.check_states(Log.open(tmp_path / "d" / run_folder.LOG_FILE))[0].space) == second != final
    )


REFUSED = {
    "seed=8": "seed 7 -> 8",
    "space.rank=2": "space.rank 4 -> 2",
    "noise=normal": "noise.name rademacher -> normal",
    "rule={name: momentum}": "rule.name sgd -> momentum",
    "log.hash_every=7": "log.hash_every 5 -> 7",
    "model.quantization=int8": "the base model",
    "estimator={name: residual, eps: 1e-2}": r"estimator.name two_sided -> residual \(Residual reads the past\)",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_the_parents_steps_do_not_replay_under_is_refused(recipe_file: Path, tmp_path: Path, change: str) -> None:
    train(recipe_file, tmp_path / "parent", until=12)
    parent = branch.Parent(Log.open(tmp_path / "parent" / run_folder.LOG_FILE), 8)
    with pytest.raises(IdentityError, match=rf"Cannot branch from .*run\.zlog@8: .*{REFUSED[change]}"):
        train(recipe_file, tmp_path / "a", 9, [change], parent)
    assert not (tmp_path / "a" / run_folder.LOG_FILE).exists() and not list((tmp_path / "a").iterdir())


def test_a_rule_paced_by_the_run_keeps_its_length(recipe_file: Path, tmp_path: Path) -> None:
    train(recipe_file, tmp_path / "parent", until=8, overrides=METHODS["adamu"])
    parent = branch.Parent(Log.open(tmp_path / "parent" / run_folder.LOG_FILE), 8)
    with pytest.raises(IdentityError, match=r"train.steps 24 -> 30 \(Adamu has schedules of the run's length"):
        train(recipe_file, tmp_path / "a", 9, [*METHODS["adamu"], "train.steps=30"], parent)


def test_the_command(recipe_file: Path, tmp_path: Path, zoedge: Callable[..., Any]) -> None:
    parent = recipe_file.parent / "runs" / "tiny"
    assert zoedge("finetune", recipe_file, "--quiet").code == 0
    start = ["finetune", recipe_file, "name=two", "train.steps=30", "rule.lr=1e-3", "--plain"]
    for text, says in (("here", "is not RUN@STEP"), (f"{parent}@99", "the log has 24"), ("none@3", "No run 'none'")):
        done = zoedge(*start, "--from", text)
        assert done.code == 2 and says in done.err
    done = zoedge(*start, "--from", f"{parent}@0")
    assert done.code == 2 and "at least one step" in done.err
    done = zoedge("finetune", recipe_file, "name=two", "--from", f"{parent}@24")
    assert done.code == 2 and "train.steps counts the parent's steps too, and is 24. Raise it" in done.err
    done = zoedge(*start, "--from", f"{parent}@last")
    assert done.code == 0 and "30 steps" in done.out
    folder = parent.with_name("two")
    assert zoedge("verify", folder, "--replay", "--against", folder / run_folder.RECIPE_FILE).code == 0
    assert zoedge(*start, "--from", f"{parent}@last").code == 0, "it is finished"
    done = zoedge(*start, "--from", f"{parent}@20")
    assert done.code == 4 and "did not begin as" in done.err
    assert zoedge("resume", folder).code == 0
    assert not [p for p in folder.iterdir() if "branch" in p.name]


def test_a_log_that_is_there_is_not_replaced(recipe_file: Path, tmp_path: Path) -> None:
    train(recipe_file, tmp_path / "parent", until=8)
    parent = branch.Parent(Log.open(tmp_path / "parent" / run_folder.LOG_FILE), 8)
    recipe = read_recipe(str(recipe_file))
    (tmp_path / "run.zlog").write_bytes(b"another's")
    with pytest.raises(LockedError):
        branch.begin_branch(parent, setup.Measuring.build(recipe).header(), recipe, tmp_path / "run.zlog")
    assert (tmp_path / "run.zlog").read_bytes() == b"another's" and not list(tmp_path.glob(".run*"))


@pytest.mark.parametrize("parent", [3, {"step": 3}, {"step": "3", "fingerprint": ""}, {"step": -1, "fingerprint": ""}])
def test_what_a_header_says_of_a_parent_is_checked(recipe_file: Path, tmp_path: Path, parent: Any) -> None:
    train(recipe_file, tmp_path / "run", until=1)
    header = Log.open(tmp_path / "run" / run_folder.LOG_FILE).header
    object.__setattr__(header, "block", encode_canonical({**header.about, "parent": parent}))
    with pytest.raises(DamagedError, match="parent run cannot be read"):
        identity.parent_from_header(header)


def test_a_branch_by_train(recipe_file: Path, tmp_path: Path) -> None:
    first = whole_run(read_recipe(str(recipe_file)), tmp_path / "one", make_display("quiet"))
    parent = branch.Parent(Log.open(first.folder / run_folder.LOG_FILE), 10)
    with pytest.raises(UsageError, match="at least one step"):
        whole_run(
            read_recipe(str(recipe_file), ["train.steps=10"]), tmp_path / "x", make_display("quiet"), parent=parent
        )
    second = whole_run(read_recipe(str(recipe_file), OTHER), tmp_path / "two", make_display("quiet"), parent=parent)
    assert second.steps == 24 and second.fingerprint != first.fingerprint
