"""This module turns a configuration of axolotl into a recipe."""

from __future__ import annotations

import re

from ...errors import UsageError, make_printable
from .goals import refuse, refuse_keys, refuse_word
from .rows import (
    ANSWER_NOTE,
    Split,
    convert_alpaca,
    convert_slice,
    convert_splits,
    convert_template,
    convert_template_text,
    is_local,
    name_source,
    parse_split,
    put_text_task,
    read_local_rows,
    train_on,
)
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
    "sequence_len": 512,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "lr_scheduler": "cosine",
}
ADAPTER_KEYS = ("lora_r", "lora_alpha", "lora_target_modules", "lora_target_linear", "peft_layers_to_transform")
FIELDS_BY_KEY = {"field_instruction": "instruction", "field_input": "input", "field_output": "output"}
GOAL_KEYS = {
    "reward_model": "scores",
    "process_reward_model": "scores",
    "num_labels": "scores",
    "processor_type": "pictures",
    "diffusion.noise_schedule": "diffusion",
    "kd_trainer": "distillation",
}
ALPACA_TYPES = ("alpaca", "alpaca_instruct", "gpteacher")  # types whose prompt is Alpaca's
CHAT_TYPES = ("chat_template", "sharegpt", "input_output")
OVERFLOWS = {"truncate": "truncate", "drop": "drop", "raise": "error"}


