r"""This module has the seed log (.zlog, version 1), a run's only checkpoint: slots of one size in a SHA-256 hash chain.

Its integers are little-endian.

Header: 512 bytes + block, padded with zeros to a multiple of 512.

    off  size  field
      0     8  magic 89 5A 4F 45 0D 0A 1A 0A
      8   2+2  format major (1), minor (0). Another major: refused; a newer minor: readable, not writable
     12     4  header_len: 512 + block_len rounded up to a multiple of 512, <= 512 + 1 MiB
     16     4  block_len: one object of canonical JSON (UTF-8, sorted keys, floats as hexadecimal strings)
     20     2  slot_size: 64, 128, 256, 512 or 1024, the smallest that holds K
     22     2  K: directions a slot can hold; 1 <= K <= 82, 40 + 12 K <= slot_size
     24     4  noise scheme id      28  4  rule id (both frozen for ever)
     32    16  run id               48  8  run seed            56  8  trained elements
     64     4  hash_every           68  4  sync_every, 1..4096
     72    24  zero
     96    32  sha256 of the recipe's semantic part        128  32  base identity
    160    32  tokenizer digest     192  32  data digest         224  32  parameter manifest digest
    256    32  initial state digest 288  32  self-test digest    320 160  zero
    480    32  sha256 of bytes 0..479 and the block; its first 16 bytes are the chain's c[-1]

Slot i, at header_len + i * slot_size:

      0     1  kind: 1 STEP, 2 HASH, 3 SESSION, 4 REWIND, 5 END, 6 NOTE (0 is never valid: zero-fill is recognisable)
      1     1  flags: 1 skipped, 2 clipped, 4 micro-batched after out-of-memory
      2   1+1  n directions, m losses (m <= 2 K)
      4     4  seq = i               8  4  step: how many steps are effective before this slot; REWIND: the target
     12     4  crc32 of the batch   16  4  decay, float32     20  4  lr, float32       (STEP; the others: zero)
     24  12 K  STEP: triple q is g[q], losses[2q], losses[2q+1], float32; absent values are zero
               HASH, SESSION, END, NOTE: bytes 24..47 are the first 24 bytes of a SHA-256; REWIND: zero
     ..        zero
    -16    16  c[i] = sha256(c[i-1] + the slot's other bytes)[:16]

g, lr and decay are authoritative. g and lr have at most 16 significant bits, and are 0 or at least 2**-100; decay is
any float32 in (0, 1] (it multiplies in a kernel of its own: a short significand would gain nothing, and 16 bits cannot
tell 1 - 5e-6 from 1). A HASH of step s is the state after s steps; a REWIND to step s drops the effective steps >= s
and the states after them; END holds the final state. With sync_every 1 a step is durable before it is applied. Else a
power cut can lose the steps that were appended in the second after the last sync, at most sync_every of them. A kill
loses none: each slot is handed to the kernel before it is applied. All slots but STEPs are synced at once.

Reading trusts nothing: there is no length field to allocate by, every slot is checked against the chain. A tail is
*torn* (an unfinished write; cut off, kept aside as .torn) only if the file ends inside a slot, or the first slot off the
chain is among the last sync_every slots and was not wholly written: one of its 512-byte sectors (or all of it, if it is
smaller) is zero. Anything else that fails is *damage*, refused with slot, byte offset and step.
"""

from __future__ import annotations

import os
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..core import storage
from ..core.storage import open_file, reach_failpoint, read_piece
from ..core.types import Record
from ..errors import DamagedError, StorageError
from .header import BLOCK_LIMIT, MINOR, Header
from .lock import note_holder, remove_note, take_lock
from .records import CHAIN_SIZE
from .slots import (
    END,
    HASH,
    REWIND,
    SESSION,
    STEP,
    LogState,
    Slot,
    chain_value,
    check_state_hash,
    decode_slot,
    encode_slot,
)

BLOCK_SIZE = 1 << 18  # bytes that are read and checked at a time: 4,096 small slots

SYNC_SECONDS = (
    1.0  # steps wait at most so long for a sync, and at most sync_every of them; all other slots are synced at once
)

SECTOR_SIZE = 512  # what a disk writes whole or not at all; only slots of 1024 bytes straddle two


def is_unfinished(raw: bytes) -> bool:
    """Return whether a sector of this slot is still zero.

    In a whole slot, the first sector has its kind, and the last its chain value.
    """
    return not all(any(raw[i : i + SECTOR_SIZE]) for i in range(0, len(raw), SECTOR_SIZE))


