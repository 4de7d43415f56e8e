"""Many slots at once: what is accepted is what the reader of one slot accepts, and a step is held in its bytes."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.faults import SEED, SHA, header, put, same, states
from helpers.logs import BYTES, FORGED_SLOTS, forge

from zoedge.core.exact import bits16
from zoedge.core.types import CLIPPED, SKIPPED, Record
from zoedge.errors import DamagedError
from zoedge.log import log as log_module
from zoedge.log.header import SLOT_SIZES, Header
from zoedge.log.log import Log
from zoedge.log.scan import find_plain_steps
from zoedge.log.slots import STEP, decode_slot, encode_slot

STEPS = 300


def long_log(path: Path, head: Header) -> bytes:
    """A log of 300 steps, of several directions, some skipped or clipped, with a rewind between."""
    k = head.directions
    with Log.create(path, head) as log:
        log.session(SHA[1])
        for i in range(STEPS):
            if i == 250:
                log.rewind(100)
            g = tuple(bits16(x / 7 - i) for x in range(1 + i % k))
            skipped = SKIPPED if i % 17 == 3 else CLIPPED * (i % 2)
            g = (0.0,) * len(g) if skipped & SKIPPED else g
            log.append(Record(len(log), log.next_seq, bits16(1 / (i + 1)), g, (0.5,) * (i % (2 * k + 1)), skipped, i))
            log.seal(len(log), lambda: SHA[2])
        log.finish(SHA[3])
    return path.read_bytes()


@pytest.mark.parametrize("k", [2, 7, 82])
@pytest.mark.parametrize("block", [64, 1024 * 3, 1 << 18])
def test_blocks_of_any_size_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsynced: None, k: int, block: int
) -> None:
    head = header(k, hash_every=40, sync_every=64)
    raw, path = long_log(tmp_path / "run.zlog", head), tmp_path / "run.zlog"
    monkeypatch.setattr(log_module, "BLOCK_SIZE", max(block, head.slot_size))
    log, meant = Log.open(path), states(head, raw)[-1]
    assert same(log.state, meant) and len(log) == 150 and log.fingerprint == raw[-16:].hex() and log.torn == 0
    assert log[-1] == list(log)[149] == log[149] and log[3:5] == [log[3], log[4]]
    with pytest.raises(IndexError):
        log[150]


def test_every_slot_is_judged_as_by_itself(tmp_path: Path, unsynced: None) -> None:
    """20,000 slots with a few changed bytes, of all sizes: steps are plain exactly where one slot's reader takes them."""
    chance, plain = random.Random(SEED), 0
    for size in SLOT_SIZES:
        k = (size - 40) // 12
        slots = []
        for i in range(4_000):
            n = chance.randint(1, k)
            record = Record(5, i, bits16(0.001), (bits16(0.3),) * n, (0.5,) * chance.randint(0, 2 * k))
            raw = bytearray(encode_slot(size, STEP, i, 5, record) + bytes(16))
            for _ in range(chance.choice((0, 1, 1, 2))):
                at = chance.randrange(min(size - 16, chance.choice((4, 24, 24 + 12 * n, size))))
                raw[at] ^= 1 << chance.randrange(8)
            slots.append(bytes(raw))
        ours = find_plain_steps(np.frombuffer(b"".join(slots), "<u4").reshape(-1, size // 4), k, 0)
        for i, raw in enumerate(slots):
            slot, wrong = decode_slot(raw, k)
            assert ours[i] == (slot.kind == STEP and not wrong and slot.seq == i), raw.hex()
        plain += int(ours.sum())
    assert 6_000 < plain < 14_000


@pytest.mark.parametrize("what", FORGED_SLOTS)
def test_forged_slots_are_not_plain(what: str) -> None:
    raw = forge(BYTES, *FORGED_SLOTS[what])[1024:]
    plain = find_plain_steps(np.frombuffer(raw, "<u4").reshape(-1, 16), 2, 0)
    for i in np.flatnonzero(plain):
        slot, wrong = decode_slot(raw[i * 64 : i * 64 + 64], 2)
        assert slot.kind == STEP and not wrong and slot.seq == i


@pytest.mark.parametrize("digests_right", [False, True])
def test_damage_in_a_long_log_is_refused_at_its_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsynced: None, digests_right: bool
) -> None:
    head = header(hash_every=40, sync_every=64)
    raw, chance, path = long_log(tmp_path / "run.zlog", head), random.Random(SEED), tmp_path / "bad.zlog"
    monkeypatch.setattr(log_module, "BLOCK_SIZE", 64 * 50)
    refused = 0
    for _ in range(600):
        at = chance.randrange(head.length, len(raw))
        slot = (at - head.length) // 64
        bad = raw[:at] + bytes([raw[at] ^ 1 << chance.randrange(8)]) + raw[at + 1 :]
        put(path, forge(bad, 0, b"", head.length) if digests_right else bad)
        try:
            Log.open(path)
            assert digests_right  # a loss, or another weight: the chain alone shows it
        except DamagedError as e:
            assert f"damaged at slot {slot} " in str(e) or digests_right
            refused += 1
    assert refused > 250 if digests_right else refused == 600


def test_a_step_that_is_left_out_or_repeated(tmp_path: Path, unsynced: None) -> None:
    """In the middle of a run of plain steps, with every digest right: the slot before which it stands is named."""
    head = header(hash_every=1000)
    with Log.create(tmp_path / "run.zlog", head) as log:
        for i in range(100):
            log.append(Record(i, i, 0.5, (1.0,), ()))
    raw, at = (tmp_path / "run.zlog").read_bytes(), head.length + 64 * 50
    for step in (49, 51, 2**32 - 1):
        put(tmp_path / "bad.zlog", forge(raw, at + 8, struct.pack("<I", step), head.length))
        with pytest.raises(DamagedError, match=f"slot 50 .*after 50 steps.*stands after {step} steps, and"):
            Log.open(tmp_path / "bad.zlog")


def test_a_step_is_held_in_48_bytes(tmp_path: Path, unsynced: None) -> None:
    head = header(1, 64, 100)
    with Log.create(tmp_path / "run.zlog", head) as log:
        for i in range(20_000):
            log.append(Record(i, log.seq, 0.5, (bits16(1 / (i + 1)),), (0.5, 0.25)))
            log.seal(i + 1, lambda: SHA[2])
    list(Log.open(tmp_path / "run.zlog"))
    tracemalloc.start()
    try:
        log = Log.open(tmp_path / "run.zlog")
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 20_000 * 60 and most < 20_000 * 60 + (4 << 20)
