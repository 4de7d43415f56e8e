"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.recipes import fitting
from hypothesis import given, settings
from hypothesis import strategies as st

from zoedge.core.parts import PART_FOLDERS, list_words, load_part
from zoedge.errors import UsageError, ZoedgeError
from zoedge.recipe import check, foreign, reading, recipe, sections, strict_yaml

BASE = "version: 1\nmodel: {source: somewhere}\ndata: {train: rows.jsonl}\n"
Said = Callable[..., str]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """What the user is told about a recipe's text ('' if nothing is wrong), written as my.yaml."""
    monkeypatch.chdir(tmp_path)

    def say(text: str, *overrides: str) -> str:
        Path("my.yaml").write_text(text, encoding="utf-8")
        try:
            reading.read_recipe("my.yaml", list(overrides))
        except UsageError as e:
            return str(e)
        return ""

    return say


def value_of(text: str) -> Any:
    return strict_yaml.read_yaml(f"a: {text}", "my.yaml")[0]["a"]


# -- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("2e-6", 2e-6), ("1E3", 1000.0), (".5", 0.5), ("-.5e+1", -5.0), ("3.", 3.0), ("0", 0),
        ("+7", 7), ("no", "no"), ("Yes", "Yes"), ("on", "on"), ("y", "y"), ("True", True), ("false", False),
        ("-0", 0), ("~", None), ("", None), ("null", None), ("012", "012"), ("0x10", "0x10"), ("1_000", "1_000"),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("'5'", "5"), ('"true"', "true"), (".inf", math.inf),
        ("[1, a, 2.0]", [1, "a", 2.0]),
        ("-.INF", -math.inf), ("{text}", {"text": None}), ("é", "é"), ("1e", "1e"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_are_read_as_yaml_1_2(text: str, value: Any) -> None:
    found = value_of(text)
    assert found == value and type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(value_of(".nan")) and math.isnan(value_of(".NaN"))


BOMB = (
    "a: &a ["
    + ",".join(['"lol"'] * 9)
    + "]\n"
    + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: &x 1", "my.yaml:1:4: anchors and aliases are not read. Write the value out."),
        ("a: *x", "my.yaml:1:4: anchors and aliases are not read. Write the value out."),
        (
            "a: !!python/object:os.system 1",
            "my.yaml:1:4: the tag tag:yaml.org,2002:python/object:os.system is not read.",
        ),
        ("a: !x 1", "my.yaml:1:4: the tag !x is not read."),
        ("a: 1\nb: {c: 1, c: 2}", "my.yaml:2:11: 'c' stands twice."),
        ("a: 1\n? [b]\n: 2", "my.yaml:2:3: a key must be a word."),
        ("a: " + "[" * 40, "my.yaml:1:19: nested more than 16 deep."),
        ("- " * 40 + "1", "my.yaml:1:33: nested more than 16 deep."),
        ("a: b: c", "my.yaml:1:5: not valid YAML: mapping values are not allowed here."),
        ("a: [1, 2", "my.yaml:1:9: not valid YAML: expected ',' or ']', but got '<stream end>'."),
        ("a: 1\n---\nb: 2", "my.yaml:2:1: not valid YAML: expected a single document in the stream but found another"),
        ("a:\n\t- 1", "my.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token."),
        ("a: 1\nb: \x07", "my.yaml:2:4: the character U+0007 is not read."),
        ('a: "\\ud800"', "my.yaml:1:4: half a character"),
        ('"\\ud800": 1', "my.yaml:1:1: half a character"),
        ("- 1", "my.yaml: a recipe is a table of keys and values"),
        ("", "my.yaml: a recipe is a table of keys and values"),
        ("# " + "x" * (64 << 10), "my.yaml: larger than 64 KiB: not a recipe."),
        (BASE + "<<: {seed: 5}", "my.yaml:4:1: <<: unknown key"),
    ],
)
def test_what_is_not_strict_yaml_is_refused(said: Said, text: str, sentence: str) -> None:
    assert said(text).startswith(sentence)


