r"""The seed log (.zlog, version 1): the only checkpoint. Little-endian, fixed slots, a SHA-256 hash chain.

Header: 512 bytes + block, padded with zeros to a multiple of 512.

    off  size  field
      0     8  magic 89 5A 4F 45 0D 0A 1A 0A
      8   2+2  format major (1), minor (0). Another major: refused; a newer minor: readable, not writable
     12     4  header_len: 512 + block, a multiple of 512, <= 512 + 1 MiB
     16     4  block_len: canonical JSON (UTF-8, sorted keys, floats as hexadecimal strings), <= header_len - 512
     20     2  slot_size: 64, 128, 256, 512 or 1024
     22     2  K: directions a slot can hold; 1 <= K, 40 + 12 K <= slot_size
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
      4     4  seq = i               8  4  step
     12     4  crc32 of the batch   16  4  decay, float32     20  4  lr, float32
     24  12 K  STEP: triple q is g[q], losses[2q], losses[2q+1], float32; absent values are zero
               HASH, SESSION, END, NOTE: bytes 24..47 are the first 24 bytes of a SHA-256; REWIND: zero
     ..        zero
    -16    16  c[i] = sha256(c[i-1] + the slot's other bytes)[:16]

g, lr and decay are authoritative; they have at most 16 significant bits. A HASH of step s is the state after s steps; a
REWIND to step s drops all effective steps >= s; END holds the final state. A slot MUST be durable before it is applied.

Reading trusts nothing: there is no length field to allocate by, every slot is checked against the chain. A tail is *torn*
(an unfinished write; cut off, kept aside as .torn) only if the file ends inside a slot, or its first bad slot is all zero
and among the last sync_every slots. Anything else that fails is *damage*, refused with slot, byte offset and step.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DamagedError, LockedError, ReplayError, StorageError
from .types import Record

MAGIC = b"\x89ZOE\r\n\x1a\n"
MAJOR, MINOR = 1, 0
STEP, HASH, SESSION, REWIND, END, NOTE = range(1, 7)
BLOCK_LIMIT = 1 << 20
SLOT_SIZES = (64, 128, 256, 512, 1024)
_FIXED = struct.Struct("<8sHHIIHHII16sQQII24x32s32s32s32s32s32s32s160x")
_SLOT = struct.Struct("<BBBBIIIff")
HEX_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-][0-9]+")
DIGESTS = ("recipe", "base", "tokenizer", "data", "manifest", "initial", "selftest")


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and floats as hexadecimal strings: the same bytes on every machine."""

    def plain(v: Any) -> Any:
        if isinstance(v, float):
            return v.hex()
        if isinstance(v, dict):
            return {str(k): plain(x) for k, x in v.items()}
        return [plain(x) for x in v] if isinstance(v, (list, tuple)) else v

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def uncanonical(block: bytes) -> Any:
    """The inverse of `canonical`: strings that are hexadecimal floats become floats again."""

    def rich(v: Any) -> Any:
        if isinstance(v, str) and HEX_FLOAT.fullmatch(v):
            return float.fromhex(v)
        if isinstance(v, dict):
            return {k: rich(x) for k, x in v.items()}
        return [rich(x) for x in v] if isinstance(v, list) else v

    return rich(json.loads(block.decode()))


