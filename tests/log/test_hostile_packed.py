"""Packed and shared logs whose digests are right and whose numbers are not: a sentence, and little memory."""

from __future__ import annotations

import hashlib
import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import TESTS

from zoedge.errors import DamagedError
from zoedge.log import packed, shared
from zoedge.log.log import Log

FIELDS = {"L": 12, "N": 16, "D": 20, "S": 24, "H": 28, "Z": 32}
VALUES = (0, 1, 2, 511, 0x7FFFFFFF, 0xFFFFFFFF)


@pytest.fixture(scope="module")
def small() -> bytes:
    """A packed log of a finished run."""
    with Log.open(TESTS / "golden" / "lora.zlog") as log:
        return packed.pack_log(log)


def forge(raw: bytes, at: int, new: bytes) -> bytes:
    """Put bytes into a packed log, and make its digest right."""
    changed = raw[:at] + new + raw[at + len(new) : -32]
    return changed + hashlib.sha256(changed).digest()


def with_stream(raw: bytes, stream: bytes) -> bytes:
    """Put another compressed stream into a packed log, with its length, and make its digest right."""
    (size,) = struct.unpack_from("<I", raw, FIELDS["Z"])
    changed = raw[:32] + struct.pack("<I", len(stream)) + raw[36:64] + stream + raw[64 + size : -32]
    return changed + hashlib.sha256(changed).digest()


def share(raw: bytes, steps: int) -> bytes:
    """A shared fine-tune of a packed log, whose digest is right."""
    whole = shared._HEADER_STRUCT.pack(shared.MAGIC, 1, 0, steps, bytes(16), bytes(32)) + raw
    return whole + hashlib.sha256(whole).digest()


def forgeries(raw: bytes) -> Iterator[bytes]:
    """Every field with every value, pairs of them, streams that grow or end early, and 300 random edits."""
    for at in FIELDS.values():
        for value in VALUES:
            yield forge(raw, at, struct.pack("<I", value))
    for n, d in ((2**31, 2**31), (2**20, 2**31), (0, 0), (1, 1)):
        yield forge(raw, FIELDS["N"], struct.pack("<II", n, d))
    (size,) = struct.unpack_from("<I", raw, FIELDS["Z"])
    body = zlib.decompress(raw[64 : 64 + size])
    yield with_stream(raw, zlib.compress(bytes(256 << 20), 9))
    for other in (b"", body[:-1], body + b"x", bytes(len(body)), body[:512] + bytes(len(body) - 512)):
        yield with_stream(raw, zlib.compress(other))
    yield with_stream(raw, raw[64 : 64 + size] + b"behind")
    yield with_stream(raw, raw[64 : 64 + size // 2])
    draw = random.Random(20261129)
    for _ in range(300):
        changed = bytearray(body)
        for _ in range(draw.choice((1, 1, 2, 8))):
            changed[draw.randrange(len(body))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        yield with_stream(raw, zlib.compress(bytes(changed)))


def test_forged_numbers_are_refused_or_read_in_little_memory(small: bytes, tmp_path: Path) -> None:
    refused = 0
    cases = [(packed.PackedLog, raw) for raw in forgeries(small)]
    cases += [(shared.SharedLog, share(small, steps)) for steps in (0, 1, 2**31, 2**32 - 1)]
    cases += [(shared.SharedLog, share(raw, 1)) for raw in forgeries(small)]
    tracemalloc.start()
    try:
        for kind, raw in cases:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                log = kind(tmp_path / "run", raw)
                assert [record.step for record in log] == list(
                    range(len(log))
                )  # whatever is read can be walked through
            except DamagedError as e:
                assert str(e).count("\n") == 0 and str(tmp_path) in str(e)
                refused += 1
            assert tracemalloc.get_traced_memory()[1] - before < (4 << 20) + 64 * len(raw)
    finally:
        tracemalloc.stop()
    assert len(cases) - refused < 0.6 * len(
        cases
    )  # random edits of g, lr or a state are other logs, with right digests
