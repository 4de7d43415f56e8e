"""This module holds a log's effective steps as the bytes of their slots: 48 bytes a step where a record object takes 452.

The bytes are copied out of the file when they are checked, so that whatever happens to the file later changes nothing that
was read. A mapping of the file would not do that, and would end the process where another program cuts the file short.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

from ..core.types import Record

if TYPE_CHECKING:
    import numpy as np

SLOT_STRUCT = struct.Struct("<BBBBIIIff")  # kind, flags, n, m, seq, step, check, decay, lr

CHAIN_SIZE = 16  # bytes of a chain value, the last ones of a slot

BLOCK_STEPS = 4096  # how many steps are taken at a time where all of them pass through

RECENT_STEPS = 256  # records kept decoded: estimators and the watchdog read the newest 200 at every step


def decode_record(body: bytes) -> Record:
    """Return the record in the body of a STEP's slot: its bytes without the chain value."""
    _, flags, n, m, seq, step, check, decay, lr = SLOT_STRUCT.unpack_from(body)
    words = struct.unpack_from(f"<{3 * max(n, -(-m // 2))}f", body, 24)
    losses = tuple(words[3 * (i // 2) + 1 + i % 2] for i in range(m))
    return Record(step, seq, lr, words[0 : 3 * n : 3], losses, flags, check, decay)


_decode_recent = lru_cache(RECENT_STEPS)(decode_record)


class Records(Sequence[Record]):
    """A list of records as one array of bytes. A record is decoded when it is asked for."""

    def __init__(self, bodies: bytes = b"", size: int = 1):
        """Hold these bodies of `size` bytes each. The size of an empty list follows from what is added first."""
        self._bodies, self._size = bytearray(bodies), size

    def __len__(self) -> int:
        return len(self._bodies) // self._size

    @overload
    def __getitem__(self, step: int) -> Record: ...

    @overload
    def __getitem__(self, step: slice) -> list[Record]: ...

    def __getitem__(self, step: int | slice) -> Record | list[Record]:
        steps = range(len(self))[step]
        if isinstance(steps, range):
            return [self[i] for i in steps]
        return _decode_recent(bytes(self._bodies[steps * self._size : (steps + 1) * self._size]))

    def __iter__(self) -> Iterator[Record]:
        at = 0
        while body := bytes(self._bodies[at : at + self._size]):
            yield decode_record(body)
            at += self._size

    def __repr__(self) -> str:
        return repr(list(self))

    def extend(self, bodies: bytes, size: int) -> None:
        """Append steps by the bodies of their slots, of `size` bytes each."""
        assert size == self._size or not self._bodies
        self._size = size
        self._bodies += bodies

    def cut(self, steps: int) -> None:
        """Drop the steps from `steps` on."""
        del self._bodies[steps * self._size :]

    def copy(self) -> Records:
        """Return another list of the same records."""
        return Records(bytes(self._bodies), self._size)

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the bodies as uint32, [steps, size / 4], so many steps at a time that memory stays bounded."""
        import numpy as np

        for at in range(0, len(self._bodies), BLOCK_STEPS * self._size):
            block = bytes(self._bodies[at : at + BLOCK_STEPS * self._size])
            yield np.frombuffer(block, "<u4").reshape(-1, self._size // 4)