class Log:
    """One open log, to be used as a context manager. `open` reads it; `resume` also locks it, and can append."""

    delivers: int | None = None  # only a shared log says which step it delivers

    def __init__(self, path: Path, header: Header, fd: int, writable: bool):
        self.path, self.header, self._fd, self.writable = path, header, fd, writable
        self.state = LogState()
        self.seq = 0
        self.torn = 0  # bytes of an unfinished write after the last whole slot; `resume` has cut them off
        self.wrong = ""  # what is wrong with slot `seq`, if it is damaged
        self._chain = b""
        self._unsynced = 0
        self._synced_at = time.monotonic()
        self._file = (0, 0)  # device and inode of the file that is locked

    # -- opening

    @classmethod
    def create(cls, path: Path, header: Header) -> Log:
        """Create a log at `path`. It is durable, with its directory entry, when this returns. FileExistsError: one is there."""
        raw = header.encode()
        log = cls(path, header, -1, True)
        try:
            # it is locked before it is published: nobody sees it unlocked, or in part
            log._fd = storage.publish_file(path, raw, replace=False, ready=partial(take_lock, path))
        except FileExistsError:
            raise
        except OSError as e:
            raise StorageError(f"{path}: cannot create the log: {e.strerror}.") from e
        log._chain = raw[480:496]
        log._hold()
        return log

    @classmethod
    def open(cls, path: Path) -> Log:
        """Open a log for reading. DamagedError names slot, offset and step; a torn tail is no error: `torn` counts it."""
        return cls._scan(path, os.O_RDONLY)

    @classmethod
    def resume(cls, path: Path) -> Log:
        """Open a log for appending; a torn tail is kept in a `.torn` file and cut off. LockedError: another process has it."""
        return cls._scan(path, os.O_RDWR)

    @classmethod
    def inspect(cls, path: Path) -> Log:
        """Open a log for repair: it is locked and read up to its damage, which `wrong` names. Nothing can be appended."""
        return cls._scan(path, os.O_RDWR, inspect=True)

    @classmethod
    def _scan(cls, path: Path, mode: int, inspect: bool = False) -> Log:
        """Open a log in one of the three ways, which differ in the mode of the file and in what damage means."""
        fd = open_file(path, mode)
        try:
            head = os.pread(fd, 512 + BLOCK_LIMIT, 0)
            header, _ = Header.decode(head, str(path))
            log = cls(path, header, fd, mode == os.O_RDWR)
            if log.writable:
                if header.minor > MINOR:
                    raise DamagedError(f"{path}: written by a newer zoedge; this one can read it, not extend it.")
                take_lock(path, fd)
            log._chain = head[480:496]
            log.read()
            if log.wrong and not inspect:
                raise DamagedError(
                    f"{path}: {log.place}: {log.wrong}. What stands before it is intact: `zoedge repair` keeps a copy of "
                    "all, and mends the log or cuts it there."
                )
            if log.writable:
                log.writable = not inspect
                if not inspect:
                    log._mend()
                log._hold()
        except BaseException as e:
            os.close(fd)
            if isinstance(e, OSError):
                raise StorageError(f"{path}: cannot read or mend the log: {e.strerror}.") from e
            raise
        if mode == os.O_RDONLY:
            log.close()
        return log

    def read(self) -> None:
        """Read the slots that follow those already read, up to the file's end or to damage, which `wrong` then names."""
        from .scan import count_linked, fold_slots  # here: it imports numpy, which `zoedge --help` does not need

        size, end = self.header.slot_size, os.fstat(self._fd).st_size
        self.wrong = ""
        # `end` is fixed: another process may be writing this run
        while not self.wrong and (whole := min(BLOCK_SIZE, end - self.size) // size):
            block = os.pread(self._fd, whole * size, self.size)
            block = block[: len(block) // size * size]
            if not block:
                break  # another program has cut the file short meanwhile
            linked = count_linked(self._chain, block, size)
            taken, self.wrong = fold_slots(self.state, block[: linked * size], size, self.header.directions, self.seq)
            if taken:
                self._chain, self.seq = block[: taken * size][-CHAIN_SIZE:], self.seq + taken
            if not self.wrong and linked * size < len(block):
                if not self._is_torn(block[linked * size :][:size], end):
                    self.wrong = "its chain value does not match"
                break
        self.torn = end - self.size

    def _is_torn(self, raw: bytes, end: int) -> bool:
        """Return whether the next slot, which is off the chain, is an unfinished write. end: the size of the file."""
        return is_unfinished(raw) and -(-(end - self.size) // self.header.slot_size) <= self.header.sync_every

    def _mend(self) -> None:
        """Cut a torn tail off, and sync the rest: a killed process may have left it in the kernel's cache."""
        if self.torn:
            aside = storage.disk.open(self.path.with_suffix(".torn"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                storage.write_all(aside, os.pread(self._fd, self.torn, self.size), "")
                storage.disk.sync(aside)
            finally:
                os.close(aside)
            storage.disk.sync_directory(self.path.parent)
            storage.disk.truncate(self._fd, self.size)
        storage.disk.sync(self._fd)
        os.lseek(self._fd, self.size, os.SEEK_SET)

    def _hold(self) -> None:
        """Note that this process has the log, and which file that is."""
        _locked_logs.add(self)
        own = os.fstat(self._fd)
        self._file = (own.st_dev, own.st_ino)
        note_holder(self.path)

    # -- reading

    def chain_at(self, slots: int) -> str:
        """Return the chain value after so many slots, in hexadecimal, which stands for all of them. The log must be open."""
        end = self.header.length + slots * self.header.slot_size
        return os.pread(self._fd, CHAIN_SIZE, end - CHAIN_SIZE).hex()

    def __len__(self) -> int:
        return len(self.state.records)

    def __getitem__(self, step: int) -> Record:
        return self.state.records[step]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.state.records)

    @property
    def next_seq(self) -> int:
        """The number of the next slot."""
        return self.seq

    @property
    def fingerprint(self) -> str:
        """The last chain value: 32 hexadecimal digits that stand for every byte of the run."""
        return self._chain.hex()

    @property
    def place(self) -> str:
        """Where the damage is, in words."""
        return f"damaged at slot {self.seq} (byte {self.size}, after {len(self)} steps)"

    @property
    def size(self) -> int:
        """Bytes of the header and the whole slots."""
        return self.header.length + self.seq * self.header.slot_size

    # -- writing

    def append(self, record: Record) -> Record:
        """Append a step's record and make it durable. Returns it as it will be read back (losses rounded to float32).

        Raises:
            StorageError: the record is not logged and MUST NOT be applied; nothing more will be written.
            ValueError: a bug of ours.
        """
        if record.seq != self.seq:  # its direction was drawn for another slot
            raise ValueError(f"refusing to log slot {self.seq}: the record was measured for slot {record.seq}")
        slot = self._put(STEP, record.step, record)
        assert slot.record is not None
        return slot.record

    def seal(self, step: int, digest: Callable[[], bytes]) -> None:
        """Log the state after `step` steps if that is due, or compare it with what the log knows.

        Args:
            digest: computes the SHA-256 of the trained values; called only if it is needed.

        Raises:
            ReplayError: the log knows another state.
        """
        due = self.writable and step == len(self) and step % self.header.hash_every == 0
        if (known := self.state.hashes.get(step)) is not None:
            check_state_hash(self.path, step, known, digest)
        elif due:
            reach_failpoint("hash.before")
            self._put(HASH, step, digest=digest())
            reach_failpoint("hash.after")

    def session(self, digest: bytes) -> bool:
        """Log the digest of the environment if it is another than the last one; returns whether it is.

        The same environment leaves no trace: a run that was killed and resumed ends in the bytes of one that was not.
        """
        if self.state.session == digest[:24]:
            return False
        self._put(SESSION, len(self), digest=digest)
        return True

    def rewind(self, step: int) -> None:
        """Drop the effective steps from `step` on; the next record is that step again, with new noise."""
        self._put(REWIND, step)

    def finish(self, digest: bytes) -> None:
        """Log the end of the run with the final state's SHA-256; nothing can follow. ReplayError: the log has another state."""
        if (known := self.state.hashes.get(len(self))) is not None:
            check_state_hash(self.path, len(self), known, lambda: digest)
        if self.state.end is None:
            self._put(END, len(self), digest=digest)

    def _put(self, kind: int, step: int, record: Record | None = None, digest: bytes = b"") -> Slot:
        """Write one slot at the end of the log, and return it as it will be read back. Raises are those of `append`."""
        if not self.writable:
            raise StorageError(
                f"{self.path}: step {step} was not logged: the log is not open for writing, or a write has failed."
            )
        try:
            body = encode_slot(self.header.slot_size, kind, self.seq, step, record, digest)
        except (struct.error, OverflowError) as e:
            raise ValueError(f"refusing to log slot {self.seq}: {e}") from None
        slot, wrong = decode_slot(body + bytes(16), self.header.directions)
        if wrong := wrong or self.state.refuse(slot):
            raise ValueError(f"refusing to log slot {self.seq}: {wrong}")
        value = chain_value(self._chain, body)
        self._unsynced += 1
        waited = time.monotonic() - self._synced_at
        syncs = kind != STEP or self._unsynced >= self.header.sync_every or waited >= SYNC_SECONDS
        if syncs:
            self._check_place()
        self.writable = False  # whatever interrupts from here on, Ctrl-C too, leaves a tail that nothing may follow
        try:
            reach_failpoint("append.before")
            storage.write_all(self._fd, body + value, "append.mid")
            reach_failpoint("append.after")
        except OSError as e:
            raise StorageError(
                f"{self.path}: the log could not be written at step {step}: {e.strerror}. What was synced is safe; "
                "free space (or mend the disk) and `zoedge resume`."
            ) from e
        if syncs:
            self.sync()
        self.state.fold(slot)
        self._chain, self.seq, self.writable = value, self.seq + 1, True
        return slot

    def sync(self) -> None:
        """Make all that was appended durable. After a failed sync nothing is tried again: the page may be dropped."""
        writable, self.writable = self.writable, False
        try:
            reach_failpoint("sync.before")
            storage.disk.datasync(self._fd)
            reach_failpoint("sync.after")
        except OSError as e:
            raise StorageError(
                f"{self.path}: the log could not be synced: {e.strerror}. What was synced before is safe; mend the "
                "disk and `zoedge resume`."
            ) from e
        self._unsynced, self._synced_at, self.writable = 0, time.monotonic(), writable

    def secure(self) -> None:
        """Make all that was appended durable, and prove that the file at the log's path is still this one.

        What depends on the log, such as a look or an export, comes after this. StorageError: the disk refuses, or another
        program has moved, replaced or overwritten the file.
        """
        self._check_place()
        if self._unsynced:
            self.sync()

    def confirm(self) -> None:
        """Read the whole file again as others will. StorageError: it is not what this run has written."""
        self._check_place()
        try:
            same = Log.open(self.path).fingerprint == self.fingerprint
        except DamagedError as e:
            raise StorageError(f"{e} It was whole when it was written.") from None
        if not same:
            raise self._refuse_place("is another one")

    def _check_place(self) -> None:
        """Raise StorageError, and write nothing more, unless the file at the path is the one that is locked, as it was left.

        The lock does not help against a program that does not ask for it, such as `mv` or `cp`.
        """
        try:
            there = os.stat(self.path, follow_symlinks=False)
            same = (there.st_dev, there.st_ino) == self._file
            what = "" if same else "is another one"
            if same and there.st_size != self.size:
                what = f"has {there.st_size:,} bytes, where this run has written {self.size:,}"
            elif same and self._read_tail() != self._chain:
                what = "ends in bytes that this run has not written"
        except OSError as e:
            what = f"cannot be read any more ({e.strerror})"
        if what:
            raise self._refuse_place(what)

    def _refuse_place(self, what: str) -> StorageError:
        """Write nothing more, and return the error that says why."""
        self.writable = False
        return StorageError(
            f"{self.path}: the file there {what}: another program has moved, replaced or overwritten the log of this run, "
            "after which nothing is written or exported. If it was moved, it is whole there: `zoedge verify` it."
        )

    def _read_tail(self) -> bytes:
        """Return the last chain value, or a new log's first, as it stands in the file at the path."""
        at = self.size - CHAIN_SIZE if self.seq else 480
        return os.pread(self._fd, CHAIN_SIZE, at) if self._fd >= 0 else read_piece(self.path, at, CHAIN_SIZE)

    def close(self) -> None:
        """Sync what is not synced yet, and free the lock."""
        if self._fd >= 0:
            try:
                if self.writable and self._unsynced:
                    self.secure()
            finally:
                if self in _locked_logs:
                    _locked_logs.remove(self)
                    remove_note(self.path)
                self.writable = False
                fd, self._fd = self._fd, -1
                os.close(fd)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_locked_logs: weakref.WeakSet[Log] = weakref.WeakSet()


def _release_after_fork() -> None:
    """Give up the logs in a forked child, whose copy of a descriptor would keep the owner's lock, and could append."""
    for log in list(_locked_logs):
        os.close(log._fd)
        log._fd, log.writable = -1, False
    _locked_logs.clear()


os.register_at_fork(after_in_child=_release_after_fork)
