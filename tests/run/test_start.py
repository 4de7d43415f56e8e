"""`space.start: probe` in whole runs: computed once, held in the log, rebuilt from the log alone, exported as plain LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import Done
from helpers.models import WORDS
from helpers.runs import replay_to
from helpers.scores import CLOSE, far, plain_logits

from zoedge.commands.finetune import finetune
from zoedge.core import digests
from zoedge.core.canonical import encode_canonical
from zoedge.errors import DamagedError, DataError, IdentityError, UsageError
from zoedge.log.log import Log
from zoedge.methods.spaces._frozen import FrozenTerm
from zoedge.recipe.reading import read_recipe
from zoedge.run import folder as run_folder
from zoedge.run import start as run_start
from zoedge.run.replay import build_replay_run
from zoedge.run.setup import Measuring
from zoedge.run.trained import load_trained
from zoedge.scoring.tasks._training import mean_loss

STARTED = ("space.start=probe", "train.steps=6", "eval={every: 3, calibrate: 16}", "log.hash_every=2")


def noted(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in run_folder.read_metrics(folder) if line["event"] == event]


@pytest.fixture
def started(recipe_file: Path) -> Path:
    """The folder of a finished run that began with a probe."""
    outcome = finetune(str(recipe_file), *STARTED)
    assert outcome is not None
    return outcome.folder


def test_the_start_separates_what_zero_shot_does_not(started: Path) -> None:
    (line,) = noted(started, "start")
    assert line["passes"] == 50 and line["features"] > 1 and line["loss"] < 0.7 * line["tried"]["0 features, ridge 0"]
    (before,), (after,) = noted(started, "before"), noted(started, "after")
    assert after["loss"] < before["loss"]


def test_the_log_alone_rebuilds_it(started: Path, zoedge: Callable[..., Done], tmp_path: Path) -> None:
    with Log.open(started / "run.zlog") as log:
        space: Any = replay_to(log)
        trained, *_ = load_trained(str(started))
        own: Any = trained.space
        assert (
            space._frozen is not None
            and torch.equal(space._frozen.a, own._frozen.a)
            and torch.equal(space._frozen.b, own._frozen.b)
        )
        assert space.describe() == log.header.about["space"]
    done = zoedge("verify", started, "--replay", "--adapter", started / "adapter")
    assert done.code == 0 and "tensors equal the replayed ones" in done.out
    assert zoedge("verify", started, "--against", started / "recipe.yaml").code == 0
    assert zoedge("replay", started, "-o", tmp_path / "again").code == 0
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (started / "adapter" / name).read_bytes()


def test_packed_and_shared_logs_have_it(
    started: Path, zoedge: Callable[..., Done], tmp_path: Path, llama: Path
) -> None:
    name = "adapter_model.safetensors"
    assert zoedge("pack", started, "-o", tmp_path / "small.zpack").code == 0
    assert zoedge("replay", tmp_path / "small.zpack", "-o", tmp_path / "from pack").code == 0
    assert zoedge("pack", started, "-o", tmp_path / "run.zoe").code == 0
    assert zoedge("apply", tmp_path / "run.zoe", "--base", llama, "-o", tmp_path / "applied").code == 0
    for folder in ("from pack", "applied"):
        assert (tmp_path / folder / name).read_bytes() == (started / "adapter" / name).read_bytes()


def test_a_killed_run_goes_on_with_the_start_in_its_log(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(str(recipe_file), *STARTED, run_dir=tmp_path / "whole")
    assert whole is not None
    path = tmp_path / "cut" / "run.zlog"
    path.parent.mkdir()
    with Log.open(whole.folder / "run.zlog") as log:
        keep = log.header.length + 5 * log.header.slot_size
        state = log.state.end
    path.write_bytes((whole.folder / "run.zlog").read_bytes()[:keep])
    monkeypatch.setattr(run_start, "fit_start", lambda measuring: pytest.fail("computed again"))
    finetune(str(recipe_file), *STARTED, run_dir=path.parent)
    with Log.open(path) as log:
        assert log.state.end == state and log.size == whole.size


def test_a_branch_keeps_its_parents_start(
    started: Path, recipe_file: Path, zoedge: Callable[..., Done], tmp_path: Path
) -> None:
    longer = [*STARTED, "train.steps=8", "rule.schedule=constant"]
    done = zoedge(
        "finetune", recipe_file, *longer, "--from", f"{started}@4", "--run-dir", tmp_path / "branch", "--quiet"
    )
    assert done.code == 0, done.err
    with Log.open(started / "run.zlog") as parent, Log.open(tmp_path / "branch" / "run.zlog") as branch:
        assert parent.header.about["space"] == branch.header.about["space"] and len(branch) == 8
    assert zoedge("verify", tmp_path / "branch", "--replay").code == 0


def test_peft_loads_it_as_plain_lora(started: Path) -> None:
    from peft import PeftModel

    trained, *_ = load_trained(str(started))
    space: Any = trained.space
    assert "mlp.down_proj" in space._frozen.name and space._frozen.name not in space.shapes  # q and v alone are trained
    config = json.loads((started / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4 + space._frozen.rank and config["lora_alpha"] == 8 / 4 * config["r"]
    words = trained.base.tokenizer(" ".join(WORDS[:12])).input_ids
    ids = torch.tensor([words])
    batch: Any = SimpleNamespace(
        ids=ids,
        rows=torch.arange(len(words))[None],
        index=[0],
        branches=None,
        examples=SimpleNamespace(tokens=[words], whole=None),
    )
    with space.visit([lambda leaf: None]):
        columns = torch.arange(trained.base.model.config.vocab_size)
        ours = trained.base.logits(trained.base.hidden_states(batch, 1), columns)
    plain, *_ = load_trained(str(started))
    model = PeftModel.from_pretrained(plain.base.model, started / "adapter").eval()
    assert far(ours, plain_logits(model, batch)) < 3 * CLOSE


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("gguf-lora", "[q_proj, v_proj]"),
        *(
            pytest.param(kind, targets, marks=pytest.mark.slow)
            for kind, targets in (("peft", "all"), ("merged", "[q_proj, v_proj]"), ("gguf-lora", "all"))
        ),
    ],
)
def test_every_export_is_read_back_as_trained(
    recipe_file: Path, zoedge: Callable[..., Done], tmp_path: Path, kind: str, targets: str
) -> None:
    more = [f"space.targets={targets}", "space.alpha=12", "output.export=[]"]
    outcome = finetune(str(recipe_file), *STARTED, *more)
    assert outcome is not None
    out = tmp_path / ("out.gguf" if kind == "gguf-lora" else "out")
    done = zoedge("export", outcome.folder, "--to", kind, "--check", "-o", out)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    "change",
    [
        {"values": "!"},
        {"shape": [64, 128, 10**6]},
        {"shape": [64, 128, -1]},
        {"shape": [64, 128, True]},
        {"module": 3},
        {"more": 1},
        {"values": "~" * 480},
    ],
)
def test_a_start_that_is_none_is_told(started: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with Log.open(started / "run.zlog") as log:
        about = dict(log.header.about)
        about["space"] = {**about["space"], "start": {**about["space"]["start"], **change}}
        forged = replace(log.header, block=encode_canonical(about))
    with Log.create(tmp_path / "forged.zlog", forged) as log, pytest.raises(DamagedError):
        build_replay_run(log)


def test_another_start_is_not_taken_for_the_logs_own(started: Path, tmp_path: Path) -> None:
    with Log.open(started / "run.zlog") as log:
        about = dict(log.header.about)
        term = FrozenTerm.read(about["space"]["start"])
        other = FrozenTerm.of(term.name, term.a * 1.5, term.b)
        forged = replace(
            log.header, block=encode_canonical({**about, "space": {**about["space"], "start": other.describe()}})
        )
    with Log.create(tmp_path / "forged.zlog", forged) as log, pytest.raises(IdentityError, match="initial values"):
        build_replay_run(log)


def test_a_term_is_described_to_the_bit() -> None:
    random = torch.Generator().manual_seed(0)
    term = FrozenTerm.of("m", torch.randn(3, 50, generator=random) * 1e-3, torch.randn(20, 3, generator=random) * 1e3)
    again = FrozenTerm.read(json.loads(json.dumps(term.describe())))
    assert again.name == "m" and torch.equal(again.a, term.a) and torch.equal(again.b, term.b)
    assert far(again.a, again.a.bfloat16().float()) == 0


def test_the_same_run_on_the_same_machine_is_the_same_to_the_bit(recipe_file: Path, tmp_path: Path) -> None:
    runs = [finetune(str(recipe_file), *STARTED, run_dir=tmp_path / name) for name in "ab"]
    assert runs[0] is not None and runs[1] is not None and runs[0].fingerprint == runs[1].fingerprint


def test_masked_models_start_so_too(recipe_file: Path, roberta: Path) -> None:
    task = 'task={name: mlm, prompt: "{text} It was{mask}.", options: {negative: " terrible", positive: " great"}}'
    outcome = finetune(str(recipe_file), *STARTED, f"model.source={roberta}", task, "space.targets=all")
    assert outcome is not None and outcome.before is not None and outcome.after is not None
    (line,) = noted(outcome.folder, "start")
    assert line["loss"] < line["tried"]["0 features, ridge 0"]
    with Log.open(outcome.folder / "run.zlog") as log:
        assert digests.digest(replay_to(log)).startswith(log.state.end or b"?")


# -- answers over the whole vocabulary

ANSWERED = {
    "chat": "{name: chat, format: plain}",
    "generate": '{name: generate, prompt: "{prompt}", answer: completion, tokens: 6}',
    "choose": '{name: choose, prompt: "{prompt}", option: " {choice}", choices: [completion, wrong], label: completion}',
}


def answered(recipe_file: Path, task: str, count: int = 80) -> list[str]:
    """Write rows whose answer follows from the question's last words, and return the changes of the recipe."""
    path = recipe_file.parent / "answered.jsonl"
    answers = ("it is great fun", "it is dull")
    with path.open("w") as file:
        for i in range(count):
            words = [WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(3 + i % 9)]
            row = {"prompt": " ".join([*words, ("fun bright", "dull boring")[i % 2]]), "completion": answers[i % 2]}
            file.write(json.dumps({**row, "wrong": answers[1 - i % 2]}) + "\n")
    return [*STARTED, f"data.train={path}", f"task={ANSWERED[task]}"]