def test_a_bomb_of_342_bytes_goes_off_in_no_time(said: Said) -> None:
    assert len(BOMB) == 342
    said("a: 1")
    began = time.perf_counter()
    assert "anchors and aliases" in said(BOMB)
    assert time.perf_counter() - began < 0.05


def test_bytes_that_are_no_text(said: Said, tmp_path: Path) -> None:
    said("a: 1")
    (tmp_path / "my.yaml").write_bytes(b"version: 1\nname: \xff")
    with pytest.raises(UsageError, match=r"my\.yaml:2: not UTF-8 text \(byte 17\)"):
        reading.read_recipe("my.yaml")
    (tmp_path / "my.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert reading.read_recipe("my.yaml").seed == 0


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
        | st.from_regex(r"[-+]?[0-9._]{1,4}([eE][-+]?[0-9]{1,2})?|yes|no|~|null|[=<]<?|0o?[0-7]+", fullmatch=True),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)  # fmt: skip
def test_what_is_written_is_read_back(value: Any) -> None:
    text = yaml.dump({"a": value}, Dumper=strict_yaml.StrictDumper, allow_unicode=True, width=120)
    assert strict_yaml.read_yaml(text, "x")[0] == {"a": value}


def test_a_value_twice_in_a_recipe_is_written_twice() -> None:
    same = ["q_proj"]
    assert "&" not in yaml.dump({"a": same, "b": same}, Dumper=strict_yaml.StrictDumper)


# -- keys


def test_all_mistakes_at_once_in_the_files_order(said: Said) -> None:
    text = """version: 1
model: {source: somewhere, quantization: nf5}
data: {train: rows.jsonl, valid: {splt: 5}, limit: 0}
seed: -1
lora_r: 8
rule:
  name: sgd
  learning_rate: 1e-4
  schedule: cosin
estimator: {eps: -1, queries: true}
noise: rademacer
space:
  rank: 0
  targets: q_proj
train: {steps: 1.5, batch: 1e2, max_length: 4}
"""
    assert said(text).splitlines() == [
        "my.yaml:2:28: model.quantization: 'nf5' is not 'nf4', 'fp4', 'int8' or 'none' - did you mean 'nf4'?",
        "my.yaml:3:27: data.valid.split: missing.",
        "my.yaml:3:35: data.valid.splt: unknown key - did you mean 'split'?",
        "my.yaml:3:45: data.limit: 0 is not at least 1.",
        "my.yaml:4:1: seed: -1 is not at least 0.",
        "my.yaml:5:1: lora_r: unknown key - zoedge calls this 'space.rank'.",
        "my.yaml:8:3: rule.learning_rate: unknown key - zoedge calls this 'rule.lr'.",
        "my.yaml:9:3: rule.schedule: 'cosin' is not 'constant', 'linear' or 'cosine' - did you mean 'cosine'?",
        "my.yaml:10:13: estimator.eps: -1 is not greater than 0 or 'auto'.",
        "my.yaml:10:22: estimator.queries: true is not a whole number.",
        f"my.yaml:11:1: noise: no 'rademacer'. There is: {', '.join(list_words('methods.noise'))} - did you mean 'rademacher'?",
        "my.yaml:13:3: space.rank: 0 is not at least 1.",
        "my.yaml:14:3: space.targets: 'q_proj' is not a list or 'all' - write [q_proj].",
        "my.yaml:15:9: train.steps: 1.5 is not a whole number.",
        "my.yaml:15:21: train.batch: 100.0 is not a whole number - write 100.",
        "my.yaml:15:33: train.max_length: unknown key - did you mean 'data.max_length'?",
    ]


