"""This module keeps blocks of bytes in a file, each with its SHA-256, by which it is known to be whole.

A block's digest is written after the block, so that a process that is killed in between leaves a block that is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from ...errors import StorageError
from ..sources.cache import print_progress

MAGIC = b"\x89ZTRUNK\n"  # then the key, 32 bytes, and JSON for people
DIGEST_BYTES = 32
PAGE = 4096  # the file's index and its blocks begin at multiples of it
READ_BYTES = 1 << 20  # hashed at a time


class BlockFile:
    """An open file of blocks: their digests, 32 bytes each and zero where a block was never saved, then the blocks.

    Attributes:
        name: what to call the file in messages.
        path: where it is; None: it has no name.
        first, end: where the blocks begin and end.
        size: the bytes of all blocks.
        whole: the blocks that this process has seen to be whole.
    """

    def __init__(self, file: IO[bytes], name: str, sizes: Sequence[int], index: int = 0, path: Path | None = None):
        """Take an open file. sizes: the bytes of each block. index: where the digests begin."""
        self.file, self.name, self.sizes, self.index, self.path = file, name, sizes, index, path
        self.starts = [0, *accumulate(sizes)]
        self.size, self.end = self.starts[-1], self.length(sizes, index)
        self.first = self.end - self.size
        self.whole: set[int] = set()

    @staticmethod
    def length(sizes: Sequence[int], index: int) -> int:
        """Return the bytes of a whole file whose digests begin at `index`."""
        return round_up(index + DIGEST_BYTES * len(sizes), PAGE) + sum(sizes)

    @classmethod
    def nameless(cls, folder: Path, sizes: Sequence[int]) -> BlockFile:
        """Return a new file in `folder` that is gone with the process. StorageError: there can be none."""
        try:
            file = tempfile.TemporaryFile(dir=folder, buffering=0)
        except OSError as e:
            raise StorageError(f"{folder}: cannot write the trunk cache: {e.strerror}.") from e
        return cls(file, str(folder), sizes)

    def holds(self, block: int) -> bool:
        """Return whether a block is in the file with the right digest, which is computed once in a process."""
        if block in self.whole:
            return True
        digest = os.pread(self.file.fileno(), DIGEST_BYTES, self.index + DIGEST_BYTES * block)
        if not any(digest):
            return False
        if digest != self._digest(block):
            print_progress(f"{self.name}: a block of the cached lower layers is damaged, and is computed again.")
            return False
        self.whole.add(block)
        return True

    def _digest(self, block: int) -> bytes:
        """Return the SHA-256 of the bytes that stand in a block's place; nothing where the disk does not give them."""
        whole, at, end = hashlib.sha256(), self.first + self.starts[block], self.first + self.starts[block + 1]
        try:
            while piece := os.pread(self.file.fileno(), min(READ_BYTES, end - at), at):
                whole.update(piece)
                at += len(piece)
        except OSError:
            return b""
        return whole.digest()

    def save(self, block: int, data: bytes) -> None:
        """Write a block and then its digest. OSError: the disk refuses."""
        self._write(data, self.first + self.starts[block])
        self._write(hashlib.sha256(data).digest(), self.index + DIGEST_BYTES * block)
        self.whole.add(block)

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self.file.fileno(), view, at)
            view, at = view[done:], at + done

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `start` on, counted from the first block. OSError: the file has not so many."""
        count = os.preadv(self.file.fileno(), [view], self.first + start)
        if count != len(view):
            raise OSError(f"the trunk cache gave {count} of {len(view)} bytes")


def round_up(number: int, unit: int) -> int:
    """Return the least multiple of `unit` that is not below a number."""
    return -(-number // unit) * unit


def read_about(path: Path) -> dict[str, Any]:
    """Return what a file's header says for people; nothing if it is damaged."""
    try:
        with path.open("rb") as file:
            raw = file.read(PAGE)
        about = json.loads(raw[len(MAGIC) + DIGEST_BYTES :].rstrip(b"\0")) if raw.startswith(MAGIC) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
