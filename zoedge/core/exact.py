"""This module computes numbers that have the same bits on every machine.

Every function here runs on Python floats, torch tensors or numpy arrays, so that the replay and its second implementation
share them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

# by type: how many bits of a float32 storing drops, and the least normal number, if it is higher than float32's
HALF_FORMATS = {"bfloat16": (16, 0.0), "float16": (13, 2.0**-14)}

PI_128 = 0x3243F6A8885A308D313198A2E03707344  # pi * 2**128


def bits16(x: float) -> float:
    """Round `x` half-to-even to 16 significant bits; |x| < 2**-100 becomes 0 (some devices flush subnormals).

    A 16-bit coefficient times noise of at most 8 significant bits is exact in float32, so `p + c*z` has the same bits
    fused or not, on every device.
    """
    if not math.isfinite(x):
        raise ValueError(f"cannot round {x} to 16 bits")
    if abs(x) < 2.0**-100:
        return 0.0
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(mantissa, 16)), exponent - 16)


def mean(losses: Sequence[float]) -> float:
    """Return the mean of some losses. The sum is rounded once, so that it is the same however the batch was cut."""
    return math.fsum(losses) / len(losses)


def cospi(x: Fraction) -> float:
    """Return cos(pi x) by integers alone (128 bits, Taylor): the same on every machine, unlike that of libm."""
    x = abs(x) % 2
    if x > Fraction(1, 2):
        return -cospi(1 - x)  # cos(pi x) = cos(pi (2 - x)) too: 1 - x is in -1 .. 1/2
    one = 1 << 128
    angle = PI_128 * x.numerator // x.denominator
    square = angle * angle >> 128
    total, term, k = one, one, 0
    while term:
        k += 2
        term = (term * square >> 128) // (k * (k - 1))
        total += term if k % 4 == 0 else -term
    return total / one


def exact_sqrt(x: Any) -> Any:
    """Return the elementwise sqrt of float32 by float64: in float32 some CPUs are one ulp off in 17-20 % of values."""
    if hasattr(x, "double"):
        return x.double().sqrt().float()
    return (x.astype("f8") ** 0.5).astype("f4")


def elementwise_sign(x: Any) -> Any:
    """Return the elementwise sign: -1, 0 or +1."""
    return x.sign() if hasattr(x, "sign") else (x > 0).astype("f4") - (x < 0).astype("f4")


def round_stochastic(x: Any, bits: Any, storage: str) -> Any:
    """Round float32 `x` to the grid of a 16-bit `storage`, up or down by chance, so that the mean is x; returns float32.

    Only integers are added: the bits that storing drops, plus random ones, carry with probability dropped / 2**n.
    float16's subnormals are moved to 2**-14 .. 2**-13 first, whose grid they lie on; what that addition rounds is below
    2**-14 of a unit.

    Args:
        bits: a random int32 in 0 .. 65535 for each element; torch or numpy, as `x`.
        storage: bfloat16 or float16.
    """
    drop, least = HALF_FORMATS[storage]
    mask = (1 << drop) - 1
    if not least:
        rounded = x.view(bits.dtype) + bits
        rounded &= ~mask
        return rounded.view(x.dtype)
    shift = (abs(x) < least) * elementwise_sign(x) * least
    return (((x + shift).view(bits.dtype) + (bits & mask)) & ~mask).view(x.dtype) - shift
