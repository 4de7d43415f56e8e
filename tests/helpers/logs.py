"""The log of the format's page byte for byte, and bytes that are forged with every digest right."""

from __future__ import annotations

import hashlib
import struct

ZEROS = "00" * 32


EXAMPLE = {
    "magic, 1.0, header_len, block_len, slot_size, K, noise, rule": """
        89 5a 4f 45 0d 0a 1a 0a 01 00 00 00 00 04 00 00 2b 00 00 00 40 00 02 00 01 00 00 00 01 00 00 00""",
    "run id, seed, elements": """
        50 27 28 42 d4 c3 18 ae aa 60 bc d8 2f f8 ad 17 ef cd ab 89 67 45 23 01 00 04 00 00 00 00 00 00""",
    "hash_every, sync_every, reserved": "02 00 00 00 01 00 00 00" + "00" * 24,
    "recipe": "01" * 32, "base": "02" * 32, "tokenizer": "03" * 32, "data": "04" * 32, "manifest": "05" * 32,
    "initial": "06" * 32, "selftest": "07" * 32, "reserved": ZEROS * 5,
    "sha256": "90 8b 7e 59 91 e3 cb fb 61 2a 6b 59 1b 03 b8 4e 82 99 1e 66 8f ff a0 9e a4 a0 1e 89 fd 69 3a 32",
    '{"lr":"0x1.8000000000000p-1","name":"zo\xe9"}': """
        7b 22 6c 72 22 3a 22 30 78 31 2e 38 30 30 30 30 30 30 30 30 30 30 30 30 70 2d 31 22 2c 22 6e 61
        6d 65 22 3a 22 7a 6f c3 a9 22 7d""" + "00" * 21 + ZEROS * 14,
    "SESSION": """
        03 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 aa aa aa aa aa aa aa aa
        aa aa aa aa aa aa aa aa aa aa aa aa aa aa aa aa eb 05 4f c8 f4 83 9f 6d 3e f8 a4 2e 27 6e f5 cb""",
    "STEP 0": """
        01 00 01 02 01 00 00 00 00 00 00 00 26 39 f4 cb 00 00 80 3f 00 00 80 3a 00 00 c0 3f 00 00 40 3f
        00 00 00 3f 00 00 00 00 00 00 00 00 00 00 00 00 e3 0c 4c 9c b4 e1 21 f8 e6 67 c2 e9 23 6d 48 d9""",
    "STEP 1, clipped, with weight decay, two directions, three losses": """
        01 02 02 03 02 00 00 00 01 00 00 00 01 00 00 00 72 f9 7f 3f 00 00 00 3a 00 00 80 be 00 00 00 3f
        00 00 20 3f 00 00 40 40 00 00 00 40 00 00 00 00 3d 54 33 f8 f8 4e 0b d3 d5 a7 79 0f 5c 66 9b 4c""",
    "HASH": """
        02 00 00 00 03 00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 bb bb bb bb bb bb bb bb
        bb bb bb bb bb bb bb bb bb bb bb bb bb bb bb bb 94 4e 8f 92 89 3c 94 34 e0 47 e3 c5 31 b8 8e 1a""",
    "STEP 2, skipped: losses nan and inf": """
        01 01 01 02 04 00 00 00 02 00 00 00 02 00 00 00 00 00 80 3f 00 00 80 39 00 00 00 00 00 00 c0 7f
        00 00 80 7f 00 00 00 00 00 00 00 00 00 00 00 00 f2 5d 4b 25 96 3e dd fb f0 c6 77 71 e2 3e 7e 06""",
    "REWIND to step 2": """
        04 00 00 00 05 00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 3c 44 35 c5 15 5c 16 b0 45 c1 17 66 18 9d 2c ec""",
    "NOTE": """
        06 00 00 00 06 00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 cc cc cc cc cc cc cc cc
        cc cc cc cc cc cc cc cc cc cc cc cc cc cc cc cc 8a 98 4e 35 5a 66 6e 08 c6 c3 47 25 f8 c3 bb 1b""",
    "END": """
        05 00 00 00 07 00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 bb bb bb bb bb bb bb bb
        bb bb bb bb bb bb bb bb bb bb bb bb bb bb bb bb 89 fe 0a 52 4a 5c 3c ed 02 ff ca 96 e9 82 22 46""",
}  # fmt: skip


BYTES = bytes.fromhex("".join(EXAMPLE.values()))


