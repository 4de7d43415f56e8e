"""This module turns a configuration of torchtune into a recipe.

torchtune names Python functions under `_component_`, and their arguments beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import UsageError, make_printable
from .goals import refuse, refuse_keys
from .rows import convert_alpaca, convert_slice, convert_splits, name_source, parse_split, put_text_task, train_on
from .settings import (
    OUTPUT_NOTE,
    STEPS_NOTE,
    TRUNCATION_NOTE,
    convert_base,
    convert_batch,
    convert_dtype,
    convert_first_order,
    convert_full,
    convert_length,
    convert_looks,
    convert_lora_size,
    convert_schedule,
    convert_steps,
)
from .source import ConfigConverter
from .targets import convert_targets

DEFAULTS = {"batch_size": 1, "gradient_accumulation_steps": 1, "epochs": 1}
LORA_DEFAULTS = {"model.lora_rank": 8, "model.lora_alpha": 16}
GOAL_KEYS = {
    "teacher_model._component_": "distillation",
    "policy_model._component_": "reward",
    "reward_and_value_model._component_": "reward",
    "grpo_samples": "reward",
    "ppo_epochs": "reward",
    "prompt.user": "no training",
    "tasks": "no training",
}
ALPACA_SOURCES = {"alpaca_dataset": "tatsu-lab/alpaca", "alpaca_cleaned_dataset": "yahma/alpaca-cleaned"}
CHAT_SOURCES = {"chat_dataset": None, "instruct_dataset": None, "slimorca_dataset": "Open-Orca/SlimOrca-Dedup"}
PREFERENCE_SETS = ("preference_dataset", "stack_exchange_paired_dataset", "hh_rlhf_helpful_dataset")
WORDS = {"output_proj": "o_proj"}  # torchtune's names of modules -> those of transformers
MLP_WORDS = ("gate_proj", "up_proj", "down_proj")
FILE_KINDS = ("json", "csv", "parquet", "text")  # a `source` that means the files in data_files


def convert_torchtune(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that the configuration comes to.

    UsageError: it names no base model or no rows, or is of another goal.
    """
    fill_references(s)
    refuse_keys(s, GOAL_KEYS)
    kind = str(s.take("model._component_")).rpartition(".")[2]
    if "vision" in kind or any(
        "multimodal" in str(value) for key, value in s.left.items() if key.startswith("dataset")
    ):
        refuse(s, "model._component_", kind, "pictures")
    if "classifier" in kind or "reward" in kind:
        refuse(s, "model._component_", kind, "scores")
    convert_torchtune_base(s, kind)
    convert_torchtune_rows(s)
    convert_torchtune_space(s, kind)
    if s.left.get("tokenizer.max_seq_len") is None:
        how = "torchtune sets no limit; data.max_length is left at its default, and longer rows are refused"
        s.change("(tokenizer.max_seq_len)", None, how)
    convert_length(s, "tokenizer.max_seq_len", "truncate", TRUNCATION_NOTE)
    batch = convert_batch(s, "batch_size", "gradient_accumulation_steps")
    convert_torchtune_steps(s, batch)
    s.carry("seed", "seed")
    s.carry("output_dir", "output.dir", note=OUTPUT_NOTE)
    convert_first_order(s, "optimizer.lr", "optimizer._component_")
    scheduler = str(s.left.get("lr_scheduler._component_", "constant"))
    s.left["lr_scheduler._component_"] = "cosine" if "cosine" in scheduler else scheduler
    convert_schedule(s, "lr_scheduler._component_")
    convert_looks(s, "run_val_every_n_steps")
    s.carry("optimizer.weight_decay", "rule.weight_decay")
    convert_dtype(s, "dtype")
    s.keep(["device"], "model.device: auto, a GPU if there is one")
    if "CrossEntropy" in str(s.left.get("loss._component_")) or "CEWith" in str(s.left.get("loss._component_")):
        s.keep(["loss._component_"], "the cross-entropy of the answers' tokens")


def fill_references(s: ConfigConverter) -> None:
    """Write out the references of OmegaConf, such as ${output_dir}, in all values."""
    texts = {key: str(value) for key, value in s.left.items()}
    for key, value in s.left.items():
        if isinstance(value, str) and "${" in value:
            s.left[key] = re.sub(r"\$\{([\w.]+)\}", lambda m: texts.get(m[1], m[0]), value)


def convert_torchtune_base(s: ConfigConverter, kind: str) -> None:
    """Convert where the base lies, and in how many bits it is held: qlora_... means nf4."""
    folder = convert_base(s, "checkpointer.checkpoint_dir")
    if not Path(folder).expanduser().is_dir():
        how = "no such folder is here: name the hub id that `tune download` fetched"
        s.change("checkpointer.checkpoint_dir", folder, how)
    reader = str(s.take("checkpointer._component_")).rpartition(".")[2]
    if reader.endswith("HFCheckpointer"):
        s.out.carried.append(("checkpointer._component_", "model.source: a folder in the format of transformers"))
    else:
        how = "a folder in the format of transformers is needed (model.safetensors, config.json)"
        s.change("checkpointer._component_", reader, how)
    is_quantised = kind.startswith("qlora_") or s.take("model.quantize_base") is True
    s.put("(model._component_)", "model.quantization", "nf4" if is_quantised else "none", given=kind)


