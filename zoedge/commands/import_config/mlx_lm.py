"""This module turns a configuration of mlx-lm into a recipe."""

from __future__ import annotations

from ...recipe.foreign import REASON_BY_KEY
from .rows import (
    convert_guessed_task,
    convert_splits,
    is_task,
    name_source,
    parse_split,
    put_text_task,
    train_on,
)
from .settings import (
    OUTPUT_NOTE,
    STEPS_NOTE,
    TRUNCATION_NOTE,
    convert_base,
    convert_first_order,
    convert_full,
    convert_length,
    convert_schedule,
)
from .source import ConfigConverter
from .targets import convert_targets

DEFAULTS = {
    "data": "mlx-community/WikiSQL",
    "fine_tune_type": "lora",
    "num_layers": 16,
    "batch_size": 4,
    "iters": 1000,
    "steps_per_eval": 200,
    "max_seq_length": 2048,
    "lora_parameters.rank": 8,
    "lora_parameters.scale": 20.0,
}
FIELDS_BY_KEY = {"prompt_feature": "prompt", "completion_feature": "completion", "chat_feature": "messages"}


def convert_mlx_lm(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that the configuration comes to. UsageError: it names no base model."""
    base = convert_base(s, "model")
    scheme = {"4bit": "nf4", "8bit": "int8"}.get(base.rpartition("-")[2].lower(), "none")
    s.put("(bits of the base)", "model.quantization", scheme)
    convert_mlx_lm_rows(s)
    convert_mlx_lm_space(s)
    convert_mlx_lm_steps(s)
    s.carry("seed", "seed")
    convert_length(s, "max_seq_length", "truncate", TRUNCATION_NOTE)
    s.carry("adapter_path", "output.dir", note=OUTPUT_NOTE)
    convert_first_order(s, "learning_rate", "optimizer")
    convert_schedule(s, "lr_schedule.name")
    s.lose("lr_schedule.arguments", REASON_BY_KEY["warmup"])
    s.keep(["train"], "zoedge finetune")
    s.keep(["test"], "test.jsonl of the folder is scored at the end, if it is there")
    masked = s.take("mask_prompt")
    if is_task(s, "lm"):
        s.out.carried.append(("mask_prompt", "every token of a text is scored"))
    elif masked is not True:
        s.change("mask_prompt", bool(masked), "only the assistant's answers are scored; mlx-lm scores the question too")
    else:
        s.change("mask_prompt", True, "all of the assistant's answers are scored; mlx-lm scores the last one")


def convert_mlx_lm_steps(s: ConfigConverter) -> None:
    """Convert batch and steps. mlx-lm counts forward passes of a batch, of which it accumulates several to a step."""
    times = s.take("grad_accumulation_steps")
    if not isinstance(times, int) or times < 2:
        s.carry("batch_size", "train.batch")
        s.carry("iters", "train.steps", note=STEPS_NOTE)
        s.carry("steps_per_eval", "eval.every")
        if times is not None:
            s.out.carried.append(("grad_accumulation_steps", "train.batch"))
        return
    s.carry("batch_size", "train.batch", lambda n: n * times, f"{times} batches are one step's batch")
    how = f"{{}} of mlx-lm's iterations, {times} of which are one step; {STEPS_NOTE}"
    s.carry("iters", "train.steps", lambda n: max(1, n // times), how.format(s.left["iters"]))
    s.carry("steps_per_eval", "eval.every", lambda n: max(1, n // times), f"iterations, {times} of which are one step")
    s.out.carried.append(("grad_accumulation_steps", "train.batch, train.steps"))


def convert_mlx_lm_rows(s: ConfigConverter) -> None:
    """Convert where the rows come from, and what they are: a data set of the hub and its fields, or a folder."""
    many = "hf_dataset.0." if any(key.startswith("hf_dataset.0.") for key in s.left) else "hf_dataset."
    path = s.take(f"{many}path", f"{many}name")
    if path is None:
        train_on(s, "data", s.take("data"))
        convert_guessed_task(s, "data")
        return
    for key in [key for key in s.left if key.startswith("hf_dataset.") and key.split(".")[1] not in ("0", many[-2])]:
        if key.split(".")[1].isdigit():
            s.lose(key, "one set of rows: join them in a file")
    config = s.take(f"{many}config.name")
    train = parse_split(s, f"{many}train_split", s.take(f"{many}train_split") or "train[:80%]")
    valid = parse_split(s, f"{many}valid_split", s.take(f"{many}valid_split") or "train[-10%:]")
    train_on(s, f"{many}path", name_source(path, config, train.name))
    if config is not None:
        s.out.carried.append((f"{many}config.name", "data.train"))
    s.take("data")
    text = s.take(f"{many}text_feature")
    convert_splits(s, f"{many}train_split", f"{many}valid_split", train, valid, name_source(path, config, valid.name))
    if text is not None:
        put_text_task(s, f"{many}text_feature", text, text)
        return
    convert_guessed_task(s, f"{many}path")
    for theirs, ours in FIELDS_BY_KEY.items():
        s.carry(f"{many}{theirs}", f"data.fields.{ours}")


def convert_mlx_lm_space(s: ConfigConverter) -> None:
    """Convert what is trained: all weights, or an adapter and its options, each of the last `num_layers` blocks."""
    method = s.take("fine_tune_type")
    key = "lora_layers" if s.is_set("lora_layers") else "num_layers"
    layers = s.take(key)
    s.take("num_layers")
    if method == "full":
        convert_full(s, "fine_tune_type", method)
        if layers not in (-1, 0):
            s.change(
                key,
                layers,
                "all weights of all layers are trained; to choose layers, set space: {name: lora, layers: last N}",
            )
        return
    s.put("fine_tune_type", "space.name", "lora")
    if method != "lora":
        s.change("fine_tune_type", method, "plain LoRA: the adapter that PEFT, vLLM and llama.cpp load")
    if isinstance(layers, int):
        s.put(key, "space.layers", "all" if layers in (-1, 0) else f"last {layers}", given=layers)
    rank = s.carry("lora_parameters.rank", "space.rank")
    if s.is_set("lora_parameters.alpha") and not s.is_set("lora_parameters.scale"):
        s.carry("lora_parameters.alpha", "space.alpha")
        s.take("lora_parameters.scale")
    elif isinstance(scale := s.take("lora_parameters.scale"), (int, float)):
        alpha = scale * (rank if isinstance(rank, int) else 8)
        note = f"mlx-lm's scale is alpha / rank: alpha {alpha:g}"
        s.put("lora_parameters.scale", "space.alpha", alpha, note, scale)
        s.lose("lora_parameters.alpha", "mlx-lm uses the scale instead")
    if (keys := s.take("lora_parameters.keys")) is not None:
        convert_targets(s, "lora_parameters.keys", keys)
