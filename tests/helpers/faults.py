"""What the torture suites share: a log of every kind of slot, disks that fail or forget, and the tally of each suite."""

from __future__ import annotations

import errno
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zoedge import errors
from zoedge.core import storage
from zoedge.core.types import CLIPPED, SKIPPED, Record
from zoedge.log import slots
from zoedge.log.header import DIGEST_FIELDS, Header
from zoedge.log.log import Log
from zoedge.log.slots import NOTE, LogState

SEED = int(os.environ.get("ZOEDGE_SEED", "20261122"))  # of what is random in the suites; each prints it
SHA = [bytes([i]) * 32 for i in range(256)]
Op = Callable[[Log], Any]


def header(k: int = 2, sync_every: int = 1, hash_every: int = 2, seed: int = 7, block: bytes = b"{}") -> Header:
    digests = {name: SHA[i] for i, name in enumerate(DIGEST_FIELDS, 1)}
    return Header(block, k, 1, 1, seed, 1024, hash_every, sync_every, **digests)


def step(log: Log, g: tuple[float, ...] = (1.5,), losses: tuple[float, ...] = (0.75, 0.5), **more: Any) -> Record:
    return log.append(Record(len(log), log.next_seq, 2.0**-10, g, losses, **more))


def note(log: Log) -> None:
    log._put(NOTE, len(log), digest=SHA[0xCC])


OPS: list[Op] = [  # a slot each, every kind, with a rewind over a state hash
    lambda log: log.session(SHA[0xAA]),
    step,
    lambda log: step(log, (-0.25, 3.0), (0.5, 0.625, 2.0), flags=CLIPPED, check=5, decay=0.9990234375),
    lambda log: log.seal(2, lambda: SHA[0xBB]),
    lambda log: step(log, (0.0,), (math.nan, math.inf), flags=SKIPPED),
    lambda log: step(log, (0.125, -7.0), ()),
    lambda log: log.seal(4, lambda: SHA[0xBA]),
    lambda log: log.rewind(3),
    note,
    lambda log: step(log, (2.0**-100, 1.9999389648437500), (0.5,)),
    lambda log: log.seal(4, lambda: SHA[0xBD]),
    step,
    lambda log: log.finish(SHA[0xBE]),
]


def write(path: Path, head: Header, ops: list[Op] = OPS) -> bytes:
    with Log.create(path, head) as log:
        for op in ops:
            op(log)
    return path.read_bytes()