@pytest.mark.parametrize("task", ANSWERED)
def test_answers_start_so_too(recipe_file: Path, zoedge: Callable[..., Done], task: str, tmp_path: Path) -> None:
    done = zoedge("finetune", recipe_file, *answered(recipe_file, task), "space.targets=all", "--plain")
    assert done.code == 0, done.err
    assert "closed-form start from one pass over 50 rows" in done.out
    folder = recipe_file.parent / "runs" / "tiny"
    (line,), (closed,) = noted(folder, "start"), noted(folder, "closed_form")
    nothing = line["tried"]["0 features, ridge 0"]
    assert line["passes"] == 50 and line["share"] == 1 and line["features"] > 0
    assert line["loss"] < 0.75 * nothing and closed["loss"] < 0.75 * noted(folder, "before")[0]["loss"]
    done = zoedge("verify", folder, "--replay", "--adapter", folder / "adapter")
    assert done.code == 0 and "tensors equal the replayed ones" in done.out
    assert zoedge("verify", folder, "--against", folder / "recipe.yaml").code == 0
    assert zoedge("replay", folder, "-o", tmp_path / "again").code == 0
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (folder / "adapter" / name).read_bytes()
    assert zoedge("export", folder, "--to", "peft", "--check", "-o", tmp_path / "out").code == 0
    shown = zoedge("eval", folder, "--json")
    assert json.loads(shown.out)["the start"]["loss"] == pytest.approx(closed["loss"], rel=1e-5)


