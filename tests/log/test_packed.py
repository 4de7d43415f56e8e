"""A packed log replays to the raw one's bits, and so does the program on the format's page, which imports nothing."""

from __future__ import annotations

import hashlib
import os
import random
import re
import struct
import tracemalloc
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.logs import BYTES, FORGED, FORGED_SLOTS, forge, with_digest
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from zoedge.core import digests as core_digests
from zoedge.core import engine
from zoedge.core import run as core_run
from zoedge.core.canonical import encode_canonical
from zoedge.core.exact import bits16
from zoedge.core.types import SKIPPED, Record
from zoedge.errors import DamagedError, ReplayError, StorageError
from zoedge.log.header import DIGEST_FIELDS, Header
from zoedge.log.log import Log
from zoedge.log.packed import PackedLog, decode_planes, encode_planes, pack_log
from zoedge.log.records import Records
from zoedge.log.slots import END, HASH, NOTE, SESSION, STEP, encode_slot
from zoedge.recipe.check import check
from zoedge.run import identity, replay
from zoedge.run.folder import open_any_log

pytestmark = pytest.mark.usefixtures("unsynced")
PAGE = (ROOT / "docs" / "log-format.md").read_text(encoding="utf-8")
SHAPES = [["model.layers.0.q", 64, 64], ["model.layers.0.v", 24, 40]]


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's program defines."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def header(k: int = 1, hash_every: int = 100, block: bytes = b"{}") -> Header:
    digests = {name: hashlib.sha256(name.encode()).digest() for name in DIGEST_FIELDS}
    return Header(block, k, 1, 1, 7, 1024, hash_every, 1, **digests)


def trained(path: Path, steps: int = 7, queries: int = 1, train: str = "both", noise: str = "rademacher") -> bytes:
    """A hand-made run at `path`, of random weights, with a rewind, a skipped step and weight decay; its final state."""
    table = {
        "version": 1, "name": "toy", "seed": 2**63 + 11, "model": {"source": "none"}, "data": {"train": "none.jsonl"},
        "task": {"name": "classify", "prompt": "{text} It was", "options": {"a": " bad", "b": " good"}}, "noise": noise,
        "estimator": {"name": "two_sided", "queries": queries}, "train": {"steps": steps},
        "rule": {"name": "sgd", "lr": 1e-2, "schedule": "linear"},
        "space": {"name": "lora", "rank": 4, "alpha": 8.0, "train": train},
    }  # fmt: skip
    recipe = check(table, {}, "toy")
    space = recipe.space.blank({"shapes": SHAPES}, recipe.seed, recipe.noise)
    value = space.leaves()[0].value
    head = Header(
        block=encode_canonical({"recipe": recipe.resolved(), "space": space.describe()}), directions=queries,
        noise=recipe.noise.scheme, rule=recipe.rule.rule, seed=recipe.seed, elements=value.numel(), hash_every=3,
        sync_every=1, recipe=bytes(32), base=bytes(32), tokenizer=bytes(32), data=bytes(32),
        manifest=identity.manifest_digest(space), initial=core_digests.digest(space),
        selftest=core_digests.selftest(recipe.noise, recipe.rule, value.new_zeros(1024)),
    )  # fmt: skip
    chance = random.Random(queries)
    start = value.clone()
    with Log.create(path, head) as log:
        log.session(bytes(32))
        run = core_run.Run(recipe.seed, steps, log, space, recipe.noise, recipe.rule)

        def advance(until: int) -> None:
            while len(log) < until:
                step = len(log)
                flags = SKIPPED if step == 4 else 0
                g = tuple(0.0 if flags else bits16(chance.gauss(0, 3)) for _ in range(queries))
                lr, decay = recipe.rule.rate(step, steps), bits16(1 - 2.0**-12) if step % 2 else 1.0
                record = log.append(Record(step, log.next_seq, lr, g, (0.5, 0.25), flags, step, decay))
                engine.advance(run, record)
                log.seal(step + 1, partial(core_digests.digest, space))

        advance(6)
        log.rewind(2)
        value.copy_(start)
        for _ in engine.play(run, 2):
            pass
        advance(steps)
        log.finish(core_digests.digest(space))
    return core_digests.digest(space)


