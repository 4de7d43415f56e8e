"""This module turns a configuration of litgpt's finetune commands into a recipe."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import UsageError, make_printable
from .goals import refuse
from .rows import ANSWER_NOTE, convert_alpaca, train_on
from .settings import (
    OUTPUT_NOTE,
    TRUNCATION_NOTE,
    convert_base,
    convert_dtype,
    convert_first_order,
    convert_full,
    convert_holdout,
    convert_length,
    convert_lora_size,
    convert_schedule,
    convert_steps,
)
from .source import ConfigConverter
from .targets import convert_targets

DEFAULTS = {"data.init_args.prompt_style": "alpaca", "train.epochs": 5, "eval.interval": 100}
LORA_DEFAULTS = {"lora_r": 8, "lora_alpha": 16, "lora_query": True, "lora_value": True, "train.global_batch_size": 16}
FULL_DEFAULTS = {"train.global_batch_size": 16}
SCHEMES = {  # quantize -> model.quantization, model.double_quant
    "bnb.nf4": ("nf4", False),
    "bnb.nf4-dq": ("nf4", True),
    "bnb.fp4": ("fp4", False),
    "bnb.fp4-dq": ("fp4", True),
    "bnb.int8": ("int8", None),
    "bnb.int8-training": ("int8", None),
}
HUB_SETS = {  # litgpt's classes of rows that are sets of a hub, and the share that each holds out
    "Alpaca2k": ("mhenrichsen/alpaca_2k_test", 0.05),
}
SWITCHES = {
    "lora_query": ("q_proj",),
    "lora_key": ("k_proj",),
    "lora_value": ("v_proj",),
    "lora_projection": ("o_proj",),
    "lora_mlp": ("gate_proj", "up_proj", "down_proj"),
}
NEOX_SWITCHES = {
    **dict.fromkeys(("lora_query", "lora_key", "lora_value"), ("query_key_value",)),
    "lora_projection": ("dense",),
    "lora_mlp": ("dense_h_to_4h", "dense_4h_to_h"),
}


def convert_litgpt(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that the configuration comes to.

    UsageError: it names no base model or no rows, or trains from random weights.
    """
    has_adapter = any(key.startswith("lora_") for key in s.left)
    s.left = (LORA_DEFAULTS if has_adapter else FULL_DEFAULTS) | s.left
    if s.is_set("model_name") and not s.is_set("initial_checkpoint_dir") and not s.is_set("checkpoint_dir"):
        refuse(s, "model_name", s.left["model_name"], "scratch")
    convert_litgpt_base(s)
    convert_litgpt_rows(s)
    if has_adapter:
        convert_litgpt_adapter(s)
    else:
        convert_full(s, "(lora_...)")
        s.change("(method)", None, "no key begins with lora_: taken as a configuration of `litgpt finetune_full`")
    if s.left.get("train.max_seq_length") is None:
        how = "litgpt sets no limit; data.max_length is left at its default, and longer rows are refused"
        s.change("(train.max_seq_length)", None, how)
    convert_length(s, "train.max_seq_length", "truncate", TRUNCATION_NOTE)
    batch = s.carry("train.global_batch_size", "train.batch")
    s.keep(["train.micro_batch_size"], "train.batch")
    convert_steps(s, "train.max_steps", "train.epochs", batch if isinstance(batch, int) else 1)
    s.carry("eval.interval", "eval.every")
    s.carry("seed", "seed")
    s.carry("out_dir", "output.dir", note=OUTPUT_NOTE)
    convert_first_order(s, "optimizer.init_args.lr", "optimizer.class_path")
    s.left["(schedule)"] = "cosine"
    convert_schedule(s, "(schedule)")
    s.carry("optimizer.init_args.weight_decay", "rule.weight_decay")
    convert_dtype(s, "precision")