def put(path: Path, data: bytes) -> None:
    """`data` at `path`; not truncated to nothing first, after which ext4 makes the next close wait for the disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))
    os.close(fd)


def states(head: Header, raw: bytes) -> list[LogState]:
    """What the log means after 0, 1, .. slots, from the slots that a whole log is known to have."""
    found, size = [LogState()], head.slot_size
    for at in range(head.length, len(raw), size):
        state = LogState(**{k: v.copy() if hasattr(v, "copy") else v for k, v in vars(found[-1]).items()})
        slot, wrong = slots.decode_slot(raw[at : at + size], head.directions)
        assert not wrong and not state.fold(slot)
        found.append(state)
    return found


def same(a: LogState, b: LogState) -> bool:
    return repr(a) == repr(b)  # nan losses are not equal to themselves


@dataclass
class Tally:
    """One line a suite. wrong: an opened log says what was not written. lost: synced steps that are gone."""

    suite: str
    seed: int = SEED
    cases: int = 0
    detected: int = 0
    recovered: int = 0
    wrong: int = 0
    lost: int = 0

    def opened(self, path: Path, meant: list[LogState], least: int = 0) -> Log | None:
        """Open a damaged log: refused, or some first slots of what was written, `least` of them at least."""
        self.cases += 1
        try:
            log = Log.open(path)
        except errors.DamagedError:
            self.detected += 1
            return None
        self.wrong += log.seq >= len(meant) or not same(log.state, meant[log.seq])
        self.lost += log.seq < least
        self.recovered += 1
        return log

    def close(self) -> None:
        """Say it; AssertionError unless the promise was kept."""
        print(
            f"\n{self.suite}: {self.cases:,} cases, {self.detected:,} detected, {self.recovered:,} recovered, "
            f"{self.wrong} silently wrong, {self.lost} synced steps lost, seed {self.seed}"
        )
        assert self.cases == self.detected + self.recovered > 0 == self.wrong == self.lost


def sizes(commit: Iterable[Any], nightly: Iterable[Any]) -> list[Any]:
    """Parameters for every commit, and those for `make torture`."""
    return [*commit, *(pytest.param(*x, marks=pytest.mark.torture) if isinstance(x, tuple) else
                       pytest.param(x, marks=pytest.mark.torture) for x in nightly)]  # fmt: skip


def fds_open() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


# -- a disk that fails


class Failing(storage.Disk):
    """Fails at one call, after `short` bytes of it if it is a write; from then on, or once."""

    def __init__(self, call: int = -1, number: int = errno.EIO, short: int = 0, sticky: bool = True):
        self.call, self.number, self.short, self.sticky = call, number, short, sticky
        self.calls: list[str] = []
        self.failed = False

    def _next(self, name: str) -> bool:
        self.calls.append(name)
        now = len(self.calls) - 1 == self.call or (self.sticky and self.failed)
        self.failed |= now
        return now

    def _fail(self) -> None:
        raise OSError(self.number, os.strerror(self.number))

    def write(self, fd: int, data: memoryview) -> int:
        if self._next("write"):
            if not self.short:
                self._fail()
            short, self.short, self.call, self.failed = self.short, 0, len(self.calls), False
            return os.write(fd, data[:short])  # the rest fails
        return os.write(fd, data)

    def datasync(self, fd: int) -> None:
        if self._next("datasync"):
            self._fail()

    def sync(self, fd: int) -> None:
        if self._next("sync"):
            self._fail()

    def sync_directory(self, path: Path) -> None:
        if self._next("sync_directory"):
            self._fail()


def _guarded(name: str) -> Callable[..., Any]:
    real = getattr(storage.Disk, name)

    def call(self: Failing, *args: Any) -> Any:
        if self._next(name):
            self._fail()
        return real(self, *args)

    return call


for _name in ("open", "truncate", "rename", "link", "unlink", "mkdir"):
    setattr(Failing, _name, _guarded(_name))


@contextmanager
def disk(other: storage.Disk) -> Iterator[Any]:
    former, storage.disk = storage.disk, other
    try:
        yield other
    finally:
        storage.disk = former


class Fast(storage.Disk):
    """Without waiting for the platter."""

    def datasync(self, fd: int) -> None:
        pass

    def sync(self, fd: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


# -- a disk that forgets what was not synced


@dataclass
class File:
    """What was synced, and what was done since: (place, bytes), or (size, None) of a truncation."""

    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)


@dataclass
class Folder:
    """Names that were synced, and renamings, in order, since: {name: File, Folder or None}."""

    durable: dict[str, Any] = field(default_factory=dict)
    pending: list[dict[str, Any]] = field(default_factory=list)

    def now(self) -> dict[str, Any]:
        found = dict(self.durable)
        for change in self.pending:
            found.update(change)
        return {name: x for name, x in found.items() if x is not None}


class Forgetful(storage.Disk):
    """A real disk below `root`, and a model of what of it is durable. POSIX's least: a file's sync makes its bytes
    durable and not its name; a folder's sync its names; names change in order; of unsynced sectors any may be there."""

    def __init__(self, root: Path, after: Callable[[Forgetful], None]):
        self.root, self.after, self.tree = root, after, Folder()
        self.files: dict[int, File] = {}
        self._take(root, self.tree)

    def _take(self, path: Path, folder: Folder) -> None:
        for x in path.iterdir():
            folder.durable[x.name] = Folder() if x.is_dir() else File(x.read_bytes())
            if x.is_dir():
                self._take(x, folder.durable[x.name])

    def at(self, path: Path) -> Any:
        found: Any = self.tree
        for name in path.relative_to(self.root).parts:
            found = found.now()[name]
        return found

    def name(self, path: Path, what: Any) -> None:
        self.at(path.parent).pending.append({path.name: what})

    def open(self, path: Path, flags: int) -> int:
        new = not path.exists()
        fd = super().open(path, flags)
        if new:
            self.name(path, File())
        self.files[fd] = self.at(path)
        self.after(self)
        return fd

    def held(self, fd: int) -> File:
        """The file of a descriptor, also of one that was opened without us."""
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        return self.at(path) if path.exists() else self.files[fd]

    def write(self, fd: int, data: memoryview) -> int:
        file, place = self.held(fd), os.lseek(fd, 0, os.SEEK_CUR)
        written = os.write(fd, data)
        end = os.lseek(fd, 0, os.SEEK_CUR)  # O_APPEND writes elsewhere
        file.pending.append((end - written if end - written != place else place, bytes(data[:written])))
        self.after(self)
        return written

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)
        self.held(fd).pending.append((size, None))
        self.after(self)

    def sync(self, fd: int) -> None:
        file = self.held(fd)
        file.durable, file.pending = Path(f"/proc/self/fd/{fd}").read_bytes(), []
        self.after(self)

    datasync = sync

    def sync_directory(self, path: Path) -> None:
        folder = self.at(path)
        folder.durable, folder.pending = folder.now(), []
        self.after(self)

    def rename(self, old: Path, new: Path) -> None:
        what = self.at(old)
        super().rename(old, new)
        self.at(old.parent).pending.append({old.name: None, new.name: what})
        self.after(self)

    def link(self, old: Path, new: Path) -> None:
        super().link(old, new)
        self.name(new, self.at(old))
        self.after(self)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.name(path, None)
        self.after(self)

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self.name(path, Folder())
        self.after(self)

    def rmtree(self, path: Path) -> None:
        if path.exists():
            super().rmtree(path)
            self.name(path, None)
            self.after(self)

    # what a power cut may leave

    def crash(self, chance: random.Random) -> dict[str, Any]:
        """One of the states, by chance: {name: bytes, or such a dict}."""
        return _folder(self.tree, chance)