def test_the_first_likely_mistake_word_by_word(said: Said) -> None:
    text = "\n" * 10 + BASE.replace("version: 1\n", "version: 1\nrule:\n  learning_rate: 1e-4\n").replace(
        "\nrule", "\n\nrule"
    )
    assert said(text) == "my.yaml:14:3: rule.learning_rate: unknown key - zoedge calls this 'rule.lr'."


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("seed: 18446744073709551616", "seed: 18446744073709551616 is not less than 2**64."),
        ("seed: " + "9" * 5000, "seed: .inf is not a whole number."),
        ("seed: 1.0", "seed: 1.0 is not a whole number - write 1."),
        ("seed: 012", "seed: '012' is not a whole number."),
        ("seed: true", "seed: true is not a whole number."),
        ("name: a/b", "name: 'a/b' is not a name: letters, digits, '.', '_' and '-', at most 64,"),
        ("name: ../b", "name: '../b' is not a name"),
        ("name: .b", "name: '.b' is not a name"),
        ("name: " + "x" * 65, "is not a name"),
        ("name: a\\nb", "is not a name"),
        ("rule: {lr: .nan}", "rule.lr: .nan is not a finite number or 'auto'."),
        ("rule: {lr: .inf}", "rule.lr: .inf is not a finite number or 'auto'."),
        ("rule: {lr: 1e999}", "rule.lr: .inf is not a finite number or 'auto'."),
        ("rule: {lr: '1e-3'}", "rule.lr: '1e-3' is not a number or 'auto'."),
        ("rule: {lr: null}", "rule.lr: null is not a number or 'auto'."),
        ("rule: [sgd]", "rule: [sgd] is not a word, or a table such as {name: sgd, ...}."),
        ("rule: {name: 5}", "rule: {name: 5} is not a word, or a table"),
        ("rule: {name: ../../etc}", "rule: no '../../etc'."),
        ("eval: 5", "eval: 5 is not a table of keys."),
        ("eval: {at_start: no}", "eval.at_start: 'no' is not true or false."),
        ("eval: {at_start: 1}", "eval.at_start: 1 is not true or false."),
        ("log: {sync_every: 5000}", "log.sync_every: 5000 is not at most 4096."),
        ("output: {export: [peft, gguf]}", "output.export.1: 'gguf' is not 'peft' or 'merged'."),
        ("output: {export: peft}", "output.export: 'peft' is not a list - write [peft]."),
        ("output: {dir: null}", "output.dir: null is not a text."),
        ("task: {options: {Good: 5, bad: x}}", "task.options.Good: 5 is not a text."),
        ("task: {options: {good: x}}", "task.options: at least two, all different."),
        ("task: {prompt: 'It was'}", "task.prompt: write fields as {text}; at least one."),
        ("task: {prompt: '{text!r}'}", "task.prompt: write fields as {text}; at least one."),
        ("task: {prompt: '{text:>9}'}", "task.prompt: write fields as {text}; at least one."),
        ("task: {prompt: '{a.__class__}'}", "task.prompt: write fields as {text}; at least one."),
        ("task: {prompt: '{text'}", "task.prompt: expected '}' before end of string. Write fields as {text},"),
        ("rule: {Learning-Rate: 1}", "rule.Learning-Rate: unknown key - zoedge calls this 'rule.lr'."),
        ("steps: 5", "steps: unknown key - did you mean 'train.steps'?"),
        ("train: {seed: 5}", "train.seed: unknown key - did you mean 'seed'?"),
        ("train: {lr: 5}", "train.lr: unknown key - did you mean 'rule.lr'?"),
        ("noise: {eps: 5}", "noise.eps: unknown key - did you mean 'estimator.eps'?"),
        ("noise: {zebra: 5}", "noise.zebra: unknown key - there is: name"),
        ("rule: {name: adam, learning_rate: 1}", "rule.learning_rate: unknown key - zoedge calls this 'rule.lr'."),
        ("5: 5", "5: unknown key - there is: version, name, seed, model,"),
        ('"\\e[31m": 1', "\\x1b[31m: unknown key"),
        ('name: "\\e[31m"', "name: '\\x1b[31m' is not a name"),
        ("version: 2", "my.yaml:4:1: 'version' stands twice. Remove one."),
    ],
)
def test_a_mistake_and_its_sentence(said: Said, line: str, sentence: str) -> None:
    assert sentence in said(BASE + line)
    assert said(BASE + line).startswith("my.yaml:4:") and "\x1b" not in said(BASE + line)


