"""The log: byte for byte what its page says; whole or refused, whatever happens to file, disk or process."""

from __future__ import annotations

import errno
import hashlib
import itertools
import math
import os
import random
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.faults import OPS, SHA, header, note, put, same, states, step, write
from helpers.logs import BYTES, FORGED, FORGED_SLOTS, S, forge
from hypothesis import given, settings
from hypothesis import strategies as st

from zoedge.core import canonical, storage
from zoedge.core.exact import bits16
from zoedge.core.types import CLIPPED, SKIPPED, Record
from zoedge.errors import DamagedError, LockedError, ReplayError, StorageError, UsageError
from zoedge.log import lock
from zoedge.log import log as log_module
from zoedge.log.header import Header
from zoedge.log.log import Log
from zoedge.log.packed import PackedLog
from zoedge.log.slots import HASH, NOTE, REWIND, SESSION, STEP


@pytest.fixture
def fds() -> Iterator[None]:
    """The test leaves as many files open as it found."""
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    yield
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


# -- the bytes


def test_the_bytes(tmp_path: Path) -> None:
    block = canonical.encode_canonical({"name": "zo\xe9", "lr": 0.75})
    head = replace(header(block=block), seed=0x0123456789ABCDEF)
    with Log.create(tmp_path / "run.zlog", head) as log:
        log.session(SHA[0xAA])
        log.append(Record(0, 1, 2.0**-10, (1.5,), (0.75, 0.5), 0, 0xCBF43926))
        log.append(Record(1, 2, 2.0**-11, (-0.25, 3.0), (0.5, 0.625, 2.0), CLIPPED, 1, 0.9999))
        log.seal(2, lambda: SHA[0xBB])
        log.append(Record(2, 4, 2.0**-12, (0.0,), (math.nan, math.inf), SKIPPED, 2))
        log.rewind(2)
        note(log)
        log.finish(SHA[0xBB])
        assert log.size == len(BYTES) and log.fingerprint == BYTES[-16:].hex()
    assert (tmp_path / "run.zlog").read_bytes() == BYTES
    back = Log.open(tmp_path / "run.zlog")
    assert back.header == replace(head, run_id=BYTES[32:48]) and back.header.encode() == BYTES[:1024]
    assert back.header.about == {"name": "zo\xe9", "lr": 0.75}
    assert list(back) == [
        Record(0, 1, 2.0**-10, (1.5,), (0.75, 0.5), 0, 0xCBF43926),
        Record(
            1,
            2,
            2.0**-11,
            (-0.25, 3.0),
            (0.5, 0.625, 2.0),
            CLIPPED,
            1,
            struct.unpack("<f", struct.pack("<f", 0.9999))[0],
        ),
    ]
    assert back.state.hashes == {2: SHA[0xBB][:24]} and back.state.end == SHA[0xBB][:24]
    assert (back.state.sessions, back.state.rewinds, back.seq, back.torn) == (1, 1, 8, 0)


def test_the_chain_is_what_the_page_says() -> None:
    """Recomputed with hashlib alone."""
    assert hashlib.sha256(BYTES[:480] + BYTES[512 : 512 + 43]).digest() == BYTES[480:512]
    link = BYTES[480:496]
    for at in range(1024, len(BYTES), 64):
        link = hashlib.sha256(link + BYTES[at : at + 48]).digest()[:16]
        assert link == BYTES[at + 48 : at + 64]


def test_header_offsets_are_the_tables() -> None:
    """Each field changes the bytes that the docstring's table gives it, and no others before the digest."""
    base = replace(header(), run_id=bytes(16))
    raw, table = base.encode(), log_module.__doc__ or ""
    fields: dict[str, tuple[int, int, str, Any]] = {
        "minor": (8, 4, "2+2  format", 0x0101), "directions": (22, 2, "K: directions", 1),
        "noise": (24, 4, "noise scheme id", 2**32 - 1), "rule": (28, 4, "rule id", 2**32 - 1),
        "run_id": (32, 16, "run id", SHA[255][:16]), "seed": (48, 8, "run seed", 2**64 - 1),
        "elements": (56, 8, "trained elements", 2**64 - 1), "hash_every": (64, 4, "hash_every", 2**32 - 1),
        "sync_every": (68, 4, "sync_every", 4096), "recipe": (96, 32, "sha256 of the recipe", SHA[255]),
        "base": (128, 32, "base identity", SHA[255]), "tokenizer": (160, 32, "tokenizer digest", SHA[255]),
        "data": (192, 32, "data digest", SHA[255]), "manifest": (224, 32, "parameter manifest", SHA[255]),
        "initial": (256, 32, "initial state", SHA[255]), "selftest": (288, 32, "self-test", SHA[255]),
    }  # fmt: skip
    for name, (at, size, words, value) in fields.items():
        assert re.search(rf"\b{at} +({size} +)?{re.escape(words)}", table), name
        other = replace(base, **{name: value}).encode()
        changed = {i for i in range(480) if raw[i] != other[i]}
        assert changed and changed <= set(range(at, at + size)), name
    for at, size, words in ((0, 8, "magic"), (12, 4, "header_len"), (16, 4, "block_len"), (20, 2, "slot_size"),
                            (72, 24, "zero"), (320, 160, "zero"), (480, 32, "sha256 of bytes 0..479")):  # fmt: skip
        assert re.search(rf"\b{at} +{size} +{words}", table), words
    assert struct.unpack_from("<II", replace(base, block=bytes(513)).encode(), 12) == (512 + 1024, 513)


