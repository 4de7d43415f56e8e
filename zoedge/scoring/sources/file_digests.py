"""This module computes the SHA-256 of files, and remembers it for a day, because the weights of a model take seconds.

A memo is believed only if it is whole, less than a day old, and of a file with the same path, device, inode, size and times.
A bit that rots on the disk changes none of these: it is noticed when the memo has grown old, or inside `without_memos`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from .cache import cache_folder

MEMO_SECONDS = 86_400.0  # how long a memo is believed
# a file that was written so recently may be written again without another time: some file systems count 2 s
SETTLING_SECONDS = 2.0

_memos_are_ignored: ContextVar[bool] = ContextVar("memos_are_ignored", default=False)


@contextmanager
def without_memos() -> Iterator[None]:
    """Let `file_sha256` read every file while the context is open, whatever is remembered of it."""
    token = _memos_are_ignored.set(True)
    try:
        yield
    finally:
        _memos_are_ignored.reset(token)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, from the cache's memo where that may be believed."""
    key = file_version(path, path.stat())
    memo = memo_path(key)
    if not _memos_are_ignored.get() and (known := read_memo(memo, key)):
        return known[0]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        stat = os.fstat(file.fileno())
    now = time.time()
    if file_version(path, stat) == key and now - max(stat.st_mtime, stat.st_ctime) > SETTLING_SECONDS:
        with suppress(OSError):  # without the memo, the digest is only computed again
            memo.write_text(encode_memo(key, digest, now))
    return digest


def oldest_memo(paths: Iterable[Path]) -> float | None:
    """Return the age in seconds of the oldest memo of these files that is believed; None: there is none."""
    keys = [file_version(path, path.stat()) for path in paths]
    known = [memo for key in keys if (memo := read_memo(memo_path(key), key))]
    ages = (max(0.0, time.time() - computed_at) for _, computed_at in known)  # memos hold whole seconds, rounded
    return max(ages, default=None)


def file_version(path: Path, stat: os.stat_result) -> str:
    """Return a text that is another whenever a file may have other bytes, as far as its path and `stat` tell."""
    parts = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return hashlib.sha256(f"{path.resolve()}\0{'-'.join(map(str, parts))}".encode(errors="surrogateescape")).hexdigest()


def memo_path(key: str) -> Path:
    """Return where the memo of a file's version is."""
    return cache_folder("digests") / key[:32]


def encode_memo(key: str, digest: str, computed_at: float) -> str:
    """Return a memo's text: the digest, when it was computed, and a checksum over both and the file's version."""
    text = f"{digest} {computed_at:.0f}"
    return f"{text} {hashlib.sha256(f'{key} {text}'.encode()).hexdigest()[:16]}\n"


def read_memo(memo: Path, key: str) -> tuple[str, float] | None:
    """Return the digest in a memo, and when it was computed; None: there is no memo that may be believed."""
    try:
        text = memo.read_text(encoding="ascii")
        digest, computed_at, _ = text.split()
        age = time.time() - float(computed_at)
        is_whole = text == encode_memo(key, digest, float(computed_at))
    except (OSError, ValueError):
        return None
    return (digest, float(computed_at)) if is_whole and -1 <= age <= MEMO_SECONDS else None