@pytest.mark.parametrize("split", ["0", "-1", "0.0", "1.0", "1.5", "-0.1"])
def test_a_split_is_rows_or_a_share(said: Said, split: str) -> None:
    text = BASE.replace("rows.jsonl", f"rows.jsonl, valid: {{split: {split}}}")
    where = "my.yaml:3:35: data.valid.split"
    assert said(text) == f"{where}: {split} is not a number of rows (200) or a share of them (0.1)."
    assert said(text.replace(f" {split}", " 1")) == said(text.replace(f" {split}", " 0.5")) == ""


def test_what_must_be_there(said: Said) -> None:
    assert said("seed: 1").splitlines() == [
        "my.yaml:1:1: data: missing - write 'data: {train: rows.jsonl}'.",
        "my.yaml:1:1: model: missing - write 'model: {source: smollm2-135m-instruct}'.",
        "my.yaml:1:1: version: missing - write 'version: 1'.",
    ]
    assert said("version: 1\nmodel:\ndata: {limit: 5}").splitlines() == [
        "my.yaml:1:1: model: missing - write 'model: {source: smollm2-135m-instruct}'.",
        "my.yaml:3:1: data.train: missing - such as 'data: {train: rows.jsonl}'.",
    ]
    for version in ("2", "true", "1.0", "'1'"):
        assert "is not read by this zoedge - write 'version: 1'." in said(
            BASE.replace("version: 1", f"version: {version}")
        )


def test_a_foreign_name_is_answered_with_one_that_exists() -> None:
    for key, ours in foreign.FOREIGN_KEYS.items():
        place = ours.partition(":")[0].partition(" ")[0]
        section, _, field = place.partition(".")
        assert (
            place in ("name", "seed", *sections.SECTIONS, *PART_FOLDERS)
            or (section in sections.SECTIONS and field in sections.SECTIONS[section].model_fields)
            or any(field == f.name for w in list_words(PART_FOLDERS[section]) for f in fields(load_part(section, w)))
        ), key


def test_foreign_names_at_any_level(said: Said) -> None:
    """A name is answered wherever it is written; one that has a section (train.epochs), in that section."""
    for key, ours in foreign.FOREIGN_KEYS.items():
        section, _, word = key.rpartition(".")
        for where in [section] if section else ["", "rule", "model"]:
            if f"{where}.{word}" in foreign.FOREIGN_KEYS and not section:
                continue
            text = BASE.replace("somewhere", f"somewhere, {word}: 1") if where == "model" else (
                BASE.replace("rows.jsonl", f"rows.jsonl, {word}: 1") if where == "data"
                else BASE + (f"{where}: {{{word}: 1}}" if where else f"{word}: 1")
            )  # fmt: skip
            full = f"{where}.{word}".lstrip(".")
            assert f"{full}: unknown key - zoedge calls this '{ours}'." in said(text), key


def test_no_foreign_name_is_one_of_ours() -> None:
    ours = {f for section in sections.SECTIONS.values() for f in section.model_fields}
    ours |= {
        f.name
        for kind, folder in PART_FOLDERS.items()
        for word in list_words(folder)
        for f in fields(load_part(kind, word))
    }
    assert len(ours) > 20 and not ours & foreign.FOREIGN_KEYS.keys() and not ours & foreign.REASON_BY_KEY.keys()


@pytest.mark.parametrize("key", ["gradient_checkpointing", "lora_dropout", "wandb-project", "Flash_Attention"])
def test_a_foreign_name_that_has_no_place_gets_its_reason(said: Said, key: str) -> None:
    why = foreign.REASON_BY_KEY[key.lower().replace("-", "_")]
    assert f"rule.{key}: unknown key - {why}." in said(BASE + f"rule: {{{key}: 1}}")
    assert f"{key}: unknown key - {why}." in said(BASE + f"{key}: 1")


