"""Configurations as other tools' users write them, and the recipes that `zoedge import-config` makes of them."""

from __future__ import annotations

from typing import Any

MLX = """
model: mistralai/Mistral-7B-v0.1
train: true
fine_tune_type: lora
optimizer: adamw
optimizer_config: {adamw: {betas: [0.9, 0.98], eps: 1e-6}}
data: chats
seed: 3
num_layers: 8
batch_size: 2
iters: 600
val_batches: 25
learning_rate: 1e-5
steps_per_report: 10
steps_per_eval: 200
resume_adapter_file: null
adapter_path: adapters
save_every: 100
test: true
test_batches: 50
max_seq_length: 1024
grad_checkpoint: true
lora_parameters:
  keys: ["self_attn.q_proj", "self_attn.v_proj", "cross.q_proj"]
  rank: 4
  scale: 20.0
  dropout: 0.0
lr_schedule: {name: cosine_decay, warmup: 100, warmup_init: 1e-7, arguments: [1e-5, 1000, 1e-7]}
mask_prompt: true
wandb: null
"""
AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
revision_of_model: abc
model_type: AutoModelForCausalLM
tokenizer_type: AutoTokenizer
load_in_8bit: false
load_in_4bit: true
bnb_config_kwargs: {bnb_4bit_quant_type: fp4, bnb_4bit_use_double_quant: false}
strict: false
chat_template: llama3
datasets:
  - path: org/talks
    type: chat_template
    name: clean
    split: train_sft
    field_messages: conversations
    message_field_role: from
    message_field_content: value
    roles: {user: [human], assistant: [gpt]}
  - {path: org/more, type: alpaca}
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/lora-out
sequence_len: 4096
sample_packing: false
pad_to_sequence_len: true
adapter: qlora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_target_modules:
lora_fan_in_fan_out:
wandb_project: mine
wandb_name: first-try
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 2e-4
train_on_inputs: false
group_by_length: false
bf16: auto
fp16:
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
loss_watchdog_threshold: 5.0
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
deepspeed:
special_tokens: {pad_token: "<|end_of_text|>"}
"""
FACTORY = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
quantization_bit: 4
double_quantization: false
dataset: identity, alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
V1 = """
model: Qwen/Qwen3-4B
model_class: llm
peft_config: {name: lora, r: 16, lora_alpha: 32, lora_dropout: 0.05, target_modules: all}
kernel_config: {name: auto}
quant_config: {name: bnb, quantization_bit: 4}
dist_config: {name: fsdp2, dcp_path: null}
train_dataset: org/talks
output_dir: ./outputs/lora
micro_batch_size: 2
global_batch_size: 8
cutoff_len: 1024
learning_rate: 1.0e-4
bf16: true
max_steps: 50
sample_backend: hf
max_new_tokens: 128
logging_steps: 5
save_steps: 10
seed: 7
enable_activation_checkpointing: true
init_config: {name: init_on_rank0}
"""
TORCHTUNE = """
output_dir: /tmp/tune/one
model:
  _component_: torchtune.models.llama3_2.qlora_llama3_2_1b
  lora_attn_modules: [q_proj, output_proj]
  apply_lora_to_mlp: true
  apply_lora_to_output: true
  lora_rank: 64
  lora_alpha: 128
  lora_dropout: 0.0
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, path: /tmp/L/tokenizer.model, max_seq_len: 1024}
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/Llama-3.2-1B-Instruct
  checkpoint_files: [model.safetensors]
  output_dir: ${output_dir}
  model_type: LLAMA3_2
resume_from_checkpoint: false
dataset: {_component_: torchtune.datasets.chat_dataset, source: org/talks, conversation_column: dialogue,
          conversation_style: openai, split: "train[:95%]", packed: false}
