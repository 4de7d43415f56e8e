"""This module turns a configuration of LLaMA-Factory into a recipe: of its flat files, and of those of its version 1."""

from __future__ import annotations

from pathlib import Path

from ...errors import UsageError, make_printable
from ...recipe.foreign import REASON_BY_KEY
from ...recipe.strict_yaml import read_text_file, read_yaml
from .goals import refuse_keys, refuse_word
from .rows import convert_guessed_task, convert_template, convert_template_text, name_source, put_text_task, train_on
from .settings import (
    OUTPUT_NOTE,
    TRUNCATION_NOTE,
    convert_base,
    convert_batch,
    convert_first_order,
    convert_full,
    convert_holdout,
    convert_length,
    convert_looks,
    convert_lora_size,
    convert_precision,
    convert_schedule,
    convert_steps,
)
from .source import ConfigConverter
from .targets import convert_targets

DEFAULTS = {
    "dataset_dir": "data",
    "stage": "sft",
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "cutoff_len": 2048,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "linear",
}
DEFAULTS_V1 = {"micro_batch_size": 1, "cutoff_len": 2048, "num_train_epochs": 3}
PICTURE_KEYS = dict.fromkeys(("image_max_pixels", "video_max_pixels", "video_maxlen"), "pictures")
GOAL_KEYS = {"export_dir": "no training", "reward_model": "reward", "do_predict": "no training"}
GOAL_KEYS_V1 = {
    "peft_config.export_dir": "no training",
    "pref_loss": "preference",
    "pref_beta": "preference",
    "pref_ftx": "preference",
    "simpo_gamma": "preference",
}
# templates that write words of their own, which no tokenizer's template has
OWN_WORDS = {
    "default": "Human: ... Assistant:",
    "alpaca": "### Instruction: ... ### Response:",
    "vicuna": "USER: ... ASSISTANT:",
}
OWN_WORDS |= {"empty": "the texts without an end token", "fewshot": "the texts with two line breaks between"}
SCHEMES = {"4": "nf4", "8": "int8"}  # bits -> model.quantization
LORA_KEYS = ("lora_rank", "lora_alpha", "lora_target")
JOIN_NOTE = "two line breaks stand between an instruction and its input; in LLaMA-Factory, one"
LIMIT_NOTE = "a limit on all rows together, drawn by their content; in LLaMA-Factory, a limit on each data set"


