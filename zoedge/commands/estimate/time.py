"""This module predicts the seconds and the disk space of a run; seconds come from short timings on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core import oracle
from ...core.types import Direction, Key, Leaf, Record
from ...log.header import SLOT_SIZES
from ...recipe.recipe import Recipe
from .facts import FORWARD_TOKENS
from .fit import Plan
from .memory import weight_bytes
from .work import example_token_rows, list_datasets

if TYPE_CHECKING:
    import torch

    from ...scoring.models.base import Base


def disk_bytes(plan: Plan) -> dict[str, int]:
    """Return {file: bytes} of what a run downloads or makes once in the cache, and of what it leaves in its folder.

    The base's predictions are gone with the process. The lower layers' outputs stay in the cache, up to its limit.
    """
    from ...scoring.drift import MAX_TOKENS

    shape, work, recipe = plan.shape, plan.workload, plan.recipe
    k, steps = oracle.slot_capacity(recipe.estimator, recipe.train.steps), recipe.train.steps
    slot = next((n for n in SLOT_SIZES if 40 + 12 * k <= n), SLOT_SIZES[-1])
    sizes = {"source": shape.elements * shape.stored_itemsize, "quantised cache": 0, "lower layers": work.trunk_disk}
    if shape.meta_base.facts.HEAD == "CausalLM":  # of at most so many tokens of each held-out set (scoring/drift.py)
        held_out = sum(rows is not None for rows in (recipe.data.valid, recipe.data.test))
        sizes["base's predictions"] = held_out * MAX_TOKENS * shape.vocabulary * 4
    if recipe.model.quantization != "none":
        sizes["quantised cache"] = sum(weight_bytes(shape, work))
    sizes["log"] = slot * (steps + steps // recipe.log.hash_every)
    if "peft" in recipe.output.export:
        sizes["adapter"] = 4 * work.elements
    if "merged" in recipe.output.export:
        sizes["merged"] = shape.elements * (work.compute_itemsize if work.trains_all else 2)
    return {what: count for what, count in sizes.items() if count}


def estimate_seconds(plan: Plan) -> dict[str, float]:
    """Return {"step": seconds of a mean step} and the seconds of the run's parts: all steps, the lower layers' cache, scoring.

    It spends some tenths of a second on products of this model's shapes, and multiplies. Attention, norms, activations and
    whatever else the machine does are not counted.
    """
    import torch

    shape, work, recipe, base = plan.shape, plan.workload, plan.recipe, plan.shape.meta_base
    block = sum(out * wide for name, out, wide in shape.linears if name.startswith(f"{base.facts.BLOCKS}.0."))
    keys = 2 * shape.hidden_width * shape.key_width
    forwards = -(-work.passes // work.points)
    tokens = work.mean_tokens * work.passes // forwards  # of a forward pass
    loss_rows = max(1, tokens * work.step.loss_rows // work.step.tokens)
    head = shape.hidden_width * shape.vocabulary if work.step.head_columns > 1 else 0

    def forward(tokens: int, loss_rows: int, product: float) -> float:
        """Return the seconds of a forward pass whose multiplications take `product` seconds each."""
        products = tokens * (work.full_blocks * block + keys) + loss_rows * (block - keys + head)
        return product * products + dequantised * (work.full_blocks + 1) * block

    threads = torch.get_num_threads()
    if recipe.model.threads:
        torch.set_num_threads(recipe.model.threads)
    dequantised = time_dequantising(work.quantization, base)
    wide_product = time_product(shape.inner_width, shape.hidden_width, FORWARD_TOKENS // 4, base)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    product = time_product(shape.inner_width, shape.hidden_width, max(1, min(tokens, FORWARD_TOKENS // 4)), base)
    update = time_element_update(recipe, base) * work.queries * work.elements
    torch.set_num_threads(threads)
    step = forwards * forward(tokens, loss_rows, product) + update
    seconds = {"step": step, "steps": step * recipe.train.steps}
    rows = [sum(example_token_rows(examples)) for examples in list_datasets(plan.datasets)]
    if work.trunk:
        seconds["lower layers"] = work.trunk_tokens * block * (shape.layers - work.full_blocks - 1) * wide_product
    if rows[1:]:
        scored = rows[1] * (recipe.train.steps // recipe.eval.every) + 2 * rows[-1]
        whole = forward(FORWARD_TOKENS, FORWARD_TOKENS * loss_rows // tokens, wide_product)
        seconds["scoring"] = scored * whole / FORWARD_TOKENS
    return seconds


def time_call(act: Callable[[], object], device: torch.device, budget: float = 0.1) -> float:
    """Return the seconds of a call: the least of as many calls as fit into `budget` seconds.

    The least, because other programs may slow some of the calls.
    """
    import torch

    seconds: list[float] = []
    end = time.perf_counter() + budget
    act()  # the first call may also compile, or load a library
    while not seconds or time.perf_counter() < end:
        began = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def time_product(out: int, wide: int, rows: int, base: Base) -> float:
    """Return the seconds of one multiplication in a product [rows, wide] x [wide, out] in a base's compute type.

    It uses as many threads as torch is set to.
    """
    import torch

    x, w = (torch.ones(n, wide, dtype=base.dtype, device=base.device) for n in (rows, out))
    return time_call(lambda: torch.nn.functional.linear(x, w), base.device) / (rows * wide * out)


def time_dequantising(scheme: str, base: Base) -> float:
    """Return the seconds that one element of a quantised matrix takes to be dequantised; 0 for the scheme `none`."""
    import torch

    w = torch.ones(512, 2048, dtype=base.dtype, device=base.device)
    if scheme == "none":
        return 0.0
    if scheme == "int8":
        codes, scale = w.to(torch.int8), w[:, :1].float()
        return time_call(lambda: (codes.float() * (scale / 127.0)).to(base.dtype), base.device) / w.numel()
    import bitsandbytes as bnb

    from ...scoring import sources  # noqa: F401 - it keeps transformers off the network

    data, quant = bnb.functional.quantize_4bit(w, quant_type=scheme)
    return time_call(lambda: bnb.functional.dequantize_4bit(data, quant), base.device) / w.numel()


def time_element_update(recipe: Recipe, base: Base) -> float:
    """Return the seconds that one trained element takes in a step: its direction is drawn, probed twice and moved along."""
    import torch

    leaf = Leaf("", 0, torch.zeros(1 << 18, device=base.device), (), 1 << 18)
    slots = recipe.rule.slots(leaf, 2)

    def act() -> None:
        noise = tuple(z for i in range(recipe.rule.draws) if (z := recipe.noise.draw(Key(0, 0, i), leaf)) is not None)
        if noise:
            z = recipe.rule.direction(slots, *noise)
            torch.add(leaf.value, z * 1e-3), torch.add(leaf.value, z * -1e-3)
            recipe.rule.update(dict(slots), [Direction(z, noise)], Record(0, 0, 1e-3, (1.0,), ()))

    return time_call(act, base.device) / len(leaf.value)
