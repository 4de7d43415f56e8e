r"""This module has the packed log (.zpack, version 1), for sharing: what replay needs of a log, in 3 to 5 bytes a step.

Its integers are little-endian.

    off  size  field
      0     8  magic 89 5A 50 4B 0D 0A 1A 0A
      8   2+2  format major (1), minor (0)
     12     4  L: bytes of the log's header, <= 512 + 1 MiB
     16     4  N: effective steps              20  4  D: their directions, N <= D <= K N
     24     4  S: slots of the log             28  4  H: known states, <= N + 1
     32     4  Z: bytes of the compressed part
     36     1  1: the log has an END, 0: not   37  11  zero
     48    16  the log's fingerprint, its last chain value
     64     Z  one zlib stream (RFC 1950) of L + 13 N + 28 H bytes: header and columns
      .   3 D  g of every direction, step by step, 3 bytes each: the upper three of the float32; the lowest is zero
    -32    32  sha256 of all bytes before

The stream: the log's header, verbatim; then the columns seq (4 bytes a step), lr (3, as g), decay (4, its float32),
flags (1), n directions (1); then of the known states, in rising order, after how many steps they stand (4) and the
first 24 bytes of their SHA-256. All columns but flags, n and the SHA-256 are differences to the value before (the
first: to 0) modulo 256**width, stored in planes: the lowest bytes of all, then the second ones, and so on. END's state
is one of the known states. What applying a step does not need is absent: losses, batch check, sessions, notes, rewound
steps.

g is noise (deflate would take 2.5 to 2.7 of its 3 bytes) and is stored as it is, so that N <= D <= file size / 3:
nothing that reading allocates exceeds a small multiple of the file. One query, lr falling linearly, 20,000 steps: 3.3
bytes a step, of which 0.02 are lr and 0.28 the states of every 100th step.

The fingerprint cannot be computed from a packed log: it names the log that this one was packed from.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.storage import open_file
from ..core.types import SKIPPED, Record
from ..errors import DamagedError, ReplayError, StorageError
from .header import BLOCK_LIMIT, Header
from .log import Log
from .scan import are_decays, are_weights
from .slots import check_state_hash, find_record_fault

MAGIC = b"\x89ZPK\r\n\x1a\n"
MAJOR, MINOR = 1, 0
_HEADER_STRUCT = struct.Struct("<8sHHIIIIIIB11s16s")


def encode_planes(values: Any, width: int) -> bytes:
    """Encode unsigned integers as differences to the one before, byte plane by byte plane."""
    differences = np.diff(np.asarray(values, "<u4"), prepend=np.zeros(1, "<u4"))
    return differences.astype("<u4").view("u1").reshape(-1, 4)[:, :width].T.tobytes()


def decode_planes(raw: bytes, width: int) -> Any:
    """Decode what `encode_planes` wrote, as uint32."""
    whole = np.zeros((len(raw) // width, 4), "u1")
    whole[:, :width] = np.frombuffer(raw, "u1").reshape(width, -1).T
    return (np.cumsum(whole.view("<u4")[:, 0], dtype="u8") & (256**width - 1)).astype("<u4")


def pack_log(log: Log) -> bytes:
    """Return the bytes of a packed log."""
    known = sorted(log.state.hashes.items())
    header = log.header.encode()
    steps, weights = collect_columns(log)
    body = b"".join(
        (
            header,
            encode_planes(steps[:, 1], 4),
            encode_planes(steps[:, 5] >> 8, 3),
            encode_planes(steps[:, 4], 4),
            (steps[:, 0] >> 8).astype("u1").tobytes(),
            (steps[:, 0] >> 16).astype("u1").tobytes(),
            encode_planes([step for step, _ in known], 4),
            *(digest for _, digest in known),
        )
    )
    stream = zlib.compress(body, 9)
    fixed = _HEADER_STRUCT.pack(
        MAGIC,
        MAJOR,
        MINOR,
        len(header),
        len(steps),
        len(weights),
        log.next_seq,
        len(known),
        len(stream),
        log.state.end is not None,
        b"",
        bytes.fromhex(log.fingerprint),
    )
    raw: bytes = fixed + stream + weights.view("u1").reshape(-1, 4)[:, 1:].tobytes()
    return raw + hashlib.sha256(raw).digest()


def collect_columns(log: Log) -> tuple[Any, Any]:
    """Return the first six words of each step's slot, [steps, 6] uint32, and the bits of all g, step by step, uint32."""
    heads, weights = [np.zeros((0, 6), "<u4")], [np.zeros(0, "<u4")]
    for words in log.state.records.blocks():
        g = words[:, 6 : 6 + 3 * log.header.directions : 3]
        heads.append(words[:, :6])
        weights.append(g[np.arange(g.shape[1]) < (words[:, :1] >> 16 & 0xFF)])
    return np.concatenate(heads), np.concatenate(weights)


class KnownStates(NamedTuple):
    """The states that a packed log knows: the first 24 bytes of their SHA-256, by number of steps; and the final one."""

    hashes: dict[int, bytes]
    end: bytes | None
    rewinds: int = 0  # steps that a rewind dropped are not packed
    notes: dict[bytes, int] = {}  # nor are notes


