"""This module computes the bytes that a run holds at each of its moments, part by part, from shapes alone."""

from __future__ import annotations

from .facts import PIECE_ELEMENTS, QUANTISED_BLOCK, ModelShape
from .work import ForwardSize, Workload

# glibc gives freed blocks of more than 32 MiB back to the system; of smaller ones, about the largest stays
HEAP_RETAINED = 32 << 20

GPU_WORKSPACE = 64 << 20  # of cuBLAS, and the allocator's rounding

# needed beyond source and result, as measured in three runs (135 million and 1.2 billion weights)
QUANTISING_BYTES = 200 << 20


def quantised_bytes(n: int, rows: int, scheme: str, double: bool) -> int:
    """Return the bytes of n quantised weights in `rows` rows: codes, scales and their tables, as bitsandbytes holds them.

    double: the scales are quantised too.
    """
    if scheme == "int8":
        return n + 4 * rows
    blocks = -(-n // QUANTISED_BLOCK)
    scales = blocks + 4 * -(-blocks // 256) + 4 * 256 + 4 if double else 4 * blocks
    return -(-n // 2) + scales + 4 * 16


def weight_bytes(shape: ModelShape, work: Workload) -> tuple[int, int]:
    """Return (bytes of matrices, norms and biases; bytes of the tables of tokens)."""
    small = shape.other_elements * work.compute_itemsize
    if work.quantization == "none":
        linear = sum(out * wide for _, out, wide in shape.linears)
        return linear * work.compute_itemsize + small, shape.table_elements * work.compute_itemsize
    codes = sum(
        quantised_bytes(out * wide, out, work.quantization, work.double_quant) for _, out, wide in shape.linears
    )
    return codes + small, shape.table_elements * shape.stored_itemsize


def trained_bytes(shape: ModelShape, work: Workload) -> int:
    """Return the bytes that training adds during a forward pass.

    These are the float32 master, the rule's slots, the step's directions, and the points in the compute type.
    """
    # the model is its own master: besides it there are a matrix at two points, and the directions of a piece
    if work.trains_all:
        return (
            2 * max(shape.largest_linear, 1) * work.compute_itemsize
            + 4 * work.slots * work.elements
            + 4 * 4 * PIECE_ELEMENTS
        )
    return work.elements * (4 * (1 + work.slots + work.queries) + work.points * work.compute_itemsize)


def block_bytes(shape: ModelShape, work: Workload, f: ForwardSize, whole: bool) -> int:
    """Return the bytes of hidden states at the fullest moment of a block.

    The states that enter the block, the residual and the normalised states are alive at the same time as the hidden
    layer. A quantised matrix is dequantised for its product.

    Args:
        f: the size of the forward pass.
        whole: the block computes everything at all tokens. The last block does not: it computes keys and values at
            all tokens, and the rest only where the loss reads.
    """
    c = work.compute_itemsize
    h, i, q, k = (
        f.tokens * wide * c for wide in (shape.hidden_width, shape.inner_width, shape.query_width, shape.key_width)
    )
    wide = 0 if work.quantization == "none" else shape.largest_linear * (8 if work.quantization == "int8" else c)
    norm = 3 * h if c == 4 else 2 * h + 12 * f.tokens * shape.hidden_width
    keys = 2 * h + (4 if shape.rotary else 2) * k + wide
    if not whole:
        return max(norm, keys)
    inner = 3 * h + max(3 * i, 2 * i + wide) if shape.is_gated else max(3 * h + i + wide, 2 * h + 2 * i)
    heads = 2 * h + 2 * k + (4 if shape.rotary else 2) * q
    return max(norm, inner, heads, 3 * h + i + h + wide)


def logit_bytes(shape: ModelShape, f: ForwardSize) -> int:
    """Return the bytes of a chunk of float32 logits, of their exponentials, and of that part of the head."""
    return 4 * (2 * f.loss_rows * f.head_columns + f.head_columns * shape.hidden_width) if f.head_columns > 1 else 0


def memory_by_moment(shape: ModelShape, work: Workload) -> dict[str, dict[str, int]]:
    """Return {moment: {part: bytes}} for every moment of a run that can be the fullest."""
    matrices, tables = weight_bytes(shape, work)
    mapped = not work.cuda and (work.quantization != "none" or work.is_source_type)
    tables = int(tables * (work.tables_share if mapped else 1.0))
    held = {"weights": matrices, "embeddings": tables}
    trained = held | {"trained": trained_bytes(shape, work)}
    moments = {"loading": held | {"loader": loading_bytes(shape, work)}}
    if work.trunk:
        moments["lower layers"] = trained | {"activations": block_bytes(shape, work, work.trunk, True)}
    if work.kept_weights:
        trained = trained | {"kept weights": work.kept_weights}
    for name, f, whole in (("step", work.step, work.full_blocks > 0), ("look", work.evaluation, work.full_blocks > 0)):
        if f is not None:
            final = 2 * f.loss_rows * shape.hidden_width * 4
            moments[name] = trained | {"activations": block_bytes(shape, work, f, whole)}
            if f.head_columns > 1:
                moments[f"{name}'s logits"] = trained | {"activations": final, "logits": logit_bytes(shape, f)}
    if not work.trains_all:  # coefficients times directions, and their sum
        moments["update"] = held | {"trained": work.elements * 4 * (3 + work.queries + 2 * work.slots)}
    for parts in moments.values():
        parts["overhead"] = work.overhead + allocator_bytes(work, parts)
    return moments


def allocator_bytes(work: Workload, parts: dict[str, int]) -> int:
    """Return what the allocator keeps of freed memory: on a GPU by rounding up, on a CPU about glibc's largest block."""
    moving = sum(parts.get(part, 0) for part in ("activations", "logits", "trained"))
    if work.cuda:
        return GPU_WORKSPACE + moving // 16
    return min(HEAP_RETAINED, moving // 2)


def loading_bytes(shape: ModelShape, work: Workload) -> int:
    """Return the bytes that loading takes beyond what stays: the mapped files of the source, and the buffers of quantising."""
    source = shape.elements * shape.stored_itemsize
    if work.quantization == "none":
        return 0 if work.is_source_type else source
    if work.cuda:
        return shape.largest_linear * shape.stored_itemsize * 2
    if work.has_cached_weights:
        return 0
    tables = shape.table_elements * shape.stored_itemsize  # they stay mapped, and are counted already
    return source - tables + min(QUANTISING_BYTES, source)


def peak_memory_parts(shape: ModelShape, work: Workload) -> dict[str, int]:
    """Return the bytes by part at the fullest moment. Their sum is the peak."""
    return max(memory_by_moment(shape, work).values(), key=lambda parts: sum(parts.values()))
