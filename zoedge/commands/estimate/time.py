"""The seconds and the disk space that a run takes, from short timings of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ...core import oracle
from ...log.header import SLOT_SIZES
from .facts import FORWARD_TOKENS
from .fit import Plan
from .memory import weight_bytes
from .work import example_token_rows, list_datasets

# -- disk and time


def disk_bytes(plan: Plan) -> dict[str, int]:
    """Bytes that a run fetches or makes once, and what it leaves, on the disk."""
    shape, work, recipe = plan.shape, plan.workload, plan.recipe
    k, steps = oracle.slot_capacity(recipe.estimator, recipe.train.steps), recipe.train.steps
    slot = next((n for n in SLOT_SIZES if 40 + 12 * k <= n), SLOT_SIZES[-1])
    found = {"source": shape.elements * shape.stored_itemsize, "quantised cache": 0, "lower layers": work.trunk_disk}
    if recipe.model.quantization != "none":
        found["quantised cache"] = sum(weight_bytes(shape, work))
    found["log"] = slot * (steps + steps // recipe.log.hash_every)
    if "peft" in recipe.output.export:
        found["adapter"] = 4 * work.elements
    if "merged" in recipe.output.export:
        found["merged"] = shape.elements * (work.compute_itemsize if work.trains_all else 2)
    return {what: count for what, count in found.items() if count}


def estimate_seconds(plan: Plan) -> dict[str, float]:
    """Seconds of a mean step, and of the run by part, from a fraction of a second of products of this model's shapes here.

    An estimate: what else the machine does, attention, norms and activations are not in it.
    """
    import torch

    shape, work, recipe, base = plan.shape, plan.workload, plan.recipe, plan.shape.meta_base
    block = sum(out * wide for name, out, wide in shape.linears if name.startswith(f"{base.facts.BLOCKS}.0."))
    keys = 2 * shape.hidden_width * shape.key_width
    forwards = -(-work.passes // work.points)
    tokens = work.mean_tokens * work.passes // forwards  # of a forward
    read = max(1, tokens * work.step.loss_rows // work.step.tokens)
    head = shape.hidden_width * shape.vocabulary if work.step.head_columns > 1 else 0

    def forward(tokens: int, read: int, each: float) -> float:
        products = tokens * (work.full_blocks * block + keys) + read * (block - keys + head)
        return each * products + ready * (work.full_blocks + 1) * block

    was = torch.get_num_threads()
    if recipe.model.threads:
        torch.set_num_threads(recipe.model.threads)
    ready = time_dequantising(work.quantization, base)
    quick = time_product(shape.inner_width, shape.hidden_width, FORWARD_TOKENS // 4, base)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    each = time_product(shape.inner_width, shape.hidden_width, max(1, min(tokens, FORWARD_TOKENS // 4)), base)
    moved = time_element_update(recipe, base) * work.queries * work.elements
    torch.set_num_threads(was)
    step = forwards * forward(tokens, read, each) + moved
    found = {"step": step, "steps": step * recipe.train.steps}
    rows = [sum(example_token_rows(some)) for some in list_datasets(plan.datasets)]
    if work.trunk:
        found["lower layers"] = sum(rows) * block * (shape.layers - work.full_blocks - 1) * quick
    if rows[1:]:
        looks = rows[1] * (recipe.train.steps // recipe.eval.every) + 2 * rows[-1]
        found["scoring"] = looks * forward(FORWARD_TOKENS, FORWARD_TOKENS * read // tokens, quick) / FORWARD_TOKENS
    return found


# -- time


def time_call(act: Callable[[], Any], device: Any, budget: float = 0.1) -> float:
    """Seconds of a call, the least of those that a tenth of a second holds: others may use the machine meanwhile."""
    import torch

    found, end = [], time.perf_counter() + budget
    act()
    while not found or time.perf_counter() < end:
        began = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)


def time_product(out: int, wide: int, rows: int, base: Any) -> float:
    """Seconds of a multiplication in [rows, wide] x [wide, out], here, in a base's compute type, with the threads as set."""
    import torch

    x, w = (torch.ones(n, wide, dtype=base.dtype, device=base.device) for n in (rows, out))
    return time_call(lambda: torch.nn.functional.linear(x, w), base.device) / (rows * wide * out)


def time_dequantising(scheme: str, base: Any) -> float:
    """Seconds of an element of a quantised matrix to be made ready for its product; 0 for `none`."""
    import torch

    w = torch.ones(512, 2048, dtype=base.dtype, device=base.device)
    if scheme == "none":
        return 0.0
    if scheme == "int8":
        codes, scale = w.to(torch.int8), w[:, :1].float()
        return time_call(lambda: (codes.float() * (scale / 127.0)).to(base.dtype), base.device) / w.numel()
    import bitsandbytes as bnb

    from ...scoring import sources  # noqa: F401 - offline first

    data, quant = bnb.functional.quantize_4bit(w, quant_type=scheme)
    return time_call(lambda: bnb.functional.dequantize_4bit(data, quant), base.device) / w.numel()


def time_element_update(recipe: Any, base: Any) -> float:
    """Seconds of a trained element in a step: its directions are drawn, its points written, it is moved."""
    import torch

    from ...core.types import Direction, Key, Leaf, Record

    leaf = Leaf("", 0, torch.zeros(1 << 18, device=base.device), (), 1 << 18)
    slots = recipe.rule.slots(leaf, 2)

    def act() -> None:
        noise = tuple(z for i in range(recipe.rule.draws) if (z := recipe.noise.draw(Key(0, 0, i), leaf)) is not None)
        if noise:
            z = recipe.rule.direction(slots, *noise)
            torch.add(leaf.value, z * 1e-3), torch.add(leaf.value, z * -1e-3)
            recipe.rule.update(dict(slots), [Direction(z, noise)], Record(0, 0, 1e-3, (1.0,), ()))

    return time_call(act, base.device) / len(leaf.value)
