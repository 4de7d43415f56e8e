"""Snapshots: a run resumes from one to the same bits, and whatever is wrong with one is said and costs only time."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import METHODS, replays

from zoedge.commands.finetune import train as whole_run
from zoedge.core import digests, engine, storage
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import folder as run_folder
from zoedge.run import setup, snapshot
from zoedge.run.display import Quiet
from zoedge.run.snapshot import SNAPSHOT_FILE, Snapshots

STEPS, EVERY, CUT = 12, 3, 8  # the run is cut after 8 steps; the newest state that its log has is that of 6


class Told(Quiet):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot at each state that the log has."""
    monkeypatch.setattr(snapshot, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(snapshot, "LARGEST_SHARE", math.inf)


def build(recipe_file: Path, *overrides: str) -> setup.Measuring:
    recipe = read_recipe(str(recipe_file), [f"train.steps={STEPS}", f"log.hash_every={EVERY}", *overrides])
    return setup.Measuring.build(recipe)


def go_on(measuring: setup.Measuring, folder: Path, until: int, show: Told) -> int:
    """Begin or continue a run with snapshots, and return the step that it began at."""
    folder.mkdir(exist_ok=True)
    path = folder / run_folder.LOG_FILE
    with Log.resume(path) if path.exists() else setup.begin_run(measuring, folder) as log:
        run = measuring.run(log)
        snapshots = Snapshots(run, log, show)
        start = snapshots.restore(lambda step: True)
        for record in engine.play(run, until, start):
            snapshots.offer(record.step + 1)
        if until == STEPS:
            log.finish(digests.digest(measuring.space))
    return start


@pytest.mark.parametrize("method", ["sgd", "adam", "adamu", "hizoo", "several", "scales", "full bf16"])
def test_a_run_goes_on_from_a_snapshot_to_the_same_bits(recipe_file: Path, tmp_path: Path, method: str) -> None:
    """Replayed from step 0, which no snapshot touches, its log leads to every state in it."""
    show, folder = Told(), tmp_path / "run"
    assert go_on(build(recipe_file, *METHODS[method]), folder, CUT, show) == 0 and not show.lines
    assert (folder / SNAPSHOT_FILE).exists()
    assert go_on(build(recipe_file, *METHODS[method]), folder, STEPS, show) == 6
    assert show.lines == ["from the snapshot of step 6: 2 steps are left to replay"]
    with Log.open(folder / run_folder.LOG_FILE) as log:
        assert sorted(log.state.hashes) == [3, 6, 9, 12]
    assert replays(folder)


@pytest.fixture
def cut(recipe_file: Path, tmp_path: Path) -> tuple[setup.Measuring, Path, bytes]:
    """A run with momentum that was cut after 8 steps, its folder, and its snapshot of step 6."""
    measuring, folder = build(recipe_file, *METHODS["momentum"]), tmp_path / "run"
    go_on(measuring, folder, CUT, Told())
    return build(recipe_file, *METHODS["momentum"]), folder, (folder / SNAPSHOT_FILE).read_bytes()


def refused(measuring: setup.Measuring, folder: Path) -> str:
    """Return why a snapshot is not used; the run stands at its start."""
    show = Told()
    with Log.resume(folder / run_folder.LOG_FILE) as log:
        run = measuring.run(log)
        before = digests.digest(run.space)
        assert Snapshots(run, log, show).restore(lambda step: True) == 0
        assert digests.digest(run.space) == before == log.header.initial
        assert not any(slots["m"].any() for slots in run.slots.values())
    assert len(show.lines) <= 1
    return show.lines[0] if show.lines else ""


def rewritten(raw: bytes, change: Callable[[dict[str, Any]], Any], value: int = 0) -> bytes:
    """A snapshot with another head, or one bit of its last tensor flipped, and the checksum made right."""
    size = int.from_bytes(raw[8:12], "little")
    head = json.loads(raw[12 : 12 + size])
    change(head)
    body, data = bytearray(raw[12 + size : -32]), json.dumps(head).encode()
    body[0] ^= value
    whole = raw[:8] + len(data).to_bytes(4, "little") + data + bytes(body)
    return whole + hashlib.sha256(whole).digest()


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", "it is not one"),
    "another file": (lambda raw: b"\x89PNG" + raw[4:], "it is not one"),
    "a long head": (lambda raw: raw[:8] + b"\xff" * 4 + raw[12:], "its head is too long"),
    "no JSON": (lambda raw: raw[:12] + b"!" + raw[13:], "Expecting value"),
    "brackets": (lambda raw: raw[:8] + (90_000).to_bytes(4, "little") + b"[" * 90_000, "not used"),
    "a list": (lambda raw: raw[:8] + b"\2\0\0\0[]", "its head cannot be read"),
    "cut": (lambda raw: raw[:-1], "it has not the"),
    "longer": (lambda raw: raw + b"x", "it has not the"),
    "a flipped bit of a value": (lambda raw: raw[:-4000] + bytes([raw[-4000] ^ 1]) + raw[-3999:], "its checksum"),
    "a flipped bit of the checksum": (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "its checksum"),
    "other values, checksum right": (lambda raw: rewritten(raw, lambda head: None, 1), "not those of the log"),
    "no step": (lambda raw: rewritten(raw, lambda head: head.pop("step")), "'step'"),
    "a step without a state": (lambda raw: rewritten(raw, lambda head: head.update(step=5)), "does not know the state"),
    "another state's step": (lambda raw: rewritten(raw, lambda head: head.update(step=3)), "not those of the log"),
    "a step that is a text": (lambda raw: rewritten(raw, lambda head: head.update(step="x")), "invalid literal"),
    "another log": (lambda raw: rewritten(raw, lambda head: head.update(chain="00" * 16)), "it is of another log"),
    "a longer log": (lambda raw: rewritten(raw, lambda head: head.update(slots=10**9)), "it is of another log"),
    "other numbers": (lambda raw: rewritten(raw, lambda head: head.update(numbers=[{"b": 1}])), "other numbers"),
    "fewer leaves": (lambda raw: rewritten(raw, lambda head: head.update(numbers=[])), "shorter"),
}


