"""This module turns a configuration of `trl sft` (SFTConfig and its neighbours) into a recipe, and one of unsloth's CLI."""

from __future__ import annotations

import re

from .goals import refuse_keys, refuse_word
from .rows import (
    convert_guessed_task,
    convert_slice,
    convert_template,
    guess_task,
    name_source,
    parse_split,
    put_text_task,
    train_on,
)
from .settings import (
    OUTPUT_NOTE,
    TRUNCATION_NOTE,
    convert_base,
    convert_batch,
    convert_dtype,
    convert_first_order,
    convert_full,
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
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "linear",
    "max_length": 1024,
    "dataset_test_split": "test",
}
LORA_DEFAULTS = {"lora_r": 16, "lora_alpha": 32}
GOAL_KEYS = {  # keys of trl's other trainers
    **dict.fromkeys(
        ("reward_funcs", "num_generations", "max_completion_length", "reward_weights", "num_ppo_epochs"), "reward"
    ),
    **dict.fromkeys(("reward_model_path", "use_vllm", "vllm_mode", "missing_eos_penalty"), "reward"),
    **dict.fromkeys(("beta", "desirable_weight", "undesirable_weight", "precompute_ref_log_probs"), "preference"),
    **dict.fromkeys(("sync_ref_model", "max_prompt_length", "simpo_gamma", "cpo_alpha", "orpo_alpha"), "preference"),
    **dict.fromkeys(("center_rewards_coefficient", "step_separator"), "scores"),
    **dict.fromkeys(("teacher_model_name_or_path", "lmbda"), "distillation"),
}
UNSLOTH_DEFAULTS = {
    "data.format_type": "auto",
    "training.training_type": "lora",
    "training.max_seq_length": 2048,
    "training.load_in_4bit": True,
    "training.num_epochs": 3,
    "training.batch_size": 2,
    "training.gradient_accumulation_steps": 4,
    "lora.lora_r": 64,
    "lora.lora_alpha": 16,
    "lora.target_modules": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
}
NO_LIMIT_NOTE = "no limit is set there; data.max_length is left at its default, and longer rows are refused"


