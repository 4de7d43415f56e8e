"""This module has the slots of a log: how a record becomes bytes, and how a chain of hashes ties the bytes together."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..core.exact import bits16
from ..core.types import SKIPPED, Record
from ..errors import ReplayError
from .records import CHAIN_SIZE, SLOT_STRUCT, Records, decode_record

STEP, HASH, SESSION, REWIND, END, NOTE = range(1, 7)

FLOAT32_LIMIT = 2.0**128 - 2.0**103  # what rounds to infinity in float32


class Slot(NamedTuple):
    """A slot of a log, decoded: a step with its record, or another event with a digest."""

    kind: int
    seq: int
    step: int
    record: Record | None  # of a STEP alone
    digest: bytes  # 24 bytes, of the other kinds
    body: bytes = b""  # its bytes without the chain value


@dataclass
class LogState:
    """The log's slots folded into what they mean: an effective record a step, and what is known of the state."""

    records: Records = field(default_factory=Records)
    hashes: dict[int, bytes] = field(default_factory=dict)  # state after so many steps; END's is one of them
    session: bytes = b""  # digest of the newest environment
    sessions: int = 0
    rewinds: int = 0
    end: bytes | None = None
    notes: dict[bytes, int] = field(default_factory=dict)  # how many NOTEs have a digest

    def refuse(self, slot: Slot) -> str:
        """Return what is wrong with `slot` as the next one; '' if nothing is."""
        done = len(self.records)
        if self.end is not None:
            return "there is a record after END"
        if slot.kind == REWIND and slot.step >= done:
            return f"a rewind to step {slot.step} stands after {done} steps"
        if slot.kind != REWIND and slot.step != done:
            return f"it says that it stands after {slot.step} steps, and stands after {done}"
        if slot.kind in (HASH, END) and self.hashes.get(done, slot.digest) != slot.digest:
            return f"two states are logged after {done} steps"
        return ""

    def fold(self, slot: Slot) -> str:
        """Take in the next slot, and return what is wrong with it; '' if nothing is. A wrong one changes nothing."""
        if wrong := self.refuse(slot):
            return wrong
        if slot.kind == STEP:
            self.records.extend(slot.body, len(slot.body))
        elif slot.kind == SESSION:
            self.session, self.sessions = slot.digest, self.sessions + 1
        elif slot.kind == REWIND:
            self.records.cut(slot.step)
            self.hashes = {s: d for s, d in self.hashes.items() if s <= slot.step}
            self.rewinds += 1
        elif slot.kind in (HASH, END):
            self.hashes[slot.step] = slot.digest
            self.end = slot.digest if slot.kind == END else None
        elif slot.kind == NOTE:
            self.notes[slot.digest] = self.notes.get(slot.digest, 0) + 1
        return ""


def encode_slot(size: int, kind: int, seq: int, step: int, record: Record | None = None, digest: bytes = b"") -> bytes:
    """Return the bytes of a slot without its chain value: size - 16 of them.

    Losses beyond float32 become infinite, as by a cast.
    """
    if record is None:
        head = SLOT_STRUCT.pack(kind, 0, 0, 0, seq, step, 0, 0.0, 0.0)
        return (head + digest[:24]).ljust(size - 16, b"\0")
    n, m = len(record.g), len(record.losses)
    head = SLOT_STRUCT.pack(kind, record.flags, n, m, seq, step, record.check, record.decay, record.lr)
    triples = [0.0] * (3 * max(n, -(-m // 2)))
    triples[: 3 * n : 3] = record.g
    for i, loss in enumerate(record.losses):
        triples[3 * (i // 2) + 1 + i % 2] = loss if abs(loss) < FLOAT32_LIMIT else loss * math.inf
    return (head + struct.pack(f"<{len(triples)}f", *triples)).ljust(size - 16, b"\0")


def find_record_fault(record: Record, k: int) -> str:
    """Return what is wrong with the numbers of a step in slots for `k` directions; '' if nothing is."""
    if not 1 <= len(record.g) <= k:
        return f"{len(record.g)} directions are not 1..{k}"
    if record.flags & ~7:
        return f"unknown flags {record.flags}"
    if not all(math.isfinite(x) and bits16(x) == x for x in (*record.g, record.lr)):
        return "a weight is not finite, below 2**-100, or has more than 16 significant bits"
    if not 0 < record.decay <= 1:
        return f"decay {record.decay} is not in (0, 1]"
    return "a skipped step has a weight" if record.flags & SKIPPED and any(record.g) else ""


def decode_slot(raw: bytes, k: int) -> tuple[Slot, str]:
    """Return the slot in these bytes, whose chain value is checked elsewhere, and what is wrong with it, or ''."""
    kind, _, n, m, seq, step, *_ = SLOT_STRUCT.unpack_from(raw)
    body = raw[:-CHAIN_SIZE]
    if kind not in (STEP, HASH, SESSION, REWIND, END, NOTE):
        return Slot(kind, seq, step, None, b""), f"unknown kind {kind}"
    if kind != STEP:
        wrong = any(raw[1:4]) or any(raw[12:24]) or any(raw[48:-16]) or (kind == REWIND and any(raw[24:48]))
        return Slot(kind, seq, step, None, raw[24:48], body), "padding is not zero" if wrong else ""
    count = max(n, -(-m // 2))
    if count > k:
        return Slot(kind, seq, step, None, b""), f"{n} directions and {m} losses do not fit {k}"
    record = decode_record(body)
    wrong = find_record_fault(record, k)
    absent = [
        *range(24 + 12 * n, 24 + 12 * count, 12),
        *(28 + 12 * (i // 2) + 4 * (i % 2) for i in range(m, 2 * count)),
    ]
    if any(raw[24 + 12 * count : -16]) or any(any(raw[at : at + 4]) for at in absent):  # bytes, not values: -0.0 is one
        wrong = wrong or "padding is not zero"
    return Slot(kind, seq, step, record, b"", body), wrong


def chain_value(previous: bytes, body: bytes) -> bytes:
    """Return the chain value of a slot, 16 bytes. previous: that of the slot before. body: the slot's other bytes."""
    return hashlib.sha256(previous + body).digest()[:16]


def check_state_hash(where: object, step: int, known: bytes, digest: Callable[[], bytes]) -> None:
    """Raise ReplayError unless `digest()`, the SHA-256 of the state after `step` steps, begins with `known`, the log's."""
    if known != (replayed := digest()[:24]):
        raise ReplayError(
            f"{where}: after step {step} the state is {replayed[:6].hex()}.. and the log says {known[:6].hex()}..: "
            "replay differs. `zoedge verify --replay` names the first step, tensor and element."
        )