def _folder(folder: Folder, chance: random.Random) -> dict[str, Any]:
    names = dict(folder.durable)
    for change in folder.pending[: chance.randint(0, len(folder.pending))]:
        names.update(change)
    made = {name: x for name, x in names.items() if x is not None}
    return {k: _folder(x, chance) if isinstance(x, Folder) else _file(x, chance) for k, x in made.items()}


def _file(file: File, chance: random.Random) -> bytes:
    """Any of the sizes that it had, or one between; any of the sectors written since the sync, the others as before."""
    whole, size = bytearray(file.durable), len(file.durable)
    sizes = [size]
    for place, data in file.pending:
        size = place if data is None else max(size, place + len(data))
        whole.extend(bytes(max(0, size - len(whole))))
        if data is not None:
            whole[place : place + len(data)] = data
        sizes.append(size)
    found = bytearray(whole)
    touched = sorted(
        {s for place, data in file.pending for s in range(place // 512, -(-(place + len(data or b"")) // 512))}
    )
    old = bytearray(file.durable.ljust(len(whole), b"\0"))
    for sector in touched:
        if chance.random() < 0.5:
            found[sector * 512 : sector * 512 + 512] = old[sector * 512 : sector * 512 + 512]
    low, high = min(sizes), max(sizes)
    return bytes(found[: chance.choice([*sizes, chance.randint(low, high)])])


def lay(state: dict[str, Any], folder: Path) -> Path:
    """A state as files."""
    folder.mkdir()
    for name, what in state.items():
        if isinstance(what, dict):
            lay(what, folder / name)
        else:
            put(folder / name, what)
    return folder