def test_every_reason_has_keys_and_no_key_two() -> None:
    from zoedge.recipe.foreign import KEYS_BY_REASON

    assert (
        sum(map(len, KEYS_BY_REASON.values())) == len(foreign.REASON_BY_KEY) > 300
        and not foreign.REASON_BY_KEY.keys() & foreign.FOREIGN_KEYS.keys()
    )


# -- parts, sections, overrides


@pytest.mark.parametrize("kind", sorted(PART_FOLDERS))
def test_a_word_or_a_table(said: Said, kind: str) -> None:
    assert list_words(PART_FOLDERS[kind])
    for word in list_words(PART_FOLDERS[kind]):
        found = []
        others = [f"{k}.{o}={v}" for k, table in fitting(kind, word).items() if k != kind for o, v in table.items()]
        for text in (f"{kind}: {word}", f"{kind}: {{name: {word}}}"):
            assert said(BASE + text, *others) == ""
            found.append(getattr(reading.read_recipe("my.yaml", others), kind))
        assert found[0] == found[1] and type(found[0]) is load_part(kind, word) and recipe.part_name(found[0]) == word


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rule: hizoo", "my.yaml:4:1: rule: hizoo goes only with estimator: curved, not two_sided."),
        ("estimator: curved", "my.yaml:4:1: estimator: curved goes only with rule: hizoo, not sgd."),
        (
            "estimator: as2p\nrule: {lr: 1e-3}",
            "my.yaml:4:1: estimator: as2p goes only with rule.lr: 1.0, not 0.001.",
        ),
        ("estimator: as2p\nrule: {lr: 1}", ""),
        ("estimator: stp\nrule: adam", "my.yaml:4:1: estimator: stp goes only with rule: sgd, not adam."),
        (
            "rule: adamu\nnoise: sparse",
            "my.yaml:4:1: rule: adamu goes only with noise: normal or rademacher, not sparse.",
        ),
        (
            "rule: adamu\nestimator: {queries: 2}",
            "my.yaml:4:1: rule: adamu goes only with estimator.queries: 1, not 2.",
        ),
        (
            "rule: {name: adamu, anneal: paper_fig1, settled: 0.16}\ntrain: {steps: 100000}",
            "my.yaml:4:21: rule.anneal: paper_fig1 divides by -2.6e+04 at step 100000. Use cosine.",
        ),
        ("rule: {name: adamu, anneal: paper_fig1}\ntrain: {steps: 20000}", ""),
        ("estimator: {name: fzoo, queries: 1}", "my.yaml:4:25: estimator.queries: 1 is not at least 2."),
    ],
)
def test_parts_that_do_not_go_together_are_refused(said: Said, text: str, sentence: str) -> None:
    assert said(BASE + text) == sentence


def test_a_mistake_in_a_rule_whose_lr_is_auto(said: Said) -> None:
    text = BASE + "rule: {weight_decay: 2000}"
    assert said(text) == "my.yaml:4:8: rule.weight_decay: lr * weight_decay must be below 1."
    assert "space full has no adapter" in said(text + "\nspace: full\noutput: {export: [peft]}"), (
        "and the pairs' mistakes"
    )


def derived(said: Said, text: str) -> dict[str, Any]:
    assert said(BASE + text) == ""
    checked = reading.read_recipe("my.yaml")
    assert all(one.reason and not one.reason.endswith(".") for one in checked.derived), (
        "its stop is added by the printing"
    )
    return {one.path: one.value for one in checked.derived}