def test_slot_size_follows_from_the_directions() -> None:
    sizes = {64: (1, 2), 128: (3, 7), 256: (8, 18), 512: (19, 39), 1024: (40, 82)}
    for size, (least, most) in sizes.items():
        assert all(header(k).slot_size == size for k in range(least, most + 1))
        assert 40 + 12 * most <= size < 40 + 12 * (most + 1)
    with pytest.raises(UsageError, match=r"83 directions .* 82 at most. Lower estimator.queries"):
        header(83).encode()


@pytest.mark.parametrize(
    "wrong", [{"directions": 0}, {"hash_every": 0}, {"sync_every": 0}, {"sync_every": 4097}, {"hash_every": 2**32},
              {"block": bytes(2**20 + 1)}, {"seed": -1}, {"base": b"short"}, {"base": bytes(33)}, {"run_id": b"short"}]
)  # fmt: skip
def test_a_header_that_could_not_be_read_is_not_written(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, DamagedError)):
        Log.create(tmp_path / "run.zlog", replace(header(), **wrong))
    assert not list(tmp_path.iterdir())


WEIGHTS = st.floats(width=32, allow_nan=False, allow_infinity=False).map(bits16).filter(lambda x: abs(x) < 2.0**128)
LOSSES = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def scripts(draw: st.DrawFn) -> tuple[Header, list[tuple[Any, ...]]]:
    """A header and what to log: mostly steps."""
    k = draw(st.integers(1, 9) | st.sampled_from([18, 19, 39, 40, 82]))
    head = header(k, draw(st.sampled_from([1, 2, 4096])), draw(st.integers(1, 3)), draw(st.integers(0, 2**64 - 1)))
    ops: list[tuple[Any, ...]] = []
    for kind in draw(st.lists(st.sampled_from([STEP] * 6 + [SESSION, REWIND, NOTE]), max_size=12)):
        if kind == STEP:
            flags = draw(st.integers(0, 7))
            g = draw(st.lists(st.just(0.0) if flags & SKIPPED else WEIGHTS, min_size=1, max_size=k))
            losses = draw(st.lists(LOSSES, max_size=2 * k))
            decay = draw(st.floats(width=32, min_value=2.0**-140, max_value=1.0))
            ops.append((STEP, draw(WEIGHTS), tuple(g), tuple(losses), flags, draw(st.integers(0, 2**32 - 1)), decay))
        else:
            ops.append((kind, draw(st.integers(0, 20))))
    return head, ops


def single(x: float) -> float:
    """float32, as IEEE 754 rounds: beyond its range infinite."""
    return (
        x * math.inf
        if math.isfinite(x) and abs(x) >= 2.0**128 - 2.0**103
        else struct.unpack("<f", struct.pack("<f", x))[0]
    )


@settings(max_examples=150, deadline=None)
@given(scripts())
def test_what_is_logged_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, script: tuple[Header, list[Any]]
) -> None:
    head, ops = script
    path = tmp_path_factory.mktemp("log") / "run.zlog"
    kept: list[Record] = []
    with pytest.MonkeyPatch.context() as patch, Log.create(path, head) as log:
        patch.setattr(os, "fdatasync", lambda fd: None)
        for kind, *more in ops:
            if kind == STEP:
                lr, g, losses, flags, check, decay = more
                wanted = Record(len(log), log.next_seq, lr, g, tuple(map(single, losses)), flags, check, decay)
                kept.append(log.append(wanted._replace(losses=losses)))
                assert repr(kept[-1]) == repr(wanted) and kept[-1].coefficients == wanted.coefficients
                log.seal(len(log), lambda: SHA[len(kept)])
            elif kind == REWIND and more[0] < len(log):
                log.rewind(more[0])
                del kept[more[0] :]
            elif kind == SESSION:
                log.session(SHA[more[0]])
        log.finish(SHA[len(kept)])
    assert path.stat().st_size == head.length + log.seq * head.slot_size
    back = Log.open(path)
    assert same(back.state, log.state) and repr(list(back)) == repr(kept)
    assert back.fingerprint == log.fingerprint and back.header == log.header.decode(log.header.encode(), "")[0]


