"""This module turns a configuration of axolotl into a recipe."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import make_printable
from .source import TRUNCATION_NOTE, ConfigConverter, convert_template

ADAPTER_KEYS = ("lora_r", "lora_alpha", "lora_target_modules", "lora_target_linear", "peft_layers_to_transform")
FIELDS_BY_KEY = {"field_instruction": "instruction", "field_input": "input", "field_output": "output"}
FORMAT_TYPES = ("alpaca", "sharegpt")  # types of a data set that data.format has under the same name


def convert_axolotl(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that the configuration comes to. UsageError: it names no base model or no rows."""
    s.base("base_model")
    s.carry("revision_of_model", "model.revision")
    adapter = s.take("adapter")
    convert_axolotl_quantization(s, adapter)
    convert_axolotl_rows(s)
    convert_axolotl_space(s, adapter)
    if s.carry("sequence_len", "data.max_length") is not None:
        strategy = s.take("excess_length_strategy")
        key, cut = "excess_length_strategy" if strategy else "sequence_len", strategy == "truncate"
        s.put(key, "data.on_overflow", "truncate" if cut else "drop", TRUNCATION_NOTE if cut else "")
    s.holdout("val_set_size")
    s.steps("max_steps", "num_epochs", s.batch("micro_batch_size", "gradient_accumulation_steps"))
    s.carry("seed", "seed")
    s.carry("output_dir", "output.dir", note="runs lie in it, each with its log and its adapter")
    s.carry("wandb_name", "name")
    if isinstance(s.left.get("eval_steps"), int):
        s.carry("eval_steps", "eval.every")
    s.first_order("learning_rate", "optimizer")
    s.schedule("lr_scheduler")
    s.carry("weight_decay", "rule.weight_decay")
    s.precision()
    if s.take("train_on_inputs"):
        s.change("train_on_inputs", True, "only the assistant's answers are scored (of plain text, everything)")
    else:
        s.out.carried.append(("train_on_inputs", "the assistant's answers are scored alone"))
    convert_template(s, "chat_template", "datasets.0.chat_template")
    if s.take("load_best_model_at_end") and "valid" in s.out.table["data"]:
        s.put("load_best_model_at_end", "eval.select", "best", given=True)


def convert_axolotl_quantization(s: ConfigConverter, adapter: object) -> None:
    """Convert in how many bits the base is held; the adapter `qlora` means 4 bits by itself."""
    scheme = "nf4" if s.take("load_in_4bit") else "int8" if s.left.get("load_in_8bit") else "none"
    if adapter == "qlora" and scheme == "none":
        scheme = "nf4"
    s.kept(["load_in_8bit"], f"model.quantization: {scheme}")
    s.put("load_in_4bit", "model.quantization", scheme)
    s.carry("bnb_config_kwargs.bnb_4bit_quant_type", "model.quantization")
    s.carry("bnb_config_kwargs.bnb_4bit_use_double_quant", "model.double_quant")


def convert_axolotl_space(s: ConfigConverter, adapter: object) -> None:
    """Convert what is trained: a LoRA adapter and its options, or all weights."""
    if adapter not in ("lora", "qlora"):
        s.whole()
        for key in ADAPTER_KEYS:
            s.lose(key, "all weights are trained: adapter is not set")
        if adapter is not None:
            s.lose("adapter", "adapters are LoRA, prompt or prefix: see `zoedge schema --field space`", adapter)
        return
    s.put("adapter", "space.name", "lora", given=adapter)
    s.carry("lora_r", "space.rank")
    s.carry("lora_alpha", "space.alpha")
    linear, names = s.take("lora_target_linear"), s.take("lora_target_modules")
    if linear:
        s.targets("lora_target_linear", "all")
        if names:
            s.lose("lora_target_modules", "lora_target_linear names them all", names)
    elif names:
        s.targets("lora_target_modules", names)
    if linear is False:
        s.out.carried.append(("lora_target_linear", "space.targets"))
    s.carry("peft_layers_to_transform", "space.layers", lambda x: [x] if isinstance(x, int) else x)