CELLS = [(1, "both", "rademacher"), (3, "both", "rademacher"), (1, "b", "rademacher"), (2, "both", "normal")]


@pytest.mark.parametrize("queries, train, noise", CELLS)
def test_packed_raw_and_the_page_replay_to_the_same_bits(
    tmp_path: Path, page: dict[str, Any], queries: int, train: str, noise: str
) -> None:
    final = trained(tmp_path / "run.zlog", queries=queries, train=train, noise=noise)
    raw = Log.open(tmp_path / "run.zlog")
    (tmp_path / "run.zpack").write_bytes(pack_log(raw))
    packed = PackedLog.open(tmp_path / "run.zpack")
    assert raw.state.rewinds == 1 and raw.state.end == packed.state.end == final[:24]
    for log in (raw, packed):
        run = replay.build_replay_run(log)  # type: ignore[arg-type]
        assert core_digests.digest(run.space) != final
        assert len(list(engine.play(run, len(log)))) == 7
        assert core_digests.digest(run.space) == final
        again = replay.build_replay_run(log)  # type: ignore[arg-type]
        again.space.leaves()[0].value[5] += 2.0**-20
        with pytest.raises(ReplayError, match="after step 3"):
            list(engine.play(again, len(log)))
    for path in ("run.zlog", "run.zpack"):
        state = page["replay"]((tmp_path / path).read_bytes())
        assert hashlib.sha256(state).digest() == final


def test_the_pages_program_compares_states(tmp_path: Path, page: dict[str, Any]) -> None:
    trained(tmp_path / "run.zlog")
    log = Log.open(tmp_path / "run.zlog")
    records = list(log)
    records[1] = records[1]._replace(g=(records[1].g[0] * 2,))
    log.state.records = Records()
    for r in records:
        log.state.records.extend(encode_slot(log.header.slot_size, STEP, r.seq, r.step, r), log.header.slot_size - 16)
    with pytest.raises(ValueError, match="the state after step 2 is another"):
        page["replay"](pack_log(log))


@pytest.mark.parametrize("name, words", [("HASH", "no state hash after step 3, where"), ("END", "a NOTE that no run")])
@pytest.mark.parametrize("kind", [NOTE, SESSION])
def test_a_state_that_was_made_into_another_slot(tmp_path: Path, name: str, words: str, kind: int) -> None:
    """With every digest right: each command that opens a log refuses it, not `verify` alone."""
    trained(tmp_path / "run.zlog")
    raw, slot = (tmp_path / "run.zlog").read_bytes(), {"HASH": HASH, "END": END}[name]
    head = Log.open(tmp_path / "run.zlog").header.length
    places = [at for at in range(head, len(raw), 64) if raw[at] == slot]
    place = places[2 if name == "HASH" else 0]  # the rewind drops the first two
    (tmp_path / "run.zlog").write_bytes(forge(raw, place, bytes([kind]), head))
    log = Log.open(tmp_path / "run.zlog")
    if (name, kind) == ("END", SESSION):  # as if it had been stopped and resumed elsewhere: not finished
        assert open_any_log(str(tmp_path / "run.zlog")).state.end is None
        return
    with pytest.raises(DamagedError, match=words) as e:
        open_any_log(str(tmp_path / "run.zlog"))
    assert e.value.exit_code == 5
    if name == "HASH":
        (tmp_path / "run.zpack").write_bytes(pack_log(log))
        with pytest.raises(DamagedError, match=words):
            open_any_log(str(tmp_path / "run.zpack"))


