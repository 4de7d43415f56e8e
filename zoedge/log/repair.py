"""This module repairs a damaged log. One wrong byte of a slot is found by the chain and mended; else the log is cut there.

A copy of the log as it was stays beside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from ..core import storage
from ..errors import DamagedError, StorageError, UsageError
from .log import Log
from .slots import chain_value

PIECE_SIZE = 1 << 22  # bytes that are copied at a time


def repair(path: Path) -> list[str]:
    """Mend a log, or cut it where its damage begins, and return what was done, in sentences.

    Raises:
        UsageError: nothing is damaged.
        DamagedError: the header cannot be read.
        LockedError: another process has the log.
        StorageError: the disk refuses.
    """
    try:
        log = Log.inspect(path)
    except DamagedError as e:
        raise DamagedError(
            f"{e} The header says what a log is of: without it nothing can be mended. Use another copy, or a packed one."
        ) from None
    with log:
        if not log.wrong:
            tail = " Its end is an unfinished write, which `zoedge resume` cuts off by itself." if log.torn else ""
            raise UsageError(f"{path}: nothing is damaged in its {len(log):,} steps.{tail}")
        try:
            return repair_in_place(log, path)
        except OSError as e:
            raise StorageError(f"{path}: cannot repair: {e.strerror}.") from e


def repair_in_place(log: Log, path: Path) -> list[str]:
    """Change the log's file in place, after a copy of it is durable, and return what was done, in sentences.

    A crash on the way leaves the log no more damaged than it was.
    """
    fd, size, sentences = log._fd, log.header.slot_size, []
    kept = save_damaged_copy(path, fd)
    while log.wrong and (mended := find_wrong_byte(bytes.fromhex(log.fingerprint), os.pread(fd, size, log.size))):
        at, slot = mended
        os.lseek(fd, log.size, os.SEEK_SET)
        sentences.append(
            f"{log.place}: one wrong byte, {log.size + at}, which its chain value proves: mended, nothing lost."
        )
        storage.write_all(fd, slot, "")
        log.read()
    if log.wrong:
        lost = os.fstat(fd).st_size - log.size
        sentences.append(f"{log.place}: {log.wrong}. Cut there: {-(-lost // size):,} slots, {lost:,} bytes.")
        storage.disk.truncate(fd, log.size)
    storage.disk.sync(fd)
    return [*sentences, f"{len(log):,} steps survive. As it was: {kept}."]


def save_damaged_copy(path: Path, fd: int) -> Path:
    """Write a copy of the open file beside `path`, under a name that nothing has yet, and return its path.

    StorageError: the copy has not as many bytes as the file, so that nothing may be cut.
    """
    for number in count(1):
        kept = path.with_suffix(f".damaged-{number}")
        try:
            os.close(storage.publish_file(kept, read_pieces(fd), replace=False))
            break
        except FileExistsError:
            continue
    size, copied = os.fstat(fd).st_size, os.stat(kept).st_size
    if size != copied:
        raise StorageError(
            f"{path}: {copied:,} of its {size:,} bytes were copied to {kept}: another program is writing it. Nothing was "
            "changed; stop that program, and repair again."
        )
    return kept


def read_pieces(fd: int) -> Iterator[bytes]:
    """Yield the bytes of a file, from its start, in pieces: one read gives 2 GiB at most."""
    at = 0
    while piece := os.pread(fd, PIECE_SIZE, at):
        yield piece
        at += len(piece)


def find_wrong_byte(previous: bytes, raw: bytes) -> tuple[int, bytes] | None:
    """Find the one byte whose change puts a slot on the chain, and return its place and the mended slot; None: there is none.

    A slot of 64 bytes needs 12,000 SHA-256, 10 ms. By chance a wrong change would fit once in 2**114 slots.
    """
    body, wanted, value = raw[:-16], raw[-16:], chain_value(previous, raw[:-16])
    wrong = [i for i in range(16) if value[i] != wanted[i]]
    if not wrong:
        return None  # the chain is whole: a program has written what zoedge never writes
    if len(wrong) == 1:
        return len(body) + wrong[0], body + value
    for at in range(len(body)):
        head, tail = previous + body[:at], body[at + 1 :]
        for byte in range(256):
            if hashlib.sha256(head + bytes((byte,)) + tail).digest().startswith(wanted):
                return at, head[len(previous) :] + bytes((byte,)) + tail + wanted
    return None