def test_what_is_wrong_with_a_snapshot_is_said_and_the_log_replayed(cut: tuple[setup.Measuring, Path, bytes]) -> None:
    measuring, folder, raw = cut
    path = folder / SNAPSHOT_FILE
    for what, (change, words) in BAD.items():
        path.write_bytes(change(raw))
        line = refused(measuring, folder)
        assert words in line and line.endswith("the log is replayed from its first step"), f"{what}: {line}"
    path.unlink()
    assert refused(measuring, folder) == ""  # a missing one is no fault
    path.symlink_to("elsewhere")
    assert "cannot open" in refused(measuring, folder)
    path.unlink()
    path.mkdir()
    assert "not a regular file" in refused(measuring, folder)
    path.rmdir()
    path.write_bytes(raw)
    show = Told()
    assert go_on(measuring, folder, STEPS, show) == 6 and replays(folder)


def test_a_snapshot_from_before_a_rewind(cut: tuple[setup.Measuring, Path, bytes]) -> None:
    measuring, folder, raw = cut
    with Log.resume(folder / run_folder.LOG_FILE) as log:
        log.rewind(3)
    assert "does not know the state after step 6" in refused(measuring, folder)
    (folder / SNAPSHOT_FILE).unlink()
    with Log.resume(folder / run_folder.LOG_FILE) as log:
        for _ in engine.play(measuring.run(log), 6):
            pass
    measuring.run(Log.open(folder / run_folder.LOG_FILE)).restart()
    (folder / SNAPSHOT_FILE).write_bytes(raw)
    assert "the run has gone back to before it" in refused(measuring, folder)


def test_a_disk_that_has_no_room(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: tuple[setup.Measuring, Path, bytes]
) -> None:
    """The run goes on without snapshots, and says so once."""
    measuring, folder, _ = cut
    (folder / SNAPSHOT_FILE).unlink()

    def full(*args: Any, **named: Any) -> int:
        raise OSError(28, "No space left on device")

    show = Told()
    (folder / f".{SNAPSHOT_FILE}.tmp-0123abcd").write_bytes(b"left by a kill")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish_file", full)
        assert go_on(measuring, folder, STEPS, show) == 0
    assert show.lines == [
        "no snapshots are kept beside the log (No space left on device): a resumed run replays it from its first step"
    ]
    assert replays(folder) and not [name for name in os.listdir(folder) if "snapshot" in name]


class Killed(BaseException):
    pass


def test_a_killed_run_resumes_from_its_snapshot(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command: the same files as a run that was not killed; without its looks, it replays everything."""
    recipe = read_recipe(str(recipe_file), [f"log.hash_every={EVERY}", "eval.every=4", "eval.select=best"])
    whole_run(recipe, tmp_path / "whole", Told())
    for name, begins in (("kept", True), ("no looks", False)):
        folder = tmp_path / name
        with monkeypatch.context() as patch:
            offer = Snapshots.offer

            def kill(self: Snapshots, step: int, offer: Any = offer) -> None:
                offer(self, step)
                if step == 14:
                    raise Killed

            patch.setattr(Snapshots, "offer", kill)
            with pytest.raises(Killed):
                whole_run(recipe, folder, Told())
        assert (folder / SNAPSHOT_FILE).exists()
        if not begins:
            (folder / run_folder.METRICS_FILE).unlink()
        show = Told()
        whole_run(recipe, folder, show)
        assert ("from the snapshot of step 12: 2 steps are left to replay" in show.lines) == begins
        for file in (run_folder.LOG_FILE, "adapter/adapter_model.safetensors"):
            assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
        looks = [
            run_folder.validation_looks(x, Log.open(x / run_folder.LOG_FILE)) for x in (folder, tmp_path / "whole")
        ]
        assert looks[0] == looks[1]
