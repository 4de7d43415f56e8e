"""This module checks many slots of a log at once: it accepts plain steps alone, and leaves all else to `slots.decode_slot`.

A million slots pass in about a second, most of it SHA-256. Whatever is refused is refused by the code that reads one slot,
with its sentence: here a slot is either surely right, or not decided.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np

from ..core.types import SKIPPED
from .records import CHAIN_SIZE
from .slots import STEP, LogState, decode_slot

LEAST_WEIGHT = 27 << 23  # the bits of 2**-100 in float32

ONE = 127 << 23  # the bits of 1.0

INFINITE = 255 << 23


def count_linked(previous: bytes, block: bytes, size: int) -> int:
    """Return how many first slots of a block of whole slots are on the chain.

    Every slot is hashed. The chain value before it is the one that is stored there: where that one is wrong, counting has
    ended already.

    Args:
        previous: the chain value of the slot before the block.
        size: bytes of a slot.
    """
    linked = memoryview(previous + block)
    # a copied state saves a third of the time that a new one takes
    begin = hashlib.sha256().copy
    values = []
    for (part,) in struct.iter_unpack(f"{size}s", linked[: len(block)]):
        state = begin()
        state.update(part)
        values.append(state.digest())
    ours = np.frombuffer(b"".join(values), "u1").reshape(-1, 32)[:, :CHAIN_SIZE]
    theirs = np.frombuffer(block, "u1").reshape(-1, size)[:, -CHAIN_SIZE:]
    return count_equal((ours == theirs).all(1), np.ones(len(values), bool))


def are_weights(bits: Any) -> Any:
    """Return where float32 of these bits are 0 or at least 2**-100, finite, and of 16 significant bits at most."""
    size = bits & 0x7FFFFFFF
    return ((bits & 0xFF) == 0) & (size < INFINITE) & ((size == 0) | (size >= LEAST_WEIGHT))


def are_decays(bits: Any) -> Any:
    """Return where float32 of these bits are in (0, 1]."""
    return (bits > 0) & (bits <= ONE)


def find_plain_steps(words: Any, k: int, first: int) -> Any:
    """Return which slots are steps that `slots.decode_slot` would accept, and have their own number, as booleans.

    Args:
        words: whole slots as uint32, [slots, size / 4].
        k: directions that a slot may hold.
        first: the number of the first slot.
    """
    kind, flags, n, m = (words[:, 0] >> shift & 0xFF for shift in (0, 8, 16, 24))
    values = words[:, 6 : -CHAIN_SIZE // 4]  # triples (g, loss, loss), then padding
    query, place = np.divmod(np.arange(values.shape[1]), 3)
    of_g = place == 0
    present = np.where(of_g, query < n[:, None], 2 * query + place - 1 < m[:, None])
    ok = (kind == STEP) & (flags <= 7) & (n >= 1) & (n <= k) & (m <= 2 * k)
    ok &= words[:, 1] == np.arange(first, first + len(words))
    ok &= are_decays(words[:, 4]) & are_weights(words[:, 5]) & are_weights(values[:, of_g]).all(1)
    ok &= ~((values != 0) & ~present).any(1)
    return ok & ~((flags & SKIPPED != 0) & (values[:, of_g] != 0).any(1))


def fold_slots(state: LogState, block: bytes, size: int, k: int, first: int) -> tuple[int, str]:
    """Fold slots that are on the chain, up to one that no writer could have written.

    Runs of plain steps are taken at once, every other slot by itself.

    Args:
        state: what the slots before it mean; it is brought up to date.
        block: whole slots.
        size: bytes of a slot.
        k: directions that a slot may hold.
        first: the number of the first slot.

    Returns:
        How many slots were taken, and what is wrong with the next one; '' if all were taken.
    """
    words = np.frombuffer(block, "<u4").reshape(-1, size // 4)
    steps, at = words[:, 2], 0
    for stop in (*np.flatnonzero(~find_plain_steps(words, k, first)).tolist(), len(words)):
        if at < stop and state.end is None:
            done = len(state.records)
            last = at + count_equal(steps[at:stop], np.arange(done, done + stop - at))
            state.records.extend(words[at:last, : -CHAIN_SIZE // 4].tobytes(), size - CHAIN_SIZE)
            at = last
        # the slot that ended the run, or a step that does not follow the one before
        for i in range(at, min(stop + 1, len(words))):
            slot, wrong = decode_slot(block[i * size : (i + 1) * size], k)
            wrong = wrong or ("" if slot.seq == first + i else f"it says it is slot {slot.seq}")
            if wrong := wrong or state.fold(slot):
                return i, wrong
        at = stop + 1
    return len(words), ""


def count_equal(a: Any, b: Any) -> int:
    """Return in how many first places two arrays of the same length are equal."""
    different = np.flatnonzero(a != b)
    return int(different[0]) if len(different) else len(a)
