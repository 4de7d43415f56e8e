"""The Triton program of `_fused.perturbed_matmul`, imported only where it runs. Philox's words come from Triton's library."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def draw_tile(first, table, low, high, seq, query, stream, BITS: tl.constexpr, GROUP: tl.constexpr):
    """Return z [R, G, GROUP] float32 of the elements first .. first + GROUP - 1; first: [R, G, 1] int64, one counter each."""
    SHIFT: tl.constexpr = 7 if BITS == 1 else 3  # 128 or 8 elements a counter
    seed = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
    counter = (first >> SHIFT).to(tl.uint32)
    a, b, c, d = tl.philox(seed, counter, stream.to(tl.uint32), query.to(tl.uint32), seq.to(tl.uint32))
    place = (first & ((1 << SHIFT) - 1)).to(tl.int32) + tl.arange(0, GROUP)[None, None, :]
    bit = place * BITS
    word = tl.where(bit < 64, tl.where(bit < 32, a, b), tl.where(bit < 96, c, d))
    value = ((word >> (bit & 31).to(tl.uint32)) & ((1 << BITS) - 1)).to(tl.int32)
    return value.to(tl.float32) * 2.0 - 1.0 if BITS == 1 else tl.load(table + value)


@triton.jit
def round_to_type(x, kind: tl.constexpr, INTERPRETED: tl.constexpr):
    """Round float32 x to another type, to nearest even.

    Triton's interpreter truncates to bfloat16 and cannot multiply it: under it the value is rounded by its bits, and stays
    float32.
    """
    if INTERPRETED and kind == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(kind)


@triton.jit(do_not_specialize=["offset", "low", "high", "seq", "query", "stream"])
def perturbed_matmul_kernel(
    x,
    w,
    bias,
    y,
    table,
    M,
    N,
    K,
    offset: tl.int64,
    low: tl.int64,
    high: tl.int64,
    seq: tl.int64,
    query: tl.int64,
    stream: tl.int64,
    up,
    down,
    TWO: tl.constexpr,
    BIAS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Compute y[p] = x[p] (w + c[p] z)' + bias[p], with c = (up, down).

    All are contiguous: x [P, M, K], w [N, K], bias [P, N], y [P, M, N].
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    first = offset + columns[:, None, None].to(tl.int64) * K + tl.arange(0, BK // GROUP)[None, :, None] * GROUP
    below = tl.zeros([], tl.int64) + M  # rows to the second point
    one = tl.zeros([BM, BN], tl.float32)
    two = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        ks = k + tl.arange(0, BK)
        inside = (columns[:, None] < N) & (ks[None, :] < K)
        inside_x = (rows[:, None] < M) & (ks[None, :] < K)
        tile = tl.load(w + columns[:, None].to(tl.int64) * K + ks[None, :], mask=inside, other=0.0).to(tl.float32)
        z = tl.reshape(draw_tile(first + k, table, low, high, seq, query, stream, BITS, GROUP), [BN, BK])
        at = x + rows[:, None].to(tl.int64) * K + ks[None, :]
        moved = round_to_type(tile + z * up, w.dtype.element_ty, INTERPRETED)  # as the scratch of the plain path
        one = tl.dot(
            tl.load(at, mask=inside_x, other=0.0).to(moved.dtype), tl.trans(moved), one, input_precision="ieee"
        )
        if TWO:
            moved = round_to_type(tile + z * down, w.dtype.element_ty, INTERPRETED)
            x_second = tl.load(at + below * K, mask=inside_x, other=0.0).to(moved.dtype)
            two = tl.dot(x_second, tl.trans(moved), two, input_precision="ieee")
    to = y + rows[:, None].to(tl.int64) * N + columns[None, :]
    good = (rows[:, None] < M) & (columns[None, :] < N)
    if BIAS:
        one += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    tl.store(to, round_to_type(one, y.dtype.element_ty, INTERPRETED).to(y.dtype.element_ty), mask=good)
    if TWO:
        if BIAS:
            two += tl.load(bias + N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        tl.store(to + below * N, round_to_type(two, y.dtype.element_ty, INTERPRETED).to(y.dtype.element_ty), mask=good)
