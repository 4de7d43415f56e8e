"""This module has the file of a shared fine-tune (.zoe): a packed log and what is needed to rebuild its adapter elsewhere."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

from ..errors import DamagedError
from .packed import PackedLog

MAGIC = b"\x89ZFT\r\n\x1a\n"

MAJOR, MINOR = 1, 0

_HEADER_STRUCT = struct.Struct("<8sHHI16s32s")


class SharedLog(PackedLog):
    """A .zoe, open for reading: its packed log, and what it delivers.

    Attributes:
        delivers: after how many steps it delivers the trained values.
        delivered: the SHA-256 of these values.
    """

    def __init__(self, path: Path, raw: bytes):
        """Read a shared fine-tune. DamagedError: `raw` is no whole one."""

        def require(ok: Any, what: str) -> None:
            if not ok:
                raise DamagedError(f"{path}: not a readable shared fine-tune: {what}.")

        require(len(raw) >= 64 + 96 + 32, f"{len(raw)} bytes are too few")
        magic, major, minor, steps, zero, state = _HEADER_STRUCT.unpack_from(raw)
        require(magic == MAGIC, "the first 8 bytes are not its magic (was the file changed in transfer?)")
        require(major == MAJOR, f"format {major}.{minor} is not one that this version reads ({MAJOR}.x)")
        require(hashlib.sha256(raw[:-32]).digest() == raw[-32:], "its digest does not match")
        require(not any(zero), "reserved bytes are not zero")
        super().__init__(path, raw[64:-32])
        require(steps <= len(self), f"it delivers step {steps} of {len(self)}")
        require(self.state.hashes.get(steps, state[:24]) == state[:24], f"its log knows another state of step {steps}")
        self.delivers, self.delivered = steps, state