def dumps() -> list[bytes]:
    """The page's examples. A line is an offset, bytes (`xx x N`: N times), and a remark."""
    found = []
    for block in re.findall(r"```hex\n(.*?)```", PAGE, re.S):
        raw = b""
        for line in filter(str.strip, block.splitlines()):
            shown = re.match(r" *(\d+)((?: +[0-9a-f]{2}(?: x \d+)?(?!\S))*)", line)
            assert shown and int(shown[1]) == len(raw), line
            for byte, times in re.findall(r" ([0-9a-f]{2})(?: x (\d+))?", shown[2]):
                raw += bytes.fromhex(byte) * int(times or 1)
        found.append(raw)
    return found


def test_the_pages_examples(tmp_path: Path, page: dict[str, Any]) -> None:
    raw, small = dumps()
    assert raw == BYTES and len(small) == 290
    (tmp_path / "run.zlog").write_bytes(raw)
    (tmp_path / "run.zpack").write_bytes(small)
    log, packed = Log.open(tmp_path / "run.zlog"), PackedLog.open(tmp_path / "run.zpack")
    assert log.fingerprint == packed.fingerprint == "89fe0a524a5c3ced02ffca96e9822246"
    assert packed.header == log.header and packed.header.encode() == raw[:1024]
    assert [r.coefficients for r in log] == [(-1.5 * 2.0**-10,), (2.0**-13, -3 * 2.0**-11)]
    for head, steps, known, end in (page["read_log"](raw), page["read_packed"](small)):
        assert (head["k"], head["seed"], end) == (2, 0x0123456789ABCDEF, True) and known == log.state.hashes
        assert steps == [(r.seq, r.lr, r.g, r.flags, r.decay) for r in log]
    (tmp_path / "run.zpack").write_bytes(pack_log(log))  # deflate may differ from the page's
    assert list(PackedLog.open(tmp_path / "run.zpack")) == list(packed)