dataset_val: {_component_: torchtune.datasets.chat_dataset, source: org/talks, split: "train[95%:]"}
batch_size_val: 4
run_val_every_n_steps: 50
seed: 5
shuffle: true
batch_size: 4
optimizer: {_component_: torch.optim.AdamW, fused: true, weight_decay: 0.01, lr: 3e-4}
lr_scheduler: {_component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup, num_warmup_steps: 100}
loss: {_component_: torchtune.modules.loss.LinearCrossEntropyLoss}
epochs: 2
max_steps_per_epoch: 150
gradient_accumulation_steps: 8
clip_grad_norm: null
compile: false
metric_logger: {_component_: torchtune.training.metric_logging.DiskLogger, log_dir: "${output_dir}/logs"}
log_every_n_steps: 1
device: cuda
dtype: bf16
enable_activation_checkpointing: false
profiler: {_component_: torchtune.training.setup_torch_profiler, enabled: false, output_dir: "${output_dir}/prof"}
"""
LITGPT = """
checkpoint_dir: checkpoints/org/Base-1B
out_dir: out/one
precision: bf16-true
quantize: bnb.nf4
devices: 1
num_nodes: 1
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_query: true
lora_key: false
lora_value: true
lora_projection: true
lora_mlp: false
lora_head: true
data:
  class_path: litgpt.data.JSON
  init_args: {json_path: rows.json, mask_prompt: true, val_split_fraction: 0.1, prompt_style: chatml, seed: 42, num_workers: 4}
train: {save_interval: 200, log_interval: 1, global_batch_size: 8, micro_batch_size: 2, lr_warmup_steps: 10, epochs: 2,
        max_steps: 100, max_seq_length: 512, min_lr: 6.0e-5, tie_embeddings: null}
eval: {interval: 25, max_new_tokens: 100, max_iters: 100, final_validation: true}
logger_name: csv
seed: 1337
optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 2e-4, weight_decay: 0.0, betas: [0.9, 0.95]}}
"""
TRL = """
model_name_or_path: org/Base-1B
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
use_peft: true
load_in_4bit: true
lora_r: 8
lora_alpha: 32
lora_dropout: 0.1
lora_target_modules: [q_proj, k_proj]
dataset_name: org/talks
dataset_config: clean
dataset_train_split: train_sft
dataset_test_split: test_sft
eval_strategy: steps
eval_steps: 40
assistant_only_loss: true
max_length: 2048
packing: true
learning_rate: 2.0e-4
lr_scheduler_type: cosine
warmup_ratio: 0.1
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
max_steps: 200
num_train_epochs: 1
logging_steps: 5
output_dir: data/one
push_to_hub: true
report_to: [wandb]
seed: 42
"""
UNSLOTH = """
model: org/Base-1B
data: {dataset: org/talks, format_type: sharegpt}
training:
  training_type: lora
  max_seq_length: 1024
  load_in_4bit: true
  output_dir: outputs
  num_epochs: 1
  learning_rate: 0.0002
  batch_size: 2
  gradient_accumulation_steps: 4
  warmup_steps: 5
  max_steps: 60
  save_steps: 0
  weight_decay: 0.001
  random_seed: 3407
  packing: false
  train_on_completions: true
  gradient_checkpointing: unsloth
lora: {lora_r: 16, lora_alpha: 16, lora_dropout: 0.0, target_modules: "q_proj,v_proj", use_rslora: false, use_dora: false,
       finetune_attention_modules: true}
