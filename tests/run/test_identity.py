"""A run goes on, is verified and delivers only with the files that it was begun with; what changed is said by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.recipes import TINY, write_reviews
from helpers.runs import train

from zoedge.core.canonical import encode_canonical
from zoedge.errors import IdentityError
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import folder as run_folder
from zoedge.run import identity, setup
from zoedge.scoring.sources import file_digests


@pytest.fixture
def place(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with a recipe, rows and a model, which is the current one."""
    shutil.copytree(llama, tmp_path / "model")
    write_reviews(tmp_path / "rows.jsonl")
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stop_early(place: Path, *overrides: str) -> Path:
    """Begin a run, and leave it after two of its four steps."""
    (place / "runs").mkdir(exist_ok=True)
    train(place / "tiny.yaml", place / "runs" / "tiny", until=2, overrides=list(overrides))
    return place / "runs" / "tiny"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 64
    path.write_bytes(raw)


@pytest.fixture
def rotting(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was left early, after which a bit of its base changed while nothing that `stat` tells did."""
    monkeypatch.setattr(file_digests, "SETTLING_SECONDS", -1e9)
    monkeypatch.setattr(
        file_digests, "file_version", lambda path, stat: hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    )
    folder = stop_early(place)
    flip(place / "model" / "model.safetensors")
    return folder


@pytest.mark.parametrize("hours,code", [(0, 0), (23, 0), (25, 4)])
def test_a_bit_that_rots_is_found_after_a_day(
    zoedge: Any, rotting: Path, monkeypatch: pytest.MonkeyPatch, hours: int, code: int
) -> None:
    now = file_digests.time.time()
    monkeypatch.setattr(file_digests.time, "time", lambda: now + hours * 3600)
    done = zoedge("resume", rotting, "--plain")
    assert done.code == code
    if code:
        assert "what was trained on changed: the base model (model.source, quantization)" in done.err
    else:
        assert f"the digests of the base's files were computed {hours}.0 hours ago; after 24 hours, or with" in done.out


def test_a_bit_that_rots_is_found_by_verify(zoedge: Any, rotting: Path) -> None:
    assert zoedge("verify", rotting).code == 0
    done = zoedge("verify", rotting, "--against", "tiny.yaml")
    assert done.code == 4 and "the base model (model.source, quantization)" in done.err


# -- what decides the weights


def edit_json(path: Path, **fields: Any) -> None:
    """Change some keys of a JSON file, which is made if it is not there."""
    table = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(table | fields))


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "generation_config.json": (lambda m: edit_json(m / "generation_config.json", top_k=7), "generation_config.json"),
    "no generation_config.json": (lambda m: (m / "generation_config.json").unlink(), "-> absent"),
    "tokenizer_config.json": (
        lambda m: edit_json(m / "tokenizer_config.json", model_max_length=5),
        "tokenizer_config.json",
    ),
    "a template": (lambda m: (m / "chat_template.jinja").write_text("{{ messages }}"), "chat_template.jinja"),
    "an index": (
        lambda m: edit_json(m / "model.safetensors.index.json", metadata={}, weight_map={"a": "model.safetensors"}),
        "model.safetensors.index.json of the base (sha256 absent -> ",
    ),
    "config.json": (lambda m: edit_json(m / "config.json", rms_norm_eps=1e-4), "the base model"),
    "a shard": (lambda m: shutil.copy(m / "model.safetensors", m / "model-2.safetensors"), "the base model"),
    "a word": (
        lambda m: (m / "tokenizer.json").write_text((m / "tokenizer.json").read_text().replace("[", "[ ", 1)),
        "tokenizer.json of the base",
    ),
}


@pytest.mark.parametrize("change", FILES)
def test_a_file_of_the_base_that_changed_is_named(zoedge: Any, place: Path, change: str) -> None:
    """By resume, verify --against and what loads the trained model; the log is not touched."""
    folder = stop_early(place)
    raw = (folder / "run.zlog").read_bytes()
    edit, says = FILES[change]
    edit(place / "model")
    for command in (
        ["resume", folder],
        ["verify", folder, "--against", "tiny.yaml"],
        ["eval", folder],
        ["export", folder, "--to", "peft"],
    ):
        done = zoedge(*command)
        assert done.code == 4 and says in done.err, (command, done)
    assert (folder / "run.zlog").read_bytes() == raw


def test_files_that_nobody_reads_may_change(zoedge: Any, place: Path) -> None:
    folder = stop_early(place)
    (place / "model" / "README.md").write_text("new")
    edit_json(place / "model" / "all_results.json", loss=1)
    assert zoedge("resume", folder, "--quiet").code == 0
    assert zoedge("verify", folder, "--against", "tiny.yaml").code == 0


def test_the_type_and_quantisation_as_resolved_stand_in_the_header(place: Path) -> None:
    """`auto` stays what it was where the run began, on every device."""
    folder = stop_early(place)
    with Log.open(folder / "run.zlog") as log:
        header = log.header
    inputs = header.about["inputs"]
    assert (inputs["compute"], inputs["quantization"]) == ("float32", "none")
    assert set(inputs["files"]) == {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    other = replace(header, block=encode_canonical({**header.about, "inputs": {**inputs, "compute": "bfloat16"}}))
    recipe = read_recipe("tiny.yaml")
    with pytest.raises(IdentityError, match=r"the type of the forward \(float32 -> bfloat16\)"):
        identity.check_same_run(header, other, folder)
    assert setup.Measuring.build(recipe, other).describe_inputs()["compute"] == "bfloat16"
    fixed = read_recipe("tiny.yaml", ["model.compute_dtype=fp32"])
    assert setup.Measuring.build(fixed, other).describe_inputs()["compute"] == "float32"
    nf4 = setup.Measuring.build(read_recipe("tiny.yaml", ["model.quantization=nf4"])).describe_inputs()
    assert nf4["quantization"] == "nf4, double quantisation" and nf4["files"] == inputs["files"]


@pytest.mark.parametrize("inputs", [None, {}, 5, {"files": 5, "compute": []}, {"compute": "float64"}])
def test_a_header_without_them_or_with_nonsense_is_read(zoedge: Any, place: Path, inputs: Any) -> None:
    """An old log goes on, is verified and delivers; a stranger's ends in a sentence."""
    folder = stop_early(place)
    with Log.open(folder / "run.zlog") as log:
        header, records = log.header, list(log)
    about = {key: value for key, value in header.about.items() if key != "inputs"}
    if inputs is not None:
        about["inputs"] = inputs
    (folder / "run.zlog").unlink()
    with Log.create(folder / "run.zlog", replace(header, block=encode_canonical(about))) as log:
        for record in records:
            log.append(record._replace(seq=log.next_seq))
    done = zoedge("resume", folder, "--quiet")
    assert done.code == (0 if inputs in (None, {}, 5) else 4), done
    if done.code == 0:
        done = zoedge("verify", folder, "--against", "tiny.yaml", "--replay", "--adapter", folder / "adapter")
        assert done.code == 0 and "its header is older than digests of the tokenizer's files" in done.out
        assert zoedge("eval", folder).code == 0


# -- the held-out rows


def test_held_out_rows_that_changed_are_said_and_never_compared(zoedge: Any, place: Path) -> None:
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    for name, part in (("train", rows[:50]), ("valid", rows[50:65]), ("test", rows[65:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    recipe = (place / "tiny.yaml").read_text().replace("rows.jsonl, valid: {split: 10}", "train.jsonl, valid: valid.jsonl, "
        "test: test.jsonl").replace("every: 4", "every: 1").replace("select: last", "select: best")  # fmt: skip
    (place / "tiny.yaml").write_text(recipe)
    assert zoedge("finetune", "tiny.yaml", "--quiet").code == 0
    folder = place / "runs" / "tiny"
    assert zoedge("verify", folder, "--against", "tiny.yaml").code == 0
    assert "not what the run began with" not in zoedge("eval", folder).err
    # stopped before its third step, and then the labels of the validation rows are flipped
    with Log.open(folder / "run.zlog") as log:
        kept = log.header.length + log[2].seq * log.header.slot_size
    raw = (folder / "run.zlog").read_bytes()
    (folder / "run.zlog").write_bytes(raw[:kept])
    lines = [
        line for line in run_folder.read_metrics(folder) if line["event"] in ("valid", "before") and line["step"] <= 2
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flipped = {"positive": "negative", "negative": "positive"}
    for name in ("valid", "test"):
        part = [json.loads(line) for line in (place / f"{name}.jsonl").read_text().splitlines()]
        text = "".join(json.dumps(row | {"label": flipped[row["label"]]}) + "\n" for row in part)
        (place / f"{name}.jsonl").write_text(text)
    done = zoedge("verify", folder, "--against", "tiny.yaml")
    assert done.code == 4 and "data.valid content (sha256 " in done.err and "data.test content (sha256 " in done.err
    done = zoedge("resume", folder, "--plain")
    assert done.code == 0 and (folder / "run.zlog").read_bytes() == raw
    said = done.out + done.err
    for which in ("valid", "test"):
        assert f"data.{which} content (sha256 " in said
    assert "3 looks at former validation rows are left out: losses of two sets are not compared" in said
    fresh = run_folder.read_metrics(folder)[len(lines) :]
    assert sorted(x["step"] for x in fresh if x["event"] == "valid") == [0, 1, 2, 3, 4]
    assert [x["event"] for x in fresh if x["event"] in ("before", "after")] == ["before", "after"]
    with Log.open(folder / "run.zlog") as log:
        looks = run_folder.validation_looks(folder, log)
    assert {s: x.loss for s, x in looks.items()} == {x["step"]: x["loss"] for x in fresh if x["event"] == "valid"}
    done = zoedge("eval", folder)
    assert done.code == 0 and "warning: data.test content (sha256 " in done.err
    assert "not what the run began with" not in zoedge("eval", folder, "--data", "test.jsonl").err


def test_lines_of_older_versions_note_no_rows_and_count(tmp_path: Path) -> None:
    lines = [{"event": "valid", "step": step} for step in (4, 8)]
    assert run_folder.newest_rows(lines) is None and run_folder.lines_of_rows(lines, None) == lines
    mixed = [
        *lines,
        {"event": "valid", "step": 12, "rows_sha256": "a"},
        {"event": "valid", "step": 16, "rows_sha256": "b"},
    ]
    assert run_folder.newest_rows(mixed) == "b" and run_folder.lines_of_rows(mixed, "b") == [*lines, mixed[3]]


# -- recipe.yaml

EDITS: dict[str, tuple[Callable[[str], str], str]] = {
    "a number": (lambda s: s.replace("lr: 0.01", "lr: 0.5"), "was edited (rule.lr 0.01 -> 0.5)"),
    "a look": (lambda s: s.replace("every: 4", "every: 2"), "was edited (eval)"),
    "a key that is none": (lambda s: s + "nothing: 1\n", "cannot be read as a recipe any more ("),
    "no YAML": (lambda s: "[" + s, "cannot be read as a recipe any more ("),
    "a comment": (lambda s: "# mine\n" + s, ""),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_recipe_of_a_run_is_said(zoedge: Any, place: Path, edit: str) -> None:
    """By verify, resume and finetune, of an unfinished run and of a finished one; nothing follows it."""
    folder, (change, says) = stop_early(place), EDITS[edit]
    text = (folder / "recipe.yaml").read_text()
    assert change(text) != text
    (folder / "recipe.yaml").write_text(change(text))
    sentence = ": the recipe in the log is the one that counts"
    for command in (["verify", folder], ["resume", folder, "--plain"], ["finetune", "tiny.yaml", "--plain"]):
        done = zoedge(*command)
        assert done.code == 0 and (f"recipe.yaml {says}" in done.out and sentence in done.out) == bool(says), done
    assert "finished already" in done.out
    with Log.open(folder / "run.zlog") as log:
        assert {record.lr for record in log} != {0.5} and len(log) == 4
