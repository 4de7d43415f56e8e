"""When a log is synced, and whether the file at its path is still its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.faults import OPS, SHA, Failing, disk, header, note, step

from zoedge.errors import StorageError
from zoedge.log import log as log_module
from zoedge.log.log import Log


class Clock:
    """A clock that a test moves."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.now = 100.0
        patch.setattr(log_module, "time", SimpleNamespace(monotonic=lambda: self.now))


def syncs(calls: list[str]) -> int:
    return calls.count("datasync")


def test_a_second_is_the_most_that_steps_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with disk(Failing()) as counting, Log.create(tmp_path / "run.zlog", header(sync_every=64, hash_every=10**6)) as log:
        for _ in range(7):  # .875 s
            clock.now += 0.125
            step(log)
        assert syncs(counting.calls) == 0
        clock.now += 0.125
        step(log)
        assert syncs(counting.calls) == 1 and log._unsynced == 0
        clock.now += 5.0  # a slow step is synced before it is applied
        step(log)
        assert syncs(counting.calls) == 2 and log._unsynced == 0
        for i in range(1, 129):  # fast ones: 64 at most
            clock.now += 0.001
            step(log)
            assert syncs(counting.calls) == 2 + i // 64
        step(log)
    assert syncs(counting.calls) == 5, "closing syncs the rest"


def test_per_step_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    with disk(Failing()) as counting, Log.create(tmp_path / "run.zlog", header(hash_every=10**6)) as log:
        for i in range(5):
            step(log)
            assert syncs(counting.calls) == i + 1


@pytest.mark.parametrize("op", [OPS[0], note, lambda log: log.rewind(1), lambda log: log.seal(2, lambda: SHA[2]),
                                lambda log: log.finish(SHA[3]), Log.secure, Log.close])  # fmt: skip
def test_only_steps_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: Callable[[Log], Any]) -> None:
    """A seal, a session, a rewind, the end, and whatever asks for it: all steps before are durable by then."""
    Clock(monkeypatch)
    with disk(Failing()) as counting, Log.create(tmp_path / "run.zlog", header(sync_every=64)) as log:
        step(log)
        step(log)
        assert syncs(counting.calls) == 0 and log._unsynced == 2
        op(log)
        assert syncs(counting.calls) == 1 and log._unsynced == 0


def test_secure_syncs_once(tmp_path: Path) -> None:
    with disk(Failing()) as counting, Log.create(tmp_path / "run.zlog", header(sync_every=64)) as log:
        step(log)
        log.secure()
        log.secure()
        assert syncs(counting.calls) == 1


def cut(path: Path) -> None:
    os.truncate(path, 100)


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


def overwrite(path: Path) -> None:
    """In place, at the same size, by another log."""
    raw = path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes(len(raw)))


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


CLOBBERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "removed": (os.unlink, r"cannot be read any more \(No such file"),
    "moved": (lambda path: path.rename(path.with_name("moved")), r"cannot be read any more \(No such file"),
    "a link in its place": (link, "is another one"),
    "replaced by its copy": (replace, "is another one"),
    "cut": (cut, r"has 100 bytes, where this run has written 1,?[0-9]+"),
    "grown": (grow, "bytes, where this run has written"),
    "overwritten": (overwrite, "ends in bytes that this run has not written"),
}


@pytest.mark.parametrize("what", CLOBBERED)
@pytest.mark.parametrize("op", [Log.secure, lambda log: log.seal(2, lambda: SHA[2]), lambda log: log.finish(SHA[3])])
@pytest.mark.parametrize("closed", [False, True])
def test_a_log_that_another_program_has_touched(
    tmp_path: Path, what: str, op: Callable[[Log], Any], closed: bool
) -> None:
    """Exit code 74 at the next look, seal or end; nothing is written after that; a closed log is compared as well."""
    path, (change, words) = tmp_path / "run.zlog", CLOBBERED[what]
    log = Log.create(path, header(sync_every=64))
    step(log)
    step(log)
    if closed:
        log.close()
        op = Log.secure
    log.secure()
    change(path)
    with pytest.raises(StorageError, match=words) as e:
        op(log)
    assert e.value.exit_code == 74 and not log.writable
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(StorageError):
        step(log)
    log.close()
    assert (path.read_bytes() if path.exists() else None) == before


def test_an_untouched_header_is_known(tmp_path: Path) -> None:
    with Log.create(tmp_path / "run.zlog", header()) as log:
        log.secure()
        overwrite(tmp_path / "run.zlog")
        with pytest.raises(StorageError, match="ends in bytes"):
            log.secure()
