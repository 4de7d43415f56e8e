"""This module converts the settings that every tool has: the base, the batch, the steps, the schedule, the adapter's size."""

from __future__ import annotations

import math
import re

from ...errors import UsageError
from ...recipe.foreign import REASON_BY_KEY
from .rows import count_rows
from .source import ConfigConverter

SCHEDULE_NAMES = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_decay": "cosine",
    "linear_schedule": "linear",
    "constant_with_warmup": "constant",
}
COMPUTE_TYPES = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
    "auto": "auto",
    "16": "fp16",
    "32": "fp32",
}
PRECISION_SWITCHES = {"bf16": "bf16", "bfloat16": "bf16", "pure_bf16": "bf16", "fp16": "fp16", "float16": "fp16"}
# names of bases whose weights are quantised already, such as -4bit, -bnb-4bit, -GPTQ-Int4, -AWQ, Q4_K_M.gguf
QUANTISED_NAME = re.compile(
    r"[-_.](?:bnb[-_])?\d(?:\.\d)?-?bits?\b|[-_](?:gptq|awq|aqlm|hqq|exl[23]|fp8|mxfp4|nvfp4|int[48]|dwq)\b|gguf",
    re.IGNORECASE,
)
STEPS_NOTE = (
    "a step here is two forward passes and learns less than a step of backpropagation: expect to need more of them"
)
RATE_NOTE = "a first-order rate is not a zeroth-order one: rule.lr and estimator.eps are left at zoedge's defaults"
TRUNCATION_NOTE = "longer rows are cut from the left, so that the answer stays"
OUTPUT_NOTE = "runs lie in it, each with its log and its adapter"


def convert_base(s: ConfigConverter, *keys: str) -> str:
    """Carry the base model and return its name. UsageError: there is none."""
    if not isinstance(value := s.take(*keys), str):
        raise UsageError(f"{s.where}: no base model ({keys[0]}), so there is nothing to make a recipe of.")
    s.put(keys[0], "model.source", value)
    if mark := QUANTISED_NAME.search(value):
        plain = value[: mark.start()]
        s.change(
            keys[0], value, f"zoedge quantises a 16-bit model itself: name that one in model.source (such as {plain})"
        )
    return value


def convert_full(s: ConfigConverter, key: str, given: object = None) -> None:
    """Train all weights, which only an unquantised base allows. key: the configuration's, with the value `given`."""
    if s.read("model.quantization") not in (None, "none"):
        how = "all weights are trained, and those of a quantised base are not: it is held in 16 or 32 bits"
        s.change("(all weights)", s.read("model.quantization"), how)
        s.out.carried = [(key, to) for key, to in s.out.carried if not to.startswith("model.quantization")]
    s.out.table["model"]["quantization"] = "none"
    s.out.table["model"].pop("double_quant", None)
    s.put(key, "space", "full", given=given)


def convert_lora_size(s: ConfigConverter, rank: str, alpha: str, *rank_stabilised: str) -> None:
    """Carry an adapter's rank and alpha, over all layers.

    With rank stabilisation (arXiv 2312.03732) the term is alpha / sqrt(rank) * B A, which is our alpha / rank * B A at
    an alpha that is sqrt(rank) times as large.

    Args:
        rank, alpha: their keys.
        rank_stabilised: the keys that may switch that on.
    """
    s.put("(layers)", "space.layers", "all")
    size, value = s.carry(rank, "space.rank"), s.take(alpha)
    is_stabilised = any(s.left.get(key) for key in rank_stabilised)
    s.keep(rank_stabilised, "space.alpha")
    if is_stabilised and isinstance(value, (int, float)) and isinstance(size, int) and size > 0:
        larger = round(value * math.sqrt(size), 4)
        s.put(alpha, "space.alpha", larger, f"with rank stabilisation: {value:g} x sqrt({size})", value)
    elif value is not None:
        s.put(alpha, "space.alpha", value)


def convert_first_order(s: ConfigConverter, rate: str, optimizer: str) -> None:
    """List the settings that belong to gradients; a learning rate is never carried over."""
    if (value := s.take(rate)) is not None:
        s.change(rate, value, RATE_NOTE)
    s.lose(optimizer, REASON_BY_KEY["optim_args"])


def convert_schedule(s: ConfigConverter, key: str) -> None:
    """Carry the schedule of the learning rate, without a warm-up."""
    if (value := s.take(key)) is not None:
        if (ours := SCHEDULE_NAMES.get(value if isinstance(value, str) else "")) is None:
            s.change(key, value, f"{REASON_BY_KEY['warmup']}; it is left to zoedge")
        else:
            s.put(key, "rule.schedule", ours, "" if ours == value else f"{ours}, without a warm-up", value)