@dataclass(frozen=True)
class Header:
    """What a run is. Digests are 32 bytes each; see the module's table."""

    block: bytes
    directions: int  # K
    noise: int
    rule: int
    seed: int
    elements: int
    hash_every: int
    sync_every: int
    recipe: bytes
    base: bytes
    tokenizer: bytes
    data: bytes
    manifest: bytes
    initial: bytes
    selftest: bytes
    run_id: bytes = b""

    @property
    def slot_size(self) -> int:
        return next(s for s in SLOT_SIZES if 40 + 12 * self.directions <= s)

    @property
    def about(self) -> dict[str, Any]:
        """The block, decoded: the resolved recipe, the space's description, the model's source."""
        return uncanonical(self.block)

    def encode(self) -> bytes:
        length = 512 + -(-len(self.block) // 512) * 512
        fixed = _FIXED.pack(
            MAGIC, MAJOR, MINOR, length, len(self.block), self.slot_size, self.directions, self.noise, self.rule,
            self.run_id or self.identity(), self.seed, self.elements, self.hash_every, self.sync_every,
            *(getattr(self, name) for name in DIGESTS),
        )  # fmt: skip
        return (fixed + hashlib.sha256(fixed + self.block).digest() + self.block).ljust(length, b"\0")

    def identity(self) -> bytes:
        """The run id: what is trained, on what, from where. Two runs of one recipe on one machine write one log."""
        whole = hashlib.sha256(struct.pack("<QQ", self.seed, self.elements))
        for name in DIGESTS[:-1]:
            whole.update(getattr(self, name))
        return whole.digest()[:16]

    @classmethod
    def decode(cls, raw: bytes, where: str) -> tuple[Header, int]:
        """The header at the start of `raw` and its length in bytes. `raw`: at least the header."""

        def require(ok: bool, what: str) -> None:
            if not ok:
                raise DamagedError(f"{where}: not a readable zoedge log: {what}.")

        require(len(raw) >= 512, f"{len(raw)} bytes are too few for a header")
        require(raw[:8] == MAGIC, "the first 8 bytes are not its magic (was the file changed in transfer?)")
        (_, major, minor, length, block_len, slot, k, noise, rule, run_id, seed, n, every, sync, *digests) = (
            _FIXED.unpack(raw[:480])
        )
        require(major == MAJOR, f"format {major}.{minor} is not one that this version reads ({MAJOR}.x)")
        require(length % 512 == 0 and 512 <= length <= 512 + BLOCK_LIMIT, f"header length {length}")
        require(block_len <= length - 512, f"block length {block_len} of {length - 512}")
        require(len(raw) >= length, f"the header is {length} bytes and the file ends after {len(raw)}")
        block = raw[512 : 512 + block_len]
        require(hashlib.sha256(raw[:480] + block).digest() == raw[480:512], "the header's digest does not match")
        require(not any(raw[512 + block_len : length]), "the header's padding is not zero")
        require(not any(raw[72:96]) and not any(raw[320:480]), "reserved bytes are not zero")
        require(k >= 1 and slot in SLOT_SIZES and 40 + 12 * k <= slot, f"{k} directions in slots of {slot} bytes")
        require(1 <= sync <= 4096 and every >= 1, f"sync_every {sync}, hash_every {every}")
        header = cls(block, k, noise, rule, seed, n, every, sync, *digests, run_id=run_id)
        require(header.slot_size == slot, f"slots of {slot} bytes for {k} directions")
        return header, length


class Slot(NamedTuple):
    kind: int
    seq: int
    step: int
    record: Record | None  # STEP
    digest: bytes  # the others: 24 bytes


@dataclass
class State:
    """The log's slots folded into what they mean: an effective record a step, and what is known of the state."""

    records: list[Record] = field(default_factory=list)
    hashes: dict[int, bytes] = field(default_factory=dict)  # state after so many steps
    session: bytes = b""  # digest of the newest environment
    sessions: int = 0
    rewinds: int = 0
    end: bytes | None = None

    def fold(self, slot: Slot) -> str:
        """Take one slot in; returns what is wrong with it, or ''."""
        if self.end is not None:
            return "there is a record after END"
        if slot.kind == STEP:
            if slot.step != len(self.records):
                return f"step {slot.step} follows step {len(self.records) - 1}"
            assert slot.record is not None
            self.records.append(slot.record)
        elif slot.kind == HASH:
            if slot.step != len(self.records):
                return f"a state hash of step {slot.step} stands after {len(self.records)} steps"
            self.hashes[slot.step] = slot.digest
        elif slot.kind == SESSION:
            self.session, self.sessions = slot.digest, self.sessions + 1
        elif slot.kind == REWIND:
            if slot.step >= len(self.records):
                return f"a rewind to step {slot.step} stands after {len(self.records)} steps"
            del self.records[slot.step :]
            self.hashes = {s: d for s, d in self.hashes.items() if s <= slot.step}
            self.rewinds += 1
        elif slot.kind == END:
            if slot.step != len(self.records):
                return f"END of step {slot.step} stands after {len(self.records)} steps"
            self.end = slot.digest
        return ""


def encode_slot(size: int, kind: int, seq: int, step: int, record: Record | None = None, digest: bytes = b"") -> bytes:
    """A slot without its chain value: size - 16 bytes."""
    if record is None:
        head = _SLOT.pack(kind, 0, 0, 0, seq, step, 0, 0.0, 0.0)
        return (head + digest[:24]).ljust(size - 16, b"\0")
    n, m = len(record.g), len(record.losses)
    head = _SLOT.pack(kind, record.flags, n, m, seq, step, record.check, record.decay, record.lr)
    triples = [0.0] * (3 * max(n, -(-m // 2)))
    triples[: 3 * n : 3] = record.g
    for i, loss in enumerate(record.losses):
        triples[3 * (i // 2) + 1 + i % 2] = loss
    return (head + struct.pack(f"<{len(triples)}f", *triples)).ljust(size - 16, b"\0")


def significant(x: float) -> bool:
    """Is x finite, with at most 16 significant bits?"""
    return math.isfinite(x) and math.ldexp(math.frexp(x)[0], 16).is_integer()


def decode_slot(raw: bytes, k: int) -> tuple[Slot, str]:
    """A slot from its bytes (chain already checked), and what is wrong with it, or ''."""
    kind, flags, n, m, seq, step, check, decay, lr = _SLOT.unpack_from(raw)
    if kind not in (STEP, HASH, SESSION, REWIND, END, NOTE):
        return Slot(kind, seq, step, None, b""), f"unknown kind {kind}"
    if kind != STEP:
        wrong = any(raw[1:4]) or any(raw[12:24]) or any(raw[48:-16]) or (kind == REWIND and any(raw[24:48]))
        return Slot(kind, seq, step, None, raw[24:48]), "padding is not zero" if wrong else ""
    if not 1 <= n <= k or m > 2 * k:
        return Slot(kind, seq, step, None, b""), f"{n} directions and {m} losses do not fit {k}"
    count = max(n, -(-m // 2))
    triples = struct.unpack_from(f"<{3 * count}f", raw, 24)
    g = triples[0 : 3 * n : 3]
    pairs = [x for q in range(count) for x in triples[3 * q + 1 : 3 * q + 3]]
    slot = Slot(kind, seq, step, Record(step, seq, lr, g, tuple(pairs[:m]), flags, check, decay), b"")
    if flags & ~7:
        return slot, f"unknown flags {flags}"
    if not all(map(significant, (*g, lr, decay))) or not 0 < decay <= 1:
        return slot, "a weight is not finite or has more than 16 significant bits"
    if flags & 1 and any(g):
        return slot, "a skipped step has a weight"
    if any(triples[3 * n :: 3]) or any(pairs[m:]) or any(raw[24 + 12 * count : -16]):
        return slot, "padding is not zero"
    return slot, ""


def chain(previous: bytes, body: bytes) -> bytes:
    return hashlib.sha256(previous + body).digest()[:16]


class Log:
    """One open log. `open` reads; `resume` also locks, cuts a torn tail off and appends. Use as a context manager."""

    def __init__(self, path: Path, header: Header, fd: int, writable: bool):
        self.path, self.header, self._fd, self.writable = path, header, fd, writable
        self.state = State()
        self.seq = 0
        self.torn = 0  # bytes of an unfinished write after the last whole slot
        self._chain = b""
        self._unsynced = 0

    # -- opening

    @classmethod
    def create(cls, path: Path, header: Header) -> Log:
        """A new log at `path`, durable with its directory entry before this returns. FileExistsError if there is one."""
        raw = header.encode()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        log = cls(path, header, fd, True)
        log._lock()
        try:
            _write_all(fd, raw)
            os.fsync(fd)
            sync_directory(path.parent)
        except OSError as e:
            raise StorageError(f"{path}: cannot write the log: {e.strerror}.") from e
        log._chain = raw[480:496]
        return log

    @classmethod
    def open(cls, path: Path) -> Log:
        """Read-only. DamagedError names slot, offset and step; a torn tail is counted in `torn`, not an error."""
        return cls._scan(path, os.O_RDONLY)

    @classmethod
    def resume(cls, path: Path) -> Log:
        """For appending: LockedError if another process has it; a torn tail is moved to `.torn` and cut off."""
        log = cls._scan(path, os.O_RDWR)
        if log.torn:
            size = os.fstat(log._fd).st_size
            tail = os.pread(log._fd, log.torn, size - log.torn)
            try:
                with open(path.with_suffix(".torn"), "ab") as aside:
                    aside.write(tail)
                    aside.flush()
                    os.fsync(aside.fileno())
                os.ftruncate(log._fd, size - log.torn)
                os.fsync(log._fd)
            except OSError as e:
                raise StorageError(f"{path}: cannot cut the torn tail off: {e.strerror}.") from e
        os.lseek(log._fd, 0, os.SEEK_END)
        return log

    @classmethod
    def _scan(cls, path: Path, mode: int) -> Log:
        try:
            fd = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as e:
            raise StorageError(f"{path}: cannot open the log: {e.strerror}.") from e
        try:
            head = os.pread(fd, 512 + BLOCK_LIMIT, 0)
            header, length = Header.decode(head, str(path))
            log = cls(path, header, fd, mode == os.O_RDWR)
            if log.writable:
                if struct.unpack_from("<H", head, 10)[0] > MINOR:
                    raise DamagedError(f"{path}: written by a newer zoedge; this one can read it, not extend it.")
                log._lock()
            log._chain = head[480:496]
            log._read(length)
            return log
        except BaseException:
            os.close(fd)
            raise

    def _read(self, offset: int) -> None:
        size, end = self.header.slot_size, os.fstat(self._fd).st_size
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(offset)
            while len(raw := file.read(size)) == size:
                value = chain(self._chain, raw[:-16])
                wrong = "" if value == raw[-16:] else "its chain value does not match"
                if not wrong:
                    slot, wrong = decode_slot(raw, self.header.directions)
                    wrong = wrong or ("" if slot.seq == self.seq else f"it says it is slot {slot.seq}")
                    wrong = wrong or self.state.fold(slot)
                if wrong:
                    left = -(-(end - offset) // size)
                    if not any(raw) and left <= self.header.sync_every:
                        break
                    raise DamagedError(
                        f"{self.path}: damaged at slot {self.seq} (byte {offset}, after step {len(self) - 1}): {wrong}. "
                        f"Steps 0..{len(self) - 1} are intact: `zoedge replay {self.path} --to-step N` rebuilds a state "
                        "before the damage from a copy cut there."
                    )
                self._chain, self.seq, offset = value, self.seq + 1, offset + size
        self.torn = end - offset

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{self.path}: another zoedge process is writing this run. Wait for it, or stop it.") from None

    # -- reading

    def __len__(self) -> int:
        return len(self.state.records)

    def __getitem__(self, step: int) -> Record:
        return self.state.records[step]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.state.records)

    @property
    def next_seq(self) -> int:
        return self.seq

    @property
    def fingerprint(self) -> str:
        """The last chain value: 32 hexadecimal digits that stand for every byte of the run."""
        return self._chain.hex()

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size - self.torn

    # -- writing

    def append(self, record: Record) -> Record:
        """Make a step durable; returns it as it will be read back (losses rounded to float32)."""
        slot = self._put(STEP, record.step, record)
        assert slot.record is not None
        return slot.record

    def seal(self, step: int, digest: Callable[[], bytes]) -> None:
        """`digest()` is the SHA-256 of the state after `step` steps: logged if it is due, compared if it is known."""
        known = self.state.hashes.get(step)
        if known is None and self.writable and step == len(self) and step % self.header.hash_every == 0:
            self._put(HASH, step, digest=digest())
        elif known is not None and known != (found := digest()[:24]):
            raise ReplayError(
                f"{self.path}: after step {step} the state is {found[:6].hex()}.. and the log says {known[:6].hex()}..: "
                "replay differs. `zoedge verify --replay` names the first step, tensor and element."
            )

    def session(self, digest: bytes) -> bool:
        """Record the environment if it is another than the last; an unchanged one leaves no trace, so that a run that
        was killed and resumed ends in the same bytes as one that was not. Returns whether it changed."""
        if self.state.session == digest[:24]:
            return False
        self._put(SESSION, len(self), digest=digest)
        return True

    def rewind(self, step: int) -> None:
        """Drop the effective steps >= `step`; the next record is that step again, with new noise."""
        self._put(REWIND, step)

    def finish(self, digest: bytes) -> None:
        """END: the final state's SHA-256. Nothing can follow."""
        if self.state.end is None:
            self._put(END, len(self), digest=digest)
        elif self.state.end != digest[:24]:
            raise ReplayError(f"{self.path}: the final state is not the one that END says.")

    def _put(self, kind: int, step: int, record: Record | None = None, digest: bytes = b"") -> Slot:
        body = encode_slot(self.header.slot_size, kind, self.seq, step, record, digest)
        slot, wrong = decode_slot(body + bytes(16), self.header.directions)
        if wrong or (wrong := self.state.fold(slot)):
            raise ValueError(f"refusing to log slot {self.seq}: {wrong}")
        value = chain(self._chain, body)
        try:
            _write_all(self._fd, body + value)
            self._unsynced += 1
            if self._unsynced >= self.header.sync_every or kind == END:
                self.sync()
        except OSError as e:
            self.writable = False
            raise StorageError(
                f"{self.path}: the log could not be written at step {step}: {e.strerror}. Everything before it is safe; "
                "free space (or mend the disk) and `zoedge resume`."
            ) from e
        self._chain, self.seq = value, self.seq + 1
        return slot

    def sync(self) -> None:
        datasync(self._fd)
        self._unsynced = 0

    def close(self) -> None:
        if self._fd >= 0:
            try:
                if self.writable and self._unsynced:
                    self.sync()
            finally:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def datasync(fd: int) -> None:
    """Onto the platter: fdatasync; macOS needs F_FULLFSYNC, its fsync stops at the drive's cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """All of `data` at `path`, or nothing: temporary file, fsync, rename, directory fsync."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot write: {e.strerror}.") from e
