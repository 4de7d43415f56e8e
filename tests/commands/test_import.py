"""import-config: configurations as mlx-lm's, axolotl's and LLaMA-Factory's users write them, key by key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import Done

from zoedge.commands.import_config import (
    CONVERTERS,
    TOOL_KEYS,
    convert_config,
    dump_imported,
    read_config,
    recognise_tool,
)
from zoedge.commands.import_config.source import ImportedRecipe, flatten_keys
from zoedge.errors import UsageError
from zoedge.recipe.check import check
from zoedge.recipe.foreign import FOREIGN_KEYS, REASON_BY_KEY
from zoedge.recipe.reading import read_recipe

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
WANTED: dict[str, tuple[str, dict[str, Any]]] = {
    "mlx-lm": (MLX, {
        "version": 1, "model": {"source": "mistralai/Mistral-7B-v0.1"},
        "data": {"train": "chats", "max_length": 1024, "on_overflow": "truncate"}, "task": "chat",
        "space": {"name": "lora", "layers": "last 8", "rank": 4, "alpha": 80.0, "targets": ["q_proj", "v_proj"]},
        "train": {"batch": 2, "steps": 600}, "seed": 3, "eval": {"every": 200}, "output": {"dir": "adapters"},
        "rule": {"schedule": "cosine"},
    }),
    "axolotl": (AXOLOTL, {
        "version": 1, "model": {"source": "NousResearch/Llama-3.2-1B", "revision": "abc", "quantization": "fp4",
                                "double_quant": False},
        "data": {"train": "org/talks:clean/train_sft", "max_length": 4096, "on_overflow": "drop", "valid": {"split": 0.05}},
        "task": "chat", "space": {"name": "lora", "rank": 32, "alpha": 16, "targets": "all"}, "train": {"batch": 8},
        "output": {"dir": "./outputs/lora-out"}, "name": "first-try", "rule": {"schedule": "cosine", "weight_decay": 0.0},
    }),
    "llama-factory": (FACTORY, {
        "version": 1, "model": {"source": "meta-llama/Meta-Llama-3-8B-Instruct", "quantization": "nf4", "double_quant": False,
                                "compute_dtype": "bf16"},
        "data": {"train": "data:identity,alpaca_en_demo", "max_length": 2048, "on_overflow": "truncate", "limit": 1000,
                 "valid": {"split": 0.1}},
        "task": "chat", "space": {"name": "lora", "rank": 16, "alpha": 32, "targets": ["q_proj", "v_proj"]},
        "train": {"batch": 8}, "output": {"dir": "saves/llama3-8b/lora/sft"}, "eval": {"every": 500},
        "rule": {"schedule": "cosine"},
    }),
}  # fmt: skip


def imported(text: str, tool: str | None = None) -> ImportedRecipe:
    table = yaml.safe_load(re.sub(r"(\de-\d)", r"\1", text)) if isinstance(text, str) else text
    return convert_config(table, tool or recognise_tool(table, "c.yml"), "c.yml")


def told(found: ImportedRecipe, key: str) -> str:
    """What is said of a key, wherever it is."""
    said = [f"-> {to}" for k, to in found.carried if k == key]
    return "; ".join(said + [why for k, _, why in (*found.changed, *found.lost) if k == key])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("tool", CONVERTERS)
def test_the_recipe_that_it_comes_to(tool: str, tmp_path: Path) -> None:
    text, wanted = WANTED[tool]
    (tmp_path / "c.yml").write_text(text)
    table = read_config(tmp_path / "c.yml")
    assert recognise_tool(table, "c.yml") == tool
    found = convert_config(table, tool, "c.yml")
    assert found.table == wanted
    (tmp_path / "made.yaml").write_text(dump_imported(found, "c.yml"))
    made = read_recipe(str(tmp_path / "made.yaml"))
    assert made.model.source == wanted["model"]["source"] and made == check(wanted | {"name": made.name}, {}, "it")
    assert "lr" not in found.table["rule"] and "estimator" not in found.table  # left at zoedge's


@pytest.mark.parametrize("tool", CONVERTERS)
def test_every_key_is_carried_or_listed(tool: str, tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(WANTED[tool][0])
    table = read_config(tmp_path / "c.yml") | {"something_new": {"a": 1}}
    found = convert_config(table, tool, "c.yml")
    accounted = {k for k, _ in found.carried} | {k for k, *_ in (*found.changed, *found.lost)} | set(found.unset)
    keys = {key for key, _ in flatten_keys(table)}
    assert len(keys) > 25 and keys <= accounted
    assert all(key in keys or key.startswith("(") for key in accounted)  # what was not set there says so
    assert told(found, "something_new.a") == f"not one of {tool}'s keys that zoedge knows"
    report = "\n".join(found.report())
    assert all(key in report for key in keys) and "None" not in report


def test_what_is_another_in_meaning() -> None:
    ax, factory, mlx = (imported(WANTED[tool][0]) for tool in ("axolotl", "llama-factory", "mlx-lm"))
    rate = "a first-order rate is not a zeroth-order one: rule.lr and estimator.eps are left at zoedge's defaults"
    for found in (ax, factory, mlx):
        assert told(found, "learning_rate") == rate
    assert [value for key, value, _ in factory.changed if key == "cutoff_len"] == [2048]
    assert told(ax, "num_epochs").startswith(
        "train.steps are steps, not epochs (rows x epochs / batch); left at the default"
    )
    assert told(factory, "num_train_epochs").startswith("train.steps are steps, not epochs")
    assert told(mlx, "iters").startswith("-> train.steps: 600; a step here is two forward passes")
    assert told(mlx, "lora_parameters.scale") == "-> space.alpha: 80.0; mlx-lm's scale is alpha / rank: alpha 80"
    assert (
        told(factory, "(lora_alpha)") == "-> space.alpha: 32"
        and told(factory, "lora_target") == "-> space.targets: [q_proj, v_proj]"
    )
    assert told(ax, "chat_template").startswith("the tokenizer's own chat template is used")
    assert told(ax, "gradient_checkpointing") == REASON_BY_KEY["gradient_checkpointing"]
    assert told(ax, "datasets.1.path").startswith("one set of rows: join the files")
    assert told(ax, "loss_watchdog_threshold") == "the nearest key of a recipe is train.watchdog"
    assert (
        told(ax, "special_tokens.pad_token") == REASON_BY_KEY["special_tokens"]
        and told(ax, "datasets.0.roles.user") == REASON_BY_KEY["roles"]
    )


def rows(path: Path, count: int, **fields: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({k: f"{v} {i}" for k, v in fields.items()}) + "\n" for i in range(count)))


def test_epochs_are_steps_where_the_rows_are_here(tmp_path: Path) -> None:
    rows(tmp_path / "mine.jsonl", 100, instruction="a", output="b")
    text = "base_model: a/b\ndatasets: [{path: mine.jsonl, type: alpaca, ds_type: json}]\nnum_epochs: 3\nmicro_batch_size: 8\n"
    found = imported(text)
    assert found.table["train"] == {"batch": 8, "steps": 38}  # 300 rows in batches of 8
    assert "3 epochs of 100 rows in batches of 8 are 38 steps" in told(found, "num_epochs")
    both = imported(text + "max_steps: 50\n")
    assert both.table["train"]["steps"] == 50 and told(both, "num_epochs") == "max_steps decides, as it does in axolotl"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"mine": {"file_name": "../mine.jsonl"}}')
    factory = imported("model_name_or_path: a/b\ndataset: mine\ncutoff_len: 64\nnum_train_epochs: 2\nmax_samples: 40\n")
    assert factory.table["train"] == {"steps": 80}
    assert imported(text.replace("3", "0")).table["train"] == {"batch": 8}


@pytest.mark.parametrize(
    ("fields", "task"), [({"text": "a"}, "lm"), ({"prompt": "a", "completion": "b"}, "chat"), ({}, "chat")]
)
def test_an_mlx_folders_rows_say_the_task(fields: dict[str, str], task: str, tmp_path: Path) -> None:
    if fields:
        rows(tmp_path / "d" / "train.jsonl", 3, **fields)
    found = imported("model: a/b\ndata: d\niters: 5\n")
    assert found.table["task"] == task and ("for plain text, set task: lm" in told(found, "data")) == (not fields)


def test_axolotls_data_sets() -> None:
    base = "base_model: a/b\nsequence_len: 64\ndatasets: [{%s}]\n"
    of = lambda text: imported(base % text)
    lm = of("path: org/books, type: completion, field: body")
    assert lm.table["task"] == {"name": "lm", "text": "body"} and lm.table["data"]["train"] == "org/books"
    shared = of("path: json, data_files: [a.jsonl, b.jsonl], type: sharegpt, split: train")
    assert shared.table["data"]["train"] == "a.jsonl" and shared.table["data"]["format"] == "sharegpt"
    assert told(shared, "datasets.0.data_files") == "one file of rows: join them first"
    own = of("path: org/qa, type: {field_instruction: q, field_output: a, format: '{instruction}'}")
    assert own.table["data"]["fields"] == {"instruction": "q", "output": "a"}
    assert of("path: org/qa, type: chat_template, field_messages: dialogue").table["data"]["fields"] == {
        "messages": "dialogue"
    }
    full = of("path: org/qa, type: alpaca")
    assert full.table["space"] == "full" and full.table["model"]["quantization"] == "none"
    eight = imported(
        base % "path: a/b" + "adapter: lora\nload_in_8bit: true\nlora_target_modules: [model.layers.0.q_proj]\n"
    )
    assert eight.table["model"]["quantization"] == "int8" and eight.table["space"]["targets"] == ["q_proj"]
    assert imported(base % "path: a/b" + "chat_template: chatml\nadapter: lora\n").table["task"] == {
        "name": "chat",
        "format": "chatml",
    }
    tests = imported(
        base % "path: a/b" + "test_datasets: [{path: json, data_files: [v.jsonl], type: alpaca, split: train}]\n"
    )
    assert tests.table["data"]["valid"] == "v.jsonl"


def test_llama_factorys_other_stages() -> None:
    base = "model_name_or_path: a/b\ndataset: x\ncutoff_len: 64\n"
    assert imported(base + "stage: pt\ntemplate: default\n").table["task"] == "lm"
    assert told(imported(base + "stage: dpo\npref_beta: 0.1\n"), "stage").startswith(
        "-> task: 'chat'; preferences and rewards"
    )
    full = imported(base + "finetuning_type: full\n")
    assert full.table["space"] == "full" and full.table["model"]["quantization"] == "none"
    assert imported(base + "eval_dataset: y\n").table["data"]["valid"] == "data:y"
    assert imported(base + "template: chatml\n").table["task"] == {"name": "chat", "format": "chatml"}


def test_a_value_that_the_recipe_does_not_take_is_listed() -> None:
    found = imported(
        "base_model: a/b\nsequence_len: 64\nadapter: lora\nlora_r: -3\nlora_alpha: many\ndatasets: [{path: x/y}]\n"
    )
    assert told(found, "lora_r") == "the recipe does not take it: space.rank: -3 is not at least 1"
    assert told(found, "lora_alpha") == "the recipe does not take it: space.alpha: 'many' is not a number"
    assert found.table["space"] == {"name": "lora"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "a: 1\nb: 2\n",
            r"c\.yml: cannot tell which tool's this is \(keys: a, b\)\. Name it: --from mlx-lm \| axolotl \| llama-f",
        ),
        (
            "version: 1\nmodel: {source: x}\ndata: {train: y}\n",
            r"this is a recipe of zoedge's already: zoedge finetune c\.yml",
        ),
        ("sequence_len: 5\nlora_r: 8\n", r"c\.yml: no base model \(base_model\), so there is nothing"),
        ("base_model: x\nlora_r: 8\n", r"c\.yml: no rows to train on \(datasets\.0\.path\)"),
        ("model_name_or_path: x\ncutoff_len: 8\n", r"c\.yml: no rows to train on \(dataset\)"),
    ],
)
def test_what_is_no_configuration(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        imported(text)


def test_the_marks_tell_the_tools_apart() -> None:
    assert set(TOOL_KEYS) == set(CONVERTERS)
    with pytest.raises(
        UsageError, match=r"--from: 'axolot' is not mlx-lm, axolotl, llama-factory - did you mean 'axolotl'\?"
    ):
        imported("a: 1", "axolot")
    assert {"learning_rate", "lora_r", "cutoff_len", "iters"} <= FOREIGN_KEYS.keys()


def test_as_a_user_types_it(tmp_path: Path, zoedge: Callable[..., Done]) -> None:
    (tmp_path / "c.yml").write_text(AXOLOTL)
    done = zoedge("import-config", "c.yml")
    assert done.code == 0 and done.out.startswith("# From axolotl's c.yml by `zoedge import-config`;")
    assert yaml.safe_load(done.out) == WANTED["axolotl"][1] and "\nnot carried:\n" in done.err
    done = zoedge("import-config", "c.yml", "-o", "mine.yaml")
    assert done.code == 0 and "mine.yaml   look at it, then: zoedge validate mine.yaml" in done.out
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text()) == WANTED["axolotl"][1]
    done = zoedge("import-config", "c.yml", "-o", "mine.yaml")
    assert done.code == 2 and "mine.yaml is there already; name another file." in done.err
    (tmp_path / "c.json").write_text("{\n\t" + json.dumps({"model": "a/b", "data": "d", "iters": 5})[1:])
    done = zoedge("import-config", "c.json")
    assert done.code == 0 and yaml.safe_load(done.out)["train"] == {"steps": 5}
    (tmp_path / "c.json").write_text("{")
    assert zoedge("import-config", "c.json").code == zoedge("import-config", "none.yml").code == 2
    (tmp_path / "e.yml").write_text("- 1\n")
    assert "e.yml: not a configuration: a table of keys and values." in zoedge("import-config", "e.yml").err
