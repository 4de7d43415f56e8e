r"""The seed log (.zlog, version 1): the only checkpoint. Little-endian, fixed slots, a SHA-256 hash chain.

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
and the states after them; END holds the final state. With sync_every 1 a slot is
durable before it is applied; else the newest sync_every slots can be lost.

Reading trusts nothing: there is no length field to allocate by, every slot is checked against the chain. A tail is
*torn* (an unfinished write; cut off, kept aside as .torn) only if the file ends inside a slot, or the first slot off the
chain is among the last sync_every slots and was not wholly written: one of its 512-byte sectors (or all of it, if it is
smaller) is zero. Anything else that fails is *damage*, refused with slot, byte offset and step.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
import re
import stat
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..core import storage
from ..core.storage import point
from ..core.types import SKIPPED, Record, bits16
from ..errors import DamagedError, LockedError, ReplayError, StorageError, UsageError

MAGIC = b"\x89ZOE\r\n\x1a\n"
MAJOR, MINOR = 1, 0
STEP, HASH, SESSION, REWIND, END, NOTE = range(1, 7)
BLOCK_LIMIT = 1 << 20
SECTOR = 512  # what a disk writes whole or not at all; only slots of 1024 bytes straddle two
SLOT_SIZES = (64, 128, 256, 512, 1024)
_FIXED = struct.Struct("<8sHHIIHHII16sQQII24x32s32s32s32s32s32s32s160x")
_SLOT = struct.Struct("<BBBBIIIff")
FLOAT32 = 2.0**128 - 2.0**103  # what rounds to infinity in float32
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
    """The inverse of `canonical`: strings that are hexadecimal floats, as it writes them, become floats again."""

    def rich(v: Any) -> Any:
        if isinstance(v, str) and HEX_FLOAT.fullmatch(v):
            return x if (x := float.fromhex(v)).hex() == v else v
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
    minor: int = MINOR
    where: str = field(default="the log", compare=False, repr=False)  # for messages

    @property
    def slot_size(self) -> int:
        for size in SLOT_SIZES:
            if 40 + 12 * self.directions <= size:
                return size
        raise UsageError(
            f"{self.directions} directions a step do not fit a log's slot: 82 at most. Lower estimator.queries."
        )

    @property
    def length(self) -> int:
        """Bytes of the header: where slot 0 begins."""
        return 512 + -(-len(self.block) // 512) * 512

    @property
    def about(self) -> dict[str, Any]:
        """The block, decoded: the resolved recipe, the space's description, the model's source."""
        try:
            value = uncanonical(self.block)
            if isinstance(value, dict) and canonical(value) == self.block:  # no duplicate keys, no NaN, one reading
                return value
            what = "not one object of canonical JSON"
        except (ValueError, OverflowError, RecursionError) as e:
            what = type(e).__name__
        raise DamagedError(f"{self.where}: the header's block cannot be read: {what}.")

    def encode(self) -> bytes:
        """The header's bytes. What could not be read back as itself is not written: ValueError, or a ZoedgeError."""
        try:
            whole = replace(self, run_id=self.run_id or self.identity())
            fixed = _FIXED.pack(
                MAGIC, MAJOR, self.minor, self.length, len(self.block), self.slot_size, self.directions, self.noise,
                self.rule, whole.run_id, self.seed, self.elements, self.hash_every, self.sync_every,
                *(getattr(self, name) for name in DIGESTS),
            )  # fmt: skip
        except struct.error as e:
            raise ValueError(f"a number of the header does not fit its field: {e}") from None
        raw = (fixed + hashlib.sha256(fixed + self.block).digest() + self.block).ljust(self.length, b"\0")
        if Header.decode(raw, self.where) != (whole, len(raw)):
            raise ValueError("a digest of the header is not 32 bytes, or its run id not 16")
        return raw

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

        require(len(raw) >= 512, f"{len(raw)} bytes are too few for a header (a run cut at its start? Then delete it)")
        require(raw[:8] == MAGIC, "the first 8 bytes are not its magic (was the file changed in transfer?)")
        (_, major, minor, length, block_len, slot, k, noise, rule, run_id, seed, n, every, sync, *digests) = (
            _FIXED.unpack(raw[:480])
        )
        require(major == MAJOR, f"format {major}.{minor} is not one that this version reads ({MAJOR}.x)")
        require(block_len <= BLOCK_LIMIT, f"a block of {block_len} bytes")
        require(length == 512 + -(-block_len // 512) * 512, f"a header of {length} bytes for a block of {block_len}")
        require(len(raw) >= length, f"the header is {length} bytes and the file ends after {len(raw)}")
        block = raw[512 : 512 + block_len]
        require(hashlib.sha256(raw[:480] + block).digest() == raw[480:512], "the header's digest does not match")
        require(not any(raw[512 + block_len : length]), "the header's padding is not zero")
        require(not any(raw[72:96]) and not any(raw[320:480]), "reserved bytes are not zero")
        require(k >= 1 and slot in SLOT_SIZES and 40 + 12 * k <= slot, f"{k} directions in slots of {slot} bytes")
        require(1 <= sync <= 4096 and every >= 1, f"sync_every {sync}, hash_every {every}")
        named = dict(zip(DIGESTS, digests), run_id=run_id)
        header = cls(block, k, noise, rule, seed, n, every, sync, minor=minor, where=where, **named)
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
    hashes: dict[int, bytes] = field(default_factory=dict)  # state after so many steps; END's is one of them
    session: bytes = b""  # digest of the newest environment
    sessions: int = 0
    rewinds: int = 0
    end: bytes | None = None

    def refuse(self, slot: Slot) -> str:
        """What is wrong with `slot` as the next one, or ''."""
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
        """Take one slot in; returns what is wrong with it, or ''."""
        if wrong := self.refuse(slot):
            return wrong
        if slot.kind == STEP:
            assert slot.record is not None
            self.records.append(slot.record)
        elif slot.kind == SESSION:
            self.session, self.sessions = slot.digest, self.sessions + 1
        elif slot.kind == REWIND:
            del self.records[slot.step :]
            self.hashes = {s: d for s, d in self.hashes.items() if s <= slot.step}
            self.rewinds += 1
        elif slot.kind in (HASH, END):
            self.hashes[slot.step] = slot.digest
            self.end = slot.digest if slot.kind == END else None
        return ""


def encode_slot(size: int, kind: int, seq: int, step: int, record: Record | None = None, digest: bytes = b"") -> bytes:
    """A slot without its chain value: size - 16 bytes. Losses beyond float32 become infinite, as by a cast."""
    if record is None:
        head = _SLOT.pack(kind, 0, 0, 0, seq, step, 0, 0.0, 0.0)
        return (head + digest[:24]).ljust(size - 16, b"\0")
    n, m = len(record.g), len(record.losses)
    head = _SLOT.pack(kind, record.flags, n, m, seq, step, record.check, record.decay, record.lr)
    triples = [0.0] * (3 * max(n, -(-m // 2)))
    triples[: 3 * n : 3] = record.g
    for i, loss in enumerate(record.losses):
        triples[3 * (i // 2) + 1 + i % 2] = loss if abs(loss) < FLOAT32 else loss * math.inf
    return (head + struct.pack(f"<{len(triples)}f", *triples)).ljust(size - 16, b"\0")


def unfit(record: Record, k: int) -> str:
    """What is wrong with a step's numbers in slots for `k` directions, or ''."""
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
    """A slot from its bytes (chain already checked), and what is wrong with it, or ''."""
    kind, flags, n, m, seq, step, check, decay, lr = _SLOT.unpack_from(raw)
    if kind not in (STEP, HASH, SESSION, REWIND, END, NOTE):
        return Slot(kind, seq, step, None, b""), f"unknown kind {kind}"
    if kind != STEP:
        wrong = any(raw[1:4]) or any(raw[12:24]) or any(raw[48:-16]) or (kind == REWIND and any(raw[24:48]))
        return Slot(kind, seq, step, None, raw[24:48]), "padding is not zero" if wrong else ""
    count = max(n, -(-m // 2))
    if count > k:
        return Slot(kind, seq, step, None, b""), f"{n} directions and {m} losses do not fit {k}"
    words = struct.unpack_from(f"<{3 * count}f", raw, 24)
    losses = [words[3 * (i // 2) + 1 + i % 2] for i in range(m)]
    record = Record(step, seq, lr, words[0 : 3 * n : 3], tuple(losses), flags, check, decay)
    wrong = unfit(record, k)
    absent = [
        *range(24 + 12 * n, 24 + 12 * count, 12),
        *(28 + 12 * (i // 2) + 4 * (i % 2) for i in range(m, 2 * count)),
    ]
    if any(raw[24 + 12 * count : -16]) or any(any(raw[at : at + 4]) for at in absent):  # bytes, not values: -0.0 is one
        wrong = wrong or "padding is not zero"
    return Slot(kind, seq, step, record, b""), wrong


def chain(previous: bytes, body: bytes) -> bytes:
    return hashlib.sha256(previous + body).digest()[:16]


def unfinished(raw: bytes) -> bool:
    """Is a sector of this slot still zero? In a whole slot the first has its kind and the last its chain value."""
    return not all(any(raw[i : i + SECTOR]) for i in range(0, len(raw), SECTOR))


def agree(where: object, step: int, known: bytes, digest: Callable[[], bytes]) -> None:
    """ReplayError unless `digest()`, the SHA-256 of the state after `step` steps, begins with what the log says."""
    if known != (found := digest()[:24]):
        raise ReplayError(
            f"{where}: after step {step} the state is {found[:6].hex()}.. and the log says {known[:6].hex()}..: "
            "replay differs. `zoedge verify --replay` names the first step, tensor and element."
        )


class Log:
    """One open log. `open` reads; `resume` also locks, cuts a torn tail off and appends. Use as a context manager."""

    def __init__(self, path: Path, header: Header, fd: int, writable: bool):
        self.path, self.header, self._fd, self.writable = path, header, fd, writable
        self.state = State()
        self.seq = 0
        self.torn = 0  # bytes of an unfinished write after the last whole slot; `resume` has cut them off
        self.wrong = ""  # what is wrong with slot `seq`, if it is damaged
        self._chain = b""
        self._unsynced = 0

    # -- opening

    @classmethod
    def create(cls, path: Path, header: Header) -> Log:
        """A new log at `path`, durable with its directory entry when this returns. FileExistsError if there is one."""
        raw = header.encode()
        log = cls(path, header, -1, True)
        try:
            log._fd = storage.publish(path, raw, replace=False, ready=log._lock)  # nobody sees it unlocked, or in part
        except FileExistsError:
            raise
        except OSError as e:
            raise StorageError(f"{path}: cannot create the log: {e.strerror}.") from e
        log._chain = raw[480:496]
        log._hold()
        return log

    @classmethod
    def open(cls, path: Path) -> Log:
        """Read-only. DamagedError names slot, offset and step; a torn tail is counted in `torn`, not an error."""
        return cls._scan(path, os.O_RDONLY)

    @classmethod
    def resume(cls, path: Path) -> Log:
        """For appending: LockedError if another process has it; a torn tail is moved to `.torn` and cut off."""
        return cls._scan(path, os.O_RDWR)

    @classmethod
    def inspect(cls, path: Path) -> Log:
        """Locked, and read up to its damage (`wrong`), for repair: nothing is changed, and nothing can be appended."""
        return cls._scan(path, os.O_RDWR, inspect=True)

    @classmethod
    def _scan(cls, path: Path, mode: int, inspect: bool = False) -> Log:
        fd = open_file(path, mode)
        try:
            head = os.pread(fd, 512 + BLOCK_LIMIT, 0)
            header, _ = Header.decode(head, str(path))
            log = cls(path, header, fd, mode == os.O_RDWR)
            if log.writable:
                if header.minor > MINOR:
                    raise DamagedError(f"{path}: written by a newer zoedge; this one can read it, not extend it.")
                log._lock(fd)
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
        """Fold in what stands behind the slots that were read; stops at damage, which `wrong` then names."""
        size, offset, end = self.header.slot_size, self.size, os.fstat(self._fd).st_size
        self.wrong = ""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(offset)
            # `end` is fixed: another process may be writing this run
            while end - offset >= size and len(raw := file.read(size)) == size:
                value, wrong = chain(self._chain, raw[:-16]), ""
                if value != raw[-16:]:
                    if unfinished(raw) and -(-(end - offset) // size) <= self.header.sync_every:
                        break
                    wrong = "its chain value does not match"
                else:
                    slot, wrong = decode_slot(raw, self.header.directions)
                    wrong = wrong or ("" if slot.seq == self.seq else f"it says it is slot {slot.seq}")
                    wrong = wrong or self.state.fold(slot)
                if wrong:
                    self.wrong = wrong
                    break
                self._chain, self.seq, offset = value, self.seq + 1, offset + size
        self.torn = end - offset

    def _mend(self) -> None:
        """Cut a torn tail off, and make the rest durable: a killed process may have left it in the kernel's cache."""
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

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"{self.path}: another zoedge process{self._holder()} is writing this run. Wait for it, or stop it."
            ) from None

    def _hold(self) -> None:
        """Say beside the log who has it. Only for the sentence of who does not get it: the lock is the kernel's."""
        _held.add(self)
        with suppress(OSError):
            fd = storage.Disk().open(self._lockfile, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with os.fdopen(fd, "w") as file:
                file.write(f"{os.getpid()} {platform.node()} {boot()}\n")

    def _holder(self) -> str:
        with suppress(OSError, ValueError, StorageError), os.fdopen(open_file(self._lockfile), "rb") as file:
            found = re.fullmatch(r"([0-9]{1,9}) ([\w.-]{1,255})(?: ([\w-]{1,64}))?\n", file.read(400).decode())
            if found and not (found[2] == platform.node() and found[3] and found[3] != boot()):  # before a reboot
                return f" (pid {found[1]} on {found[2]})"
        return ""

    @property
    def _lockfile(self) -> Path:
        return self.path.with_suffix(".lock")

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
    def place(self) -> str:
        """Where its damage is."""
        return f"damaged at slot {self.seq} (byte {self.size}, after {len(self)} steps)"

    @property
    def size(self) -> int:
        """Bytes of the header and the whole slots."""
        return self.header.length + self.seq * self.header.slot_size

    # -- writing

    def append(self, record: Record) -> Record:
        """Make a step durable; returns it as it will be read back (losses rounded to float32).

        StorageError: it is not logged and MUST NOT be applied; nothing more will be written. ValueError: a bug of ours.
        """
        if record.seq != self.seq:  # its direction was drawn for another slot
            raise ValueError(f"refusing to log slot {self.seq}: the record was measured for slot {record.seq}")
        slot = self._put(STEP, record.step, record)
        assert slot.record is not None
        return slot.record

    def seal(self, step: int, digest: Callable[[], bytes]) -> None:
        """`digest()` is the SHA-256 of the state after `step` steps: logged if it is due, compared if it is known."""
        due = self.writable and step == len(self) and step % self.header.hash_every == 0
        if (known := self.state.hashes.get(step)) is not None:
            agree(self.path, step, known, digest)
        elif due:
            point("hash.before")
            self._put(HASH, step, digest=digest())
            point("hash.after")

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
        """END: the final state's SHA-256. Nothing can follow. ReplayError: the log says another state."""
        if (known := self.state.hashes.get(len(self))) is not None:
            agree(self.path, len(self), known, lambda: digest)
        if self.state.end is None:
            self._put(END, len(self), digest=digest)

    def _put(self, kind: int, step: int, record: Record | None = None, digest: bytes = b"") -> Slot:
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
        value = chain(self._chain, body)
        self.writable = False  # whatever interrupts from here on, Ctrl-C too, leaves a tail that nothing may follow
        try:
            point("append.before")
            storage.write_all(self._fd, body + value, "append.mid")
            point("append.after")
        except OSError as e:
            raise StorageError(
                f"{self.path}: the log could not be written at step {step}: {e.strerror}. What was synced is safe; "
                "free space (or mend the disk) and `zoedge resume`."
            ) from e
        self._unsynced += 1
        if self._unsynced >= self.header.sync_every or kind == END:
            self.sync()
        self.state.fold(slot)
        self._chain, self.seq, self.writable = value, self.seq + 1, True
        return slot

    def sync(self) -> None:
        """Make all that was appended durable. After a failed sync nothing is tried again: the page may be dropped."""
        writable, self.writable = self.writable, False
        try:
            point("sync.before")
            storage.disk.datasync(self._fd)
            point("sync.after")
        except OSError as e:
            raise StorageError(
                f"{self.path}: the log could not be synced: {e.strerror}. What was synced before is safe; mend the "
                "disk and `zoedge resume`."
            ) from e
        self._unsynced, self.writable = 0, writable

    def close(self) -> None:
        """Sync what is not synced yet, and free the lock."""
        if self._fd >= 0:
            try:
                if self.writable and self._unsynced:
                    self.sync()
            finally:
                if self in _held:
                    _held.remove(self)
                    with suppress(OSError):
                        self._lockfile.unlink()
                self.writable = False
                fd, self._fd = self._fd, -1
                os.close(fd)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def boot() -> str:
    """Which start of this machine it is: after a reboot a pid is somebody else's. Linux; elsewhere '-'."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "-"


def open_file(path: Path, mode: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file, no symlink; a pipe does not make us wait."""
    try:
        fd = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as e:
        raise StorageError(f"{path}: cannot open the log: {e.strerror}.") from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StorageError(f"{path}: cannot open the log: not a regular file.")
    return fd


_held: weakref.WeakSet[Log] = weakref.WeakSet()


def _forked() -> None:
    """In a forked child: its copy of the descriptor would keep the lock after the owner's death, and could append."""
    for log in list(_held):
        os.close(log._fd)
        log._fd, log.writable = -1, False
    _held.clear()


os.register_at_fork(after_in_child=_forked)
