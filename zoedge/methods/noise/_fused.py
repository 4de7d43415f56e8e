"""This module computes x (W + c z)' at the points of one direction without storing W + c z: z is made in registers.

It is a Triton kernel for CUDA and for noise of 1 or 16 bits an element. Its weights have the bits that drawing gives: before
its first use on a device it is compared with drawing, and where it fails or differs, directions are drawn. The environment
variable ZOEDGE_FUSED=0 turns it off.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.util import find_spec

import torch

from ...core.types import Key, Leaf
from ._lookup import _table_tensor, look_up_noise
from ._philox import LOW_32_BITS, check_counter

TILE_SIZES = {2: (64, 64, 64), 4: (64, 64, 32)}  # rows, columns, depth by bytes of a weight: 24 KiB of inputs at a time


def find_kernel(like: torch.Tensor, bits: int, table: bytes, width: int) -> Callable[..., torch.Tensor] | None:
    """Return `perturbed_matmul` for a noise and for weights like `like`; None: directions must be drawn.

    bits, table, width: as `look_up_noise` takes them.
    """
    if not like.is_cuda or triton_version() == "none":
        return None
    return (
        partial(perturbed_matmul, bits, table) if is_kernel_exact(like.device, like.dtype, bits, table, width) else None
    )


def triton_version() -> str:
    """Return the Triton that would compile the kernel, or "none" if it is not installed or ZOEDGE_FUSED is 0."""
    off = os.environ.get("ZOEDGE_FUSED") == "0" or find_spec("triton") is None
    return "none" if off else f"triton {version('triton')}"


def perturbed_matmul(
    bits: int,
    table: bytes,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    offset: int,
    key: Key,
    cs: Sequence[float],
) -> torch.Tensor:
    """Return x (w + c z)' + bias at each of P = 1 or 2 points, accumulated in float32: [P * S, ..., N].

    Args:
        bits: 8 (signs), or 16 with a `table` of 65,536 float32 values, as bytes.
        x: [P * S, ..., K], point by point.
        w: [N, K] of x's type.
        bias: [P, N], or None.
        offset: the index of w's first element in the run's vector.
        key: the name of the direction z.
        cs: the P factors c.
    """
    from ._kernel import perturbed_matmul_kernel as run

    (n, k), points, (bm, bn, bk) = w.shape, len(cs), TILE_SIZES[w.element_size()]
    check_counter(key, 0, -(-(offset + n * k) // (128 if bits == 8 else 8)))
    rows = x.reshape(points, -1, k).contiguous()
    y = x.new_empty(points, m := rows.shape[1], n)
    looked = _table_tensor(table, 1, w.device) if bits == 16 else w
    group = math.gcd(offset, k, bk, 128 if bits == 8 else 8)  # neighbours in a row that always share a counter
    run[(-(-m // bm), -(-n // bn))](
        rows,
        w,
        w if bias is None else bias.contiguous(),
        y,
        looked,
        m,
        n,
        k,
        offset,
        key.seed & LOW_32_BITS,
        key.seed >> 32,
        key.seq,
        key.query,
        key.stream,
        cs[0],
        cs[-1],
        TWO=points == 2,
        BIAS=bias is not None,
        BITS=1 if bits == 8 else 16,
        GROUP=group,
        BM=bm,
        BN=bn,
        BK=bk,
        INTERPRETED=not w.is_cuda,
        num_stages=2,
        enable_fp_fusion=False,  # c z is rounded before it is added, as by drawing
    )
    return y.view(*x.shape[:-1], n)


@lru_cache(maxsize=16)
def is_kernel_exact(device: torch.device, kind: torch.dtype, bits: int, table: bytes, width: int) -> bool:
    """Return whether the kernel runs on this device with the weights that drawing gives.

    x is the identity, so the product shows the weights themselves, without rounding.
    """
    key, offset, shape, c = Key(0x5EED_0000_5EED, 1, 2), 64, (33, 192), 2.9e-3
    try:
        w = torch.linspace(-1, 1, math.prod(shape), device=device).to(kind).view(shape)
        z = look_up_noise(key, Leaf("", offset, w.view(-1)), bits, table, width).view(shape)
        wanted = torch.stack([(w.float() + z * by).to(kind) for by in (c, -c)])
        x = torch.eye(shape[1], dtype=kind, device=device).repeat(2, 1)
        computed = perturbed_matmul(bits, table, x, w, None, offset, key, (c, -c)).view(2, shape[1], shape[0]).mT
        why = "" if torch.equal(computed, wanted) else "its weights differ from those that are drawn"
    except Exception as e:  # no Triton, no compiler, a device too old: of every kind
        why = f"{type(e).__name__}: {e}".splitlines()[0][:200]
    if why:
        warnings.warn(f"The fused kernel is not used on {device} ({why}): directions are drawn instead.", stacklevel=2)
    return not why
