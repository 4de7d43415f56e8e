"""import-config, key by key, on configurations as other tools' users write them; test_import_kinds.py has single settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.commands import Done
from helpers.configurations import AXOLOTL, WANTED

from zoedge.commands.import_config import convert_config, dump_imported, read_config, recognise_tool
from zoedge.commands.import_config.source import ImportedRecipe, flatten_keys
from zoedge.commands.import_config.tools import TOOLS
from zoedge.errors import UsageError
from zoedge.recipe.check import check
from zoedge.recipe.foreign import FOREIGN_KEYS, REASON_BY_KEY
from zoedge.recipe.reading import read_recipe


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


@pytest.mark.parametrize("tool", TOOLS)
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
    assert "lr" not in found.table.get("rule", {}) and "estimator" not in found.table  # left at zoedge's


@pytest.mark.parametrize("tool", TOOLS)
def test_every_key_is_carried_or_listed(tool: str, tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(WANTED[tool][0])
    table = read_config(tmp_path / "c.yml") | {"something_new": {"a": 1}}
    found = convert_config(table, tool, "c.yml")
    accounted = {k for k, _ in found.carried} | {k for k, *_ in (*found.changed, *found.lost)} | set(found.unset)
    keys = {key for key, _ in flatten_keys(table)}
    assert len(keys) > 23 and keys <= accounted
    assert all(key in keys or key.startswith("(") for key in accounted)  # what was not set there says so
    assert told(found, "something_new.a") == f"not one of {tool}'s keys that zoedge knows"
    unknown = [key for key, _, why in found.lost if why.startswith("not one of")]
    assert unknown == ["something_new.a"]
    report = "\n".join(found.report())
    assert all(key in report for key in keys) and "None" not in report
    assert "read together with" not in report  # each is listed by the one who read it


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
    assert factory.table["train"] == {"batch": 8, "steps": 10}  # 40 rows twice, in LLaMA-Factory's batches of 8
    assert imported(text.replace("3", "0")).table["train"] == {"batch": 8}
    held_out = imported(text + "val_set_size: 0.2\n")
    assert held_out.table["train"]["steps"] == 30  # of 80 rows: those held out are not trained on
    half = imported(text.replace("ds_type: json", "split: 'train[:50%]'") + "val_set_size: 0.2\n")
    data, train = half.table["data"], half.table["train"]
    assert (data["limit"], data["valid"], train["steps"]) == (
        40,
        {"split": 10},
        15,
    )  # 50 rows, of which 10 are held out


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
    assert found.table["space"] == {"name": "lora", "layers": "all"}


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
    for tool, (text, _) in WANTED.items():  # also where half of the keys are missing
        table = yaml.safe_load(text)
        for kept in (list(table), list(table)[::2], list(table)[1::2]):
            part = {key: table[key] for key in kept}
            try:
                assert recognise_tool(part, "c.yml") == tool, kept
            except UsageError as e:
                assert "cannot tell which tool's this is" in str(e)
    with pytest.raises(
        UsageError,
        match=r"--from: 'axolot' is not mlx-lm, axolotl, llama-factory, .*, unsloth - did you mean 'axolotl'\?",
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
    assert done.code == 0 and yaml.safe_load(done.out)["train"] == {"batch": 4, "steps": 5}
    (tmp_path / "c.json").write_text("{")
    assert zoedge("import-config", "c.json").code == zoedge("import-config", "none.yml").code == 2
    (tmp_path / "e.yml").write_text("- 1\n")
    assert "e.yml: not a configuration: a table of keys and values." in zoedge("import-config", "e.yml").err
