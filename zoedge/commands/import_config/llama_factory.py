"""This module turns a configuration of LLaMA-Factory into a recipe."""

from __future__ import annotations

from ...errors import make_printable
from ...recipe.foreign import REASON_BY_KEY
from .source import TRUNCATION_NOTE, ConfigConverter, convert_template


def convert_llama_factory(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that the configuration comes to. UsageError: it names no base model or no rows."""
    s.base("model_name_or_path")
    s.carry("model_revision", "model.revision")
    bits = s.take("quantization_bit")
    s.put("quantization_bit", "model.quantization", {4: "nf4", 8: "int8"}.get(bits, "none"), given=bits or "-")
    if bits == 4:
        s.carry("quantization_type", "model.quantization")
        s.carry("double_quantization", "model.double_quant")
    elif bits not in (None, 4, 8):
        s.change("quantization_bit", bits, "4 or 8 bits; the base is left as it is")
    folder = s.take("dataset_dir") or "data"
    name, other = s.take("dataset"), s.take("eval_dataset")
    name, other = (",".join(map(str, x)) if isinstance(x, list) else x for x in (name, other))
    s.train("dataset", f"{folder}:{strip_names(name)}" if isinstance(name, str) else None)
    s.out.carried.append(("dataset_dir", f"data.train: {make_printable(str(folder))}:..."))
    if isinstance(other, str):
        s.put("eval_dataset", "data.valid", f"{folder}:{strip_names(other)}")
    stage = s.take("stage") or "sft"
    s.put("stage", "task", "lm" if stage == "pt" else "chat", given=stage)
    if stage not in ("sft", "pt"):
        s.change("stage", stage, f"{REASON_BY_KEY['rl']}: this is supervised fine-tuning")
    convert_template(s, "template")
    method = s.take("finetuning_type") or "lora"
    if method == "full":
        s.whole()
    else:
        s.put(
            "finetuning_type",
            "space.name",
            "lora",
            "" if method == "lora" else "LoRA: see `zoedge schema --field space`",
            method,
        )
        rank = s.carry("lora_rank", "space.rank")
        rank = rank if isinstance(rank, int) else 8
        if s.carry("lora_alpha", "space.alpha") is None:
            s.put("lora_alpha", "space.alpha", 2 * rank, given="twice lora_rank")
        if (names := s.take("lora_target")) is not None:
            s.targets("lora_target", names)
    if (length := s.carry("cutoff_len", "data.max_length")) is not None:
        s.put("cutoff_len", "data.on_overflow", "truncate", TRUNCATION_NOTE, length)
    note = "a limit on all rows together, drawn by their content; in LLaMA-Factory, a limit on each data set"
    s.carry("max_samples", "data.limit", note=note)
    s.holdout("val_size")
    s.steps("max_steps", "num_train_epochs", s.batch("per_device_train_batch_size", "gradient_accumulation_steps"))
    s.carry("seed", "seed")
    s.carry("output_dir", "output.dir", note="runs lie in it, each with its log and its adapter")
    s.carry("run_name", "name")
    if isinstance(s.left.get("eval_steps"), int):
        s.carry("eval_steps", "eval.every")
    s.first_order("learning_rate", "optim")
    s.schedule("lr_scheduler_type")
    s.carry("weight_decay", "rule.weight_decay")
    s.precision()
    for key in ("train_on_prompt", "mask_history"):
        if s.left.get(key) is True:
            s.change(key, s.take(key), f"{REASON_BY_KEY[key]}")
    if s.take("load_best_model_at_end") and "valid" in s.out.table["data"]:
        s.put("load_best_model_at_end", "eval.select", "best", given=True)


def strip_names(text: str) -> str:
    """Return a list of names, such as `a, b`, without the spaces around its commas."""
    return ",".join(part.strip() for part in text.split(","))
