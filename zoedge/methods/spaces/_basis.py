"""This module has the fixed matrices of an aligned space, and their form in a log's header.

Any A is as good a system of coordinates as another one close to it, so that its values are rounded before anything is trained:
to 8-bit integers times a power of two for each row. B's values are bfloat16's. So the header holds exactly what was used.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LARGEST_INTEGER = 127
LARGEST_EXPONENT = 100  # of a row's scale 2^e; float32 holds 127 times that


def round_rows(a: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return integers [k, in] and exponents [k] of a matrix [k, in]: the smallest with which no integer is beyond 127."""
    values = a.detach().cpu().double().numpy()
    exponents = np.zeros(len(values), dtype=np.int8)
    for i, row in enumerate(values.tolist()):
        largest = max(map(abs, row), default=0.0)
        fraction, exponent = math.frexp(largest / LARGEST_INTEGER)
        exponent -= fraction == 0.5  # a power of two itself
        exponents[i] = max(-LARGEST_EXPONENT, min(LARGEST_EXPONENT, exponent)) if largest else 0
    integers = np.rint(np.ldexp(values, -exponents.astype(int)[:, None])).clip(-LARGEST_INTEGER, LARGEST_INTEGER)
    return integers.astype(np.int8), exponents


def scale_rows(integers: np.ndarray, exponents: np.ndarray) -> Tensor:
    """Return the matrix [k, in] in float32 of these integers and exponents. ValueError: a value is none of `round_rows`."""
    if max(map(abs, exponents.tolist()), default=0) > LARGEST_EXPONENT:
        raise ValueError("a scale is too large or too small")
    return torch.from_numpy(np.ldexp(integers.astype(np.float32), exponents.astype(int)[:, None]))


def count_basis_bytes(wides: Sequence[int], k: int, out: int, rank: int) -> int:
    """Return the bytes that a basis takes before it is written as text. wides: `in` of each module."""
    return sum(k * (wide + 1) for wide in wides) + 2 * out * rank


@dataclass(frozen=True)
class Basis:
    """The fixed matrices of an aligned space, whose terms are B R A.

    Attributes:
        a: A [k, in] float32 of each module, by its full name.
        b: B [out, rank] float32, the same for all.
    """

    a: dict[str, Tensor]
    b: Tensor

    @classmethod
    def of(cls, a: Mapping[str, Tensor], b: Tensor) -> Basis:
        """Return the basis of these matrices, rounded to what `describe` can say of them."""
        return cls({name: scale_rows(*round_rows(matrix)) for name, matrix in a.items()}, b.bfloat16().float())

    @classmethod
    def empty(cls, shapes: Mapping[str, tuple[int, int]], k: int, rank: int) -> Basis:
        """Return a basis of zeros, along which nothing moves. shapes: [out, in] of each module."""
        outs = [out for out, _ in shapes.values()]
        return cls({name: torch.zeros(k, wide) for name, (_, wide) in shapes.items()}, torch.zeros(outs[0], rank))

    def to(self, device: torch.device) -> Basis:
        """Return the same basis on a device."""
        return Basis({name: matrix.to(device) for name, matrix in self.a.items()}, self.b.to(device))

    def describe(self) -> str:
        """Return the text from which `read` makes the same basis: each module's exponents and integers, then B, in base 85."""
        parts = []
        for matrix in self.a.values():
            integers, exponents = round_rows(matrix)
            parts += [exponents.tobytes(), integers.tobytes()]
        parts.append(self.b.cpu().bfloat16().view(torch.int16).numpy().astype("<i2").tobytes())
        return base64.b85encode(b"".join(parts)).decode()

    @classmethod
    def read(cls, text: object, shapes: Mapping[str, tuple[int, int]], k: int, rank: int) -> Basis:
        """Return the basis that `describe` described. ValueError: it is no such text.

        shapes: [out, in] of each module, in the order of the text.
        """
        out = next(iter(shapes.values()))[0]
        size = count_basis_bytes([wide for _, wide in shapes.values()], k, out, rank)
        if not isinstance(text, str) or len(text) != -(-size * 5 // 4):
            raise ValueError("the basis has another size than the modules ask for")
        raw, at, a = base64.b85decode(text), 0, {}
        for name, (_, wide) in shapes.items():
            exponents = np.frombuffer(raw, np.int8, k, at)
            a[name] = scale_rows(np.frombuffer(raw, np.int8, k * wide, at + k).reshape(k, wide), exponents)
            at += k * (wide + 1)
        b = torch.frombuffer(bytearray(raw[at:]), dtype=torch.int16).view(torch.bfloat16).float().view(out, rank)
        if not bool(b.isfinite().all()):
            raise ValueError("a value of the basis is not finite")
        return cls(a, b)