def convert_axolotl(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that the configuration comes to.

    UsageError: it names no base model or no rows, or is of another goal.
    """
    convert_base(s, "base_model")
    s.carry("revision_of_model", "model.revision")
    if (rl := s.take("rl")) not in (None, False):
        refuse_word(s, "rl", rl)
        refuse(s, "rl", rl, "reward")
    refuse_keys(s, GOAL_KEYS)
    adapter = s.take("adapter")
    convert_axolotl_quantization(s, adapter)
    convert_axolotl_rows(s)
    convert_axolotl_space(s, adapter)
    strategy = s.take("excess_length_strategy")
    overflow = OVERFLOWS.get(str(strategy), "drop")
    convert_length(s, "sequence_len", overflow, TRUNCATION_NOTE if overflow == "truncate" else "")
    if strategy is not None:
        s.out.carried.append(("excess_length_strategy", f"data.on_overflow: {overflow}"))
    convert_holdout(s, "val_set_size")
    batch = convert_batch(s, "micro_batch_size", "gradient_accumulation_steps")
    convert_steps(s, "max_steps", "num_epochs", batch)
    s.carry("seed", "seed")
    s.carry("output_dir", "output.dir", note=OUTPUT_NOTE)
    s.carry("wandb_name", "name")
    convert_looks(s, "eval_steps")
    convert_first_order(s, "learning_rate", "optimizer")
    convert_schedule(s, "lr_scheduler")
    s.carry("weight_decay", "rule.weight_decay")
    convert_precision(s)
    if s.take("train_on_inputs"):
        s.change("train_on_inputs", True, "only the answers are scored (of plain text, everything)")
    else:
        s.out.carried.append(("train_on_inputs", "the answers are scored alone"))
    convert_template(s, "chat_template", "datasets.0.chat_template")
    convert_template_text(s, "chat_template_jinja")
    if s.take("load_best_model_at_end") and "valid" in s.out.table["data"]:
        s.put("load_best_model_at_end", "eval.select", "best", given=True)


def convert_axolotl_quantization(s: ConfigConverter, adapter: object) -> None:
    """Convert in how many bits the base is held; the adapter `qlora` means 4 bits by itself."""
    four, eight = s.take("load_in_4bit"), s.take("load_in_8bit")
    scheme = "nf4" if four or adapter == "qlora" else "int8" if eight else "none"
    s.put("load_in_4bit", "model.quantization", scheme, given=four)
    s.out.carried.append(("load_in_8bit", f"model.quantization: {scheme}"))
    if scheme == "nf4":
        s.carry("bnb_config_kwargs.bnb_4bit_quant_type", "model.quantization")
        s.carry("bnb_config_kwargs.bnb_4bit_use_double_quant", "model.double_quant")


def convert_axolotl_space(s: ConfigConverter, adapter: object) -> None:
    """Convert what is trained: a LoRA adapter of all layers and its options, or all weights."""
    if adapter is None:
        convert_full(s, "adapter")
        for key in ADAPTER_KEYS:
            s.lose(key, "all weights are trained: adapter is not set")
        return
    note = "" if adapter in ("lora", "qlora") else "plain LoRA: the adapter that PEFT, vLLM and llama.cpp load"
    s.put("adapter", "space.name", "lora", note, adapter)
    convert_lora_size(s, "lora_r", "lora_alpha", "peft_use_rslora")
    linear, names = s.take("lora_target_linear"), s.take("lora_target_modules")
    if linear:
        convert_targets(s, "lora_target_linear", "all")
        if names:
            s.lose("lora_target_modules", "lora_target_linear names them all", names)
    elif names:
        convert_targets(s, "lora_target_modules", names, is_pattern=True)
    else:
        s.change("lora_target_modules", None, "no module is named: all Linear modules of the blocks are adapted")
    if linear is False:
        s.out.carried.append(("lora_target_linear", "space.targets"))
    s.carry("peft_layers_to_transform", "space.layers", lambda x: [x] if isinstance(x, int) else x)


# -- rows


def convert_axolotl_rows(s: ConfigConverter) -> None:
    """Convert the first data set; a recipe has one, so the others are reported as not carried."""
    if any(key.startswith("pretraining_dataset.") for key in s.left):
        convert_axolotl_pretraining(s)
        return
    split = convert_axolotl_source(s)
    s.keep(["datasets.0.ds_type"], "the ending of the file's name says it")
    convert_axolotl_validation(s, split)
    convert_axolotl_format(s)
    for key in [key for key in s.left if re.match(r"(test_)?datasets\.[1-9]", key)]:
        s.lose(key, "one set of rows: join the files, or list them as FOLDER:A,B of a dataset_info.json")


def convert_axolotl_pretraining(s: ConfigConverter) -> None:
    """Convert a set of plain text that axolotl streams."""
    first = "pretraining_dataset.0."
    path, name, split = s.take(f"{first}path"), s.take(f"{first}name"), s.take(f"{first}split")
    part = parse_split(s, f"{first}split", split)
    train_on(s, f"{first}path", name_source(s.take(f"{first}data_files") or path, name, part.name))
    list_parts(s, first, name, None if part.is_slice else split)
    convert_slice(s, f"{first}split", part)
    s.keep([f"{first}{key}" for key in ("type", "trust_remote_code")], "task: lm")
    put_text_task(s, f"{first}text_column", "text", s.take(f"{first}text_column"))
    s.change(f"{first}path", path, "rows are texts by themselves, and are not joined to lengths of sequence_len")


def convert_axolotl_source(s: ConfigConverter) -> Split:
    """Convert where the training rows come from: a file, or a data set of the hub with its configuration and split.

    Returns: the split, of which a slice is not converted yet.
    """
    path, files = s.take("datasets.0.path"), s.take("datasets.0.data_files")
    name, text = s.take("datasets.0.name"), s.take("datasets.0.split")
    split = parse_split(s, "datasets.0.split", text)
    if files is not None:
        files = files if isinstance(files, list) else [files]
        if isinstance(path, str) and path not in ("json", "csv", "parquet", "text", "arrow") and not is_local(path):
            file = make_printable(str(files[0]))
            raise UsageError(
                f"{s.where}: datasets.0.data_files: {file} of {make_printable(path)}: a recipe names a split of a hub set, not "
                f"a file of it. Fetch it: hf download --repo-type dataset {make_printable(path)} {file}, and name it there."
            )
        s.out.carried.append(("datasets.0.path", f"data.train: {make_printable(str(files[0]))}"))
        for extra in files[1:]:
            s.lose("datasets.0.data_files", "one file of rows: join them first", extra)
        path = files[0]
    elif isinstance(path, str) and is_local(path) and name is not None:
        s.lose("datasets.0.name", "a local file has no configurations", name)
        name = None
    train_on(s, "datasets.0.path", name_source(path, name, split.name))
    list_parts(s, "datasets.0.", name, None if split.is_slice else text)
    return split


def list_parts(s: ConfigConverter, first: str, name: object, split: object) -> None:
    """List the configuration and the split of a data set as carried, where they are set. first: what their keys begin with."""
    for key, value in (("split", split), ("name", name)):
        if value is not None:
            s.out.carried.append((f"{first}{key}", f"data.train: {make_printable(s.read('data.train'))}"))


def convert_axolotl_format(s: ConfigConverter) -> None:
    """Convert the type of the training rows: the task, their format, and the names of their fields."""
    given = s.take("datasets.0.type")
    refuse_word(s, "datasets.0.type", given)
    kind = given.partition(":")[0].partition(".")[0] if isinstance(given, str) else None
    is_plain = kind == given
    convert_axolotl_fields(s)
    if kind == "completion":
        put_text_task(s, "datasets.0.type", given, s.take("datasets.0.field"))
    elif any(key.startswith("datasets.0.type.") for key in s.left):
        convert_axolotl_prompt(s)
    elif kind in ALPACA_TYPES and is_plain:
        convert_alpaca(s, "datasets.0.type", given)
    else:
        s.put("datasets.0.type", "task", "chat", given=given or "-")
        if kind == "sharegpt":
            s.put("datasets.0.type", "data.format", "sharegpt", given=given)
        if kind not in CHAT_TYPES or given not in (kind, "chat_template.default"):
            how = "the chat template writes the turns, not axolotl's prompt of that type; the keys of a row say its format"
            s.change("datasets.0.type", given or "(not set)", how)
    drop_unread_fields(s)


def drop_unread_fields(s: ConfigConverter) -> None:
    """Leave out the names of fields that the prompt of `generate` does not have, such as an input that no row has."""
    task, data = s.read("task"), s.out.table["data"]
    if not isinstance(task, dict) or task["name"] != "generate" or "fields" not in data:
        return
    for name in [name for name in data["fields"] if name != "output" and f"{{{name}" not in task["prompt"]]:
        key = f"datasets.0.type.field_{name}"
        key = key if key in s.given else f"datasets.0.field_{name}"
        s.out.carried = [entry for entry in s.out.carried if entry[0] != key]
        s.out.lost.append((key, data["fields"].pop(name), "the prompt does not have it"))
    if not data["fields"]:
        del data["fields"]


def convert_axolotl_fields(s: ConfigConverter) -> None:
    """Convert the names of the rows' fields."""
    for theirs, ours in FIELDS_BY_KEY.items():
        key = f"datasets.0.type.{theirs}" if f"datasets.0.type.{theirs}" in s.left else f"datasets.0.{theirs}"
        value = s.left.get(key)
        if value == ours:
            s.keep([key], ours)
        elif value is not None:
            s.carry(key, f"data.fields.{ours}")
    messages = s.take("datasets.0.field_messages")
    if messages in ("messages", "conversations"):
        s.out.carried.append(("datasets.0.field_messages", "the rows' keys say it"))
    elif messages is not None:
        s.put("datasets.0.field_messages", "data.fields.messages", messages)


def convert_axolotl_prompt(s: ConfigConverter) -> None:
    """Convert a prompt of the configuration's own, over {instruction} and {input}, into that of `generate`."""
    first = "datasets.0.type."
    with_input = s.take(f"{first}format") or "{instruction} {input} "
    without = s.take(f"{first}no_input_format") or "{instruction} "
    system, around = s.take(f"{first}system_prompt") or "", s.take(f"{first}system_format") or "{system}"
    rows = read_local_rows(s)
    has_input = not rows or any(fields.get("input") for fields in rows)
    prompt = str(with_input if has_input else without)
    if system:
        prompt = str(around).replace("{system}", str(system).replace("{", "{{").replace("}", "}}")) + prompt
    s.put(
        "datasets.0.type",
        "task",
        {"name": "generate", "prompt": prompt, "answer": "output"},
        given="(a prompt of its own)",
    )
    s.change("datasets.0.type", "(a prompt of its own)", ANSWER_NOTE.format("axolotl"))
    s.out.carried += [
        (f"{first}{key}", "task.prompt") for key in ("format", "no_input_format", "system_prompt", "system_format")
    ]
    if "{input}" in prompt and (not rows or not all(fields.get("input") for fields in rows)):
        how = f"a recipe has one prompt: rows without an input are refused, for which axolotl has {without!r}"
        s.change(f"{first}no_input_format", without, how)


def convert_axolotl_validation(s: ConfigConverter, train: Split) -> None:
    """Convert the first data set of held-out rows, which axolotl calls test rows, and a slice of the training rows."""
    path, files = s.take("test_datasets.0.path"), s.take("test_datasets.0.data_files")
    if not path and not files:
        convert_slice(s, "datasets.0.split", train)
        return
    name, text = s.take("test_datasets.0.name"), s.take("test_datasets.0.split")
    source = (files[0] if isinstance(files, list) else files) or path
    valid = parse_split(s, "test_datasets.0.split", text)
    convert_splits(s, "datasets.0.split", "test_datasets.0.split", train, valid, name_source(source, name, valid.name))
    s.out.carried.append(("test_datasets.0.path", "data.valid"))
    for key in [key for key in s.given if key.startswith("test_datasets.0.")]:
        s.keep([key], "as the training rows")
