"""This module lists other tools' keys: those for which a recipe has another word, and those that have no place in it, and why.

They are the keys that mlx-lm, axolotl, LLaMA-Factory, Unsloth, PEFT, TRL and MeZO's own code document.
"""

# ruff: noqa: E501 - tables
from __future__ import annotations

FOREIGN_KEYS = {  # at whatever level they are written
    "learning_rate": "rule.lr", "lr_scheduler": "rule.schedule", "lr_scheduler_type": "rule.schedule",
    "lr_schedule": "rule.schedule", "scheduler": "rule.schedule", "optimizer": "rule", "optim": "rule",
    "zo_eps": "estimator.eps", "epsilon": "estimator.eps", "num_perturbations": "estimator.queries",
    "perturbation": "noise", "lora_r": "space.rank", "r": "space.rank", "lora_rank": "space.rank",
    "lora_alpha": "space.alpha", "lora_target_modules": "space.targets", "target_modules": "space.targets",
    "lora_layers": "space.layers", "num_layers": "space.layers", "layers_to_transform": "space.layers",
    "base_model": "model.source", "model_name_or_path": "model.source", "model_name": "model.source",
    "model_id": "model.source", "model.name": "model.source", "model.path": "model.source",
    "load_in_4bit": "model.quantization: nf4", "load_in_8bit": "model.quantization: int8",
    "bnb_4bit_quant_type": "model.quantization", "quantization_bit": "model.quantization",
    "bnb_4bit_use_double_quant": "model.double_quant", "bnb_4bit_compute_dtype": "model.compute_dtype",
    "dtype": "model.compute_dtype", "torch_dtype": "model.compute_dtype", "bf16": "model.compute_dtype: bf16",
    "fp16": "model.compute_dtype: fp16", "iters": "train.steps", "max_steps": "train.steps",
    "num_steps": "train.steps", "epochs": "train.steps (steps, not epochs)",
    "num_epochs": "train.steps (steps, not epochs)", "num_train_epochs": "train.steps (steps, not epochs)",
    "micro_batch_size": "train.batch", "batch_size": "train.batch", "per_device_train_batch_size": "train.batch",
    "max_seq_length": "data.max_length", "max_seq_len": "data.max_length", "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length", "dataset": "data.train", "datasets": "data.train", "train_file": "data.train",
    "train_data": "data.train", "data_path": "data.train", "data.path": "data.train", "data.name": "data.train",
    "val_set_size": "data.valid: {split: N}", "val_data": "data.valid", "validation_file": "data.valid",
    "template": "task.prompt", "labels": "task.options", "eval_steps": "eval.every", "steps_per_eval": "eval.every",
    "output_dir": "output.dir", "adapter_path": "output.dir", "run_name": "name", "random_seed": "seed",
    "load_best_model_at_end": "eval.select: best", "report_to": "log.trackers: [tensorboard]",
    "log_with": "log.trackers: [tensorboard]", "wandb": "log.trackers: [wandb]", "use_tensorboard": "log.trackers: [tensorboard]",
    "device_map": "model.max_memory",
    # axolotl
    "base_model_config": "model.source", "revision_of_model": "model.revision", "adapter": "space",
    "lora_target_linear": "space.targets: all", "peft_layers_to_transform": "space.layers", "bfloat16": "model.compute_dtype: bf16",
    "float16": "model.compute_dtype: fp16", "chat_template": "task.format", "chat_template_jinja": "task.format",
    "test_datasets": "data.valid", "loss_watchdog_threshold": "train.watchdog", "loss_watchdog_patience": "train.watchdog",
    "excess_length_strategy": "data.on_overflow", "wandb_name": "name", "data_files": "data.train", "ds_type": "data.train",
    "field_instruction": "data.fields: {instruction: NAME}", "field_input": "data.fields: {input: NAME}",
    "field_output": "data.fields: {output: NAME}", "field_messages": "data.fields: {messages: NAME}",
    # LLaMA-Factory
    "dataset_dir": "data.train: FOLDER:NAME", "eval_dataset": "data.valid", "max_samples": "data.limit", "val_size": "data.valid: {split: N}",
    "finetuning_type": "space", "stage": "task", "lora_target": "space.targets", "quantization_type": "model.quantization",
    "double_quantization": "model.double_quant", "model_revision": "model.revision", "pure_bf16": "model.compute_dtype: bf16",
    # mlx-lm
    "fine_tune_type": "space", "lora_parameters": "space", "val_split": "data.valid: {split: N}", "prompt_feature": "data.fields: {prompt: NAME}",
    "completion_feature": "data.fields: {completion: NAME}", "text_feature": "task.text", "chat_feature": "data.fields: {messages: NAME}",
    # Unsloth, PEFT and TRL
    "random_state": "seed", "full_finetuning": "space: full", "base_model_name_or_path": "model.source", "peft_config": "space",
    "peft_type": "space", "task_type": "task", "num_virtual_tokens": "space.tokens", "prompt_tuning_init_text": "space.text",
    "dataset_text_field": "task.text", "train_dataset": "data.train", "chat_template_path": "task.format", "data_seed": "seed",
    "metric_for_best_model": "eval.select: best", "max_grad_norm": "train.watchdog", "data.template": "task.format",
    "quantization_config": "model.quantization", "max_prompt_length": "data.max_length",
}  # fmt: skip