def test_a_run_has_the_loss_that_the_start_foretold(recipe_file: Path) -> None:
    more = answered(recipe_file, "generate")
    outcome = finetune(str(recipe_file), *more, "train.steps=1", "rule.lr=1e-9", "data.valid=null", "data.test=null")
    assert outcome is not None
    trained, log, _ = load_trained(str(outcome.folder))
    measuring = Measuring.build(trained.recipe, log.header)
    with measuring.space.visit([lambda leaf: None]):
        loss = mean_loss(measuring.base, measuring.texts.train)
    assert loss == pytest.approx(noted(outcome.folder, "start")[0]["loss"], abs=1e-4)


def test_a_few_answers_take_a_bias_off(recipe_file: Path, zoedge: Callable[..., Done]) -> None:
    done = zoedge("finetune", recipe_file, *answered(recipe_file, "chat", 40), "--plain")
    assert done.code == 0 and "the bias for some tokens is taken off (fewer than 16 rows:" in done.out
    (line,) = noted(recipe_file.parent / "runs" / "tiny", "start")
    assert line["features"] == 1 and line["tried"] == {}


def test_options_of_several_tokens_are_fitted_as_answers(recipe_file: Path) -> None:
    """Their first token may be the same, so that the second one alone tells the labels apart."""
    words = 'task.options={negative: " was dull", positive: " was fun"}'
    outcome = finetune(str(recipe_file), words, *STARTED, "train.steps=1", "rule.lr=1e-9")
    assert outcome is not None
    (line,) = noted(outcome.folder, "start")
    assert line["passes"] == 50 and line["features"] >= 1
    (before,), (after,) = noted(outcome.folder, "before"), noted(outcome.folder, "after")
    assert after["loss"] < before["loss"] - 0.02 and after["accuracy"] >= before["accuracy"]