def convert_trl(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that the configuration comes to.

    UsageError: it names no base model or no rows, or is of another trainer than SFT.
    """
    convert_base(s, "model_name_or_path")
    s.carry("model_revision", "model.revision")
    refuse_keys(s, GOAL_KEYS)
    refuse_word(s, "loss_type", s.left.get("loss_type"))
    s.change("(trainer)", "sft", "the file does not name trl's trainer: taken as `trl sft`")
    convert_trl_rows(s)
    convert_trl_space(s)
    key = "max_seq_length" if s.is_set("max_seq_length") else "max_length"
    if key == "max_length" and "max_length" in s.out.unset:
        s.take("max_length")
        s.change("max_length", None, NO_LIMIT_NOTE)
    convert_length(s, key, "truncate", TRUNCATION_NOTE)
    batch = convert_batch(s, "per_device_train_batch_size", "gradient_accumulation_steps")
    convert_steps(s, "max_steps", "num_train_epochs", batch)
    s.carry("seed", "seed")
    s.carry("output_dir", "output.dir", note=OUTPUT_NOTE)
    s.carry("run_name", "name")
    convert_looks(s, "eval_steps")
    convert_first_order(s, "learning_rate", "optim")
    convert_schedule(s, "lr_scheduler_type")
    s.carry("weight_decay", "rule.weight_decay")
    convert_dtype(s, "dtype" if "dtype" in s.left else "torch_dtype")
    convert_precision(s)
    convert_template(s, "chat_template_path", "chat_template")
    if s.take("load_best_model_at_end") and "valid" in s.out.table["data"]:
        s.put("load_best_model_at_end", "eval.select", "best", given=True)


def convert_trl_rows(s: ConfigConverter) -> None:
    """Convert where the rows come from, and the task: a text is scored whole, of a conversation the answers."""
    path, key = s.take("dataset_name"), "dataset_name"
    config, split = s.take("dataset_config"), s.take("dataset_train_split")
    if path is None and "datasets.0.path" in s.left:
        path, key = s.take("datasets.0.path"), "datasets.0.path"
        config, split = s.take("datasets.0.name"), s.take("datasets.0.split")
        for other in [name for name in s.left if re.match(r"datasets\.[1-9]", name)]:
            s.lose(other, "one set of rows: join them in a file")
    part = parse_split(s, "dataset_train_split", split)
    train_on(s, key, name_source(path, config, part.name))
    for name, value in (("dataset_config", config), ("dataset_train_split", split)):
        if value is not None and not part.is_slice:
            s.out.carried.append((name, f"data.train: {s.read('data.train')}"))
    convert_slice(s, "dataset_train_split", part)
    held_out = parse_split(s, "dataset_test_split", s.take("dataset_test_split"))
    if (s.left.get("eval_strategy") or s.left.get("evaluation_strategy") or "no") != "no":
        s.put("dataset_test_split", "data.valid", name_source(path, config, held_out.name), given=held_out.name)
    field = s.take("dataset_text_field")
    if field is not None and guess_task(s) != "chat":
        put_text_task(s, "dataset_text_field", field, field)
    else:
        convert_guessed_task(s, key)
    alone = s.take("assistant_only_loss"), s.take("completion_only_loss")
    if s.read("task") == "chat" and not any(alone):
        s.change(
            "(loss)",
            None,
            "only the assistant's answers are scored; trl scores conversations whole (assistant_only_loss)",
        )
    for name, value in zip(("assistant_only_loss", "completion_only_loss"), alone):
        if value is not None:
            s.out.carried.append((name, "the assistant's answers are scored alone"))


def convert_trl_space(s: ConfigConverter) -> None:
    """Convert what is trained, a LoRA adapter of all layers or all weights, and in how many bits the base is held."""
    four, eight = s.take("load_in_4bit"), s.take("load_in_8bit")
    s.put("load_in_4bit", "model.quantization", "nf4" if four else "int8" if eight else "none", given=four)
    if eight is not None:
        s.out.carried.append(("load_in_8bit", "model.quantization"))
    nested, kind = s.take("use_bnb_nested_quant"), s.take("bnb_4bit_quant_type")
    if four:
        s.put("use_bnb_nested_quant", "model.double_quant", bool(nested))
        if kind is not None:
            s.put("bnb_4bit_quant_type", "model.quantization", kind)
    if not s.take("use_peft"):
        convert_full(s, "use_peft")
        for key in ("lora_r", "lora_alpha", "lora_target_modules"):
            s.lose(key, "all weights are trained: use_peft is not set")
        return
    s.put("use_peft", "space.name", "lora", given=True)
    s.left = LORA_DEFAULTS | s.left
    convert_lora_size(s, "lora_r", "lora_alpha", "use_rslora")
    names = s.take("lora_target_modules")
    if names is None:
        is_neox = re.search("pythia|neox", str(s.read("model.source")), re.IGNORECASE)
        names = ["query_key_value"] if is_neox else ["q_proj", "v_proj"]
        s.change("(lora_target_modules)", names, "PEFT's default for most models: look at space.targets")
    convert_targets(s, "lora_target_modules", names[0] if names in (["all-linear"],) else names)


def convert_unsloth(s: ConfigConverter) -> None:
    """Write into `s.out` the recipe that a configuration of unsloth's CLI comes to. UsageError: it names no base or no rows."""
    convert_base(s, "model")
    local = s.take("data.local_dataset")
    files = local if isinstance(local, list) else [local] if local else []
    for extra in files[1:]:
        s.lose("data.local_dataset", "one file of rows: join them first", extra)
    key = "data.local_dataset" if files else "data.dataset"
    train_on(s, key, s.take("data.dataset") if not files else files[0])
    kind = s.take("data.format_type")
    convert_guessed_task(s, key)
    if kind in ("alpaca", "sharegpt"):
        s.put("data.format_type", "data.format", kind)
    if kind == "alpaca":
        s.change("data.format_type", kind, "the instruction is a user's turn of the chat template")
    if s.take("training.train_on_completions"):
        s.out.carried.append(("training.train_on_completions", "the answers are scored alone"))
    else:
        s.change("training.train_on_completions", False, "only the answers are scored; unsloth scores the question too")
    scheme = "nf4" if s.take("training.load_in_4bit") else "none"
    s.put("training.load_in_4bit", "model.quantization", scheme)
    if s.take("training.training_type") == "full":
        convert_full(s, "training.training_type", "full")
        s.left = {name: value for name, value in s.left.items() if name in s.given or not name.startswith("lora.")}
    else:
        s.put("training.training_type", "space.name", "lora")
        convert_lora_size(s, "lora.lora_r", "lora.lora_alpha", "lora.use_rslora")
        convert_targets(s, "lora.target_modules", s.take("lora.target_modules"))
    convert_length(s, "training.max_seq_length", "truncate", TRUNCATION_NOTE)
    batch = convert_batch(s, "training.batch_size", "training.gradient_accumulation_steps")
    convert_steps(s, "training.max_steps", "training.num_epochs", batch)
    s.carry("training.random_seed", "seed")
    s.carry("training.output_dir", "output.dir", note=OUTPUT_NOTE)
    convert_first_order(s, "training.learning_rate", "training.optim")
    s.carry("training.weight_decay", "rule.weight_decay")
