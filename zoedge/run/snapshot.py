"""A snapshot is the state after some step, kept beside the log so that a run resumes in seconds however long it is.

It may be deleted at any time: the log is the only checkpoint, and replay leads to the same bits. It is believed only if all
its bytes are as they were written, the log begins with the slots that it was taken after, and the trained values have the
digest that the log has of that step.

    magic, length of the head, head (JSON), then of each leaf its value and its rule's tensors, then the SHA-256 of all that
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core import storage
from ..core.digests import digest, host_bytes
from ..core.run import Run
from ..errors import StorageError
from ..log.log import Log
from .display import Plain

SNAPSHOT_FILE = "run.snapshot"

MAGIC = b"\x89ZSN\r\n\x1a\n"

HEAD_LIMIT = 1 << 24  # bytes: a leaf takes about a hundred

LEAST_SECONDS = 60.0  # between two snapshots: replaying what a minute trained takes seconds

LARGEST_SHARE = 0.01  # of a run's time that writing snapshots may take

ROOM = 4  # how many snapshots must fit into the free space of the disk: the log must never lack it

PIECE_SIZE = 1 << 24  # bytes that are read at a time


@dataclass
class Snapshots:
    """The snapshot of one run: the newest one replaces the one before.

    Attributes:
        run: whose state is taken and given back.
        log: the run's log, open for writing.
        show: who is told why a snapshot is not used, or cannot be written.
        due: when the next one may be written, in seconds of time.monotonic; None: none will be.
    """

    run: Run
    log: Log
    show: Plain
    due: float | None = field(default_factory=lambda: time.monotonic() + LEAST_SECONDS)

    @property
    def path(self) -> Path:
        """The file of the snapshot, which lies beside the log."""
        return self.log.path.with_name(SNAPSHOT_FILE)

    def tensors(self) -> list[Any]:
        """Return every tensor of the state, in the order in which they are written."""
        found: list[Any] = []
        for leaf in self.run.space.leaves():
            slots = self.run.slots[leaf.name]
            found += [leaf.value, *(slots[key] for key in sorted(slots) if isinstance(slots[key], torch.Tensor))]
        return found

    def numbers(self) -> list[dict[str, Any]]:
        """Return what the rule holds of each leaf besides tensors."""
        tables = (self.run.slots[leaf.name] for leaf in self.run.space.leaves())
        return [{k: v for k, v in table.items() if not isinstance(v, torch.Tensor)} for table in tables]

    # -- writing

    def offer(self, step: int) -> None:
        """Write the state after `step` steps, if the log has its digest and it is time for a snapshot."""
        if self.due is None or time.monotonic() < self.due or step not in self.log.state.hashes:
            return
        size = sum(tensor.nbytes for tensor in self.tensors())
        if (free := shutil.disk_usage(self.path.parent).free) < ROOM * size:
            self.stop(f"{free / 1e9:,.1f} GB are free on the disk, and {ROOM * size / 1e9:,.1f} are wanted")
            return
        began = time.monotonic()
        self.log.secure()  # a snapshot is never ahead of the log
        try:
            os.close(storage.publish_file(self.path, self.pieces(step)))
        except OSError as e:
            self.stop(str(e.strerror))
            return
        now = time.monotonic()
        self.due = now + max(LEAST_SECONDS, (now - began) / LARGEST_SHARE)

    def stop(self, why: str) -> None:
        """Write no snapshots any more, and say why."""
        self.due = None
        self.show.warn(f"no snapshots are kept beside the log ({why}): a resumed run replays it from its first step")

    def pieces(self, step: int) -> Iterator[bytes]:
        """Yield the bytes of a snapshot, a tensor at a time."""
        head = json.dumps(
            {
                "step": step,
                "slots": self.log.seq,
                "chain": self.log.fingerprint,
                "numbers": self.numbers(),
                "kept": list(self.run.space.kept),
            }
        ).encode()
        whole = hashlib.sha256()
        for piece in (MAGIC, struct.pack("<I", len(head)), head, *self.tensors()):
            data = piece if isinstance(piece, bytes) else bytes(host_bytes(piece.contiguous()))
            whole.update(data)
            yield data
        yield whole.digest()

    # -- reading

    def restore(self, usable: Callable[[int], bool]) -> int:
        """Bring the run to the state of the snapshot and return its step; 0, and the run as it was, if it is not to be used.

        usable: whether the run may go on from a step. What is wrong with a snapshot is said in one line.
        """
        self.sweep()
        moved = False
        if not os.path.lexists(self.path) or not len(self.log):
            return 0
        try:
            with os.fdopen(storage.open_file(self.path), "rb") as file:
                head, begin = read_head(file)
                step = self.check(head, file, begin)
                if not usable(step):
                    return 0
                file.seek(begin)
                moved = True
                for tensor in self.tensors():
                    read_tensor(file, tensor)
            if digest(self.run.space)[:24] != self.log.state.hashes[step]:
                raise ValueError("its values are not those of the log")
            self.take_numbers(head)
        except (OSError, StorageError, ValueError, KeyError, TypeError, RecursionError) as e:
            if moved:
                self.run.restart()
            what = e.strerror if isinstance(e, OSError) else e
            self.show.warn(f"{self.path}: this snapshot is not used ({what}); the log is replayed from its first step")
            return 0
        self.show.say(f"from the snapshot of step {step:,}: {len(self.log) - step:,} steps are left to replay")
        return step

    def check(self, head: dict[str, Any], file: Any, begin: int) -> int:
        """Return the step of a snapshot that is whole, and of this log. ValueError: it is not."""
        step, slots = int(head["step"]), int(head["slots"])
        size = begin + sum(tensor.nbytes for tensor in self.tensors()) + 32
        if os.fstat(file.fileno()).st_size != size:
            raise ValueError(f"it has not the {size:,} bytes of this run's state")
        file.seek(0)
        whole, left = hashlib.sha256(), size - 32
        while left and (piece := file.read(min(left, PIECE_SIZE))):
            whole.update(piece)
            left -= len(piece)
        if file.read(32) != whole.digest():
            raise ValueError("its checksum does not match")
        if step not in self.log.state.hashes or not 0 < step <= len(self.log):
            raise ValueError(f"the log does not know the state after step {step:,}")
        if not 0 < slots <= self.log.seq or self.log.chain_at(slots) != head["chain"]:
            raise ValueError("it is of another log")
        if self.log[step - 1].seq >= slots:
            raise ValueError("the run has gone back to before it")
        return step

    def take_numbers(self, head: dict[str, Any]) -> None:
        """Give the rule and the space what a snapshot says besides tensors. ValueError: it is not what they hold."""
        for leaf, own, numbers in zip(self.run.space.leaves(), self.numbers(), head["numbers"], strict=True):
            if own.keys() != numbers.keys():
                raise ValueError("the rule holds other numbers")
            self.run.slots[leaf.name].update({key: type(own[key])(value) for key, value in numbers.items()})
        if isinstance(self.run.space.kept, list):
            self.run.space.kept[:] = map(float, head["kept"])

    def sweep(self) -> None:
        """Remove what a killed process left half written. This process has the log's lock, so that no other one writes."""
        for draft in self.path.parent.glob(f".{SNAPSHOT_FILE}.tmp-*"):
            with suppress(OSError):
                draft.unlink()

    def remove(self) -> None:
        """Remove the snapshot of a run that is finished."""
        with suppress(OSError):
            self.path.unlink()


def read_head(file: Any) -> tuple[dict[str, Any], int]:
    """Return the head of a snapshot, and where its tensors begin. ValueError: it is no snapshot."""
    fixed = file.read(len(MAGIC) + 4)
    if fixed[:8] != MAGIC or len(fixed) < 12:
        raise ValueError("it is not one")
    (length,) = struct.unpack("<I", fixed[8:])
    if length > HEAD_LIMIT:
        raise ValueError("its head is too long")
    head = json.loads(file.read(length))
    if not isinstance(head, dict):
        raise ValueError("its head cannot be read")
    return head, len(fixed) + length


def read_tensor(file: Any, tensor: Any) -> None:
    """Read the next bytes of a file into a tensor. ValueError: the file ends before."""
    raw = bytearray(tensor.nbytes)
    if file.readinto(raw) != len(raw):
        raise ValueError("it ends too early")
    if raw:
        tensor.copy_(torch.frombuffer(raw, dtype=tensor.dtype).view(tensor.shape))