logging: {enable_wandb: false, wandb_project: mine, enable_tensorboard: false, tensorboard_dir: runs}
"""
WANTED: dict[str, tuple[str, dict[str, Any]]] = {
    "mlx-lm": (MLX, {
        "version": 1, "model": {"source": "mistralai/Mistral-7B-v0.1", "quantization": "none"},
        "data": {"train": "chats", "max_length": 1024, "on_overflow": "truncate"}, "task": "chat",
        "space": {"name": "lora", "layers": "last 8", "rank": 4, "alpha": 80.0, "targets": ["q_proj", "v_proj"]},
        "train": {"batch": 2, "steps": 600}, "seed": 3, "eval": {"every": 200}, "output": {"dir": "adapters"},
        "rule": {"schedule": "cosine"},
    }),
    "axolotl": (AXOLOTL, {
        "version": 1, "model": {"source": "NousResearch/Llama-3.2-1B", "revision": "abc", "quantization": "fp4",
                                "double_quant": False},
        "data": {"train": "org/talks:clean/train_sft", "max_length": 4096, "on_overflow": "drop", "valid": {"split": 0.05}},
        "task": "chat", "space": {"name": "lora", "layers": "all", "rank": 32, "alpha": 16, "targets": "all"},
        "train": {"batch": 8}, "output": {"dir": "./outputs/lora-out"}, "name": "first-try",
        "rule": {"schedule": "cosine", "weight_decay": 0.0},
    }),
    "llama-factory": (FACTORY, {
        "version": 1, "model": {"source": "meta-llama/Meta-Llama-3-8B-Instruct", "quantization": "nf4", "double_quant": False,
                                "compute_dtype": "bf16"},
        "data": {"train": "data:identity,alpaca_en_demo", "max_length": 2048, "on_overflow": "truncate", "limit": 1000,
                 "valid": {"split": 0.1}},
        "task": "chat", "space": {"name": "lora", "layers": "all", "rank": 16, "alpha": 32, "targets": ["q_proj", "v_proj"]},
        "train": {"batch": 8}, "output": {"dir": "saves/llama3-8b/lora/sft"}, "eval": {"every": 500},
        "rule": {"schedule": "cosine"},
    }),
    "llama-factory-v1": (V1, {
        "version": 1, "model": {"source": "Qwen/Qwen3-4B", "quantization": "nf4", "compute_dtype": "bf16"},
        "data": {"train": "org/talks", "max_length": 1024, "on_overflow": "truncate"}, "task": "chat",
        "space": {"name": "lora", "layers": "all", "rank": 16, "alpha": 32, "targets": "all"},
        "train": {"batch": 8, "steps": 50}, "seed": 7, "output": {"dir": "./outputs/lora"},
    }),
    "torchtune": (TORCHTUNE, {
        "version": 1, "model": {"source": "/tmp/Llama-3.2-1B-Instruct", "quantization": "nf4", "compute_dtype": "bf16"},
        "data": {"train": "org/talks", "fields": {"messages": "dialogue"}, "valid": {"split": 0.05}, "max_length": 1024,
                 "on_overflow": "truncate"},
        "task": "chat", "space": {"name": "lora", "layers": "all", "rank": 64, "alpha": 128,
                                  "targets": ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
        "train": {"batch": 32, "steps": 300}, "seed": 5, "output": {"dir": "/tmp/tune/one"}, "eval": {"every": 50},
        "rule": {"schedule": "cosine", "weight_decay": 0.01},
    }),
    "litgpt": (LITGPT, {
        "version": 1, "model": {"source": "org/Base-1B", "quantization": "nf4", "double_quant": False, "compute_dtype": "bf16"},
        "data": {"train": "rows.json", "valid": {"split": 0.1}, "max_length": 512, "on_overflow": "truncate"}, "task": "chat",
        "space": {"name": "lora", "layers": "all", "rank": 32, "alpha": 16, "targets": ["q_proj", "v_proj", "o_proj"]},
        "train": {"batch": 8, "steps": 100}, "seed": 1337, "output": {"dir": "out/one"}, "eval": {"every": 25},
        "rule": {"schedule": "cosine", "weight_decay": 0.0},
    }),
    "trl": (TRL, {
        "version": 1, "model": {"source": "org/Base-1B", "revision": "main", "quantization": "nf4", "double_quant": False,
                                "compute_dtype": "bf16"},
        "data": {"train": "org/talks:clean/train_sft", "valid": "org/talks:clean/test_sft", "max_length": 2048,
                 "on_overflow": "truncate"},
        "task": "chat", "space": {"name": "lora", "layers": "all", "rank": 8, "alpha": 32, "targets": ["q_proj", "k_proj"]},
        "train": {"batch": 8, "steps": 200}, "seed": 42, "output": {"dir": "data/one"}, "eval": {"every": 40},
        "rule": {"schedule": "cosine"},
    }),
    "unsloth": (UNSLOTH, {
        "version": 1, "model": {"source": "org/Base-1B", "quantization": "nf4"},
        "data": {"train": "org/talks", "format": "sharegpt", "max_length": 1024, "on_overflow": "truncate"}, "task": "chat",
        "space": {"name": "lora", "layers": "all", "rank": 16, "alpha": 16, "targets": ["q_proj", "v_proj"]},
        "train": {"batch": 8, "steps": 60}, "seed": 3407, "output": {"dir": "outputs"}, "rule": {"weight_decay": 0.001},
    }),
}  # fmt: skip