# -- what has no start


def test_a_task_without_labels_has_none(recipe_file: Path) -> None:
    with pytest.raises(
        UsageError, match=r"space\.start: probe is fitted to right answers, and rows of task lm have none"
    ):
        read_recipe(str(recipe_file), ["space.start=probe", "task=lm"])


def test_other_spaces_and_several_have_none(recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=r"space\.start: unknown key"):
        read_recipe(str(recipe_file), ["space={name: prompt, start: probe}"])
    with pytest.raises(UsageError, match="goes with no other space"):
        read_recipe(str(recipe_file), ["space={name: several, of: {lora: {start: probe}, prompt: {tokens: 2}}}"])


def test_rows_of_one_label_are_refused_by_its_name(recipe_file: Path, reviews: Path, tmp_path: Path) -> None:
    rows = [line for line in reviews.read_text().splitlines() if json.loads(line)["label"] == "positive"]
    (tmp_path / "one.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"all 40 training rows have the label positive"):
        finetune(str(recipe_file), *STARTED, f"data={{train: {tmp_path / 'one.jsonl'}}}")


def test_few_rows_take_the_bias_off(recipe_file: Path, reviews: Path, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text("\n".join(reviews.read_text().splitlines()[:10]) + "\n")
    outcome = finetune(str(recipe_file), *STARTED, f"data={{train: {tmp_path / 'few.jsonl'}}}")
    assert outcome is not None
    (line,) = noted(outcome.folder, "start")
    assert line["features"] == 1 and line["tried"] == {} and line["ridge"] is None


def test_old_recipes_keep_their_digest(recipe_file: Path) -> None:
    assert "start" not in read_recipe(str(recipe_file)).resolved()["space"]
    assert read_recipe(str(recipe_file), ["space.start=probe"]).resolved()["space"]["start"] == "probe"


# -- what stands beside a run, and what is delivered


def test_a_run_without_a_start_is_told_what_the_closed_form_reaches(
    recipe_file: Path, zoedge: Callable[..., Done]
) -> None:
    done = zoedge("finetune", recipe_file, "train.steps=4", "eval={every: 2}", "--plain")
    assert done.code == 0 and "closed form " in done.out and "closed-form start (50 passes of a row)" in done.out
    assert "note     the closed form alone has a lower loss" in done.out and "space.start=probe" in done.out
    with Log.open(Path(done.out.split("log      ")[1].split()[0])) as log:
        folder, about = log.path.parent, log.header.about
    assert "start" not in about["space"]
    (line,) = noted(folder, "closed_form")
    (after,) = noted(folder, "after")
    assert line["passes"] == 50 and not line["begins"] and line["loss"] < after["loss"]
    again = zoedge("finetune", recipe_file, "train.steps=4", "eval={every: 2}", "--plain")
    assert "closed form " in again.out and len(noted(folder, "closed_form")) == 1
    shown = zoedge("eval", folder, "--json")
    assert json.loads(shown.out)["closed form"]["loss"] == pytest.approx(line["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "more", [["eval.closed_form=false"], ["task=lm"], ['task.options={a: " great fun", b: " dull"}', "task.label=kind"]]
)
def test_where_there_is_no_closed_form_nothing_is_said(
    recipe_file: Path, reviews: Path, tmp_path: Path, zoedge: Callable[..., Done], more: list[str]
) -> None:
    rows = [json.loads(line) for line in reviews.read_text().splitlines()]
    (tmp_path / "kinds.jsonl").write_text(
        "".join(json.dumps({**r, "kind": "ab"[r["label"] == "positive"]}) + "\n" for r in rows)
    )
    done = zoedge("finetune", recipe_file, "train.steps=2", f"data.train={tmp_path / 'kinds.jsonl'}", *more, "--plain")
    assert done.code == 0, done.err
    assert "closed form" not in done.out and "closed-form" not in done.out


def test_rows_of_one_label_have_no_closed_form_beside_a_run(
    recipe_file: Path, reviews: Path, tmp_path: Path, zoedge: Callable[..., Done]
) -> None:
    rows = [line for line in reviews.read_text().splitlines() if json.loads(line)["label"] == "positive"]
    (tmp_path / "one.jsonl").write_text("\n".join(rows) + "\n")
    done = zoedge("finetune", recipe_file, "train.steps=2", f"data={{train: {tmp_path / 'one.jsonl'}}}", "--plain")
    assert done.code == 0 and "closed form" not in done.out, done.err


def test_steps_that_do_not_beat_the_start_are_not_delivered(
    recipe_file: Path, zoedge: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation rows choose by themselves, and the start is one of what they choose among."""
    recipe = read_recipe(str(recipe_file), [*STARTED, "rule.lr=3"])
    assert recipe.eval.select == "best" and ("eval.select", "best") in [item[:2] for item in recipe.derived]
    done = zoedge("finetune", recipe_file, *STARTED, "rule.lr=3", "--plain")
    assert done.code == 0, done.err
    assert "chosen   step 0, the start: no step that was looked at had a lower validation loss" in done.out
    folder = recipe_file.parent / "runs" / "tiny"
    (start,), (after,) = noted(folder, "closed_form"), noted(folder, "after")
    assert after["step"] == 0 and after["loss"] == pytest.approx(start["loss"], rel=1e-6)
    looks = {line["step"]: line["loss"] for line in noted(folder, "valid")}
    assert set(looks) == {0, 3, 6} and min(looks.values()) == looks[0]
    assert zoedge("verify", folder, "--replay", "--at", 0, "--adapter", folder / "adapter").code == 0


def test_without_validation_rows_the_last_step_is_delivered(recipe_file: Path) -> None:
    assert read_recipe(str(recipe_file), ["eval={every: 3}"]).eval.select == "best"
    assert read_recipe(str(recipe_file), ["eval={every: 3}", "data.valid=null"]).eval.select == "last"
    assert read_recipe(str(recipe_file), ["eval.select=last"]).eval.select == "last"


NO_METHOD = """version: 1
name: short
model: {{source: "{model}"}}
data: {{train: "{rows}", test: {{split: 20}}, max_length: 64}}
task: {{name: classify, prompt: "{{text}} It was", options: {{negative: " terrible", positive: " great"}}}}
train: {{steps: 3, batch: 4}}
output: {{dir: "{out}"}}
"""


def write_short(folder: Path, llama: Path, rows: Path) -> Path:
    path = folder / "short.yaml"
    path.write_text(NO_METHOD.format(model=llama, rows=rows, out=folder / "runs"), encoding="utf-8")
    return path


def test_a_recipe_without_a_method_begins_so(
    tmp_path: Path, llama: Path, reviews: Path, zoedge: Callable[..., Done]
) -> None:
    done = zoedge("finetune", write_short(tmp_path, llama, reviews), "--plain")
    assert done.code == 0 and "closed-form start from one pass over 60 rows" in done.out + done.err, done.err
    with Log.open(tmp_path / "runs" / "short" / "run.zlog") as log:
        assert "start" in log.header.about["space"] and len(log[0].g) == 4, "Gauss-Newton's four directions"
    assert zoedge("verify", tmp_path / "runs" / "short", "--replay").code == 0


def test_where_none_can_be_fitted_it_begins_without(
    tmp_path: Path, llama: Path, reviews: Path, zoedge: Callable[..., Done]
) -> None:
    rows = tmp_path / "one.jsonl"
    lines = reviews.read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join(line for line in lines if "positive" in line), encoding="utf-8")
    path = write_short(tmp_path, llama, rows)
    done = zoedge("finetune", path, "--plain")
    said = done.out + done.err
    assert done.code == 0 and "no closed-form start, which the recipe does not ask for either." in said, said
    run = tmp_path / "runs" / "short"
    with Log.open(run / "run.zlog") as log:
        assert "start" not in log.header.about["space"]
    assert zoedge("verify", run, "--replay").code == 0
    end = (run / "run.zlog").read_bytes()
    assert zoedge("finetune", path, "--plain").code == 0 and (run / "run.zlog").read_bytes() == end
    asked = zoedge("finetune", path, "space.start=probe", "--run-dir", tmp_path / "asked")
    assert asked.code != 0 and "space.start: probe" in asked.err
