"""import-config: what is carried means the same as in the other tool, or it is listed as changed, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from zoedge.commands.import_config import convert_config, recognise_tool
from zoedge.commands.import_config.rows import ALPACA_INPUT_PROMPT, ALPACA_PROMPT
from zoedge.commands.import_config.source import ImportedRecipe
from zoedge.errors import UsageError
from zoedge.recipe.sections import Data
from zoedge.scoring.rows.sets import load_sets

AXOLOTL = "base_model: org/Base\nsequence_len: 64\nadapter: lora\ndatasets: [{path: org/talks, type: chat_template}]\n"
FACTORY = "model_name_or_path: org/Base\ndataset: x\ncutoff_len: 64\n"
MLX = "model: org/Base\ndata: d\niters: 600\n"
TRL = "model_name_or_path: org/Base\ndataset_name: org/talks\nuse_peft: true\n"
TUNE = (
    "model: {_component_: torchtune.models.llama3.lora_llama3_8b, lora_attn_modules: [q_proj]}\n"
    "checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: Llama-3-8B-Instruct}\n"
)
TUNE_ROWS = "dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset}\n"
LITGPT = "checkpoint_dir: checkpoints/org/Base\nlora_r: 8\n"
LITGPT_ROWS = "data: {class_path: litgpt.data.JSON, init_args: {json_path: rows.jsonl}}\n"


def imported(text: str, **more: Any) -> ImportedRecipe:
    table = yaml.safe_load(text) | more
    return convert_config(table, recognise_tool(table, "c.yml"), "c.yml")


def changes(found: ImportedRecipe, key: str) -> str:
    return "; ".join(how for name, _, how in found.changed if name == key)


def losses(found: ImportedRecipe, key: str) -> str:
    return "; ".join(why for name, _, why in found.lost if name == key)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- which layers, and how strongly


@pytest.mark.parametrize(
    ("text", "layers", "rank", "alpha"),
    [
        (AXOLOTL + "lora_r: 32\nlora_alpha: 16\nlora_target_linear: true\n", "all", 32, 16),
        (
            AXOLOTL + "lora_r: 8\nlora_alpha: 16\nlora_target_linear: true\npeft_layers_to_transform: [1, 2]\n",
            [1, 2],
            8,
            16,
        ),
        (AXOLOTL + "lora_r: 16\nlora_alpha: 8\nlora_target_linear: true\npeft_use_rslora: true\n", "all", 16, 32.0),
        (FACTORY, "all", 8, 16),
        (FACTORY + "lora_rank: 4\n", "all", 4, 8),  # LLaMA-Factory's alpha is twice the rank
        (FACTORY + "finetuning_type: freeze\nfreeze_trainable_layers: 3\n", "last 3", 8, 16),
        (FACTORY + "finetuning_type: freeze\nfreeze_trainable_layers: -2\n", [0, 1], 8, 16),
        (MLX, "last 16", 8, 160.0),  # mlx-lm's scale is 20
        (MLX + "num_layers: -1\nlora_parameters: {rank: 4, scale: 10.0, dropout: 0.0}\n", "all", 4, 40.0),
        (MLX + "lora_layers: 4\n", "last 4", 8, 160.0),
        (TRL, "all", 16, 32),
        (TUNE + TUNE_ROWS, "all", 8, 16),
        (LITGPT + LITGPT_ROWS, "all", 8, 16),
    ],
)
def test_the_layers_and_the_scale_are_the_other_tools(text: str, layers: object, rank: int, alpha: float) -> None:
    space = imported(text).table["space"]
    assert (space["layers"], space["rank"], space["alpha"]) == (layers, rank, alpha)


@pytest.mark.parametrize(
    ("names", "targets", "layers", "how"),
    [
        (["q_proj", "v_proj"], ["q_proj", "v_proj"], "all", ""),
        (["self_attn.q_proj", "mlp.up_proj"], ["q_proj", "up_proj"], "all", ""),
        ("all-linear", "all", "all", ""),
        (["model.layers.3.self_attn.q_proj"], ["q_proj"], [3], ""),
        (["layers.1.q_proj", "layers.2.v_proj"], ["q_proj", "v_proj"], "all", "their own blocks differ"),
        (["shared_expert.up_proj"], ["up_proj"], "all", "whatever stands before it"),
        (
            r"model.layers.[\d]+.(mlp|self_attn).(up|down|gate|q|k|v|o)_proj",
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "all",
            "",
        ),
        (r"model.language_model.layers.[\d]+.(mlp|cross_attn|self_attn).(q|v)_proj", ["q_proj", "v_proj"], "all", ""),
        (r".*\.(q|v)_proj", ["q_proj", "v_proj"], "all", ""),
        (r".*layers\.(4|5)\.self_attn\.o_proj", ["o_proj"], [4, 5], ""),
        (
            r".*\.layers\.(3|7)\.self_attn\.q_proj|.*\.mlp\.up_proj",
            ["q_proj", "up_proj"],
            "all",
            "their own blocks differ",
        ),
        (
            r"model\.visual\.blocks\.\d+\.qkv",
            None,
            "all",
            "a regular expression that matches no module that zoedge knows",
        ),
        ("(broken", None, "all", "a regular expression that matches no module that zoedge knows"),
    ],
)
def test_names_and_patterns_of_modules(names: object, targets: object, layers: object, how: str) -> None:
    found = imported(AXOLOTL, lora_target_modules=names)
    assert found.table["space"].get("targets") == targets and found.table["space"]["layers"] == layers
    assert how in changes(found, "lora_target_modules") and bool(how) == bool(changes(found, "lora_target_modules"))


def test_patterns_are_tried_on_the_base_s_own_kind_of_blocks() -> None:
    pattern = {"lora_target_modules": r".*\.(query_key_value|out_proj|dense|o_proj)"}
    for base, words in (
        ("org/pythia-70m", ["query_key_value", "dense"]),
        ("facebook/opt-125m", ["out_proj"]),
        ("org/Base", ["o_proj"]),
    ):
        assert imported(AXOLOTL, base_model=base, **pattern).table["space"]["targets"] == words


def test_heads_and_embeddings_are_not_adapted() -> None:
    found = imported(AXOLOTL, lora_target_modules=["q_proj", "lm_head", "embed_tokens"])
    assert found.table["space"]["targets"] == ["q_proj"]
    assert losses(found, "lora_target_modules").count("the embeddings and the head are not adapted") == 2
    assert "those of `space`, and no others" in changes(
        imported(AXOLOTL + "lora_modules_to_save: [lm_head]\n"), "lora_modules_to_save"
    )


# -- the batch, the steps, the bits


@pytest.mark.parametrize(
    ("text", "train"),
    [
        (MLX + "batch_size: 2\ngrad_accumulation_steps: 4\n", {"batch": 8, "steps": 150}),
        (MLX, {"batch": 4, "steps": 600}),
        (AXOLOTL, {"batch": 1}),
        (AXOLOTL + "micro_batch_size: 2\ngradient_accumulation_steps: 3\nmax_steps: 9\n", {"batch": 6, "steps": 9}),
        (FACTORY + "per_device_train_batch_size: 2\n", {"batch": 2}),
        (TRL + "gradient_accumulation_steps: 2\n", {"batch": 16}),
        (
            TUNE + TUNE_ROWS + "batch_size: 2\ngradient_accumulation_steps: 8\nepochs: 3\nmax_steps_per_epoch: 5\n",
            {"batch": 16, "steps": 15},
        ),
        (LITGPT + LITGPT_ROWS, {"batch": 16}),
    ],
)
def test_a_step_is_as_large_as_there(text: str, train: dict[str, int]) -> None:
    assert imported(text).table["train"] == train


def test_accumulated_batches_count_once() -> None:
    found = imported(MLX + "grad_accumulation_steps: 4\nsteps_per_eval: 100\n")
    assert found.table["eval"] == {"every": 25}
    assert changes(found, "iters").startswith("600 of mlx-lm's iterations, 4 of which are one step")


@pytest.mark.parametrize(
    ("base", "bits", "hint"),
    [
        ("mlx-community/Llama-3.2-1B-Instruct-bf16", "none", ""),
        ("mlx-community/Qwen3-0.6B", "none", ""),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", "nf4", "such as mlx-community/Llama-3.2-1B-Instruct)"),
        ("mlx-community/Llama-3.2-1B-Instruct-8bit", "int8", "such as mlx-community/Llama-3.2-1B-Instruct)"),
        ("org/Llama-GPTQ", "none", "such as org/Llama)"),
        ("unsloth/llama-3-8b-bnb-4bit", "nf4", "such as unsloth/llama-3-8b)"),
        ("org/Mistral-7B-v0.1", "none", ""),
    ],
)
def test_bases_of_16_bits_are_told_from_quantised_ones(base: str, bits: str, hint: str) -> None:
    found = imported(MLX, model=base)
    assert found.table["model"] == {"source": base, "quantization": bits}
    assert hint in changes(found, "model") and bool(hint) == bool(changes(found, "model"))


def test_all_weights_of_a_base_in_4_bits_are_none() -> None:
    found = imported(AXOLOTL.replace("adapter: lora\n", "load_in_4bit: true\n"))
    assert found.table["space"] == "full" and found.table["model"]["quantization"] == "none"
    assert "all weights are trained, and those of a quantised base are not" in changes(found, "(all weights)")
    assert "model.quantization: 'nf4'" not in dict(found.carried).values()
    layers = imported(MLX + "fine_tune_type: full\nnum_layers: 8\n")
    assert layers.table["space"] == "full" and "all weights of all layers are trained" in changes(layers, "num_layers")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (AXOLOTL, "chat_template"),
        (AXOLOTL, "lora_target_modules"),
        (FACTORY, "quantization_bit"),
        (FACTORY, "template"),
        (TUNE + TUNE_ROWS, "lora_attn_modules"),
        (LITGPT + LITGPT_ROWS, "quantize"),
        (TRL, "lora_target_modules"),
        (MLX, "grad_accumulation_steps"),
    ],
)
@pytest.mark.parametrize("value", [["a", 1], -1, {"a": 1}, 1.5])
def test_odd_values_are_listed_or_refused(text: str, key: str, value: object) -> None:
    table = yaml.safe_load(text)
    inner = table["model"] if key == "lora_attn_modules" else table
    inner[key] = value
    try:
        found = convert_config(table, recognise_tool(table, "c.yml"), "c.yml")
    except UsageError:
        return
    name = "model.lora_attn_modules" if key == "lora_attn_modules" else key
    name = f"{name}.a" if isinstance(value, dict) else name
    assert name in {entry[0] for entry in (*found.carried, *found.changed, *found.lost)}


# -- rows


@pytest.mark.parametrize(
    ("split", "source", "limit"),
    [
        ("train", "org/talks", None),
        ("validation", "org/talks:validation", None),
        ("train[:500]", "org/talks", 500),
        ("train_sft[:7]", "org/talks:train_sft", 7),
    ],
)
def test_splits_and_first_rows_are_carried(split: str, source: str, limit: int | None) -> None:
    found = imported(AXOLOTL, datasets=[{"path": "org/talks", "type": "chat_template", "split": split}])
    assert found.table["data"]["train"] == source and found.table["data"].get("limit") == limit
    assert ("drawn by their content" in changes(found, "datasets.0.split")) == (limit is not None)


@pytest.mark.parametrize("split", ["train[:20%]", "train[100:]", "train[-10%:]", "train[10%:20%]"])
def test_slices_of_unknown_size_are_refused_with_what_to_type(split: str) -> None:
    with pytest.raises(UsageError) as told:
        imported(AXOLOTL, datasets=[{"path": "org/talks", "name": "clean", "type": "chat_template", "split": split}])
    assert str(told.value) == (
        f"c.yml: datasets.0.split: {split} is a part of a set that is not on this machine, and a recipe names whole splits. "
        "Save that part to a file, and name it there: "
        f'datasets.load_dataset("org/talks", "clean", split="{split}").to_json(\'rows.jsonl\')'
    )


@pytest.mark.parametrize("split", ["train+test", "train[:10%]+train[-10%:]"])
def test_joined_splits_are_refused(split: str) -> None:
    with pytest.raises(UsageError, match="is not one split or one slice of it"):
        imported(AXOLOTL, datasets=[{"path": "org/talks", "type": "chat_template", "split": split}])


@pytest.mark.parametrize(
    ("split", "count"), [("train[:20%]", 8), ("train[10:30]", 20), ("train[-5:]", 5), ("train[50%:]", 20)]
)
def test_slices_of_a_local_file_are_counted(split: str, count: int, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i}", "completion": "b"} for i in range(40)])
    found = imported(AXOLOTL, datasets=[{"path": "rows.jsonl", "type": "chat_template", "split": split}])
    assert found.table["data"]["train"] == "rows.jsonl" and found.table["data"]["limit"] == count


def test_the_end_of_a_split_is_held_out() -> None:
    data = "dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset, split: '%s'}\n"
    held = "dataset_val: {_component_: torchtune.datasets.alpaca_cleaned_dataset, split: '%s'}\n"
    found = imported(TUNE + data % "train[:95%]" + held % "train[95%:]")
    assert found.table["data"]["train"] == "yahma/alpaca-cleaned" and found.table["data"]["valid"] == {"split": 0.05}
    mlx = imported(MLX + "hf_dataset: {path: org/sums, prompt_feature: text, completion_feature: summary}\n")
    assert mlx.table["data"]["valid"] == {"split": 0.1} and mlx.table["task"] == "chat"
    assert mlx.table["data"]["fields"] == {"prompt": "text", "completion": "summary"}
    assert "where mlx-lm leaves 10 % of them out" in changes(mlx, "(hf_dataset.valid_split)")
    plain = imported(
        MLX + "hf_dataset: {path: org/books, train_split: train, valid_split: validation, text_feature: body}\n"
    )
    assert plain.table["data"]["valid"] == "org/books:validation" and plain.table["task"] == {
        "name": "lm",
        "text": "body",
    }
    with pytest.raises(UsageError, match=r"hf_dataset\.valid_split: train\[:10%\] is a part of a set"):
        imported(MLX + "hf_dataset: {path: org/books, train_split: 'train[10%:]', valid_split: 'train[:10%]'}\n")


def test_alpaca_on_a_base_without_a_template_is_alpacas_prompt(tmp_path: Path) -> None:
    whole = {"instruction": "Add.", "input": "1 2", "output": "3"}
    cases = {"with.jsonl": [whole], "without.jsonl": [{**whole, "input": ""}, {"instruction": "Hi", "output": "Ho"}]}
    for name, prompt in (("with.jsonl", ALPACA_INPUT_PROMPT), ("without.jsonl", ALPACA_PROMPT)):
        write_rows(tmp_path / name, cases[name] * 4)
        for base in ("org/Base", "org/Base-Instruct"):
            found = imported(AXOLOTL, base_model=base, datasets=[{"path": name, "type": "alpaca"}])
            assert found.table["task"] == {"name": "generate", "prompt": prompt, "answer": "output"}
            assert "a space stands before the answer" in changes(found, "datasets.0.type")
    assert ALPACA_PROMPT.format(instruction="Add.").endswith("request.\n\n### Instruction:\nAdd.\n\n### Response:\n")
    write_rows(tmp_path / "both.jsonl", [whole, {**whole, "input": ""}])
    mixed = imported(AXOLOTL, datasets=[{"path": "both.jsonl", "type": "alpaca"}])
    assert mixed.table["task"]["prompt"] == ALPACA_INPUT_PROMPT and "leave such rows out" in changes(mixed, "(input)")
    chat = imported(AXOLOTL, base_model="org/Base-Instruct", datasets=[{"path": "both.jsonl", "type": "alpaca"}])
    assert chat.table["task"] == "chat" and chat.table["data"]["format"] == "alpaca"
    assert "Alpaca's own prompt is not used" in changes(chat, "datasets.0.type")
    rows, _, _ = load_sets(Data(train="both.jsonl", without={"input": ""}), ["instruction", "input"])
    assert len(rows) == 1  # the way out that the sentence names


@pytest.mark.parametrize(
    "files", [{}, {"tokenizer_config.json": '{"chat_template": "x"}'}, {"chat_template.jinja": "x"}]
)
def test_a_folder_s_files_say_whether_a_base_has_a_template(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    for name, text in files.items():
        (tmp_path / "base" / name).write_text(text)
    found = imported(AXOLOTL, base_model="base", datasets=[{"path": "org/qa", "type": "alpaca"}])
    assert (found.table["task"] == "chat") == bool(files)


def test_prompts_of_a_configuration_s_own(tmp_path: Path) -> None:
    own = {
        "system_prompt": "Be {brief}.",
        "system_format": "<{system}>\n",
        "field_instruction": "q",
        "field_output": "a",
        "format": "{instruction} of {input}:",
        "no_input_format": "{instruction}:",
    }
    write_rows(tmp_path / "rows.jsonl", [{"q": "a", "a": "b"}])
    found = imported(AXOLOTL, datasets=[{"path": "rows.jsonl", "type": own}])
    assert found.table["task"] == {"name": "generate", "prompt": "<Be {{brief}}.>\n{instruction}:", "answer": "output"}
    assert found.table["data"]["fields"] == {"instruction": "q", "output": "a"}
    write_rows(tmp_path / "rows.jsonl", [{"q": "a", "a": "b", "context": ""}])
    unread = imported(AXOLOTL, datasets=[{"path": "rows.jsonl", "type": {**own, "field_input": "context"}}])
    assert unread.table["data"]["fields"] == {"instruction": "q", "output": "a"}  # the prompt has no {input}
    assert losses(unread, "datasets.0.type.field_input") == "the prompt does not have it"
    hub = imported(AXOLOTL, datasets=[{"path": "org/qa", "type": own}])
    assert hub.table["task"]["prompt"] == "<Be {{brief}}.>\n{instruction} of {input}:"
    assert "rows without an input are refused" in changes(hub, "datasets.0.type.no_input_format")


@pytest.mark.parametrize(
    ("name", "words"), [("default", "Human: ... Assistant:"), ("alpaca", "### Instruction:"), ("empty", "end token")]
)
def test_templates_of_llama_factorys_own_are_listed(name: str, words: str) -> None:
    found = imported(FACTORY + f"template: {name}\n")
    assert found.table["task"] == "chat" and words in changes(found, "template")
    assert "write it to a file, and name it: task.format: FILE.jinja" in changes(found, "template")
    assert imported(FACTORY + "template: chatml\n").table["task"] == {"name": "chat", "format": "chatml"}


def test_files_of_data_sets_of_version_1(tmp_path: Path) -> None:
    text = "model: org/Base\nmodel_class: llm\npeft_config: {name: lora}\ntrain_dataset: sets.yaml\n"
    with pytest.raises(UsageError, match=r"train_dataset: no file 'sets\.yaml' here, which describes the rows"):
        imported(text)
    (tmp_path / "sets.yaml").write_text("one: {path: org/talks, split: train_sft, size: 9}\ntwo: {path: b.jsonl}\n")
    found = imported(text)
    assert found.table["data"]["train"] == "org/talks:train_sft" and found.table["data"]["limit"] == 9
    assert losses(found, "train_dataset") == "one set of rows: join them in a file"
    (tmp_path / "sets.yaml").write_text("one: {path: org/pairs, converter: pair}\n")
    with pytest.raises(UsageError, match="train_dataset: pair: this is training on preferences"):
        imported(text)


# -- other goals


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *(
            (AXOLOTL + f"rl: {word}\n", f"rl: {word}: this is training on preferences")
            for word in ("dpo", "ipo", "kto", "orpo", "simpo")
        ),
        *(
            (AXOLOTL + f"rl: {word}\n", f"rl: {word}: this is training for a reward")
            for word in ("grpo", "gdpo", "ebft", "new")
        ),
        (AXOLOTL + "reward_model: true\n", "reward_model: true: this is training of a model that scores"),
        (
            AXOLOTL + "process_reward_model: true\n",
            "process_reward_model: true: this is training of a model that scores",
        ),
        (AXOLOTL.replace("chat_template", "bradley_terry.chat_template"), "this is training of a model that scores"),
        (AXOLOTL.replace("chat_template", "stepwise_supervised"), "this is training of a model that scores"),
        (AXOLOTL + "processor_type: AutoProcessor\n", "processor_type: AutoProcessor: this is training on pictures"),
        (AXOLOTL + "diffusion: {noise_schedule: cosine}\n", "this is training of a diffusion model"),
        (AXOLOTL + "kd_trainer: true\n", "this is training on the probabilities of a teacher"),
        *((FACTORY + f"stage: {word}\n", f"stage: {word}: this is training on preferences") for word in ("dpo", "kto")),
        (FACTORY + "stage: rm\n", "stage: rm: this is training of a model that scores"),
        (FACTORY + "stage: ppo\n", "stage: ppo: this is training for a reward of sampled answers"),
        (FACTORY + "image_max_pixels: 262144\n", "this is training on pictures"),
        (FACTORY + "export_dir: out\n", "export_dir: out: this is no training"),
        (FACTORY + "do_predict: true\n", "do_predict: true: this is no training"),
        (TRL + "beta: 0.1\n", "beta: 0.1: this is training on preferences"),
        (TRL + "loss_type: dpo\n", "loss_type: dpo: this is training on preferences"),
        (TRL + "reward_funcs: [accuracy]\n", "reward_funcs: [accuracy]: this is training for a reward"),
        (TRL + "num_generations: 8\n", "num_generations: 8: this is training for a reward"),
        (TRL + "center_rewards_coefficient: 0.01\n", "this is training of a model that scores"),
        (TRL + "teacher_model_name_or_path: org/Big\n", "this is training on the probabilities of a teacher"),
        (TUNE + TUNE_ROWS.replace("alpaca_cleaned", "stack_exchange_paired"), "this is training on preferences"),
        (TUNE + TUNE_ROWS + "teacher_model: {_component_: torchtune.models.x}\n", "on the probabilities of a teacher"),
        (TUNE + TUNE_ROWS + "grpo_samples: 4\n", "grpo_samples: 4: this is training for a reward"),
        (TUNE.replace("lora_llama3_8b", "lora_llama3_2_vision_11b") + TUNE_ROWS, "this is training on pictures"),
        (TUNE.replace("lora_llama3_8b", "llama2_classifier") + TUNE_ROWS, "this is training of a model that scores"),
        (TUNE + "tasks: [truthfulqa_mc2]\nlimit: null\n", "this is no training"),
        (
            TUNE + "dataset: {_component_: torchtune.datasets.samsum_dataset}\n",
            "samsum_dataset makes its rows in Python",
        ),
        (LITGPT + "data: {class_path: litgpt.data.FLAN}\n", "data: FLAN downloads or makes its rows itself"),
        ("model_name: pythia-14m\ntrain: {global_batch_size: 8}\nout_dir: o\n", "training from random weights"),
        ("model: org/B\nmodel_class: llm\ntrain_dataset: org/p\npref_beta: 0.2\n", "this is training on preferences"),
        (
            AXOLOTL.replace("org/talks,", "org/talks, data_files: [a/b.jsonl],"),
            "Fetch it: hf download --repo-type dataset org/talks a/b.jsonl",
        ),
    ],
)
def test_other_goals_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as told:
        imported(text)
    assert (
        sentence in str(told.value) and str(told.value).startswith("c.yml: ") and str(told.value).endswith((".", "')"))
    )


def test_switches_of_other_goals_that_are_off_refuse_nothing() -> None:
    assert imported(AXOLOTL + "reward_model: false\nrl:\n").table["task"] == "chat"
    assert imported(FACTORY + "do_predict: true\ndo_train: true\n").table["task"] == "chat"
    assert imported(TRL + "use_vllm: false\nloss_type: nll\n").table["task"] == "chat"


@pytest.mark.parametrize(
    ("text", "key", "how"),
    [
        (AXOLOTL + "sample_packing: true\n", "sample_packing", "rows are not packed"),
        (FACTORY + "neat_packing: true\n", "neat_packing", "rows are not packed"),
        (FACTORY + "use_dft_loss: true\n", "use_dft_loss", "the plain cross-entropy"),
        (FACTORY + "default_system: Be kind.\n", "default_system", "no system message is put before the rows' own"),
        (AXOLOTL + "unfrozen_parameters: [lm_head]\n", "unfrozen_parameters", "those of `space`, and no others"),
        (AXOLOTL + "lora_model_dir: old\n", "lora_model_dir", "the run begins at the base model"),
        (AXOLOTL + "lr_scheduler: rex\n", "lr_scheduler", "it is left to zoedge"),
        (AXOLOTL.replace("chat_template}", "gpt.chat}"), "datasets.0.type", "not axolotl's prompt of that type"),
        (FACTORY + "finetuning_type: oft\n", "finetuning_type", "plain LoRA"),
        (FACTORY + "quantization_bit: 3\n", "quantization_bit", "4 or 8 bits"),
        (TRL, "(trainer)", "taken as `trl sft`"),
        (TRL, "(loss)", "trl scores conversations whole"),
        (TUNE + TUNE_ROWS, "(tokenizer.max_seq_len)", "torchtune sets no limit"),
        (TUNE + TUNE_ROWS, "(dataset.train_on_input)", "torchtune scores the question too"),
        (LITGPT + LITGPT_ROWS, "(data.init_args.mask_prompt)", "litgpt scores the question too"),
        (LITGPT + LITGPT_ROWS + "quantize: new\n", "quantize", "bitsandbytes' nf4, fp4 and int8"),
        (MLX + "mask_prompt: true\n", "mask_prompt", "mlx-lm scores the last one"),
    ],
)
def test_what_would_be_another_in_silence_is_listed(text: str, key: str, how: str) -> None:
    assert how in changes(imported(text), key)


def test_switched_off_changes_are_no_changes() -> None:
    found = imported(AXOLOTL + "sample_packing: false\n")
    assert not changes(found, "sample_packing") and losses(found, "sample_packing")


def test_pretraining_sets_of_axolotl() -> None:
    rows = [{"path": "org/c4", "name": "en", "type": "pretrain", "text_column": "body"}]
    found = imported("base_model: org/Base\nsequence_len: 64\nmax_steps: 5\n", pretraining_dataset=rows)
    assert found.table["data"]["train"] == "org/c4:en/train" and found.table["task"] == {"name": "lm", "text": "body"}
    assert "not joined to lengths" in changes(found, "pretraining_dataset.0.path")


def test_litgpts_words_for_gpt_neox() -> None:
    found = imported(LITGPT + LITGPT_ROWS + "lora_mlp: true\n", checkpoint_dir="checkpoints/EleutherAI/pythia-160m")
    assert found.table["model"]["source"] == "EleutherAI/pythia-160m"
    assert found.table["space"]["targets"] == ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"]
    assert "query, key and value in one module" in changes(found, "(modules)")


def test_references_of_torchtune_are_written_out() -> None:
    text = TUNE.replace("dir: Llama-3-8B-Instruct", "dir: '${base}/Llama-3-8B-Instruct'") + TUNE_ROWS
    found = imported(text, base="models", output_dir="${base}/out")
    assert found.table["model"]["source"] == "models/Llama-3-8B-Instruct"
    assert found.table["output"] == {"dir": "models/out"}
    for kind, bits in (("lora_llama3_8b", "none"), ("qlora_llama3_8b", "nf4")):
        assert imported(TUNE.replace("lora_llama3_8b", kind) + TUNE_ROWS).table["model"]["quantization"] == bits