def test_the_pages_numbers(page: dict[str, Any]) -> None:
    from zoedge.methods.noise.normal import quantile_table

    assert struct.unpack("<4I", page["philox"](0, 0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    table = struct.pack("<65536f", *page["normal_table"]())
    assert table == quantile_table() and hashlib.sha256(table).hexdigest() in PAGE


def test_the_pages_program_refuses_what_log_refuses(tmp_path: Path, page: dict[str, Any]) -> None:
    """Every cut, and every 7th flipped bit, of the example: both readers read the same, or both refuse."""
    raw, path = dumps()[0], tmp_path / "run.zlog"
    flips = (raw[: i // 8] + bytes([raw[i // 8] ^ 1 << i % 8]) + raw[i // 8 + 1 :] for i in range(0, 8 * len(raw), 7))
    zeros = (raw[:i] + bytes(len(raw) - i) for i in range(1024, len(raw), 32))
    read, fd = 0, os.open(path, os.O_WRONLY | os.O_CREAT)
    for data in (*(raw[:i] for i in range(len(raw) + 1)), *flips, *zeros):
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        try:
            log = Log.open(path)
        except DamagedError:
            with pytest.raises(ValueError):
                page["read_log"](data)
            continue
        _, steps, known, end = page["read_log"](data)
        assert steps == [(r.seq, r.lr, r.g, r.flags, r.decay) for r in log]
        assert known == log.state.hashes and end == (log.state.end is not None)
        read += 1
    os.close(fd)
    assert read == 513 + 1


@pytest.mark.parametrize("what", [*FORGED, *FORGED_SLOTS])
def test_the_pages_program_refuses_forgeries(page: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError):
        page["read_log"](forge(BYTES, *{**FORGED, **FORGED_SLOTS}[what]))


# -- size


@pytest.mark.parametrize("steps, most", [(1_000, 6.0), (20_000, 3.5)])
def test_bytes_a_step(tmp_path: Path, steps: int, most: float) -> None:
    """One query, g as noisy as it gets, lr falling linearly; a header of 4 KiB counted in. The goal was 8."""
    chance = random.Random(0)
    shapes = [[f"model.layers.{i}.self_attn.{m}_proj", 576, 576] for i in range(16) for m in "qkvo"]
    block = encode_canonical({"recipe": {"text": chance.randbytes(400).hex()}, "space": {"shapes": shapes}})
    with Log.create(tmp_path / "run.zlog", header(block=block)) as log:
        log.session(bytes(32))
        for i in range(steps):
            g = bits16(chance.gauss(0, 3) * chance.choice((0.01, 1, 100)))
            losses = (chance.random(), chance.random())
            log.append(Record(i, log.seq, bits16(1e-3 * (1 - i / steps)), (g,), losses, 0, chance.getrandbits(32)))
            log.seal(i + 1, lambda: chance.randbytes(32))
        log.finish(log.state.hashes[steps].ljust(32))
        packed = pack_log(log)
    assert len(packed) <= most * steps and header(block=block).length >= 4096
    (tmp_path / "run.zpack").write_bytes(packed)
    back = PackedLog.open(tmp_path / "run.zpack")
    assert list(back) == [r._replace(losses=(), check=0) for r in log] and back.state.hashes == log.state.hashes


# -- what is kept


WEIGHTS = st.floats(width=32, allow_nan=False, allow_infinity=False).map(bits16).filter(lambda x: abs(x) < 2.0**128)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 82), st.booleans())
def test_what_is_packed_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: Any, k: int, ends: bool) -> None:
    path = tmp_path_factory.mktemp("packed") / "run.zlog"
    with pytest.MonkeyPatch.context() as patch, Log.create(path, header(k, data.draw(st.integers(1, 4)))) as log:
        patch.setattr(os, "fdatasync", lambda fd: None)
        for _ in range(data.draw(st.integers(0, 12))):
            if len(log) and data.draw(st.integers(0, 5)) == 0:
                log.rewind(data.draw(st.integers(0, len(log) - 1)))
            flags = data.draw(st.integers(0, 7))
            g = data.draw(st.lists(st.just(0.0) if flags & SKIPPED else WEIGHTS, min_size=1, max_size=k))
            decay = data.draw(st.floats(width=32, min_value=2.0**-140, max_value=1.0))
            log.append(Record(len(log), log.seq, data.draw(WEIGHTS), tuple(g), (0.5,), flags, 3, decay))
            log.seal(len(log), lambda: bytes([len(log)]) * 32)
        if ends:
            log.finish(bytes([len(log)]) * 32)
    back = PackedLog(path, pack_log(log))
    assert repr(list(back)) == repr([r._replace(losses=(), check=0) for r in log])
    assert back.state.hashes == log.state.hashes and back.state.end == log.state.end
    assert (back.header, back.fingerprint, back.next_seq, len(back)) == (
        log.header.decode(log.header.encode(), "")[0], log.fingerprint, log.seq, len(log),
    )  # fmt: skip
    assert [r.coefficients for r in back] == [r.coefficients for r in log]
    for step in range(-len(log), len(log)):
        assert back[step].seq == log[step].seq
    with pytest.raises(IndexError):
        back[len(log)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1)), st.integers(1, 4))
def test_planes(values: list[int], width: int) -> None:
    values = [v % 256**width for v in values]
    assert decode_planes(encode_planes(values, width), width).tolist() == values


def test_it_is_read_only(tmp_path: Path) -> None:
    trained(tmp_path / "run.zlog")
    log = Log.open(tmp_path / "run.zlog")
    packed = PackedLog(Path("run.zpack"), pack_log(log))
    with pytest.raises(ReplayError, match=r"run\.zpack: a packed log of 7 steps cannot go on with step 7"):
        packed.append(log[0]._replace(step=7))
    packed.seal(1, lambda: bytes(32))  # not known: not asked
    with pytest.raises(ReplayError, match=r"run\.zpack: after step 7"):
        packed.seal(7, lambda: bytes(32))


# -- damage


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    return dumps()[1]


def refuse(raw: bytes) -> None:
    with pytest.raises(DamagedError, match=r"^dir/run.zpack: not a readable "):
        PackedLog(Path("dir/run.zpack"), raw)