def test_20000_steps_fit_in_1_300_000_bytes(tmp_path: Path, unsynced: None) -> None:
    shapes = [[f"model.layers.{i}.self_attn.{m}_proj", 576, 576] for i in range(4) for m in "qkvogud"]
    head = header(
        1, 1, 100, block=canonical.encode_canonical({"recipe": {"text": "x" * 1600}, "space": {"shapes": shapes}})
    )
    with Log.create(tmp_path / "run.zlog", head) as log:
        log.session(SHA[1])
        for i in range(20_000):
            log.append(Record(i, log.seq, bits16(1e-3 * (1 - i / 20_000)), (bits16(math.sin(i)),), (0.5, 0.25), 0, i))
            log.seal(i + 1, lambda: SHA[2])
        log.finish(SHA[2])
    assert log.size == head.length + 64 * 20_202 <= 1_300_000
    assert (tmp_path / "run.zlog").stat().st_size == log.size and len(Log.open(tmp_path / "run.zlog")) == 20_000


# -- damage


def test_flips_that_cannot_be_told(tmp_path: Path, unsynced: None) -> None:
    """In the torn part of a file a flip is one more way to be torn: the prefix is the same. All 320 bits of it."""
    head = header()
    raw = write(tmp_path / "run.zlog", head)[: head.length + 5 * 64 + 40]
    want = states(head, raw[:-40])[5]
    for at, bit in itertools.product(range(len(raw) - 40, len(raw)), range(8)):
        put(tmp_path / "run.zlog", raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
        log = Log.open(tmp_path / "run.zlog")
        assert log.torn == 40 and same(log.state, want)


def test_moved_slots_are_refused(tmp_path: Path, unsynced: None) -> None:
    """Deleted, repeated, swapped, and from another run; the one that cannot be told is a cut at a slot's boundary."""
    head = header()
    raw = write(tmp_path / "a.zlog", head)
    start, own = raw[: head.length], [raw[i : i + 64] for i in range(head.length, len(raw), 64)]
    n, path = len(own), tmp_path / "bad.zlog"
    cases = [own[:i] + own[i + 1 :] for i in range(n - 1)]
    cases += [own[: i + 1] + own[i:] for i in range(n)] + [[*own, slot] for slot in own]
    cases += [[own[{i: j, j: i}.get(k, k)] for k in range(n)] for i, j in itertools.combinations(range(n), 2)]
    for other in (header(seed=8), header()):  # another run, and another run of the same recipe: both part at slot 1
        theirs = write(tmp_path / f"{other.seed}.zlog", other, [OPS[0], lambda log: step(log, (1.25,)), *OPS[2:]])
        slots = [theirs[i : i + 64] for i in range(head.length, len(theirs), 64)]
        cases += [[*own[:i], slots[i], *own[i + 1 :]] for i in range(1, n - 1)]
        cases += [own[:i] + slots[i:] for i in range(2, n)] + [slots[:i] + own[i:] for i in range(2, n)]
    for case in cases:
        put(path, start + b"".join(case))
        with pytest.raises(DamagedError):
            Log.open(path)
    assert len(cases) == 12 + 13 + 13 + 78 + 2 * (11 + 11 + 11)
    path.write_bytes(start + b"".join(own[:-1]))
    log = Log.open(path)
    assert log.torn == 0 and log.state.end is None and log.fingerprint != Log.open(tmp_path / "a.zlog").fingerprint


@pytest.mark.parametrize("k", [2, 39, 40])
@pytest.mark.parametrize("sync_every", [1, 4, 4096])
def test_zeros_are_torn_only_within_sync_every(tmp_path: Path, unsynced: None, k: int, sync_every: int) -> None:
    head = header(k, sync_every)
    raw = write(tmp_path / "run.zlog", head)
    size, path, n = head.slot_size, tmp_path / "zero.zlog", len(OPS)
    meant = states(head, raw)

    def check(data: bytes, first: int, what: str) -> None:
        put(path, data)
        if n - first <= sync_every and what == "unwritten":
            log = Log.open(path)
            assert log.torn == len(data) - log.size and log.seq == first and same(log.state, meant[first])
        else:
            with pytest.raises(DamagedError, match=f"slot {first} "):
                Log.open(path)

    for first in range(n):
        at = head.length + first * size
        check(raw[:at] + bytes(len(raw) - at), first, "unwritten")
        check(raw[:at] + bytes(size) + raw[at + size :], first, "unwritten")  # a later sector came first
        check(raw[:at] + b"\1" + bytes(size - 1) + raw[at + size :], first, "unwritten" if size == 1024 else "damage")
        half = "unwritten" if size == 1024 else "damage"  # sectors of 512 bytes: only such a slot can be half written
        check(raw[:at] + bytes(size // 2) + raw[at + size // 2 :], first, half)
        check(raw[: at + size // 2] + bytes(size // 2) + raw[at + size :], first, half)
        check(raw[: at + 8] + bytes(size - 8) + raw[at + size :], first, half)
        check(raw[: at + 8] + b"\xff" * (size - 8) + raw[at + size :], first, "damage")


@pytest.mark.parametrize("what", FORGED)
def test_forged_headers(tmp_path: Path, what: str, fds: None) -> None:
    (tmp_path / "run.zlog").write_bytes(forge(BYTES, *FORGED[what]))
    tracemalloc.start()
    try:
        for opener in (Log.open, Log.resume):
            with pytest.raises(DamagedError):
                opener(tmp_path / "run.zlog")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_newer_minor_is_read_and_not_extended(tmp_path: Path) -> None:
    (tmp_path / "run.zlog").write_bytes(forge(BYTES, 10, b"\1\0"))
    log = Log.open(tmp_path / "run.zlog")
    assert len(log) == 2 and log.header.encode() == forge(BYTES, 10, b"\1\0")[:1024]
    with pytest.raises(DamagedError, match="newer zoedge"):
        Log.resume(tmp_path / "run.zlog")


@pytest.mark.parametrize("what", FORGED_SLOTS)
def test_forged_slots(tmp_path: Path, what: str) -> None:
    """With a right chain, a slot is still refused if no writer could have written it."""
    (tmp_path / "run.zlog").write_bytes(forge(BYTES, *FORGED_SLOTS[what]))
    with pytest.raises(DamagedError, match="damaged at slot"):
        Log.open(tmp_path / "run.zlog")


def test_the_forger_can_forge(tmp_path: Path) -> None:
    (tmp_path / "run.zlog").write_bytes(forge(BYTES, S + 24, struct.pack("<f", -7.0)))
    assert Log.open(tmp_path / "run.zlog")[0].g == (-7.0,)  # tamper-evident (the fingerprint), not a signature


def test_only_damagederror_comes_out_of_a_header() -> None:
    """30,000 seeded mutations, half of them with the digest made right."""
    chance, refused = random.Random(1), 0
    for i in range(30_000):
        raw = bytearray(BYTES[: chance.choice((1024, 1024, 1024, chance.randrange(1100)))])
        for _ in range(chance.randrange(1, 5)):
            if raw:
                at = chance.randrange(min(len(raw), chance.choice((96, 512, 1024))))
                raw[at : at + chance.choice((1, 2, 4))] = chance.randbytes(chance.choice((1, 2, 4)))
        data = forge(bytes(raw), 0, b"") if i % 2 and len(raw) >= 512 else bytes(raw)
        try:
            header_, length = Header.decode(data, "f")
        except DamagedError:
            refused += 1
            continue
        assert header_.encode() == data[:length]
        try:
            header_.about  # noqa: B018
        except DamagedError:
            refused += 1
    assert 15_000 < refused < 30_000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=1200), st.booleans())
def test_only_damagederror_comes_out_of_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, magic: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.zlog"
    path.write_bytes(BYTES[:8] + raw if magic else raw)
    with pytest.raises(DamagedError):
        Log.open(path)


BLOCKS = [
    b"", b"[]", b"1", b'"a"', b"null", b"{", b'{"a":1,"a":2}', b'{ "a":1}', b'{"b":1,"a":2}', b'{"a":NaN}', b"{}\0",
    b'{"a":-Infinity}', b'{"a":"\xff"}', b"[" * 99_999, b'{"a":' * 99_999, b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"a":1.5}',
    b'{"a":' * 900 + b"1" + b"}" * 900, b'{"a":' + b"9" * 5000 + b"}", b'{"a":"\\ud800"}', b'{"a":"\\u0061"}',
    b'{"a":1e999}', b'{"a":"0x1.8p+99999999"}', b'{"a":"0x1.0000000000000p+1024"}',
]  # fmt: skip


@pytest.mark.parametrize("i", range(len(BLOCKS)))
def test_a_block_that_is_not_an_object_is_refused_when_it_is_read(tmp_path: Path, i: int) -> None:
    path = tmp_path / "run.zlog"
    Log.create(path, header(block=BLOCKS[i])).close()
    log = Log.open(path)
    with pytest.raises(DamagedError, match=f"{re.escape(str(path))}: the header's block cannot be read"):
        log.header.about  # noqa: B018


def test_words_that_look_like_floats() -> None:
    """A string in Python's own spelling of a float is the one thing that does not come back as it went in."""
    for word, back in (("0x1.8p+1", "0x1.8p+1"), ("0x1.8000000000000p+1", 3.0), ("nan", "nan"), ("-0x0.0p+0", -0.0)):
        assert header(block=canonical.encode_canonical({"a": word})).about == {"a": back}


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(TEXT, JSON, max_size=4))
def test_canonical_json_is_read_back(value: dict[str, Any]) -> None:
    block = canonical.encode_canonical(value)
    assert canonical.encode_canonical(dict(reversed(value.items()))) == block and header(block=block).about == value
    assert canonical.encode_canonical(header(block=block).about) == block  # also -0.0 and 1 against 1.0


# -- one writer, one file

HOLDER = """
import sys, time
from pathlib import Path
from zoedge.errors import LockedError
from zoedge.log.log import Log
try:
    log = Log.resume(Path(sys.argv[1]))
except LockedError as e:
    sys.exit(e.exit_code)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_refused_at_once(tmp_path: Path, fds: None) -> None:
    path = tmp_path / "run.zlog"
    with Log.create(path, header()) as log:
        step(log)
        for _ in range(3):
            with pytest.raises(LockedError, match="another zoedge process"):
                Log.resume(path)
        assert subprocess.run([sys.executable, "-c", HOLDER, str(path)], check=False, timeout=30).returncode == 6
        assert len(Log.open(path)) == 1  # reading needs no lock
        step(log)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(LockedError):
        Log.resume(path)
    holder.kill()
    holder.wait(30)
    holder.stdout.close()
    with Log.resume(path) as log:  # the kernel freed the lock
        step(log)
    assert len(Log.open(path)) == 3


def test_only_regular_files_are_opened(tmp_path: Path, fds: None) -> None:
    path = tmp_path / "run.zlog"
    write(path, header())
    (tmp_path / "link.zlog").symlink_to(path)
    (tmp_path / "nowhere.zlog").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe.zlog")
    for name in ("link.zlog", "nowhere.zlog", "pipe.zlog", ".", "absent.zlog", "absent/run.zlog", "run.zlog/x"):
        for opener in (Log.open, Log.resume):
            with pytest.raises(StorageError, match="cannot open the log") as e:
                opener(tmp_path / name)
            assert e.value.exit_code == 74
    for name in ("run.zlog", "link.zlog", "nowhere.zlog"):
        with pytest.raises(FileExistsError):
            Log.create(tmp_path / name, header())
    with pytest.raises(StorageError, match="cannot create"):
        Log.create(tmp_path / "absent" / "run.zlog", header())
    assert not (tmp_path / "absent").exists()


def test_the_torn_file_is_not_a_way_out(tmp_path: Path, fds: None) -> None:
    """A symlink in its place is not followed, and then nothing is cut."""
    path = tmp_path / "run.zlog"
    raw = write(path, header())[:-1]
    path.write_bytes(raw)
    (tmp_path / "run.torn").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError):
        Log.resume(path)
    assert path.read_bytes() == raw and not (tmp_path / "victim").exists()


def test_reading_a_log_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size was taken before another process went on: what is read is a prefix, and nothing is torn."""
    path, pread = tmp_path / "run.zlog", os.pread
    with Log.create(path, header(sync_every=9)) as log:
        step(log)
        # before its header is read, and before its slots are
        monkeypatch.setattr(os, "pread", lambda *args: (step(log), pread(*args))[1])
        seen = Log.open(path)
        assert (len(seen), seen.torn, seen.size) == (2, 0, log.size - 64)
        monkeypatch.setattr(os, "pread", pread)


# -- the disk fails


class Disk:
    """Counts what reaches the disk, and fails at one call: after `short` bytes, with `number`."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.writes = self.syncs = 0
        self.fail_write = self.fail_sync = -1
        self.short, self.error = 0, OSError(errno.EIO, "injected")
        self._write = os.write
        patch.setattr(os, "write", self.write)
        patch.setattr(os, "fdatasync", self.sync)
        patch.setattr(os, "fsync", lambda fd: None)

    def write(self, fd: int, data: bytes) -> int:
        self.writes += 1
        if self.writes - 1 != self.fail_write:
            return self._write(fd, data)
        if self.short:
            short, self.short = self.short, 0
            self.fail_write += 1  # the rest fails
            return self._write(fd, data[:short])
        raise self.error

    def sync(self, fd: int) -> None:
        self.syncs += 1
        if self.syncs - 1 == self.fail_sync:
            raise self.error


def refused(log: Log) -> None:
    """Nothing more is written."""
    size = log.path.stat().st_size
    assert not log.writable
    state = log.state.hashes.get(len(log), SHA[9])
    for op in (step, note, lambda log: log.rewind(0), lambda log: log.session(SHA[9]), lambda log: log.finish(state)):
        with pytest.raises(StorageError):
            op(log)  # type: ignore[operator]
    log.seal(len(log), lambda: state)
    assert log.path.stat().st_size == size


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, real = write(tmp_path / "whole.zlog", header()), os.write
    for most in range(1, 65):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: real(fd, data[:most]))
            patch.setattr(os, "fdatasync", lambda fd: None)
            patch.setattr(os, "fsync", lambda fd: None)
            assert write(tmp_path / f"{most}.zlog", header()) == raw
    with Log.create(tmp_path / "run.zlog", header()) as log, monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: 0)
        with pytest.raises(StorageError):
            step(log)


@pytest.mark.parametrize("sync_every", [1, 3, 100])
def test_every_failed_sync_is_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_every: int, fds: None
) -> None:
    """A failed fdatasync is not tried again, what it was for is not in the log's state, and close does not sync."""
    head = header(sync_every=sync_every)
    raw = write(tmp_path / "whole.zlog", head)
    meant, path = states(head, raw), tmp_path / "run.zlog"
    after = {1: [*range(13)], 3: [0, 3, 6, 7, 8, 10, 12], 100: [0, 3, 6, 7, 8, 10, 12]}[sync_every]  # slots but steps
    for call, seq in enumerate(after):
        put(path, raw[: head.length])
        with monkeypatch.context() as patch:
            log = Log.resume(path)
            disk = Disk(patch)
            disk.fail_sync = call
            with pytest.raises(StorageError, match="could not be synced: injected") as e:
                for op in OPS:
                    op(log)
            assert e.value.exit_code == 74 and same(log.state, meant[log.seq])
            assert log.seq == seq
            refused(log)
            log.close()
            log.close()
            assert disk.syncs == call + 1
        assert Log.open(path).seq == log.seq + 1  # whole; durable or not, only the disk knows


def test_a_failed_sync_at_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fds: None) -> None:
    log = Log.create(tmp_path / "run.zlog", header(sync_every=9))
    step(log)
    disk = Disk(monkeypatch)
    disk.fail_sync = 0
    with pytest.raises(StorageError):
        log.close()
    log.close()
    refused(log)
    assert disk.syncs == 1
    with Log.resume(tmp_path / "run.zlog") as log:
        disk.fail_sync = 1
        with pytest.raises(StorageError):
            log.sync()
        refused(log)
    assert disk.syncs == 2


