"""Any bytes as a log or a packed log; with every second input the digests are made right, or none gets past them."""

from __future__ import annotations

import hashlib
import struct

import atheris
from common import FOLDER, fuzz

with atheris.instrument_imports(include=["zoedge"]):
    from zoedge.core import canonical
    from zoedge.log import header, log, packed, slots

PATH = FOLDER / "run.zlog"
DIGESTS = {name: bytes([i]) * 32 for i, name in enumerate(header.DIGEST_FIELDS)}


def example() -> tuple[bytes, bytes]:
    """A log of three steps, a rewind and an END, and the same packed."""
    from zoedge.core.types import Record

    head = header.Header(
        block=canonical.encode_canonical({"recipe": {"seed": 1}}), directions=2, noise=1, rule=1, seed=1, elements=9,
        hash_every=2, sync_every=3, run_id=b"r" * 16, **DIGESTS,
    )  # fmt: skip
    path = FOLDER / "seed.zlog"
    with log.Log.create(path, head) as made:
        for step in (0, 1, 1):
            if len(made) > step:
                made.rewind(step)
            made.append(Record(step, made.next_seq, 0.5, (1.5, -2.0), (1.0, 2.0, 3.0), 2, 7, 1.0))
            made.seal(step + 1, lambda: b"h" * 32)
        made.finish(b"h" * 32)
    return path.read_bytes(), packed.pack_log(log.Log.open(path))


def signed(data: bytes) -> bytes:
    """The same with the digests of header, slots (of their size, if it is one) and packed file made right."""
    if data[:8] == packed.MAGIC:
        return data[:-32] + hashlib.sha256(data[:-32]).digest()
    if len(data) < 512:
        return data
    new = bytearray(data)
    length, block, slot = struct.unpack_from("<IIH", new, 12)
    new[480:512] = hashlib.sha256(new[:480] + new[512 : 512 + block]).digest()
    link = bytes(new[480:496])
    if slot in header.SLOT_SIZES:
        for i in range(length, len(new) - slot + 1, slot):
            new[i + slot - 16 : i + slot] = link = slots.chain_value(link, bytes(new[i : i + slot - 16]))
    return bytes(new)


def target(data: bytes) -> None:
    if data[:1] == b"s":
        data = signed(data[1:])
    if data[:8] == packed.MAGIC:
        found = packed.PackedLog(PATH, data)
        assert len(found) == len(list(found))
        return
    PATH.write_bytes(data)
    opened = log.Log.open(PATH)
    assert opened.header.encode() == data[: opened.header.length]
    assert opened.size + opened.torn == len(data) and [r.step for r in opened] == list(range(len(opened)))


if __name__ == "__main__":
    raw, small = example()
    fuzz(target, [raw, small, b"s" + raw, b"s" + small, b"s" + raw[:1024], b""])
