"""`zoedge runs ls` and `rm`: what each run is said to be, and that nothing but a run is removed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoedge import errors
from zoedge.commands import runs
from zoedge.log.log import Log
from zoedge.run import folder as run_folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/ with an ended run, one stopped after two steps, a damaged one, and one of a sweep's; the current folder's."""
    there = tmp_path / "runs"
    for name in ("tiny", "half", "bad", "sweep/lr-1"):
        shutil.copytree(finished / "runs" / "tiny", there / name)
    with Log.open(there / "tiny" / run_folder.LOG_FILE) as log:
        length, slot = log.header.length, log.header.slot_size
    half, bad = (there / name / run_folder.LOG_FILE for name in ("half", "bad"))
    half.write_bytes(half.read_bytes()[: length + 3 * slot])  # session, two steps
    raw = bytearray(bad.read_bytes())
    raw[length + 20] ^= 1
    bad.write_bytes(bytes(raw))
    (there / "notes").mkdir()
    (there / "link").symlink_to(there / "tiny")
    for age, name in enumerate(("tiny", "half", "bad", "sweep/lr-1")):
        os.utime(there / name / run_folder.LOG_FILE, (1e9 - age, 1e9 - age))
    monkeypatch.chdir(tmp_path)
    return there


def test_a_list_says_what_each_run_is(folder: Path, zoedge: Callable[..., Any]) -> None:
    done = zoedge("runs", "ls", "--json")
    assert done.code == 0
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [(x["name"], x["state"], x["steps"], x["of"]) for x in found] == [
        ("tiny", "ended", 4, 4),
        ("half", "stopped", 2, 4),
        ("bad", "damaged", 0, 0),
        ("sweep/lr-1", "ended", 4, 4),
    ]
    tiny, last = found[0], run_folder.read_metrics(folder / "tiny")
    with Log.open(folder / "tiny" / run_folder.LOG_FILE) as log:
        assert tiny["fingerprint"] == log.fingerprint
    assert tiny["score"]["loss"] == next(n for n in last if n["event"] == "after")["loss"]
    assert tiny["model"] == "model" and tiny["task"] == "classify" and tiny["at"] == 1e9
    files = [p for p in (folder / "tiny").rglob("*") if p.is_file()]
    assert tiny["bytes"] == sum(p.stat().st_size for p in files) > 0
    done = zoedge("runs", "ls", "--dir", folder)
    rows = done.out.splitlines()
    assert rows[0].split() == ["run", "model", "task", "state", "steps", "score", "age", "size", "fingerprint"]
    assert [row.split()[0] for row in rows[1:]] == ["tiny", "half", "bad", "sweep/lr-1"]
    assert f"calibrated {100 * tiny['score']['calibrated']:.1f} %" in rows[1] and "2/4" in rows[2]
    assert done.err.startswith("runs/bad/run.zlog: damaged at slot 0") or "bad/run.zlog: damaged at slot 0" in done.err


def test_a_run_that_is_being_written_is_running_and_is_not_removed(folder: Path, zoedge: Callable[..., Any]) -> None:
    with Log.resume(folder / "half" / run_folder.LOG_FILE):
        states = {e.name: e.state for e in runs.list_runs(folder)}
        assert (states["half"], states["tiny"]) == ("running", "ended")
        done = zoedge("runs", "rm", "tiny", "half", "--yes")
        assert done.code == 6 and done.err == (
            "zoedge: runs/half: a zoedge process is writing this run. Wait for it, or stop it. Nothing was removed.\n"
        )
        assert (folder / "tiny" / run_folder.LOG_FILE).exists()
        with pytest.raises(errors.LockedError, match="is writing this run"):
            runs.remove_run(folder / "half")
    assert {e.name: e.state for e in runs.list_runs(folder)}["half"] == "stopped"


