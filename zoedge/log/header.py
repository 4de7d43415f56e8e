"""This module has the header of a log, which says what a run is of: fixed fields, digests and a block of canonical JSON."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.canonical import decode_canonical, encode_canonical
from ..errors import DamagedError, UsageError

MAGIC = b"\x89ZOE\r\n\x1a\n"

MAJOR, MINOR = 1, 0

BLOCK_LIMIT = 1 << 20

SLOT_SIZES = (64, 128, 256, 512, 1024)

_HEADER_STRUCT = struct.Struct("<8sHHIIHHII16sQQII24x32s32s32s32s32s32s32s160x")

DIGEST_FIELDS = ("recipe", "base", "tokenizer", "data", "manifest", "initial", "selftest")


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
        """The bytes of a slot: the smallest size that holds all directions of a step. UsageError: none does."""
        for size in SLOT_SIZES:
            if 40 + 12 * self.directions <= size:
                return size
        raise UsageError(
            f"{self.directions} directions a step do not fit a log's slot: 82 at most. Lower estimator.queries."
        )

    @property
    def length(self) -> int:
        """The length of the header in bytes: slot 0 begins there."""
        return 512 + -(-len(self.block) // 512) * 512

    @property
    def about(self) -> dict[str, Any]:
        """The decoded block: the resolved recipe and the space's description. DamagedError: it cannot be read."""
        try:
            value = decode_canonical(self.block)
            # equal bytes: no duplicate keys, no NaN, one reading
            if isinstance(value, dict) and encode_canonical(value) == self.block:
                return value
            what = "not one object of canonical JSON"
        except (ValueError, OverflowError, RecursionError) as e:
            what = type(e).__name__
        raise DamagedError(f"{self.where}: the header's block cannot be read: {what}.")

    def encode(self) -> bytes:
        """Return the header's bytes. ValueError or a ZoedgeError: they could not be read back as what they are."""
        try:
            whole = replace(self, run_id=self.run_id or self.identity())
            fixed = _HEADER_STRUCT.pack(
                MAGIC,
                MAJOR,
                self.minor,
                self.length,
                len(self.block),
                self.slot_size,
                self.directions,
                self.noise,
                self.rule,
                whole.run_id,
                self.seed,
                self.elements,
                self.hash_every,
                self.sync_every,
                *(vars(self)[name] for name in DIGEST_FIELDS),
            )
        except struct.error as e:
            raise ValueError(f"a number of the header does not fit its field: {e}") from None
        raw = (fixed + hashlib.sha256(fixed + self.block).digest() + self.block).ljust(self.length, b"\0")
        if Header.decode(raw, self.where) != (whole, len(raw)):
            raise ValueError("a digest of the header is not 32 bytes, or its run id not 16")
        return raw

    def identity(self) -> bytes:
        """Return the run id, 16 bytes: two runs of the same recipe, base and data from the same start have the same."""
        whole = hashlib.sha256(struct.pack("<QQ", self.seed, self.elements))
        for name in DIGEST_FIELDS[:-1]:
            whole.update(vars(self)[name])
        return whole.digest()[:16]

    @classmethod
    def decode(cls, raw: bytes, where: str) -> tuple[Header, int]:
        """Decode the header at the start of `raw`, and return it with its length in bytes. DamagedError: it is not whole."""

        def require(ok: bool, what: str) -> None:
            if not ok:
                raise DamagedError(f"{where}: not a readable zoedge log: {what}.")

        require(
            raw[:8] == MAGIC[: len(raw)],
            "the first 8 bytes are not its magic (is it another file, or changed in transfer?)",
        )
        require(len(raw) >= 512, f"{len(raw)} bytes are too few for a header (a run cut at its start? Then delete it)")
        (_, major, minor, length, block_len, slot, k, noise, rule, run_id, seed, n, every, sync, *digests) = (
            _HEADER_STRUCT.unpack(raw[:480])
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
        named = dict(zip(DIGEST_FIELDS, digests), run_id=run_id)
        header = cls(block, k, noise, rule, seed, n, every, sync, minor=minor, where=where, **named)
        require(header.slot_size == slot, f"slots of {slot} bytes for {k} directions")
        return header, length