def test_ctrl_c_within_a_write_closes_the_log_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the write and the bookkeeping: a slot that followed would be chained to the wrong one."""
    for name in ("write", "fdatasync"):
        path, real = tmp_path / f"{name}.zlog", getattr(os, name)
        with Log.create(path, header()) as log, monkeypatch.context() as patch:
            step(log)

            def interrupted(*args: Any, real: Any = real) -> None:
                real(*args)
                raise KeyboardInterrupt

            patch.setattr(os, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                step(log)
            patch.undo()
            refused(log)
        assert len(Log.open(path)) == 2
        with Log.resume(path) as log:
            step(log)
        assert len(Log.open(path)) == 3


@pytest.mark.parametrize("name, create", [("write", True), ("fsync", True), ("fsync", False), ("ftruncate", False)])
def test_a_disk_that_fails_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, create: bool, fds: None
) -> None:
    path = tmp_path / "run.zlog"
    raw = b"" if create else write(path, header())[:-1]
    path.write_bytes(raw) if raw else None

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(StorageError) as e:
            Log.create(path, header()) if create else Log.resume(path)
        assert e.value.exit_code == 74
    assert path.read_bytes() == raw if raw else not path.exists()  # no half header stands in the way of the next try
    with Log.resume(path) if raw else Log.create(path, header()) as log:
        assert log.seq == (12 if raw else 0)


# -- durable before it is applied


@pytest.mark.parametrize("sync_every", [1, 3])
def test_a_record_is_durable_when_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_every: int
) -> None:
    events: list[str] = []
    write_, fdatasync, fsync = os.write, os.fdatasync, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: (events.append("write"), write_(fd, data))[1])
    monkeypatch.setattr(os, "fdatasync", lambda fd: (events.append("sync"), fdatasync(fd))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    log = Log.create(tmp_path / "run.zlog", header(sync_every=sync_every, hash_every=100))
    assert events == ["write", "fsync", "fsync"]  # the file, then its directory
    for i in range(1, 8):
        events.clear()
        step(log)
        assert events == (["write", "sync"] if i % sync_every == 0 else ["write"])
    events.clear()
    log.close()
    assert events == ([] if sync_every == 1 else ["sync"])
    events.clear()
    with Log.resume(tmp_path / "run.zlog") as log:
        assert events == [
            "fsync"
        ]  # a killed process may have left slots in the kernel's cache: durable before replayed
        events.clear()
        log.finish(SHA[1])
        assert events == ["write", "sync"]
        events.clear()
    assert not events


# -- what slots mean


def test_rewind(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    with Log.create(path, header(hash_every=2)) as log:
        for i in range(6):
            step(log, (float(i),))
            log.seal(i + 1, lambda: SHA[i])
        assert log.state.hashes.keys() == {2, 4, 6} and log.next_seq == 9
        for target in (6, 7, 2**32 - 1):
            with pytest.raises(ValueError, match="rewind"):
                log.rewind(target)
        log.rewind(3)
        assert [r.g[0] for r in log] == [0, 1, 2] and log.state.hashes.keys() == {2} and log.next_seq == 10
        assert step(log, (9.0,)).seq == 10 and len({r.seq for r in log}) == 4
        log.seal(4, lambda: SHA[99])
        assert log.state.hashes[4] == SHA[99][:24]
        log.rewind(0)
        assert not len(log) and not log.state.hashes and log.next_seq == 13
        step(log, (8.0,))
    back = Log.open(path)
    assert [(r.step, r.seq, r.g[0]) for r in back] == [(0, 13, 8.0)] and back.state.rewinds == 2


def test_nothing_follows_end(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    raw = write(path, header())
    with Log.resume(path) as log:
        for op in (step, note, lambda log: log.rewind(0), lambda log: log.session(SHA[1])):
            with pytest.raises(ValueError, match="after END"):
                op(log)  # type: ignore[operator]
        log.finish(SHA[0xBE])
        with pytest.raises(ReplayError):
            log.finish(SHA[0])
        assert not log.session(SHA[0xAA])
    assert path.read_bytes() == raw


def test_seal_logs_what_is_due_and_compares_what_is_known(tmp_path: Path) -> None:
    path, asked = tmp_path / "run.zlog", []

    def state(i: int) -> Callable[[], bytes]:
        return lambda: (asked.append(i), SHA[i])[1]

    with Log.create(path, header(hash_every=2)) as log:
        step(log)
        log.seal(1, state(1))
        assert not asked and not log.state.hashes
        step(log)
        log.seal(2, state(2))
        log.seal(2, state(2))  # known now: compared
        assert asked == [2, 2] and log.seq == 3
        with pytest.raises(ReplayError, match=r"run.zlog: after step 2 the state is 070707.* says 020202") as e:
            log.seal(2, state(7))
        assert e.value.exit_code == 8
        for _ in range(3):
            step(log)
        log.seal(4, state(4))  # due, but the log is beyond it
        assert 4 not in log.state.hashes
        with pytest.raises(ValueError, match="stands after"):
            log._put(HASH, 4, digest=SHA[1])
        log.finish(SHA[5])
        with pytest.raises(ReplayError):
            log.seal(5, state(6))  # END's state is compared as well
        log.seal(5, state(5))
    log, asked[:] = Log.open(path), []
    for i in range(6):
        log.seal(i, state(i))
    assert asked == [2, 5] and path.stat().st_size == log.size
    with Log.create(tmp_path / "b.zlog", header(hash_every=1)) as log:
        step(log)
        log.seal(1, state(1))
        with pytest.raises(ReplayError):
            log.finish(SHA[2])  # another final state than the one after its last step
        log.rewind(0)
    log = Log.open(tmp_path / "b.zlog")
    log.seal(0, state(0))  # read-only: nothing is due
    assert not log.state.hashes


def test_sessions_are_logged_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    with Log.create(path, header()) as log:
        assert (log.seq, log.torn, log.wrong) == (0, 0, ""), "a new log"
        assert log.session(SHA[1]) and not log.session(SHA[1])
    with Log.resume(path) as log:
        assert not log.session(SHA[1]) and log.session(SHA[2]) and log.session(SHA[1])
    assert Log.open(path).state.sessions == 3


@pytest.mark.parametrize(
    "wrong", [{"g": (1 + 2.0**-16,)}, {"g": ()}, {"g": (1.0,) * 3}, {"g": (math.nan,)}, {"g": (1e39,)}, {"lr": 1e-3},
              {"g": (1.0,) * 300}, {"losses": (0.5,) * 5}, {"lr": math.inf}, {"decay": 0.0}, {"decay": 1.5},
              {"flags": 8}, {"flags": 256}, {"flags": SKIPPED}, {"step": 3}, {"step": -1}, {"seq": 3}, {"check": 2**32},
              {"check": -1}]
)  # fmt: skip
def test_a_record_that_would_not_be_read_is_not_written(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with Log.create(tmp_path / "run.zlog", header()) as log:
        step(log)
        good = Record(1, 1, 0.5, (1.0,), (0.5,))
        with pytest.raises(ValueError, match="refusing to log slot 1"):
            log.append(good._replace(**wrong))
        assert log.append(good) == good
    assert len(Log.open(tmp_path / "run.zlog")) == 2


def test_a_log_opened_for_reading_is_not_written(tmp_path: Path) -> None:
    write(tmp_path / "run.zlog", header(), OPS[:3])
    before = (tmp_path / "run.zlog").read_bytes()
    refused(Log.open(tmp_path / "run.zlog"))
    assert (tmp_path / "run.zlog").read_bytes() == before


def test_write_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fds: None) -> None:
    path = tmp_path / "file"
    storage.write_durably(path, b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "injected")))
        with pytest.raises(StorageError, match="injected"):
            storage.write_durably(path, b"two")
    assert path.read_bytes() == b"one" and [p.name for p in tmp_path.iterdir()] == ["file"]
    storage.write_durably(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(StorageError):
        storage.write_durably(tmp_path / "absent" / "file", b"")


# -- what only another system, another process or another disk does


def test_elsewhere_there_is_no_name_of_a_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: Path) -> str:
        raise FileNotFoundError

    assert lock.read_boot_id() == lock.read_boot_id()
    monkeypatch.setattr(Path, "read_text", absent)
    assert lock.read_boot_id() == "-"


def test_the_half_of_a_fork_that_must_not_write(tmp_path: Path) -> None:
    """As os.fork calls it in a child, here without one; test_torture_process.py has the child."""
    log = Log.create(tmp_path / "run.zlog", header())
    before, fd = (tmp_path / "run.zlog").read_bytes(), log._fd
    log_module._release_after_fork()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(StorageError, match="not open for writing"):
        step(log)
    log.close()
    assert (tmp_path / "run.zlog").read_bytes() == before and (tmp_path / "run.lock").exists()
    Log.resume(tmp_path / "run.zlog").close()


def test_a_failpoint_is_reached_the_third_time() -> None:
    try:
        storage.arm_failpoint("append.before:3:EDQUOT")
        for _ in range(2):
            storage.reach_failpoint("append.before")
            storage.reach_failpoint("append.after")
        with pytest.raises(OSError, match="injected EDQUOT") as e:
            storage.reach_failpoint("append.before")
        assert e.value.errno == errno.EDQUOT
        storage.reach_failpoint("append.before")
    finally:
        storage.arm_failpoint("")


def test_macos_syncs_past_the_drives_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, int]] = []
    monkeypatch.setattr("fcntl.F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr("fcntl.fcntl", lambda *args: called.append(args))
    storage.Disk().datasync(7)
    assert called == [(7, 51)]


def test_only_what_dead_processes_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 lives, 2 is somebody else's, 3 is dead."""

    def kill(pid: int, number: int) -> None:
        assert number == 0
        if pid != 1:
            raise {2: PermissionError, 3: ProcessLookupError}[pid]

    monkeypatch.setattr(os, "kill", kill)
    for name in (".x.tmp-1", ".x.tmp-2", ".x.tmp-3", f".x.tmp-{os.getpid()}", ".x.old-3", ".y.tmp-3", "x.tmp-3"):
        (tmp_path / name).mkdir()
    (tmp_path / ".x.tmp-03").symlink_to(tmp_path / ".x.old-3")
    (tmp_path / ".x.tmp-003").write_text("")
    storage.remove_leftovers(tmp_path / "x", "tmp")
    left = {".x.tmp-1", ".x.tmp-2", ".x.old-3", ".y.tmp-3", "x.tmp-3", ".x.tmp-03", ".x.tmp-003"}
    assert {p.name for p in tmp_path.iterdir()} == left


@pytest.mark.parametrize("former", [False, True])
def test_a_swap_that_fails_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, former: bool) -> None:
    if former:
        (tmp_path / "x").mkdir()
    real = storage.Disk.rename

    def rename(self: Any, old: Path, new: Path) -> None:
        if ".tmp-" in old.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(self, old, new)

    monkeypatch.setattr(storage.Disk, "rename", rename)
    wanted = pytest.raises(StorageError, match="cannot put the export in its place: Input/output error")
    with wanted, storage.replace_folder(tmp_path / "x") as draft:
        (draft / "new").write_text("")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] * former


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that can be opened and not read")
def test_a_packed_log_that_cannot_be_read() -> None:
    with pytest.raises(StorageError, match="/proc/self/mem: cannot read the log: Input/output error"):
        PackedLog.open(Path("/proc/self/mem"))
