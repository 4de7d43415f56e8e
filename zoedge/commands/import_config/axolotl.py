"""Read a configuration of axolotl."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import make_printable
from .source import TRUNCATION_NOTE, ConfigConverter, convert_template


def convert_axolotl(s: ConfigConverter) -> None:
    s.base("base_model")
    s.carry("revision_of_model", "model.revision")
    quantised = "nf4" if s.take("load_in_4bit") else "int8" if s.left.get("load_in_8bit") else "none"
    adapter = s.take("adapter")
    if adapter == "qlora" and quantised == "none":
        quantised = "nf4"
    s.kept(["load_in_8bit"], f"model.quantization: {quantised}")
    s.put("load_in_4bit", "model.quantization", quantised)
    s.carry("bnb_config_kwargs.bnb_4bit_quant_type", "model.quantization")
    s.carry("bnb_config_kwargs.bnb_4bit_use_double_quant", "model.double_quant")
    convert_axolotl_rows(s)
    if adapter in ("lora", "qlora"):
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
    else:
        s.whole()
        for key in ("lora_r", "lora_alpha", "lora_target_modules", "lora_target_linear", "peft_layers_to_transform"):
            s.lose(key, "all weights are trained: adapter is not set")
        if adapter is not None:
            s.lose("adapter", "adapters are LoRA, prompt or prefix: see `zoedge schema --field space`", adapter)
    if s.carry("sequence_len", "data.max_length") is not None:
        how = s.take("excess_length_strategy")
        key, cut = "excess_length_strategy" if how else "sequence_len", how == "truncate"
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


def convert_axolotl_rows(s: ConfigConverter) -> None:
    """The first data set; others are listed."""
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
    for key, value in (("datasets.0.split", split), ("datasets.0.name", name)):
        if value is not None and (key, value) not in [(k, v) for k, v, _ in s.out.lost]:
            s.out.carried.append((key, f"data.train: {make_printable(path)}"))
    s.kept(["datasets.0.ds_type"], "told by the file's ending")
    kind = s.take("datasets.0.type")
    kind = kind.partition(":")[0].partition(".")[0] if isinstance(kind, str) else None
    custom = any(key.startswith("datasets.0.type.") for key in s.left)
    if kind == "completion":
        s.put("datasets.0.type", "task", "lm")
        s.carry("datasets.0.field", "task.text")
    else:
        s.put("datasets.0.type", "task", "chat", given=kind or "-")
        forms = {"alpaca": "alpaca", "sharegpt": "sharegpt"}
        if kind in forms:
            s.put("datasets.0.type", "data.format", forms[kind], given=kind)
            if kind == "alpaca":
                s.change(
                    "datasets.0.type",
                    kind,
                    "the instruction is a user's turn of the chat template, not Alpaca's own page",
                )
        elif kind not in (None, "chat_template") or custom:
            s.change(
                "datasets.0.type",
                kind or "(a prompt of its own)",
                "the chat template writes the turns; a row's format is told by its keys",
            )
        for theirs, ours in {
            "field_instruction": "instruction",
            "field_input": "input",
            "field_output": "output",
        }.items():
            value = s.take(f"datasets.0.type.{theirs}", f"datasets.0.{theirs}")
            if value not in (None, ours):
                s.put(f"datasets.0.{theirs}", f"data.fields.{ours}", value)
            elif value is not None:
                s.out.carried.append((f"datasets.0.{theirs}", ours))
        field_ = s.take("datasets.0.field_messages")
        if field_ in ("messages", "conversations"):
            s.out.carried.append(("datasets.0.field_messages", "told by the rows' keys"))
        elif field_ is not None:
            s.put("datasets.0.field_messages", "data.fields.messages", field_)
    test = s.take("test_datasets.0.path")
    files = s.take("test_datasets.0.data_files")
    if test or files:
        s.put("test_datasets.0.path", "data.valid", (files[0] if isinstance(files, list) else files) or test)
        for key in [key for key in s.left if key.startswith("test_datasets.0.")]:
            s.kept([key], "as the training rows")
    for key in [key for key in s.left if re.match(r"(test_)?datasets\.[1-9]", key)]:
        s.lose(key, "one set of rows: join the files, or list them as FOLDER:A,B of a dataset_info.json")