def convert_precision(s: ConfigConverter) -> None:
    """Carry the compute type from switches such as `bf16: true`."""
    for key, ours in PRECISION_SWITCHES.items():
        if (value := s.take(key)) is not None:
            if value in (True, "true", "full"):
                s.put(key, "model.compute_dtype", ours, given=value)
            else:
                s.out.carried.append((key, "model.compute_dtype: auto" if value == "auto" else "as it is"))


def convert_dtype(s: ConfigConverter, key: str) -> None:
    """Carry the compute type from a name such as `bfloat16`."""
    if (value := s.take(key)) is not None:
        name = str(value).removeprefix("torch.").partition("-")[0]
        s.put(key, "model.compute_dtype", COMPUTE_TYPES.get(name, name), given=value)


def convert_batch(s: ConfigConverter, one: str, times: str) -> int:
    """Carry the batch of a step, which is one device's batch times the accumulated ones, and return it."""
    size, accumulated = s.take(one), s.take(times)
    whole = (size if isinstance(size, int) else 1) * (accumulated if isinstance(accumulated, int) else 1)
    if size is not None or accumulated is not None:
        is_product = isinstance(accumulated, int) and accumulated > 1
        note = f"{one} x {times}: the whole batch of a step, on one device" if is_product else ""
        s.put(one, "train.batch", whole, note, size)
        if accumulated is not None:
            s.out.carried.append((times, f"train.batch: {whole}"))
    return whole


def convert_steps(s: ConfigConverter, steps: str, epochs: str, batch: int) -> None:
    """Carry the number of steps, or compute it as epochs x rows / batch where the rows can be counted here."""
    number = s.take(steps)
    if isinstance(number, int) and number > 0:
        s.put(steps, "train.steps", number, STEPS_NOTE)
        if s.is_set(epochs):
            s.change(epochs, s.left[epochs], f"{steps} decides, as it does in {s.out.tool}")
        s.take(epochs)
        return
    if number is not None:
        s.out.carried.append((steps, "no limit"))
    if (times := s.take(epochs)) is None:
        return
    rows = count_training_rows(s)
    if rows and isinstance(times, (int, float)) and times > 0:
        count = max(1, math.ceil(rows * times / max(1, batch)))
        note = f"{times:g} epochs of {rows:,} rows in batches of {batch} are {count:,} steps; {STEPS_NOTE}"
        s.put(epochs, "train.steps", count, note, times)
    else:
        how = f"train.steps are steps, not epochs (rows x epochs / batch); left at the default: {STEPS_NOTE}"
        s.change(epochs, times, how)


def count_training_rows(s: ConfigConverter) -> int:
    """Return how many rows a run trains on, without those held out for validation; 0: they are not on this machine."""
    count = count_rows(s)
    held_out = s.read("data.valid.split") if isinstance(s.read("data.valid"), dict) else None
    rest = count - (round(count * held_out) if isinstance(held_out, float) else held_out or 0)
    return max(0, min(rest, s.read("data.limit") or rest))


def convert_holdout(s: ConfigConverter, key: str) -> None:
    """Carry the share or number of rows that are held out for validation.

    Other tools limit the rows first and then hold some out; data.limit is of the rows that are left to train on.
    """
    value = s.take(key)
    if value in (0, 0.0):
        s.out.carried.append((key, "no validation rows"))
        return
    if value is None:
        return
    size = int(value) if isinstance(value, float) and value >= 1 else value
    limit, count = s.read("data.limit"), count_rows(s)
    if not s.put(key, "data.valid.split", size, given=value) or limit is None:
        return
    if not count:
        s.change(key, value, "held out first: data.limit is then of the rows to train on alone")
    elif limit < count:
        held_out = max(1, round(limit * size)) if isinstance(size, float) else size
        s.put(key, "data.valid.split", held_out, given=value)
        s.put("(data.limit)", "data.limit", max(1, limit - held_out))


def convert_length(s: ConfigConverter, key: str, overflow: str, note: str = "") -> None:
    """Carry the most tokens of a row, and what becomes of longer ones: error, truncate or drop."""
    if (length := s.carry(key, "data.max_length")) is not None:
        s.put(key, "data.on_overflow", overflow, note, length)


def convert_looks(s: ConfigConverter, key: str) -> None:
    """Carry how often validation rows are looked at, if it is a number of steps."""
    if isinstance(s.left.get(key), int):
        s.carry(key, "eval.every")
