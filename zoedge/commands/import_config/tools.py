"""This module lists the tools whose configurations are read: their keys, their defaults, and what converts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import axolotl, litgpt, llama_factory, mlx_lm, torchtune, trl
from .source import ConfigConverter


class Tool(NamedTuple):
    """Another tool.

    Attributes:
        convert: writes the recipe that a configuration comes to.
        defaults: what a setting is there that the configuration leaves open, by dotted key.
        keys: top-level keys of its configurations.
        marks: keys, at whatever level, that no other tool has.
    """

    convert: Callable[[ConfigConverter], None]
    defaults: dict[str, Any]
    keys: frozenset[str]
    marks: frozenset[str] = frozenset()


MLX_LM_KEYS = """iters lora_parameters fine_tune_type adapter_path num_layers lora_layers steps_per_eval
    steps_per_report grad_checkpoint mask_prompt val_batches test_batches resume_adapter_file model data train hf_dataset
    save_every lr_schedule"""
AXOLOTL_KEYS = """base_model datasets sequence_len micro_batch_size num_epochs adapter lora_r lora_target_linear val_set_size
    sample_packing dataset_prepared_path lora_target_modules load_in_4bit load_in_8bit flash_attention tokenizer_type model_type
    saves_per_epoch evals_per_epoch lr_scheduler pretraining_dataset"""
LLAMA_FACTORY_KEYS = """model_name_or_path stage finetuning_type template cutoff_len dataset dataset_dir lora_rank lora_target
    val_size do_train max_samples per_device_train_batch_size num_train_epochs overwrite_cache preprocessing_num_workers
    plot_loss quantization_bit"""
LLAMA_FACTORY_V1_KEYS = """model model_class peft_config kernel_config dist_config quant_config init_config train_dataset
    cutoff_len micro_batch_size global_batch_size sample_backend max_new_tokens"""
TORCHTUNE_KEYS = """model tokenizer checkpointer dataset optimizer loss epochs metric_logger enable_activation_checkpointing
    max_steps_per_epoch resume_from_checkpoint"""
LITGPT_KEYS = """checkpoint_dir out_dir precision quantize devices num_nodes lora_r lora_query lora_key lora_value
    lora_projection lora_mlp lora_head data train eval logger_name optimizer tokenizer_dir initial_checkpoint_dir"""
TRL_KEYS = """model_name_or_path dataset_name dataset_config dataset_train_split dataset_test_split use_peft max_seq_length
    max_length lora_r lora_target_modules assistant_only_loss completion_only_loss dataset_text_field torch_dtype
    attn_implementation gradient_checkpointing_kwargs per_device_train_batch_size num_train_epochs packing eval_strategy
    model_revision load_in_4bit reward_funcs num_generations max_completion_length"""
UNSLOTH_KEYS = "model data training lora logging"

TOOLS = {
    "mlx-lm": Tool(mlx_lm.convert_mlx_lm, mlx_lm.DEFAULTS, frozenset(MLX_LM_KEYS.split())),
    "axolotl": Tool(axolotl.convert_axolotl, axolotl.DEFAULTS, frozenset(AXOLOTL_KEYS.split())),
    "llama-factory": Tool(
        llama_factory.convert_llama_factory, llama_factory.DEFAULTS, frozenset(LLAMA_FACTORY_KEYS.split())
    ),
    "llama-factory-v1": Tool(
        llama_factory.convert_llama_factory_v1,
        llama_factory.DEFAULTS_V1,
        frozenset(LLAMA_FACTORY_V1_KEYS.split()),
        frozenset({"train_dataset", "model_class"}),
    ),
    "torchtune": Tool(
        torchtune.convert_torchtune, torchtune.DEFAULTS, frozenset(TORCHTUNE_KEYS.split()), frozenset({"_component_"})
    ),
    "litgpt": Tool(
        litgpt.convert_litgpt,
        litgpt.DEFAULTS,
        frozenset(LITGPT_KEYS.split()),
        frozenset({"class_path", "global_batch_size"}),
    ),
    "trl": Tool(trl.convert_trl, trl.DEFAULTS, frozenset(TRL_KEYS.split()), frozenset({"dataset_name"})),
    "unsloth": Tool(
        trl.convert_unsloth,
        trl.UNSLOTH_DEFAULTS,
        frozenset(UNSLOTH_KEYS.split()),
        frozenset({"train_on_completions", "training_type"}),
    ),
}


def count_keys(table: dict[str, Any], words: set[str], tool: Tool) -> int:
    """Return how many of a configuration's keys are a tool's; one that no other tool has counts as three.

    words: the parts of its dotted keys.
    """
    return len(tool.keys & table.keys()) + 3 * bool(tool.marks & words)