def convert_axolotl_rows(s: ConfigConverter) -> None:
    """Convert the first data set; a recipe has one, so the others are reported as not carried."""
    convert_axolotl_source(s)
    s.kept(["datasets.0.ds_type"], "the ending of the file's name says it")
    convert_axolotl_format(s)
    convert_axolotl_validation(s)
    for key in [key for key in s.left if re.match(r"(test_)?datasets\.[1-9]", key)]:
        s.lose(key, "one set of rows: join the files, or list them as FOLDER:A,B of a dataset_info.json")


def convert_axolotl_source(s: ConfigConverter) -> None:
    """Convert where the training rows come from: a file, or a data set of the hub with its configuration and split."""
    path, files = s.take("datasets.0.path"), s.take("datasets.0.data_files")
    name, split = s.take("datasets.0.name"), s.take("datasets.0.split")
    if files is not None:
        files = files if isinstance(files, list) else [files]
        s.out.carried.append(("datasets.0.path", f"data.train: {make_printable(str(files[0]))}"))
        for extra in files[1:]:
            s.lose("datasets.0.data_files", "one file of rows: join them first", extra)
        path = files[0]
    elif isinstance(path, str) and (name or split not in (None, "train")) and not Path(path).expanduser().exists():
        path = f"{path}:{'/'.join(filter(None, (name, split or 'train')))}"
    elif name is not None:
        s.lose("datasets.0.name", "a local file has no configurations", name)
    s.train("datasets.0.path", path)
    lost = [(key, value) for key, value, _ in s.out.lost]
    for key, value in (("datasets.0.split", split), ("datasets.0.name", name)):
        if value is not None and (key, value) not in lost:
            s.out.carried.append((key, f"data.train: {make_printable(path)}"))


def convert_axolotl_format(s: ConfigConverter) -> None:
    """Convert the type of the training rows: the task, their format, and the names of their fields."""
    kind = s.take("datasets.0.type")
    kind = kind.partition(":")[0].partition(".")[0] if isinstance(kind, str) else None
    is_custom = any(key.startswith("datasets.0.type.") for key in s.left)
    if kind == "completion":
        s.put("datasets.0.type", "task", "lm")
        s.carry("datasets.0.field", "task.text")
        return
    s.put("datasets.0.type", "task", "chat", given=kind or "-")
    if kind in FORMAT_TYPES:
        s.put("datasets.0.type", "data.format", kind, given=kind)
        if kind == "alpaca":
            how = "the instruction is a user's turn of the chat template; Alpaca's own prompt is not used"
            s.change("datasets.0.type", kind, how)
    elif kind not in (None, "chat_template") or is_custom:
        how = "the chat template writes the turns; the keys of a row say its format"
        s.change("datasets.0.type", kind or "(a prompt of its own)", how)
    for theirs, ours in FIELDS_BY_KEY.items():
        value = s.take(f"datasets.0.type.{theirs}", f"datasets.0.{theirs}")
        if value not in (None, ours):
            s.put(f"datasets.0.{theirs}", f"data.fields.{ours}", value)
        elif value is not None:
            s.out.carried.append((f"datasets.0.{theirs}", ours))
    messages = s.take("datasets.0.field_messages")
    if messages in ("messages", "conversations"):
        s.out.carried.append(("datasets.0.field_messages", "the rows' keys say it"))
    elif messages is not None:
        s.put("datasets.0.field_messages", "data.fields.messages", messages)


def convert_axolotl_validation(s: ConfigConverter) -> None:
    """Convert the first data set of held-out rows, which axolotl calls test rows, to data.valid."""
    path, files = s.take("test_datasets.0.path"), s.take("test_datasets.0.data_files")
    if not path and not files:
        return
    s.put("test_datasets.0.path", "data.valid", (files[0] if isinstance(files, list) else files) or path)
    for key in [key for key in s.left if key.startswith("test_datasets.0.")]:
        s.kept([key], "as the training rows")