def convert_llama_factory(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that the configuration comes to.

    UsageError: it names no base model or no rows, or is of another goal.
    """
    convert_base(s, "model_name_or_path")
    s.carry("model_revision", "model.revision")
    refuse_keys(s, PICTURE_KEYS)
    if not s.left.get("do_train"):
        refuse_keys(s, GOAL_KEYS)
    refuse_word(s, "stage", s.left["stage"])
    convert_llama_factory_quantization(s)
    convert_llama_factory_rows(s)
    convert_llama_factory_template(s)
    convert_llama_factory_space(s)
    convert_length(s, "cutoff_len", "truncate", TRUNCATION_NOTE)
    s.carry("max_samples", "data.limit", note=LIMIT_NOTE)
    convert_holdout(s, "val_size")
    batch = convert_batch(s, "per_device_train_batch_size", "gradient_accumulation_steps")
    convert_steps(s, "max_steps", "num_train_epochs", batch)
    s.carry("seed", "seed")
    s.carry("output_dir", "output.dir", note=OUTPUT_NOTE)
    s.carry("run_name", "name")
    convert_looks(s, "eval_steps")
    convert_first_order(s, "learning_rate", "optim")
    convert_schedule(s, "lr_scheduler_type")
    s.carry("weight_decay", "rule.weight_decay")
    convert_precision(s)
    for key in ("train_on_prompt", "mask_history"):
        if s.left.get(key) is True:
            s.change(key, s.take(key), f"{REASON_BY_KEY[key]}")
    if s.take("load_best_model_at_end") and "valid" in s.out.table["data"]:
        s.put("load_best_model_at_end", "eval.select", "best", given=True)


def convert_llama_factory_quantization(s: ConfigConverter) -> None:
    """Convert in how many bits the base is held."""
    bits = s.take("quantization_bit")
    s.put("quantization_bit", "model.quantization", SCHEMES.get(str(bits), "none"), given=bits or "-")
    method = s.take("quantization_method")
    if bits == 4:
        s.carry("quantization_type", "model.quantization")
        s.carry("double_quantization", "model.double_quant")
    elif bits not in (None, 4, 8):
        s.change("quantization_bit", bits, "4 or 8 bits; the base is left as it is")
    if method not in (None, "bnb", "bitsandbytes"):
        s.change("quantization_method", method, REASON_BY_KEY["quantization_method"])
    elif method is not None:
        s.out.carried.append(("quantization_method", "model.quantization"))


def convert_llama_factory_rows(s: ConfigConverter) -> None:
    """Convert where the rows come from, and the task."""
    folder = s.take("dataset_dir")
    name, other = s.take("dataset"), s.take("eval_dataset")
    name, other = (",".join(map(str, x)) if isinstance(x, list) else x for x in (name, other))
    before = "" if folder == "ONLINE" else f"{folder}:"
    train_on(s, "dataset", f"{before}{strip_names(name)}" if isinstance(name, str) else None)
    s.out.carried.append(("dataset_dir", f"data.train: {make_printable(str(folder))}:..."))
    if isinstance(other, str):
        s.put("eval_dataset", "data.valid", f"{before}{strip_names(other)}")
    stage = s.take("stage")
    if stage == "pt":
        put_text_task(s, "stage", stage)
        return
    s.put("stage", "task", "chat", given=stage)
    s.change("(rows)", s.read("data.train"), JOIN_NOTE)


def convert_llama_factory_template(s: ConfigConverter) -> None:
    """Convert the chat template. Those with words of their own are no tokenizer's, whatever their names say."""
    name = str(s.left.get("template"))
    if name in OWN_WORDS and s.read("task") == "chat":
        how = (
            f"a template of LLaMA-Factory's own ({OWN_WORDS[name]}): the tokenizer's own chat template is used. To keep "
            "theirs, write it to a file, and name it: task.format: FILE.jinja"
        )
        s.change("template", s.take("template"), how)
    convert_template(s, "template")


def convert_llama_factory_space(s: ConfigConverter) -> None:
    """Convert what is trained: a LoRA adapter of all layers, some layers, or all weights."""
    method = s.take("finetuning_type")
    if method == "full":
        convert_full(s, "finetuning_type", method)
        for key in LORA_KEYS:
            if s.is_set(key):
                s.lose(key, "all weights are trained: finetuning_type is full")
        return
    note = "" if method == "lora" else "plain LoRA: the adapter that PEFT, vLLM and llama.cpp load"
    s.put("finetuning_type", "space.name", "lora", note, method)
    s.left.setdefault("lora_alpha", 2 * s.left["lora_rank"] if isinstance(s.left["lora_rank"], int) else 16)
    convert_lora_size(s, "lora_rank", "lora_alpha", "use_rslora")
    convert_targets(s, "lora_target", s.take("lora_target"))
    if method == "freeze":
        convert_freeze(s, "freeze_trainable_layers", "freeze_trainable_modules")


def convert_freeze(s: ConfigConverter, layers: str, modules: str) -> None:
    """Convert the training of a few blocks' own weights into that of an adapter of the same blocks."""
    number = s.take(layers)
    number = number if isinstance(number, int) else 2
    how = "an adapter of the same blocks is trained, not their own weights"
    s.put(layers, "space.layers", f"last {number}" if number > 0 else list(range(-number)), how, number)
    if (names := s.take(modules)) is not None:
        convert_targets(s, modules, names)


def strip_names(text: str) -> str:
    """Return a list of names, such as `a, b`, without the spaces around its commas."""
    return ",".join(part.strip() for part in text.split(","))


# -- version 1


def convert_llama_factory_v1(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that a configuration of version 1 comes to.

    UsageError: it names no base model or no rows, or is of another goal.
    """
    convert_base(s, "model")
    refuse_keys(s, GOAL_KEYS_V1)
    bits = s.take("quant_config.quantization_bit")
    s.keep(["quant_config.name"], "model.quantization")
    s.put("quant_config.quantization_bit", "model.quantization", SCHEMES.get(str(bits), "none"), given=bits)
    convert_v1_rows(s)
    convert_template_text(s, "custom_chat_template")
    convert_v1_space(s)
    convert_length(s, "cutoff_len", "truncate", TRUNCATION_NOTE)
    convert_v1_batch(s)
    s.carry("seed", "seed")
    s.carry("output_dir", "output.dir", note=OUTPUT_NOTE)
    convert_first_order(s, "learning_rate", "optim_config")
    convert_precision(s)


def convert_v1_batch(s: ConfigConverter) -> None:
    """Convert the batch of a step and the number of steps."""
    micro, whole = s.take("micro_batch_size"), s.take("global_batch_size")
    batch = whole if isinstance(whole, int) else micro if isinstance(micro, int) else 1
    s.put("global_batch_size" if whole is not None else "micro_batch_size", "train.batch", batch)
    if whole is not None:
        s.out.carried.append(("micro_batch_size", f"train.batch: {batch}"))
    convert_steps(s, "max_steps", "num_train_epochs", batch)


def convert_v1_space(s: ConfigConverter) -> None:
    """Convert what is trained: a LoRA adapter of all layers, some layers, or all weights."""
    method = s.take("peft_config.name")
    if method is None:
        convert_full(s, "peft_config")
        return
    note = "" if method == "lora" else "plain LoRA: the adapter that PEFT, vLLM and llama.cpp load"
    s.put("peft_config.name", "space.name", "lora", note, method)
    s.left = {"peft_config.r": 8, "peft_config.lora_alpha": 16, "peft_config.target_modules": "all"} | s.left
    convert_lora_size(s, "peft_config.r", "peft_config.lora_alpha", "peft_config.use_rslora")
    convert_targets(s, "peft_config.target_modules", s.take("peft_config.target_modules"), is_pattern=True)
    if method == "freeze":
        convert_freeze(s, "peft_config.freeze_trainable_layers", "peft_config.freeze_trainable_modules")


def convert_v1_rows(s: ConfigConverter) -> None:
    """Convert the rows: a data set of the hub, or a file that describes some.

    UsageError: that file is not here, or describes preferences.
    """
    name, other = s.take("train_dataset"), s.take("eval_dataset")
    if not isinstance(name, str) or not name.endswith((".yaml", ".yml", ".json")):
        train_on(s, "train_dataset", name)
    else:
        train_on(s, "train_dataset", read_v1_sets(s, name))
    if isinstance(other, str):
        if other.endswith((".yaml", ".yml")):
            s.lose("eval_dataset", "name the rows themselves in data.valid", other)
        else:
            s.put("eval_dataset", "data.valid", other)
    convert_guessed_task(s, "train_dataset")
    s.change("(rows)", s.read("data.train"), JOIN_NOTE)


def read_v1_sets(s: ConfigConverter, name: str) -> object:
    """Return the source of the first data set that a file describes, and list the others as left out."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"{s.where}: train_dataset: no file '{make_printable(name)}' here, which describes the rows. Run "
            "import-config in the folder that its path begins in, or name the rows themselves (a .jsonl file or a hub id)."
        )
    table, _ = read_yaml(read_text_file(path), name)
    entries = [entry for entry in table.values() if isinstance(entry, dict)] if isinstance(table, dict) else []
    if not entries:
        raise UsageError(f"{s.where}: train_dataset: {make_printable(name)} describes no data set.")
    for entry in entries:
        refuse_word(s, "train_dataset", entry.get("converter"))
    for key in list(table)[1:]:
        s.lose("train_dataset", "one set of rows: join them in a file", key)
    first = entries[0]
    if isinstance(size := first.get("size"), int):
        s.put("train_dataset", "data.limit", size, "so many rows, drawn by their content", size)
    return name_source(first.get("path"), first.get("subset"), str(first.get("split") or "train"))