FORGED: dict[str, tuple[int, bytes]] = {
    "another major": (8, b"\2\0"), "a header of 4 GiB": (12, b"\0\xfe\xff\xff"), "a header of 512": (12, b"\0\2\0\0"),
    "a header of 1 MiB and more": (12, struct.pack("<I", 512 + 2**20 + 512)), "an odd header": (12, b"\1\4\0\0"),
    "a larger header": (12, b"\0\6\0\0"), "no header": (12, b"\0\0\0\0"), "a block of 4 GiB": (16, b"\xff" * 4),
    "a block that does not fit": (16, b"\1\2\0\0"), "slots of 0": (20, b"\0\0"), "slots of 65535": (20, b"\xff\xff"),
    "slots too large": (20, b"\x80\0"), "slots too small": (22, b"\3\0"), "K = 0": (22, b"\0\0"),
    "K = 65535": (22, b"\xff\xff"), "K = 83 in 1024": (20, b"\0\4\x53\0"), "sync_every 0": (68, b"\0" * 4),
    "sync_every 4097": (68, struct.pack("<I", 4097)), "sync_every 4 G": (68, b"\xff" * 4),
    "hash_every 0": (64, b"\0" * 4), "reserved 72": (72, b"\1"), "reserved 95": (95, b"\x80"),
    "reserved 320": (320, b"\1"), "reserved 479": (479, b"\1"), "padding": (1023, b"\1"), "magic": (0, b"\x88"),
}  # fmt: skip


def forge(raw: bytes, at: int, data: bytes, head: int = 1024) -> bytes:
    """`raw` with `data` at `at`, and every digest made right again: header, then slots (of 64 bytes)."""
    new = bytearray(raw)
    new[at : at + len(data)] = data
    (size,) = struct.unpack_from("<I", new, 16)
    new[480:512] = hashlib.sha256(new[:480] + new[512 : 512 + size]).digest()
    link = bytes(new[480:496])
    for i in range(head, len(new), 64):
        new[i + 48 : i + 64] = link = hashlib.sha256(link + new[i : i + 48]).digest()[:16]
    return bytes(new)


S = 1024 + 64  # the first STEP; then: one with two directions, HASH, skipped, REWIND, NOTE, END


FORGED_SLOTS: dict[str, tuple[int, bytes]] = {
    "kind 0": (S, b"\0"), "kind 7": (S, b"\7"), "kind 255": (S, b"\xff"), "flag 8": (S + 1, b"\x08"),
    "n = 0": (S + 2, b"\0"), "n > K": (S + 2, b"\3"), "n = 255": (S + 2, b"\xff"), "m > 2 K": (S + 3, b"\5"),
    "m = 255": (S + 3, b"\xff"), "another seq": (S + 4, b"\2"), "a step that is left out": (S + 8, b"\1"),
    "decay 0": (S + 16, bytes(4)), "decay > 1": (S + 16, b"\1\0\x80\x3f"), "decay < 0": (S + 16, b"\0\0\x80\xbf"),
    "decay nan": (S + 16, b"\0\0\xc0\x7f"), "lr inf": (S + 20, b"\0\0\x80\x7f"), "lr nan": (S + 20, b"\0\0\xc0\x7f"),
    "lr of 17 bits": (S + 20, b"\x80\0\x80\x3a"), "g nan": (S + 24, b"\0\0\xc0\x7f"),
    "g -inf": (S + 24, b"\0\0\x80\xff"), "g of 24 bits": (S + 24, b"\1\0\xc0\x3f"),
    "g subnormal": (S + 24, b"\0\0\x40\0"), "g below 2**-100": (S + 24, struct.pack("<f", 2.0**-101)),
    "an absent g": (S + 36, b"\1"), "an absent g of -0": (S + 39, b"\x80"), "an absent loss": (S + 44, b"\1"),
    "an absent loss of -0": (S + 64 + 47, b"\x80"), "a second weight of n = 1": (S + 2 + 64, b"\1"),
    "a skipped step's weight": (S + 3 * 64 + 26, b"\x80\x3f"), "HASH flags": (S + 2 * 64 + 1, b"\1"),
    "HASH of another step": (S + 2 * 64 + 8, b"\1"), "HASH check": (S + 2 * 64 + 12, b"\1"),
    "SESSION step": (1024 + 8, b"\1"), "SESSION lr": (1024 + 22, b"\x80"), "REWIND forward": (S + 4 * 64 + 8, b"\3"),
    "REWIND digest": (S + 4 * 64 + 24, b"\1"), "NOTE of another step": (S + 5 * 64 + 8, b"\1"),
    "END of another step": (S + 6 * 64 + 8, b"\3"), "END is not the HASH of its step": (S + 6 * 64 + 24, b"\xbc"),
    "END before the end": (S + 5 * 64, b"\5"),
}  # fmt: skip


def with_digest(raw: bytes) -> bytes:
    """Return `raw` and its SHA-256, as packed and shared logs end."""
    return raw + hashlib.sha256(raw).digest()