def test_every_flip_and_cut_is_refused(small: bytes) -> None:
    for i in range(8 * len(small)):
        refuse(small[: i // 8] + bytes([small[i // 8] ^ 1 << i % 8]) + small[i // 8 + 1 :])
    for cut in range(len(small)):
        refuse(small[:cut])
    refuse(small + b"\0")
    assert 8 * len(small) == 2320
    assert len(PackedLog(Path(), small)) == 2


def forged(small: bytes, at: int = 0, data: bytes = b"", body: dict[int, bytes] | bytes = b"") -> bytes:
    """`small` with `data` at `at` and `body` in (or as) what its stream inflates to; sizes and digest made right."""
    fixed, stream, g = bytearray(small[:64]), small[64:249], small[249:258]
    if body:
        inner = bytearray(zlib.decompress(stream)) if isinstance(body, dict) else bytearray(body)
        for i, new in body.items() if isinstance(body, dict) else ():
            inner[i : i + len(new)] = new
        stream = zlib.compress(bytes(inner), 9)
        fixed[32:36] = struct.pack("<I", len(stream))
    fixed[at : at + len(data)] = data
    return with_digest(bytes(fixed) + stream + g)


SEQ, LR, DECAY, FLAGS, N, AFTER = 1024, 1032, 1038, 1046, 1048, 1050  # columns of the example's two steps
HUGE = b"\xff" * 4
FORGED_PACKED: dict[str, dict[str, Any]] = {
    "magic": {"at": 0, "data": b"\x88"}, "another major": {"at": 8, "data": b"\2"},
    "L of 4 G": {"at": 12, "data": HUGE}, "L too small": {"at": 12, "data": b"\0\3"},
    "L 0": {"at": 12, "data": b"\0\0"},
    "N of 4 G": {"at": 16, "data": HUGE}, "N > D": {"at": 16, "data": b"\4"}, "N 1": {"at": 16, "data": b"\1"},
    "N 0": {"at": 16, "data": b"\0"}, "D of 4 G": {"at": 20, "data": HUGE}, "D 2": {"at": 20, "data": b"\2"},
    "S 2": {"at": 24, "data": b"\2"}, "H 0": {"at": 28, "data": b"\0"}, "H 4": {"at": 28, "data": b"\4"},
    "H of 4 G": {"at": 28, "data": HUGE}, "Z 0": {"at": 32, "data": b"\0"}, "Z of 4 G": {"at": 32, "data": HUGE},
    "END 2": {"at": 36, "data": b"\2"}, "reserved": {"at": 47, "data": b"\1"}, "the header": {"body": {30: b"\1"}},
    "no header": {"body": bytes(1078)}, "seq stays": {"body": {SEQ: b"\1\0"}},
    "seq falls": {"body": {SEQ: b"\2\xff", SEQ + 2: b"\0\xff", SEQ + 4: b"\0\xff", SEQ + 6: b"\0\xff"}},
    "lr nan": {"body": {LR + 2: b"\xc0\0", LR + 4: b"\x7f\0"}}, "decay 0": {"body": {DECAY: bytes(8)}},
    "lr below 2**-100": {"body": {LR: b"\1\0", LR + 2: b"\0\0", LR + 4: b"\0\0"}},
    "flags 8": {"body": {FLAGS: b"\x08"}}, "skipped with a weight": {"body": {FLAGS: b"\1"}},
    "n 0": {"body": {N: b"\0\3"}}, "n 1": {"body": {N: b"\1\1"}}, "n 255": {"body": {N: b"\xff\xff"}},
    "n > K": {"body": {N: b"\3\0"}}, "a state after the last": {"body": {AFTER: b"\3"}},
    "END of a step that is not the last": {"body": {AFTER: b"\1"}},
    "a state after the last, no END": {"at": 36, "data": b"\0", "body": {AFTER: b"\3"}},
    "N > D, and a stream for it": {"at": 16, "data": b"\0\0\x10\0", "body": bytes(1024 + 13 * 2**20 + 28)},
    "H > N + 1, and a stream for it": {"at": 28, "data": b"\0\0\x10\0", "body": bytes(1024 + 26 + 28 * 2**20)},
    "a short stream": {"body": bytes(1024 + 26 + 27)}, "a long stream": {"body": bytes(1024 + 26 + 29)},
    "a bomb": {"body": bytes(64 << 20)}, "no stream": {"body": b"\0"},
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED_PACKED)
def test_forged(small: bytes, what: str, page: dict[str, Any]) -> None:
    raw = forged(small, **FORGED_PACKED[what])
    tracemalloc.start()
    try:
        refuse(raw)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # also for 64 MiB of zeros in 64 KiB
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError):
        page["read_packed"](raw)


def test_forged_columns(small: bytes, page: dict[str, Any]) -> None:
    """Two states of one step, a state of a step before, a header that is longer than it says, a stream without its end."""
    inner = zlib.decompress(small[64:249])
    two = [inner[:AFTER] + encode_planes(after, 4) + inner[AFTER + 4 :] * 2 for after in ([2, 2], [2, 1], [1, 2])]
    for raw in (
        forged(small, 28, b"\2", two[0]), forged(small, 28, b"\2", two[1]),
        forged(small, 12, b"\1", inner[:1024] + b"\0" + inner[1024:]),
        with_digest(small[:32] + struct.pack("<I", 185 - 4) + small[36:245] + small[249:258]),
    ):  # fmt: skip
        refuse(raw)
        with pytest.raises(ValueError):
            page["read_packed"](raw)
    assert PackedLog(Path(), forged(small, 28, b"\2", two[2])).state.hashes.keys() == {1, 2}


def test_the_forger_can_forge(small: bytes) -> None:
    assert PackedLog(Path(), forged(small))[1].g == (-0.25, 3.0)
    assert PackedLog(Path(), forged(small, body={FLAGS: b"\2"}))[0].flags == 2
    for at in (249 + 1, 249 + 4):  # g: infinite, and below 2**-100
        raw = bytearray(small[:-32])
        raw[at : at + 2] = b"\x80\x7f" if at == 250 else b"\x40\0"
        refuse(with_digest(bytes(raw)))
    refuse(with_digest(small[:64] + small[64:240] + b"\0" * 9 + small[249:258]))
    later = bytearray(small[:-32])
    later[32:36] = struct.pack("<I", 186)
    refuse(with_digest(bytes(later[:249] + b"\0" + later[249:])))  # a byte after the stream's end


def test_only_damagederror_comes_out(small: bytes) -> None:
    """20,000 seeded mutations of fields, stream and its contents, with sizes and digest made right."""
    chance, read = random.Random(2), 0
    inner = zlib.decompress(small[64:249])
    for i in range(20_000):
        at = chance.randrange(8, 64)
        body: Any = b""
        if i % 2:
            place = chance.randrange(1024 if i % 4 == 1 else 0, len(inner))
            body, at = {place: chance.randbytes(chance.choice((1, 2, 4)))[: len(inner) - place]}, 48
        data = chance.randbytes(1) if i % 3 else b""
        try:
            packed = PackedLog(Path(), forged(small, at, data, body))
        except DamagedError:
            continue
        assert all(0 < r.decay <= 1 and r.coefficients is not None for r in packed)
        read += 1
    assert 100 < read < 10_000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_only_damagederror_comes_out_of_any_bytes(raw: bytes, good: bool) -> None:
    with pytest.raises(DamagedError):
        PackedLog(Path("f"), with_digest(dumps()[1][:8] + raw) if good else raw)


def test_only_regular_files_are_opened(tmp_path: Path, small: bytes) -> None:
    (tmp_path / "run.zpack").write_bytes(small)
    (tmp_path / "link").symlink_to(tmp_path / "run.zpack")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", ".", "absent"):
        with pytest.raises(StorageError):
            PackedLog.open(tmp_path / name)