def convert_torchtune_space(s: ConfigConverter, kind: str) -> None:
    """Convert what is trained: a LoRA adapter of all layers, or all weights."""
    if not kind.startswith(("lora_", "qlora_")):
        convert_full(s, "model._component_", kind)
        return
    s.put("model._component_", "space.name", "lora", given=kind)
    s.left = LORA_DEFAULTS | s.left
    convert_lora_size(s, "model.lora_rank", "model.lora_alpha")
    names = s.take("model.lora_attn_modules") or []
    names = [WORDS.get(str(name), name) for name in (names if isinstance(names, list) else [names])]
    if s.take("model.apply_lora_to_mlp"):
        names = [*names, *MLP_WORDS]
        s.out.carried.append(("model.apply_lora_to_mlp", "space.targets"))
    if names:
        convert_targets(s, "model.lora_attn_modules", names)
    if s.left.get("model.apply_lora_to_output"):
        s.lose("model.apply_lora_to_output", "adapters are of the blocks: the head is not adapted")
    s.keep(["model.apply_lora_to_output", "model.apply_lora_to_mlp"], "space.targets")


def convert_torchtune_steps(s: ConfigConverter, batch: int) -> None:
    """Convert the number of steps, which is given as epochs, or as epochs of so many steps at most."""
    steps, epochs = s.take("max_steps_per_epoch"), s.left.get("epochs")
    if isinstance(steps, int) and isinstance(epochs, int):
        s.take("epochs")
        s.put("max_steps_per_epoch", "train.steps", steps * epochs, STEPS_NOTE, steps)
        s.out.carried.append(("epochs", f"train.steps: {steps} x {epochs}"))
        return
    convert_steps(s, "max_steps", "epochs", batch)


def convert_torchtune_rows(s: ConfigConverter) -> None:
    """Convert the training rows, the task, and the validation rows. UsageError: they are of another goal, or made in Python."""
    first = "dataset.0." if "dataset.0._component_" in s.left else "dataset."
    kind = str(s.take(f"{first}_component_")).rpartition(".")[2]
    if kind in PREFERENCE_SETS:
        refuse(s, f"{first}_component_", kind, "preference")
    known = ALPACA_SOURCES | CHAT_SOURCES | {"text_completion_dataset": None}
    if kind != "None" and kind not in known:
        raise UsageError(
            f"{s.where}: {first}_component_: {make_printable(kind)} makes its rows in Python. Save them to a file of "
            f"prompts and completions, and name it: {first}_component_: torchtune.datasets.instruct_dataset, source: json, "
            "data_files: FILE."
        )
    source = s.take(f"{first}source") or known.get(kind)
    if source in FILE_KINDS:
        files = s.take(f"{first}data_files")
        source = files[0] if isinstance(files, list) and files else files
        s.out.carried.append((f"{first}data_files", "data.train"))
    config, split = s.take(f"{first}name"), parse_split(s, f"{first}split", s.take(f"{first}split"))
    train_on(s, f"{first}source", name_source(source, config, split.name) if source is not None else None)
    for key in [key for key in s.left if first != "dataset." and re.match(r"dataset\.[1-9]", key)]:
        s.lose(key, "one set of rows: join them in a file")
    convert_torchtune_task(s, first, kind)
    valid = parse_split(s, "dataset_val.split", s.take("dataset_val.split"))
    if s.is_set("dataset_val._component_"):
        s.keep(["dataset_val._component_", "dataset_val.source", "batch_size_val"], "as the training rows")
        held_out = name_source(source, config, valid.name)
        convert_splits(s, f"{first}split", "dataset_val.split", split, valid, held_out)
    else:
        convert_slice(s, f"{first}split", split)
    convert_torchtune_loss(s, first, kind)


def convert_torchtune_loss(s: ConfigConverter, first: str, kind: str) -> None:
    """List whether the question is scored too; alpaca_dataset does so unless it is told otherwise."""
    trained = s.take(f"{first}train_on_input")
    if (kind in ALPACA_SOURCES and trained is None) or trained is True:
        s.change(f"{first}train_on_input", True, "only the answers are scored; torchtune scores the question too")
    elif trained is not None:
        s.out.carried.append((f"{first}train_on_input", "the answers are scored alone"))


def convert_torchtune_task(s: ConfigConverter, first: str, kind: str) -> None:
    """Convert what a row is: Alpaca's, a conversation, a question and an answer, or plain text."""
    if kind in ALPACA_SOURCES:
        convert_alpaca(s, f"{first}_component_", kind)
    elif kind == "text_completion_dataset":
        put_text_task(s, f"{first}_component_", kind, s.take(f"{first}column"))
    else:
        s.put(f"{first}_component_", "task", "chat", given=kind)
    if kind == "instruct_dataset":
        for key, ours, default in (("input", "prompt", "input"), ("output", "completion", "output")):
            s.put(f"{first}column_map.{key}", f"data.fields.{ours}", s.take(f"{first}column_map.{key}") or default)
    column = s.take(f"{first}conversation_column")
    if column in ("messages", "conversations"):
        s.out.carried.append((f"{first}conversation_column", "the rows' keys say it"))
    elif column is not None:
        s.put(f"{first}conversation_column", "data.fields.messages", column)
    s.keep([f"{first}conversation_style"], "the rows' keys say it")