WATCHDOG = {"clip": 10.0, "factor": 3.0, "patience": 50, "rewinds": 8, "rise": 1.5}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rule: {lr: 1e-3}\nestimator: {eps: 1e-3}", {}),
        ("rule: {lr: 1e-3}", {"estimator.eps": "auto"}),
        (
            "estimator: {eps: 1e-3}",
            {"rule.lr": "auto", "rule.schedule": "linear", "train.watchdog": WATCHDOG | {"trust": 0.03}},
        ),
        (
            "estimator: {eps: 1e-3}\nrule: adam",
            {"rule.lr": "auto", "rule.schedule": "linear", "train.watchdog": WATCHDOG},
        ),
        ("estimator: {eps: 1e-3}\nrule: {schedule: constant}\ntrain: {watchdog: null}", {"rule.lr": "auto"}),
        ("estimator: as2p", {"rule.lr": 1.0}),
        ("estimator: as2p\nspace: scales", {"rule.lr": 1.0, "output.export": []}),
        ("estimator: as2p\nspace: scales\noutput: {export: [merged]}", {"rule.lr": 1.0}),
    ],
)
def test_what_a_recipe_leaves_open_is_filled_in(said: Said, text: str, wanted: dict[str, Any]) -> None:
    assert derived(said, text if "space" in text else f"{text}\nspace: lora") == wanted


BEGINS = {
    "space.start": "probe", "train.steps": 250, "train.batch": 32, "estimator": "gauss_newton",
    "rule": {"lr": 0.1, "schedule": "linear"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", BEGINS),
        ("task: {name: choose}", BEGINS),
        ("train: {steps: 9, batch: 3}", {k: v for k, v in BEGINS.items() if not k.startswith("train")}),
        ("task: {name: classify, objective: accuracy}", {"space.start": "probe", "rule.lr": "auto"}),
        ("task: {name: lm}", {"space.start": None, "estimator": None, "rule.lr": "auto"}),
        ("task: {name: generate, objective: 'rewards:length'}", {"space.start": None, "rule.lr": "auto"}),
        ("space: lora", {"space.start": None, "estimator": None, "train.steps": None, "rule.lr": "auto"}),
        *((text, {"space.start": "probe", "estimator": None, "train.steps": 250, "train.batch": None})
          for text in ("noise: normal", "estimator: two_sided", "rule: sgd")),
    ],
)  # fmt: skip
def test_a_recipe_without_a_space_begins_in_closed_form(said: Said, text: str, wanted: dict[str, Any]) -> None:
    found = derived(said, text)
    assert {key: found.get(key) for key in wanted} == wanted
    checked = reading.read_recipe("my.yaml")
    assert checked.space.start == (wanted["space.start"] or "zero")  # type: ignore[attr-defined]
    again = recipe.dump_recipe(checked)
    Path("my.yaml").write_text(again, encoding="utf-8")
    assert reading.read_recipe("my.yaml") == checked, "what a run's folder holds is the same recipe"


def test_null_is_the_default(said: Said) -> None:
    said(BASE)
    plain = reading.read_recipe("my.yaml")
    said(BASE + "".join(f"{key}:\n" for key in ("seed", "name", "eval", "train", "output", "log", *PART_FOLDERS)))
    assert reading.read_recipe("my.yaml") == plain and plain.name == "my" and plain.seed == 0


def test_whole_numbers_where_fractions_are_allowed(said: Said) -> None:
    said(BASE + "rule: {lr: 1}\nseed: 18446744073709551615")
    found = reading.read_recipe("my.yaml")
    assert found.rule.lr == 1.0 and found.seed == 2**64 - 1