def test_looking_leaves_a_run_as_it_is(folder: Path, zoedge: Callable[..., Any]) -> None:
    torn = folder / "half" / run_folder.LOG_FILE
    torn.write_bytes(torn.read_bytes() + b"\x01\x00")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert zoedge("runs", "ls").code == 0
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_removed_run_is_gone_and_nothing_else(folder: Path, tmp_path: Path, zoedge: Callable[..., Any]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (folder / "tiny" / "mine").symlink_to(tmp_path / "mine")
    (folder / "tiny" / "adapter" / "mine").symlink_to(tmp_path / "mine")
    size = runs.count_bytes(folder / "tiny")
    done = zoedge("runs", "rm", "tiny", folder / "sweep" / "lr-1", "--yes")
    assert done.code == 0 and done.out.splitlines()[0] == f"removed runs/tiny: {size:,} bytes"
    assert not (folder / "tiny").exists() and not (folder / "sweep" / "lr-1").exists()
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x" and (folder / "half" / run_folder.LOG_FILE).exists()
    assert zoedge("runs", "rm", "bad", "-y").code == 0, "a damaged run too"


def test_it_asks_first(folder: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Callable[..., Any]) -> None:
    done = zoedge("runs", "rm", "tiny")
    assert done.code == 2 and done.err == "zoedge: `zoedge runs rm` asks first, and here is nobody to ask: add --yes.\n"

    class Terminal:
        def __init__(self, answer: str):
            self.answer = answer

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self.answer + "\n"

    for answer, code in (("n", 130), ("y", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        monkeypatch.setattr("builtins.input", lambda *a, answer=answer: answer)
        monkeypatch.setattr("click.termui.visible_prompt_func", lambda *a, answer=answer: answer, raising=False)
        assert zoedge("runs", "rm", "tiny").code == code
        assert (folder / "tiny").exists() == (code != 0)


@pytest.mark.parametrize(
    "name,said",
    [
        ("nowhere", "No run 'nowhere': no such folder, here or under runs/. `zoedge runs ls` lists them."),
        ("", "No run '': no such folder, here or under runs/. `zoedge runs ls` lists them."),
        ("runs", "runs is not a run: there is no run.zlog in it. Nothing was removed."),
        ("notes", "runs/notes is not a run: there is no run.zlog in it. Nothing was removed."),
        ("link", "runs/link is a symlink to {tiny}. Name the folder itself."),
        ("foreign", "runs/foreign/run.zlog is not a zoedge log. Nothing was removed; delete runs/foreign yourself."),
        ("nest", "runs/nest holds other runs (inner). Name each of them."),
        ("here", "{here} contains the current folder. Leave it first: cd .."),
    ],
)
def test_what_is_not_a_run_stays(
    name: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Callable[..., Any]
) -> None:
    (folder / "foreign").mkdir()
    (folder / "foreign" / run_folder.LOG_FILE).write_bytes(b"not a log of ours")
    shutil.copytree(folder / "tiny", folder / "nest")
    shutil.copytree(folder / "tiny", folder / "nest" / "inner")
    if name == "here":
        monkeypatch.chdir(folder / "tiny")
        name = str(folder / "tiny")
    before = sorted(p for p in folder.rglob("*"))
    done = zoedge("runs", "rm", "half" if not name.startswith("/") else folder / "half", name, "--yes")
    expected = said.format(tiny=folder / "tiny", here=folder / "tiny")
    assert (done.code, done.out, done.err) == (2, "", f"zoedge: {expected}\n")
    assert sorted(p for p in folder.rglob("*")) == before, "all are looked at before one is removed"


def test_a_log_that_is_a_symlink_is_neither_read_nor_removed(folder: Path, zoedge: Callable[..., Any]) -> None:
    (folder / "sly").mkdir()
    (folder / "sly" / run_folder.LOG_FILE).symlink_to(folder / "tiny" / run_folder.LOG_FILE)
    assert {e.name: e.state for e in runs.list_runs(folder)}["sly"] == "damaged"
    done = zoedge("runs", "rm", "sly", "--yes")
    assert done.code == 74 and "cannot open the log" in done.err and (folder / "tiny" / run_folder.LOG_FILE).exists()


def test_an_empty_folder_and_none(tmp_path: Path, zoedge: Callable[..., Any]) -> None:
    assert zoedge("runs", "ls", "--dir", tmp_path).out.startswith(f"There are no runs in {tmp_path}. ")
    done = zoedge("runs", "ls", "--dir", tmp_path / "x")
    assert done.code == 2 and done.err.endswith("/x: no such folder. Name the one that runs are in: --dir\n")


def test_ages() -> None:
    assert [runs.format_age(0, x) for x in (5, 65, 7300, 200000)] == ["5 s", "1 min", "2 h", "2 d"]