KEYS_BY_REASON = {  # why a key has no place in a recipe -> the keys
    "nothing is kept for a backward pass, so there is nothing to save by computing it again": (
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "grad_checkpoint", "use_gradient_checkpointing",
        "disable_gradient_checkpointing", "use_reentrant_gc", "use_unsloth_gc", "activation_offloading",
        "enable_activation_checkpointing", "enable_activation_offloading", "optimizer_in_bwd", "recompute_granularity",
        "ac_mode", "ac_option",
    ),
    "train.batch is the whole batch, and train.rows how much of it goes through one forward pass": (
        "gradient_accumulation_steps", "grad_accumulation_steps", "auto_find_batch_size", "eval_batch_size",
        "per_device_eval_batch_size",
    ),
    "dropout would add noise to a difference of two losses: it is always 0": (
        "lora_dropout", "dropout", "module_dropout", "neftune_noise_alpha",
    ),
    "the method is noise, estimator and rule; a first-order optimizer's settings have no meaning for it": (
        "optimizer_config", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules", "loraplus_lr_ratio",
        "loraplus_lr_embedding", "use_galore", "use_apollo", "use_badam", "use_muon", "use_adam_mini", "embedding_learning_rate",
        "betas", "fused", "clip_grad_norm", "adam_eps", "adam_beta3", "lr_groups", "lisa_n_layers", "lisa_step_interval",
        "lisa_layers_attribute", "relora", "relora_prune_ratio", "relora_cpu_offload", "jagged_restart_steps",
        "jagged_restart_warmup_steps", "jagged_restart_anneal_steps", "optim_config", "lr_scheduler_config", "galore_target",
        "galore_rank", "galore_scale", "galore_layerwise", "apollo_target", "apollo_rank", "apollo_scale", "apollo_scale_type",
        "apollo_layerwise", "badam_mode", "badam_switch_mode", "badam_switch_interval", "badam_verbose", "batch_size_val",
    ),
    "rule.schedule is constant, linear or cosine, without a warm-up": (
        "warmup", "warmup_steps", "warmup_ratio", "warmup_init", "lr_scheduler_kwargs", "cosine_min_lr_ratio",
        "cosine_constant_lr_ratio", "lr_quadratic_warmup", "lr_div_factor",
        "num_warmup_steps", "lr_warmup_steps", "lr_warmup_fraction", "min_lr", "eta_min",
    ),
    "the adapter is plain LoRA, as PEFT, vLLM and llama.cpp load it": (
        "use_dora", "use_rslora", "peft_use_dora", "peft_use_rslora", "peft_layer_replication", "peft_init_lora_weights",
        "init_lora_weights", "layer_replication", "loftq_config", "rank_pattern", "alpha_pattern", "lora_modules_to_save",
        "modules_to_save", "additional_target", "lora_fan_in_fan_out", "fan_in_fan_out", "bias", "layers_pattern", "pissa_init",
        "pissa_iter", "pissa_convert", "exclude_modules", "peft", "relora_steps", "relora_warmup_steps", "create_new_adapter",
        "megatron_config", "use_bitfit", "oft_rank", "oft_target", "freeze_trainable_layers", "freeze_trainable_modules",
        "oft_block_size", "vision_all_linear", "finetune_vision_layers", "finetune_language_layers",
        "finetune_attention_modules", "finetune_mlp_modules", "quantize_base",
    ),
    "a run begins at the base model, and goes on with `zoedge resume` or `zoedge finetune --from`": (
        "lora_model_dir", "resume_adapter_file", "resume_from_checkpoint", "auto_resume_from_checkpoints", "adapter_name_or_path",
        "ignore_data_skip", "overwrite_output_dir", "save_only_model",
    ),
    "every step is in the log, a few bytes each, and any of them can be had again with --at": (
        "save_every", "save_steps", "saves_per_epoch", "save_strategy", "save_total_limit", "save_safetensors", "save_first_step",
        "save_interval", "save_adapter_weights_only", "keep_last_n_checkpoints", "checkpoint_files", "recipe_checkpoint",
        "save_epochs", "save_ckpt_as_hf", "export_hf_on_finish", "checkpointer", "resume",
    ),
    "every step is shown, and `eval.every` says how often validation rows are looked at": (
        "logging_steps", "logging_dir", "logging_strategy", "steps_per_report", "plot_loss", "log_level", "include_tokens_per_second",
        "include_num_input_tokens_seen", "profiler_steps", "print_param_status", "eval_strategy", "evaluation_strategy",
        "evals_per_epoch", "do_eval", "do_train", "do_predict", "early_stopping_patience", "early_stopping_steps",
        "log_every_n_steps", "log_peak_memory_stats", "metric_logger", "profiler", "log_interval", "logger_name",
        "clear_cache_threshold", "log_completions", "num_completions_to_print", "use_otel_metrics", "otel_metrics_host",
        "otel_metrics_port",
    ),
    "all validation and test rows are scored": (
        "val_batches", "test_batches", "eval_table_size", "eval_max_new_tokens", "do_causal_lm_eval", "eval_causal_lm_metrics",
        "predict_with_generate", "compute_accuracy", "eval_on_each_dataset", "eval_num_beams", "eval_sample_packing",
        "eval_packing", "eval_accumulation_steps",
        "max_iters", "max_new_tokens", "initial_validation", "final_validation", "evaluate_example", "sample_backend",
        "eval_sequence_len", "do_bench_eval",
    ),
    "nothing is packed or padded to a length: like lengths go together, and each row is scored by itself": (
        "sample_packing", "packing", "neat_packing", "pad_to_sequence_len", "group_by_length", "batch_flattening",
        "sample_packing_eff_est", "sample_packing_group_size", "sample_packing_bin_size", "total_num_tokens", "pad_to_multiple_of",
        "sample_packing_sequentially", "padding_free", "padding_side", "multipack_real_batches",
    ),
    "PyTorch's own attention and kernels are used": (
        "flash_attention", "flash_attn", "plugins", "xformers_attention", "sdp_attention", "s2_attention", "shift_attn", "attn_implementation",
        "enable_liger_kernel", "use_liger_kernel", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "use_unsloth",
        "torch_compile", "torch_compile_backend", "tf32", "fast_inference", "use_kernels", "flash_attn_fuse_mlp",
        "liger_rope", "liger_rms_norm", "liger_rms_norm_gated", "liger_glu_activation", "liger_layer_norm",
        "liger_fused_linear_cross_entropy", "liger_cross_entropy", "flash_attn_cross_entropy", "flash_attn_rms_norm",
        "flash_optimum", "fused_attn_kernel", "flex_attention", "flex_attn_compile_kwargs", "experts_implementation",
        "use_scattermoe", "use_sonicmoe", "use_v1_kernels", "kernel_config", "compile", "tiled_mlp", "cut_cross_entropy",
        "torch_compile_mode", "apply_rope_fusion", "bias_activation_fusion", "moe_grouped_gemm", "moe_token_dispatcher_type",
        "use_dsv4_kernels", "dsv4_fp4_grouped_mode", "llama4_linearized_experts", "gemma4_hybrid_attn_impl",
    ),
    "several processes share a run's steps as accelerate launch starts them, and need nothing beside it": (
        "deepspeed", "fsdp", "fsdp_config", "fsdp_version", "local_rank", "ddp_timeout", "ddp_find_unused_parameters",
        "gpu_memory_limit", "gpu_memory_utilization", "lora_on_cpu", "tensor_parallel_size", "context_parallel_size",
        "sequence_parallel_degree", "ray_run_name", "ray_num_workers", "resources_per_worker", "use_ray", "low_cpu_mem_usage",
        "offload_folder", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "config",
        "dp_shard_size", "dp_replicate_size", "expert_parallel_size", "tensor_parallel_dim", "tensor_parallel_plan",
        "data_parallel_shard_dim", "data_parallel_replicate_dim", "dist_config", "devices", "num_nodes",
        "custom_sharded_layers", "fsdp_cpu_offload", "memory_efficient_fsdp_wrap", "low_cpu_ram",
        "pipeline_model_parallel_size", "tensor_model_parallel_size", "sequence_parallel", "use_distributed_optimizer",
        "overlap_param_gather", "overlap_grad_reduce", "expert_model_parallel_size", "accelerator_config", "mixed_precision",
        "init_config", "fsdp_transformer_layer_cls_to_wrap", "cp_size", "cp_mode", "kt_config", "use_kt", "kt_cpu_activation",
        "kt_weight_path", "kt_non_expert_weight_path", "batching_workers", "batching_strategy", "dp_size",
        "fp8_enable_fsdp_float8_all_gather", "fp8_backend", "experimental_skip_move_to_device",
    ),
    "a run's figures are in its metrics.jsonl and on the screen; log.trackers: [wandb] tells others of them": (
        "wandb_project", "wandb_entity", "wandb_watch", "wandb_log_model", "wandb_mode", "wandb_run_id",
        "mlflow_tracking_uri", "mlflow_experiment_name", "mlflow_run_name", "use_comet", "comet_project_name",
        "comet_workspace", "use_swanlab", "swanlab_project", "swanlab_run_name", "swanlab_workspace", "swanlab_mode", "project_name",
        "report_project_name", "hf_mlflow_log_artifacts", "trackio_space_id",
        "use_wandb", "swanlab_experiment_name", "swanlab_description", "swanlab_log_completions", "enable_wandb",
        "enable_tensorboard", "tensorboard_dir",
    ),
    "code of a model's or a data set's folder is never run": ("trust_remote_code", "remove_unused_columns", "use_auth_token"),
    "the class is told by the model's config.json, the tokenizer by its tokenizer.json": (
        "model_type", "tokenizer_type", "tokenizer_config", "tokenizer_use_fast", "tokenizer_legacy", "use_fast_tokenizer",
        "is_llama_derived_model", "is_mistral_derived_model", "is_falcon_derived_model", "is_qwen_derived_model",
        "processor_type", "model_init_kwargs", "overrides_of_model_config", "overrides_of_model_kwargs", "rope_scaling",
        "model_class", "model_config", "tokenizer_use_mistral_common", "use_mca", "use_megatron_bridge",
        "base_model_ignore_patterns", "cls_model_config",
    ),
    "the tokenizer and its special tokens are used as they are": (
        "special_tokens", "added_tokens_overrides", "resize_token_embeddings_to_32x", "resize_vocab", "add_tokens",
        "add_special_tokens", "split_special_tokens", "eot_tokens", "eos_token", "pad_token", "default_system", "tool_format",
        "default_system_message", "shrink_embeddings", "embeddings_skip_upcast", "upcast_layernorm", "enable_thinking",
        "tokenizer", "bos_token",
    ),
    "rows are read, tokenised and mixed anew each time, as a function of the seed": (
        "dataset_prepared_path", "dataset_processes", "dataset_num_proc", "dataset_keep_in_memory", "preprocessing_num_workers",
        "preprocessing_batch_size", "overwrite_cache", "tokenized_path", "cache_dir", "streaming", "buffer_size", "mix_strategy",
        "interleave_probs", "shuffle_merged_datasets", "curriculum_sampling", "disable_shuffling", "shards", "preprocess_shards",
        "dataset_exact_deduplication", "dataset_shard_num", "dataset_shard_idx", "dataset_kwargs", "skip_prepare_dataset",
        "media_dir", "formatting_func", "push_dataset_to_hub", "ignore_pad_token_for_loss",
        "shuffle", "shuffle_dataset", "num_workers", "download_dir", "ignore_index", "streaming_multipack_buffer_size",
        "collate_fn", "shuffle_before_merging_datasets", "num_dataset_shards_to_save",
    ),
    "the assistant's answers are scored, all of them, and nothing else": (
        "mask_prompt", "train_on_inputs", "train_on_prompt", "mask_history", "roles_to_train", "train_on_eos", "train_on_eot",
        "message_field_training", "message_field_training_detail", "completion_only_loss", "assistant_only_loss",
        "split_thinking", "drop_system_message",
    ),
    "a row's format is told by its keys; data.format and data.fields say it where they do not": (
        "message_property_mappings", "message_field_role", "message_field_content", "roles", "field_system", "conversation",
        "field_human", "field_model", "system_format", "no_input_format", "prompt_style",
        "field_thinking", "template_thinking_key", "field_tools", "chat_template_kwargs",
    ),
    "preferences and rewards of several answers are not trained on; task.objective takes any Python reward": (
        "rl", "rl_beta", "trl", "pref_beta", "pref_loss", "pref_ftx", "ref_model", "reward_model", "process_reward_model", "orpo_alpha",
        "kto_desirable_weight", "kto_undesirable_weight", "simpo_gamma", "cpo_alpha", "rpo_alpha", "dpo_use_weighting",
        "training_mode", "dpo_label_smoothing", "beta", "loss_type",
    ),
    "`zoedge export` writes what others load; nothing is sent to a hub": (
        "hub_model_id", "hub_strategy", "push_to_hub", "hf_use_auth_token", "hf_hub_token", "token", "export_dir", "merge_lora", "fuse",
        "de_quantize", "hub_token", "push_to_hub_model_id",
    ),
    "bitsandbytes' nf4, fp4 and int8 are what model.quantization knows": (
        "gptq", "qat", "quantization_method", "quantization_device_map", "fp8", "llm_int8_has_fp16_weight", "llm_int8_threshold",
        "quantize_moe_experts", "model_quantization_config", "model_quantization_config_kwargs", "gptq_groupsize",
        "gptq_model_v1", "gptq_disable_exllama", "bnb_4bit_quant_storage", "use_loftq",
    ),
    "there is no such switch": ("strict", "debug", "unfrozen_parameters", "inference_mode"),
}  # fmt: skip
REASON_BY_KEY = {key: reason for reason, keys in KEYS_BY_REASON.items() for key in keys}