def convert_litgpt_base(s: ConfigConverter) -> None:
    """Convert the base: litgpt's folders end in the hub id that they were made of. And in how many bits it is held."""
    key = "checkpoint_dir" if "checkpoint_dir" in s.left else "initial_checkpoint_dir"
    folder = s.left.get(key)
    if isinstance(folder, str) and not (Path(folder).expanduser() / "config.json").is_file():
        s.left[key] = "/".join(Path(folder).parts[-2:])
        s.change(
            key, folder, f"litgpt's folder has a format of its own: the hub id that its path ends in ({s.left[key]})"
        )
    convert_base(s, key)
    name = s.take("quantize")
    scheme, double = SCHEMES.get(str(name), ("none", None))
    s.put("quantize", "model.quantization", scheme, given=name or "-")
    if double is not None:
        s.put("quantize", "model.double_quant", double, given=name)
    if name is not None and str(name) not in SCHEMES:
        s.change("quantize", name, "bitsandbytes' nf4, fp4 and int8 are what model.quantization knows")


def convert_litgpt_adapter(s: ConfigConverter) -> None:
    """Convert a LoRA adapter of all layers."""
    s.put("lora_r", "space.name", "lora", given=s.left["lora_r"])
    convert_lora_size(s, "lora_r", "lora_alpha")
    is_neox = re.search("pythia|neox", str(s.read("model.source")), re.IGNORECASE) is not None
    words: list[str] = []
    for switch, names in (NEOX_SWITCHES if is_neox else SWITCHES).items():
        is_on = s.take(switch)
        words += [name for name in names if is_on and name not in words]
        if is_on is not None:
            s.out.carried.append((switch, "space.targets"))
    if words:
        convert_targets(s, "(modules)", words)
    if is_neox and "query_key_value" in words:
        s.change("(modules)", words, "GPT-NeoX has query, key and value in one module, which is adapted whole")
    if s.left.get("lora_head"):
        s.lose("lora_head", "adapters are of the blocks: the head is not adapted")
    s.keep(["lora_head"], "space.targets")


def convert_litgpt_rows(s: ConfigConverter) -> None:
    """Convert the rows and the prompt around them. UsageError: litgpt makes the rows itself."""
    key = "data" if "data" in s.left else "data.class_path"
    kind = str(s.take(key)).rpartition(".")[2]
    path = s.take("data.init_args.json_path")
    if path is None and kind not in HUB_SETS:
        raise UsageError(
            f"{s.where}: data: {make_printable(kind)} downloads or makes its rows itself. Save them to a file of "
            "instruction, input and output, and name it: data: {class_path: litgpt.data.JSON, init_args: {json_path: FILE}}."
        )
    source, share = HUB_SETS.get(kind, (path, 0.05))
    train_on(s, key, source)
    if path is not None:
        s.out.carried.append(("data.init_args.json_path", "data.train"))
    folder = Path(str(path)).expanduser()
    if path is None or not folder.is_dir():
        s.left.setdefault("data.init_args.val_split_fraction", share)
        convert_holdout(s, "data.init_args.val_split_fraction")
    s.keep(["data.init_args.seed"], "rows are drawn by their content and the run's seed")
    style = s.take("data.init_args.prompt_style")
    if style == "alpaca":
        convert_alpaca(s, "data.init_args.prompt_style", style)
    elif style == "default":
        s.put(
            "data.init_args.prompt_style", "task", {"name": "generate", "prompt": "{instruction}", "answer": "output"}
        )
        s.change("data.init_args.prompt_style", style, ANSWER_NOTE.format("litgpt"))
    else:
        s.put("data.init_args.prompt_style", "task", "chat", given=style)
        how = "the tokenizer's own chat template is used (task.format: own), and not litgpt's prompt of that name"
        s.change("data.init_args.prompt_style", style, how)
    if s.take("data.init_args.mask_prompt") is not True:
        s.change("data.init_args.mask_prompt", False, "only the answers are scored; litgpt scores the question too")
    else:
        s.out.carried.append(("data.init_args.mask_prompt", "the answers are scored alone"))
