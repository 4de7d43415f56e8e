"""This module turns a configuration of mlx-lm into a recipe."""

from __future__ import annotations

from ...recipe.foreign import REASON_BY_KEY
from .source import STEPS_NOTE, TRUNCATION_NOTE, ConfigConverter

FIELDS_BY_KEY = {"prompt_feature": "prompt", "completion_feature": "completion", "chat_feature": "messages"}


def convert_mlx_lm(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that the configuration comes to. UsageError: it names no base model."""
    s.base("model")
    convert_mlx_lm_rows(s)
    convert_mlx_lm_task(s)
    convert_mlx_lm_space(s)
    s.carry("batch_size", "train.batch")
    s.carry("iters", "train.steps", note=STEPS_NOTE)
    s.carry("seed", "seed")
    if (length := s.carry("max_seq_length", "data.max_length")) is not None:
        s.put("max_seq_length", "data.on_overflow", "truncate", TRUNCATION_NOTE, length)
    s.carry("steps_per_eval", "eval.every")
    s.carry("adapter_path", "output.dir", note="runs lie in it, each with its log and its adapter")
    s.first_order("learning_rate", "optimizer")
    s.schedule("lr_schedule.name")
    s.lose("lr_schedule.arguments", REASON_BY_KEY["warmup"])
    s.kept(["train"], "zoedge finetune")
    s.kept(["test"], "test.jsonl of the folder is scored at the end, if it is there")
    if (mask := s.take("mask_prompt")) is not True:
        s.change("mask_prompt", bool(mask), "only the assistant's answers are scored; mlx-lm scores the question too")
    else:
        s.out.carried.append(("mask_prompt", "the assistant's answers are scored alone"))
    s.change("(quantisation)", None, "mlx-lm takes a model as it is; model.quantization is left at nf4")


def convert_mlx_lm_rows(s: ConfigConverter) -> None:
    """Convert where the rows come from: a data set of the hub and its fields, or a folder."""
    name = s.take("hf_dataset.name", "hf_dataset.path", "hf_dataset.0.name", "hf_dataset.0.path")
    if name is None:
        s.train("data", s.take("data") or "data")
        return
    s.train("hf_dataset.name", name)
    s.lose("data", "mlx-lm does not read it where hf_dataset is set")
    for theirs, ours in FIELDS_BY_KEY.items():
        for key in (f"hf_dataset.{theirs}", f"hf_dataset.0.{theirs}"):
            s.carry(key, f"data.fields.{ours}")


def convert_mlx_lm_task(s: ConfigConverter) -> None:
    """Choose the task by the rows' field of plain text, or by the rows themselves where they are on this machine."""
    text = s.take("hf_dataset.text_feature", "hf_dataset.0.text_feature")
    task = "lm" if text else s.alike()
    s.put("(rows)", "task", task or "chat")
    if not task:
        s.change(
            "data",
            s.out.table["data"]["train"],
            "the rows are expected to be messages or completions (task: chat); for plain text, set task: lm",
        )
    if text and text != "text":
        s.put("hf_dataset.text_feature", "task.text", text)


def convert_mlx_lm_space(s: ConfigConverter) -> None:
    """Convert what is trained: all weights, or an adapter and its options."""
    method = s.take("fine_tune_type") or "lora"
    if method == "full":
        s.whole()
        s.lose(
            "num_layers",
            "all weights of all layers are trained; to choose layers, set space: {name: lora, layers: last N}",
        )
        return
    s.out.carried.append(("fine_tune_type", "space: lora"))
    s.put("(method)", "space.name", "lora")
    if method != "lora":
        s.change("fine_tune_type", method, "plain LoRA: the adapter that PEFT, vLLM and llama.cpp load")
    for key in ("num_layers", "lora_layers"):
        s.carry(key, "space.layers", lambda n: "all" if n in (-1, 0) else f"last {n}")
    rank = s.carry("lora_parameters.rank", "space.rank")
    if (scale := s.take("lora_parameters.scale")) is not None and isinstance(scale, (int, float)):
        alpha = scale * (rank if isinstance(rank, int) else 8)
        note = f"mlx-lm's scale is alpha / rank: alpha {alpha:g}"
        s.put("lora_parameters.scale", "space.alpha", alpha, note, scale)
        s.lose("lora_parameters.alpha", "mlx-lm uses the scale instead")
    s.carry("lora_parameters.alpha", "space.alpha")
    if (keys := s.take("lora_parameters.keys")) is not None:
        s.targets("lora_parameters.keys", keys)