# Why a recipe without such a key does something else -> the keys. These too are in no recipe; `zoedge import-config` lists them
# as changed in meaning, unless they are switched off.
KEYS_BY_CHANGE = {
    "rows are not packed: a batch is so many rows, not so many sequences that are filled with them": (
        "sample_packing", "packing", "neat_packing", "packed", "batch_flattening",
    ),
    "the loss is the plain cross-entropy of the answers' tokens": (
        "use_dft_loss", "use_asft_loss", "use_eaft_loss", "loss_type", "label_smoothing_factor", "token_weighting", "dft_loss",
        "use_dynamic_finetuning",
        "use_eaft", "eaft_alpha", "eaft_k", "asft_alpha", "early_exit_loss", "label_smoothing", "loss",
    ),
    "the model is trained as it is built and at full precision of its numbers": (
        "quantizer", "qat", "fake_quant_after_n_steps", "mixture_of_depths", "rope_scaling", "rope_theta",
        "overrides_of_model_config", "use_llama_pro", "expand_layers",
        "layer_dropout", "use_onebitllms", "llmcompressor", "reinit_weights",
    ),
    "the weights that are trained are those of `space`, and no others": (
        "unfrozen_parameters", "use_bitfit", "lora_modules_to_save", "modules_to_save", "additional_target", "lora_target_parameters",
        "freeze_extra_modules", "freeze_parameters",
    ),
    "no system message is put before the rows' own": ("default_system", "system_prompt", "new_system_prompt"),
    "the assistant's answers are scored, all of them, each with the text that ends it": (
        "train_on_eos", "train_on_eot", "message_field_training", "message_field_training_detail", "mask_history_sample",
    ),
    "system messages of the rows are kept": ("drop_system_message",),
    "all rows are read": ("shards", "shards_idx", "streaming_limit"),
    "several sets of rows are put one after another, and drawn from alike": (
        "mix_strategy", "interleave_probs", "curriculum_sampling", "weight",
    ),
    "the run begins at the base model, not at an adapter": (
        "lora_model_dir", "adapter_name_or_path", "resume_adapter_file", "adapter_checkpoint",
    ),
}  # fmt: skip
CHANGE_BY_KEY = {key: change for change, keys in KEYS_BY_CHANGE.items() for key in keys}
