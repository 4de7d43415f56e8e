"""T5, power cuts: a model of what a disk holds after one, asked after every call that changes it.

Any prefix of a folder's unsynced renamings, any subset of a file's unsynced sectors, any of its sizes (faults.Forgetful).
Whatever comes of it, all that was synced is there, and what is there is a prefix of what was written.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.faults import (
    OPS,
    SEED,
    Forgetful,
    Tally,
    disk,
    header,
    lay,
    put,
    same,
    sizes,
    states,
    step,
    write,
)  # fmt: skip

from zoedge.commands.export import folder as export_folder
from zoedge.core import storage
from zoedge.errors import DamagedError
from zoedge.log.log import Log
from zoedge.log.repair import repair

MEMORY = Path("/dev/shm")  # crash states are files for a moment: not on a disk, where there is another place


class Scene:
    """A scenario on a disk that forgets, and what must hold of each state that a cut may leave."""

    def __init__(self, name: str, k: int, sync_every: int, tries: int, room: Path, steps: int = 6):
        self.name, self.head, self.tries, self.room = name, header(k, sync_every), tries, room
        self.chance = random.Random(f"{SEED} {name} {k} {sync_every}")
        self.tally = Tally(f"T5 {name} K={k} W={sync_every}")
        self.ops = [*OPS[:-1], *[step] * steps, OPS[-1]]
        room.mkdir()
        self.raw = write(room / "whole.zlog", self.head, self.ops)
        self.meant = states(self.head, self.raw)
        self.synced = -1  # slots that must be there; -1: not even the log
        self.seen: set[int] = set()
        self.work = room / "work"
        self.work.mkdir()

    def run(self) -> Tally:
        getattr(self, self.name)()
        self.tally.close()
        return self.tally

    def watched(self, check: Callable[[Path], None]) -> Any:
        def after(model: Forgetful) -> None:
            for _ in range(self.tries):
                state = model.crash(self.chance)
                if (known := hash((self.synced, repr(state)))) in self.seen:
                    continue
                self.seen.add(known)
                folder = lay(state, self.room / f"crash-{len(self.seen)}")
                self.tally.cases += 1
                with disk(storage.Disk()):
                    check(folder)
                self.tally.recovered += 1
                storage.Disk().rmtree(folder)

        return disk(Forgetful(self.work, after))

    def check(self, folder: Path) -> None:
        """The log, if it must be there: whole, all that was synced, a prefix of what was written; it goes on."""
        path = folder / "run.zlog"
        if not path.exists():
            self.tally.lost += self.synced >= 0
            return
        log = Log.open(path)
        self.tally.wrong += not same(log.state, self.meant[log.seq])
        self.tally.lost += log.seq < self.synced
        if len(self.seen) % 16 == 0:
            with Log.resume(path) as log:
                for op in self.ops[log.seq :]:
                    op(log)
            assert path.read_bytes() == self.raw

    def create(self) -> None:
        with self.watched(self.check):
            log = Log.create(self.work / "run.zlog", self.head)
            self.synced = 0
            storage.write_durably(self.work / "recipe.yaml", b"x" * 700)
            log.close()

    def append(self) -> None:
        """With rewinds, hashes, sessions and END: OPS has them all."""
        put(self.work / "run.zlog", self.raw[: self.head.length])
        self.synced = 0
        with self.watched(self.check), Log.resume(self.work / "run.zlog") as log:
            for op in self.ops:
                op(log)
                self.synced = log.seq - log._unsynced

    def rewind(self) -> None:
        size = self.head.length + 8 * self.head.slot_size
        put(self.work / "run.zlog", self.raw[:size])
        self.synced = 7  # the rewind itself is slot 7: it was written and not synced by a process that was killed
        with self.watched(self.check), Log.resume(self.work / "run.zlog") as log:
            for op in self.ops[8:]:
                op(log)
                self.synced = max(self.synced, log.seq - log._unsynced)

    def mend(self) -> None:
        """A torn tail is cut; until that is durable its bytes are in the log or beside it."""
        torn = self.raw[: -self.head.slot_size - 7]
        put(self.work / "run.zlog", torn)
        self.synced = len(self.meant) - 3
        tail = torn[self.head.length + self.synced * self.head.slot_size :]

        def check(folder: Path) -> None:
            aside = folder / "run.torn"
            kept = (folder / "run.zlog").read_bytes().endswith(tail) or (aside.exists() and aside.read_bytes() == tail)
            self.tally.lost += not kept
            self.check(folder)

        with self.watched(check), Log.resume(self.work / "run.zlog"):
            pass

    def repair(self) -> None:
        """As damaged, partly mended, or mended; the bytes as they were are there before anything is changed."""
        size, start = self.head.slot_size, self.head.length
        one, many = bytearray(self.raw), bytearray(self.raw)
        one[start + 4 * size + 25] ^= 16
        many[start + 9 * size + 20 : start + 9 * size + 30] = b"!" * 10
        both = bytes(many[: start + 5 * size]) + b"" + bytes(many[start + 5 * size :])
        both = both[: start + 4 * size] + bytes(one[start + 4 * size : start + 5 * size]) + both[start + 5 * size :]
        put(self.work / "run.zlog", both)

        def check(folder: Path) -> None:
            path, copies = folder / "run.zlog", sorted(folder.glob("run.damaged-*"))
            assert all(copy.read_bytes() == both for copy in copies)
            self.tally.lost += path.read_bytes() != both and not copies
            try:
                log = Log.open(path)
            except DamagedError:
                repair(path)
                log = Log.open(path)
            self.tally.wrong += not same(log.state, self.meant[log.seq])
            self.tally.lost += log.seq < 9

        with self.watched(check):
            said = repair(self.work / "run.zlog")
        assert len(said) == 3 and Log.open(self.work / "run.zlog").seq == 9

    def export(self) -> None:
        """No folder, the old one or the new one, whole; and where there is none, the old one is beside it."""
        old, new = ({f"{i}": bytes([i + j]) * (300 + 900 * i) for i in range(3)} for j in (0, 100))

        def write_(files: dict[str, bytes]) -> None:
            with storage.replace_folder(self.work / "adapter") as draft:
                for name, data in files.items():
                    storage.write_durably(draft / name, data)
                export_folder.write_marker(draft, {"zoedge": 1, "kind": "peft", "files": sorted(files)})

        def whole(folder: Path) -> dict[str, bytes] | None:
            try:
                names = export_folder.read_marker(folder)["files"]
            except DamagedError:
                return None
            return {name: (folder / name).read_bytes() for name in names}

        def check(folder: Path) -> None:
            found = whole(folder / "adapter")
            self.tally.wrong += found not in (None, old, new)
            if self.synced >= 0 and found is None:
                self.tally.lost += not any(whole(x) == old for x in folder.glob(".adapter.old-*"))

        with self.watched(check):
            write_(old)
            self.synced = 0
            write_(new)


@pytest.fixture
def room(tmp_path: Path) -> Any:
    made = MEMORY / f"zoedge-torture-{os.getpid()}" if MEMORY.is_dir() else tmp_path / "room"
    storage.Disk().rmtree(made)
    yield made
    storage.Disk().rmtree(made)


SCENES = [
    *((name, 2, w) for name in ("append", "rewind") for w in (1, 3, 12)), ("append", 7, 16), ("append", 40, 6),
    ("create", 2, 1), ("mend", 2, 4),
    ("mend", 39, 1), ("repair", 2, 1), ("repair", 7, 1), ("export", 2, 1),
]  # fmt: skip


@pytest.mark.parametrize("name, k, sync_every", SCENES)
@pytest.mark.parametrize("tries, steps", sizes([(800, 6)], [(200, 200)]))
def test_t5_power_cuts(name: str, k: int, sync_every: int, tries: int, steps: int, room: Path) -> None:
    tries = tries // 8 if name == "repair" else tries  # a wrong byte is sought among 16,000
    tally = Scene(name, k, sync_every, tries, room, steps).run()
    assert tally.cases == tally.recovered > 0


@pytest.mark.parametrize("name, call", [("append", "datasync"), ("create", "sync"), ("create", "sync_directory"),
                                        ("mend", "sync_directory"), ("repair", "sync"), ("export", "sync"),
                                        ("export", "sync_directory")])  # fmt: skip
def test_the_model_misses_a_sync_that_is_left_out(
    name: str, call: str, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the suite would say nothing."""
    monkeypatch.setattr(Forgetful, call, lambda self, what: self.after(self))
    scene = Scene(name, 2, 1, 40 if name == "repair" else 300, room)
    scene.tally.suite += f" without {call}, which must be noticed"
    with pytest.raises((AssertionError, DamagedError)):
        scene.run()
