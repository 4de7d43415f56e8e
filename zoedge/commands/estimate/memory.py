"""The bytes that a run holds at each moment, part by part."""

from __future__ import annotations

from .facts import PIECE_ELEMENTS, QUANTISED_BLOCK, ModelShape
from .work import ForwardSize, Workload

HEAP_RETAINED = (
    32 << 20
)  # glibc gives freed blocks back above 32 MiB; below, about the largest one stays with the process

GPU_WORKSPACE = 64 << 20  # cuBLAS's and the allocator's rounding

QUANTISING_BYTES = 200 << 20  # bytes beyond source and result: found in three runs, of 135 M and 1.2 G weights


# -- memory


def quantised_bytes(n: int, rows: int, scheme: str, double: bool) -> int:
    """Bytes of n quantised weights in so many rows: codes, scales and their tables, as bitsandbytes holds them."""
    if scheme == "int8":
        return n + 4 * rows
    blocks = -(-n // QUANTISED_BLOCK)
    scales = blocks + 4 * -(-blocks // 256) + 4 * 256 + 4 if double else 4 * blocks
    return -(-n // 2) + scales + 4 * 16


def weight_bytes(shape: ModelShape, work: Workload) -> tuple[int, int]:
    """(bytes of the matrices, norms and biases; bytes of the tables of tokens)."""
    small = shape.other_elements * work.compute_itemsize
    if work.quantization == "none":
        return sum(
            out * wide for _, out, wide in shape.linears
        ) * work.compute_itemsize + small, shape.table_elements * work.compute_itemsize
    codes = sum(
        quantised_bytes(out * wide, out, work.quantization, work.double_quant) for _, out, wide in shape.linears
    )
    return codes + small, shape.table_elements * shape.stored_itemsize


def trained_bytes(shape: ModelShape, work: Workload) -> int:
    """Bytes of what is trained while a forward runs: float32 master, slots, directions, and the points in compute type."""
    if work.trains_all:  # the master is the model; a matrix's points, and a piece's direction
        widest = max(shape.largest_linear, 1)
        return 2 * widest * work.compute_itemsize + 4 * work.slots * work.elements + 4 * 4 * PIECE_ELEMENTS
    return work.elements * (4 * (1 + work.slots + work.queries) + work.points * work.compute_itemsize)


def block_bytes(shape: ModelShape, work: Workload, f: ForwardSize, whole: bool) -> int:
    """Bytes of hidden states at the fullest moment of a block. whole: of one that computes at all tokens.

    The states that enter a block, the residual and the normed ones are alive while the hidden layer is; a quantised
    matrix is dequantised for its product. The last block computes keys and values at all tokens, the rest where the
    loss reads.
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
    """Bytes of float32 logits of a chunk of columns, of their exponentials, and of that part of the head."""
    return 4 * (2 * f.loss_rows * f.head_columns + f.head_columns * shape.hidden_width) if f.head_columns > 1 else 0


def memory_by_moment(shape: ModelShape, work: Workload) -> dict[str, dict[str, int]]:
    """The parts at each moment of a run that can be the fullest."""
    matrices, tables = weight_bytes(shape, work)
    mapped = not work.cuda and (work.quantization != "none" or work.is_source_type)
    tables = int(tables * (work.tables_share if mapped else 1.0))
    held = {"weights": matrices, "embeddings": tables}
    trained = held | {"trained": trained_bytes(shape, work)}
    found = {"loading": held | {"loader": loading_bytes(shape, work)}}
    if work.trunk:
        found["lower layers"] = trained | {"activations": block_bytes(shape, work, work.trunk, True)}
    for name, f, whole in (("step", work.step, work.full_blocks > 0), ("look", work.evaluation, work.full_blocks > 0)):
        if f is not None:
            final = 2 * f.loss_rows * shape.hidden_width * 4
            found[name] = trained | {"activations": block_bytes(shape, work, f, whole)}
            if f.head_columns > 1:
                found[f"{name}'s logits"] = trained | {"activations": final, "logits": logit_bytes(shape, f)}
    if not work.trains_all:  # coefficients times directions, and their sum
        found["update"] = held | {"trained": work.elements * 4 * (3 + work.queries + 2 * work.slots)}
    for some in found.values():
        some["overhead"] = work.overhead + allocator_bytes(work, some)
    return found


def allocator_bytes(work: Workload, some: dict[str, int]) -> int:
    """What the allocator keeps of what was freed: on a GPU its rounding, on a CPU about glibc's largest block."""
    moving = sum(some.get(part, 0) for part in ("activations", "logits", "trained"))
    if work.cuda:
        return GPU_WORKSPACE + moving // 16
    return min(HEAP_RETAINED, moving // 2)


def loading_bytes(shape: ModelShape, work: Workload) -> int:
    """What loading takes beyond what stays: the source's mapped file, and of quantising what it moves."""
    source = shape.elements * shape.stored_itemsize
    if work.quantization == "none":
        return 0 if work.is_source_type else source
    if work.cuda:
        return shape.largest_linear * shape.stored_itemsize * 2
    return (
        0
        if work.has_cached_weights
        else source - shape.table_elements * shape.stored_itemsize + min(QUANTISING_BYTES, source)
    )  # tables stay mapped


def peak_memory_parts(shape: ModelShape, work: Workload) -> dict[str, int]:
    """Bytes by part at the fullest moment; they sum to the peak."""
    return max(memory_by_moment(shape, work).values(), key=lambda some: sum(some.values()))