def test_overrides(said: Said) -> None:
    said(BASE + "rule: sgd\n")
    found = reading.read_recipe(
        "my.yaml",
        ["rule.lr=1e-5", "rule.schedule=cosine", "train.steps=7", "noise=normal", "estimator={eps: 0.5, queries: 3}",
         "name=x", "data.valid.split=0.1", "space.targets=[q_proj, v_proj]", "space.layers=last 2",
         'task.prompt="{text} = what"', "model.revision=", " seed = 5"],
    )  # fmt: skip
    assert (found.rule.lr, found.rule.schedule, found.train.steps, found.name) == (1e-5, "cosine", 7, "x")
    assert recipe.part_name(found.noise) == "normal" and (found.estimator.eps, found.estimator.queries) == (0.5, 3)
    assert found.data.valid == sections.Split(split=0.1) and found.data.train == "rows.jsonl"
    assert found.task.prompt == "{text} = what"
    assert found.space.targets == ["q_proj", "v_proj"] and found.space.layers == "last 2"
    assert found.seed == 5 and found.model.revision is None


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rule.learning_rate=1", "my.yaml (key=value): rule.learning_rate: unknown key - zoedge calls this 'rule.lr'."),
        ("rule.lr=abc", "my.yaml (key=value): rule.lr: 'abc' is not a number or 'auto'."),
        ("rule={lr: abc}", "my.yaml (key=value): rule.lr: 'abc' is not a number or 'auto'."),
        ("noise=rademacer", "my.yaml (key=value): noise: no 'rademacer'."),
        ("foo", "my.yaml (key=value): 'foo' is not key=value, such as rule.lr=1e-3."),
        ("=5", "my.yaml (key=value): '=5' is not key=value"),
        ("a..b=5", "my.yaml (key=value): 'a..b=5' is not key=value"),
        ("a" + ".a" * 5000 + "=5", "is not key=value"),
        ("model.source.x=5", "my.yaml (key=value): 'model.source.x=5': model.source is not a table of keys."),
        ("rule.lr=[", "Quotes make it a text: rule.lr='\"...\"'."),
        ("task.prompt={text} It was", "Quotes make it a text: task.prompt='\"...\"'."),
        ("rule.lr=&a 1", "anchors and aliases are not read"),
        ("data={limit: 5}", "my.yaml (key=value): data.train: missing"),
    ],
)
def test_an_overrides_mistakes(said: Said, override: str, sentence: str) -> None:
    assert sentence in said(BASE + "rule: {lr: 1}\n", override)
    assert said(BASE).count("\n") == 0


def test_an_override_beside_a_mistake_does_not_move_it(said: Said) -> None:
    text = BASE.replace("{train: rows.jsonl}", "{limit: 5}")
    assert said(text, "data.limit=3").startswith("my.yaml:3:1: data.train: missing")


def test_a_files_mistakes_beside_an_overrides(said: Said) -> None:
    lines = said(BASE + "rule:\n  schedule: x\n  lr: 5", "rule.lr=y", "nothing").splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["my.yaml (key=value)", "my.yaml (key=value)", "my.yaml:5:3"]


# -- files


def test_shipped_recipes_by_name() -> None:
    assert reading.list_shipped()
    for path in reading.list_shipped():
        assert reading.find_recipe(path.stem) == reading.find_recipe(path.name) == path
    with pytest.raises(
        UsageError, match=r"No recipe 'quickstrat': no such file, and not a shipped one\. Did you mean quickstart"
    ):
        reading.find_recipe("quickstrat")


