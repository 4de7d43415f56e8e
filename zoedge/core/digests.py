"""This module computes the digests that prove a replay: of the trained values, and of this device's arithmetic."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

from .exact import bits16
from .types import AbstractNoise, AbstractRule, Direction, Key, Leaf, Part, Record, Space


def digest(space: Space) -> bytes:
    """Return the SHA-256 over the bytes of the trained values as they are stored, in the order of their offsets."""
    whole = hashlib.sha256()
    for leaf in space.leaves():
        whole.update(host_bytes(leaf.value))
    return whole.digest()


def selftest(noise: AbstractNoise, rule: AbstractRule, zeros: Any) -> bytes:
    """Return the SHA-256 of some fixed noise and updates, computed on the device where `zeros` ([1024] float32) lies.

    A device whose digest is another than the header's would not replay the same bits.
    """
    leaf = Leaf("selftest", 128, zeros, (Part("selftest", 128, (32, 32)),), 1280)
    whole, slots, value = hashlib.sha256(), rule.slots(leaf, 3), zeros
    for step in range(3):
        drawn = [noise.draw(Key(0x5EED, step, i), leaf) for i in range(rule.draws)]
        noises = tuple(z for z in drawn if z is not None)
        if not noises:
            continue
        for z in noises:
            whole.update(host_bytes(z))
        along = Direction(rule.direction(slots, *noises), noises)
        record = Record(step, step, bits16(1e-3), (bits16((-1) ** step * 0.7310585 / (step + 1)),), ())
        value = value * rule.decay(record.lr) + rule.update(slots, [along], record)
        whole.update(host_bytes(value))
    return whole.digest()


def host_bytes(array: Any) -> memoryview:
    """Return the bytes of a tensor or an array. numpy has no bfloat16, so that 16-bit tensors are read as integers."""
    if hasattr(array, "cpu"):
        array = array.cpu()
        if array.itemsize == 2:
            from torch import int16

            array = array.view(int16)
        array = array.numpy()
    return memoryview(array).cast("B")


def checksum(tensor: Any) -> int:
    """Return a checksum of a tensor's bits: CRC-32 on a CPU, else sums of the bits, of which each row counts differently."""
    import torch

    flat = tensor.contiguous().view(-1)
    if tensor.device.type == "cpu":
        return zlib.crc32(flat.view(torch.uint8).numpy().data)
    bits = flat.view(torch.int32 if tensor.element_size() == 4 else torch.int16).view(
        len(tensor) if tensor.dim() else 1, -1
    )
    rows = bits.sum(1, dtype=torch.int64)
    return int((rows * torch.arange(1, len(rows) + 1, device=rows.device)).sum())