class PackedLog:
    """A packed log, open for reading: a `Journal` whose records have only what is applied (no losses, check 0)."""

    writable = False
    delivers: int | None = None  # a shared log's own

    def __init__(self, path: Path, raw: bytes):
        """Read a packed log. DamagedError: `raw` is no whole one."""

        def require(ok: Any, what: str) -> None:
            if not ok:
                raise DamagedError(f"{path}: not a readable packed log: {what}.")

        require(len(raw) >= 96, f"{len(raw)} bytes are too few")
        magic, major, minor, length, n, d, slots, h, z, ended, zero, last = _HEADER_STRUCT.unpack_from(raw)
        require(magic == MAGIC, "the first 8 bytes are not its magic (was the file changed in transfer?)")
        require(major == MAJOR, f"format {major}.{minor} is not one that this version reads ({MAJOR}.x)")
        require(len(raw) == 96 + z + 3 * d, f"it is {len(raw)} bytes and says {96 + z + 3 * d}")
        require(hashlib.sha256(raw[:-32]).digest() == raw[-32:], "its digest does not match")
        require(512 <= length <= 512 + BLOCK_LIMIT and n <= d and h <= n + 1, "its sizes do not fit together")
        require(ended <= 1 and not any(zero), "reserved bytes are not zero")
        size = length + 13 * n + 28 * h
        try:
            inflater = zlib.decompressobj()
            body = inflater.decompress(raw[64 : 64 + z], size)
            # asks for one byte more: the end of the stream is then seen, or a stream that is too long
            body += inflater.decompress(inflater.unconsumed_tail, 1)
        except zlib.error as e:
            raise DamagedError(f"{path}: not a readable packed log: {e}.") from None
        require(len(body) == size and inflater.eof and not inflater.unused_data, "its stream has another length")
        self.path, self.fingerprint, self.next_seq = path, last.hex(), slots
        self.header, end_of_header = Header.decode(body[:length], str(path))
        require(end_of_header == length, "its header has another length")
        columns, at = [], length
        for width in (4 * n, 3 * n, 4 * n, n, n, 4 * h, 24 * h):
            columns.append(body[at : at + width])
            at += width
        self._seq = decode_planes(columns[0], 4)
        self._lr = (decode_planes(columns[1], 3) << 8).view("<f4")
        self._decay = decode_planes(columns[2], 4).view("<f4")
        self._flags, directions = columns[3], np.frombuffer(columns[4], "u1")
        self._ends = np.cumsum(directions, dtype="i8")
        g = np.zeros((d, 4), "u1")
        g[:, 1:] = np.frombuffer(raw, "u1", 3 * d, 64 + z).reshape(-1, 3)
        self._g = g.view("<f4")[:, 0]
        after = decode_planes(columns[5], 4).tolist()
        digests = [columns[6][i : i + 24] for i in range(0, 24 * h, 24)]
        require(directions.sum(dtype="i8") == d, "its directions are not as many as it says")
        require(np.all(self._seq[1:] > self._seq[:-1]) and (n == 0 or self._seq[-1] < slots), "its slots do not rise")
        require(after == sorted(set(after)) and (h == 0 or after[-1] <= n), "its known states do not rise")
        require(not ended or (h and after[-1] == n), "its final state is not known")
        self.state = KnownStates(dict(zip(after, digests)), digests[-1] if ended else None)
        for step in self._find_odd_steps(directions):
            require(not (wrong := find_record_fault(self[step], self.header.directions)), f"step {step}: {wrong}")

    def _find_odd_steps(self, directions: Any) -> list[int]:
        """Return the steps whose numbers may be wrong: all others are right. directions: of each step."""
        flags = np.frombuffer(self._flags, "u1")
        ok = (directions >= 1) & (directions <= self.header.directions) & (flags & (SKIPPED | 0xF8) == 0)
        ok &= are_decays(self._decay.view("<u4")) & are_weights(self._lr.view("<u4"))
        odd = np.repeat(np.arange(len(self)), directions)[~are_weights(self._g.view("<u4"))]
        return sorted({*np.flatnonzero(~ok).tolist(), *odd.tolist()})

    @classmethod
    def open(cls, path: Path) -> PackedLog:
        """Open a packed log. DamagedError: a byte is not what `pack_log` wrote."""
        with os.fdopen(open_file(path), "rb") as file:
            try:
                raw = file.read()
            except OSError as e:
                raise StorageError(f"{path}: cannot read the log: {e.strerror}.") from e
        return cls(path, raw)

    def __len__(self) -> int:
        return len(self._flags)

    def __getitem__(self, step: int) -> Record:
        step = range(len(self))[step]
        end = int(self._ends[step])
        first = int(self._ends[step - 1]) if step else 0
        g = tuple(self._g[first:end].tolist())
        lr, decay = float(self._lr[step]), float(self._decay[step])
        return Record(step, int(self._seq[step]), lr, g, (), self._flags[step], 0, decay)

    def __iter__(self) -> Iterator[Record]:
        return (self[step] for step in range(len(self)))

    def append(self, record: Record) -> Record:
        """Refuse with ReplayError: a packed log cannot go on."""
        raise ReplayError(
            f"{self.path}: a packed log of {len(self):,} steps cannot go on with step {record.step}. Resume the log "
            "that it was packed from."
        )

    def rewind(self, step: int) -> None:
        """Refuse with ReplayError: a packed log cannot go back."""
        raise ReplayError(
            f"{self.path}: a packed log cannot go back to step {step}. Resume the log that it was packed from."
        )

    def seal(self, step: int, digest: Callable[[], bytes]) -> None:
        """Compare the state after `step` steps, if the log knows it."""
        if (known := self.state.hashes.get(step)) is not None:
            check_state_hash(self.path, step, known, digest)


AnyLog = Log | PackedLog  # a .zlog, a .zpack, or a .zoe, which is a packed log