@pytest.mark.parametrize("name", ["-x y.yaml", "...yaml", "é" * 80 + ".yaml", "a b.yml"])
def test_a_files_name_makes_a_runs_name(said: Said, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(BASE)
    assert sections.check_folder_name(reading.read_recipe(name).name)


@pytest.mark.parametrize("path", reading.list_shipped(), ids=lambda p: p.stem)
def test_shipped_recipes_come_back_from_what_is_written(path: Path, tmp_path: Path) -> None:
    found = reading.read_recipe(str(path))
    (tmp_path / "again.yaml").write_text(recipe.dump_recipe(found), encoding="utf-8")
    assert reading.read_recipe(str(tmp_path / "again.yaml")) == found
    assert check.check(json.loads(json.dumps(found.resolved())), {}, "run.zlog (its recipe)") == found


def test_awkward_values_come_back(said: Said, tmp_path: Path) -> None:
    text = (
        BASE
        + """
task: {prompt: "{text}\\n\\t\\U0001F600 no:", options: {"1e5": "012", "no": " ~", "": "\\x85"}, label: "1e-3"}
space: {layers: [4, 5], targets: [q_proj]}
rule: {lr: 1e-16, schedule: cosine}
"""
    )
    assert said(text) == ""
    found = reading.read_recipe("my.yaml")
    (tmp_path / "again.yaml").write_text(recipe.dump_recipe(found), encoding="utf-8")
    again = reading.read_recipe("again.yaml", ["name=my"])
    assert (
        again == found and again.task.options == {"1e5": "012", "no": " ~", "": "\x85"} and again.task.label == "1e-3"
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_a_float_is_kept_to_the_bit(lr: float) -> None:
    table = {"version": 1, "model": {"source": "a"}, "data": {"train": "a"}, "rule": {"lr": lr}}
    found = check.check(table, {}, "x")
    assert found.rule.lr == lr
    text = yaml.dump(found.resolved(), Dumper=strict_yaml.StrictDumper)
    assert check.check(strict_yaml.read_yaml(text, "x")[0], {}, "x").rule.lr == lr


def test_what_a_log_may_hold_is_a_sentence_too() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    for table in (
        [],
        "x",
        None,
        {"model": deep},
        {"version": deep},
        {"model": {"source": "\ud800"}},
        {"seed": 10**400},
    ):
        with pytest.raises(ZoedgeError) as e:
            check.check(table, {}, "run.zlog (its recipe)")  # type: ignore[arg-type]
        assert str(e.value).startswith("run.zlog (its recipe): ") and "key=value" not in str(e.value)


def leaves(table: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(table, dict) or not table:
        return {path: table}
    return {k: v for key, value in table.items() for k, v in leaves(value, f"{path}.{key}".lstrip(".")).items()}


def test_the_identity_leaves_out_only_what_cannot_change_numbers() -> None:
    found = reading.read_recipe("quickstart")
    assert leaves(found.resolved()).keys() - leaves(found.semantic()).keys() == {
        "name", "output.dir", "output.export",  # where things go
        "eval.every", "eval.select", "eval.at_start", "eval.calibrate", "eval.curvature", "log.sync_every",  # how often to look
        "model.source", "model.revision",  # the header has the base's digest
        "model.device", "model.threads",  # the losses are on paper
        "data.train", "data.valid.split", "data.test.split", "data.fields", "data.without", "data.limit", "data.per_class",
        "data.max_length", "data.on_overflow", "data.skip_bad_lines",  # the header has the tokenised data's digest
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "sentence", "right"),
    [
        ("data.valid=0.1", "0.1 is not a text or a table of keys - write {split: 0.1}", "data.valid={split: 0.1}"),
        ("data.test=200", "200 is not a text or a table of keys - write {split: 200}", "data.test={split: 200}"),
        ("name=123", '123 is not a text - write "123" in quotes (in a shell: \'"123"\')', 'name="123"'),
        ("name=true", 'true is not a text - write "true" in quotes', 'name="true"'),
        ("space.targets=all-linear", "'all-linear' is not a list or 'all' - write all", "space.targets=all"),
        ("model.quantization=4bit", "or 'none' - write nf4", "model.quantization=nf4"),
        ("model.quantization=8-bit", "or 'none' - write int8", "model.quantization=int8"),
        ("model.compute_dtype=float32", "or 'fp16' - write fp32", "model.compute_dtype=fp32"),
        ("model.compute_dtype=bfloat16", "or 'fp16' - write bf16", "model.compute_dtype=bf16"),
        ("model.device=gpu", "or 'cuda' - write cuda", "model.device=cuda"),
        ("train.steps=500_000", "'500_000' is not a whole number - write 500000", "train.steps=500000"),
        ("train.steps=500,000", "'500,000' is not a whole number - write 500000", "train.steps=500000"),
        ("rule.lr=1_000.5", "'1_000.5' is not a number or 'auto' - write 1000.5", "rule.lr=1000.5"),
    ],
)
def test_a_value_that_is_nearly_right_is_told_right(override: str, sentence: str, right: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{override.partition('=')[0]}: ")) as e:
        reading.read_recipe("two-sided", [override])
    assert sentence in str(e.value)
    reading.read_recipe("two-sided", [right])
