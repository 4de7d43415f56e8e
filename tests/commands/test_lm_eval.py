"""eval --tasks: without lm-eval a sentence; with it, its own evaluator over a local task, against transformers' logits."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.paths import ROOT

needed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
{more}
"""
PAGE = ROOT / "docs" / "lm-eval.md"
ANSWER = """output_type: generate_until
doc_to_text: "{{text}} It was"
doc_to_target: "{{label}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]"""
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]"""


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_package_there_is_a_sentence(zoedge: Any, finished: Path) -> None:
    done = zoedge("eval", finished / "runs" / "tiny", "--tasks", "hellaswag")
    assert done.code == 2 and "--tasks needs lm-eval" in done.err and "pip install 'zoedge[eval]'" in done.err


@pytest.mark.parametrize(
    "options,said",
    [
        (["--include", "x"], "--include goes with --tasks."),
        (["--base", "x"], "--base goes with --tasks."),
        (["--compare-base"], "--compare-base goes with --tasks: without it, zero-shot stands beside"),
        (["--tasks", "arc_easy", "--data", "x"], "--data goes without --tasks."),
    ],
)
def test_options_that_do_not_go_together(options: list[str], said: str, zoedge: Any, finished: Path) -> None:
    done = zoedge("eval", finished / "runs" / "tiny", *options)
    assert done.code == 2 and said in done.err


@pytest.fixture
def tasks(tmp_path: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three tasks over the reviews."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (folder / "tiny_choice.yaml").write_text(
        block.replace("reviews.jsonl", str(reviews)).replace("reviews", "tiny_choice", 1)
    )
    for name, more in {"tiny_answer": ANSWER, "tiny_rolling": ROLLING}.items():
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=reviews, more=more))
    return folder


def numbers(out: str) -> dict[str, Any]:
    return json.loads(out.strip().splitlines()[-1])


@needed
def test_a_run_and_its_adapter_have_the_same_results(
    zoedge: Any, finished: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    names = "tiny_choice,tiny_answer,tiny_rolling"
    options = ["--tasks", names, "--include", tasks, "--limit", 6, "--json"]
    run = zoedge("eval", "runs/tiny", *options, "--compare-base")
    assert run.code == 0, run.err
    found = numbers(run.out)
    assert found["base"].keys() == found["tuned"].keys() == set(names.split(","))
    assert found["base"]["tiny_rolling"] != found["tuned"]["tiny_rolling"], "the adapter is held"
    assert 0 <= found["tuned"]["tiny_choice"]["acc,none"] <= 1
    adapter = zoedge("eval", "runs/tiny/adapter", *options, "--base", "model")
    assert adapter.code == 0, adapter.err
    assert numbers(adapter.out)["tuned"] == found["tuned"]
    Path("rows.jsonl").rename("moved.jsonl")  # what uses a trained model reads no training rows
    try:
        assert numbers(zoedge("eval", "runs/tiny", *options).out)["tuned"] == found["tuned"]
    finally:
        Path("moved.jsonl").rename("rows.jsonl")
    table = zoedge("eval", "runs/tiny", "--tasks", "tiny_choice", "--include", tasks, "--limit", 2)
    assert table.code == 0 and "|tiny_choice|" in table.out.replace(" ", "")


@needed
def test_mistakes_get_sentences(zoedge: Any, finished: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    for options, code, said in (
        (["--tasks", " ,"], 2, "--tasks: name some"),
        (["--tasks", "arc_easy", "--include", "nowhere"], 2, "--include: nowhere is not a folder of task files"),
    ):
        done = zoedge("eval", "runs/tiny", *options)
        assert done.code == code and said in done.err
    done = zoedge("eval", "runs/tiny", "--tasks", "tiny_choice", "--include", tasks, "--base", "model")
    assert done.code == 2 and "--base: of an adapter. A run's base is where its recipe says." in done.err
    done = zoedge("eval", "runs/tiny/adapter", "--tasks", "tiny_choice", "--include", tasks, "--at", "2")
    assert done.code == 2 and "an adapter is of one step" in done.err
    shutil.copytree("model", "other")
    weights = Path("other/model.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    done = zoedge("eval", "runs/tiny/adapter", "--tasks", "tiny_choice", "--include", tasks, "--base", "other")
    assert done.code == 4 and "is not the one that was trained on" in done.err
    shutil.rmtree("other")
    (tasks / "tiny_choice.yaml").write_text(TASK.format(name="tiny_choice", rows="gone.jsonl", more=ROLLING))
    done = zoedge("eval", "runs/tiny", "--tasks", "tiny_choice", "--include", tasks)
    assert done.code == 3 and "--include DIR names a folder of tasks" in done.err


@needed
@pytest.mark.slow  # lm-eval reads all of its 14,000 task files first
def test_an_unknown_task_gets_the_nearest(zoedge: Any, finished: Path) -> None:
    done = zoedge("eval", finished / "runs" / "tiny", "--tasks", "hellaswagg")
    assert done.code == 2 and "lm-eval has no 'hellaswagg' - did you mean 'hellaswag'?" in done.err


@pytest.mark.parametrize("name", ["llama", "opt"])
@needed
def test_likelihoods_are_those_of_transformers(name: str, families: dict[str, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from zoedge.commands.lm_eval import LmEvalModel
    from zoedge.recipe.sections import Model
    from zoedge.scoring.models.loading import load_base

    spec = Model(source=str(families[name]), quantization="none", compute_dtype="fp32", device="cpu")
    base = load_base(spec)
    ours, theirs = LmEvalModel(base), AutoModelForCausalLM.from_pretrained(families[name]).eval()
    asked = [
        ("the film was dull and slow", " boring"),
        ("a", " bright"),
        ("", "the cast was great"),
        ("one two", " x y"),
    ]
    found = ours.loglikelihood([SimpleNamespace(args=pair) for pair in asked], disable_tqdm=True)
    for (context, continuation), (logp, greedy) in zip(asked, found):
        if context:
            whole, before = ours.tok_encode(context + continuation), ours.tok_encode(context)
        else:
            before = [ours.prefix_token_id]
            whole = before + ours.tok_encode(continuation, add_special_tokens=False)
        with torch.no_grad():
            logits = theirs(torch.tensor([whole])).logits[0, len(before) - 1 : -1].log_softmax(-1)
        wanted = torch.tensor(whole[len(before) :])
        assert logp == pytest.approx(float(logits.gather(1, wanted[:, None]).sum()), abs=1e-3)
        assert greedy == bool((logits.argmax(-1) == wanted).all())
    long = " ".join(["the film was great and dull"] * 40)  # several windows
    (rolled,) = ours.loglikelihood_rolling([SimpleNamespace(args=(long,))], disable_tqdm=True)
    ids, total, size = ours.tok_encode(long, add_special_tokens=False), 0.0, base.context_length
    assert len(ids) > 2 * size
    for start in range(0, len(ids) - size + 1, size):
        before = ids[start - 1] if start else ours.prefix_token_id
        with torch.no_grad():
            logits = theirs(torch.tensor([[before, *ids[start : start + size - 1]]])).logits[0].log_softmax(-1)
        total += float(logits.gather(1, torch.tensor(ids[start : start + size])[:, None]).sum())
    if left := len(ids) % size:
        with torch.no_grad():
            logits = theirs(torch.tensor([ids[-size - 1 : -1]])).logits[0, -left:].log_softmax(-1)
        total += float(logits.gather(1, torch.tensor(ids[-left:])[:, None]).sum())
    assert rolled == pytest.approx(total, abs=2e-2)


@needed
def test_answers_are_the_models_own_and_end_where_told(llama: Path) -> None:
    from zoedge.commands.lm_eval import LmEvalModel
    from zoedge.errors import DataError
    from zoedge.recipe.sections import Model
    from zoedge.scoring.models.loading import load_base

    base = load_base(Model(source=str(llama), quantization="none", compute_dtype="fp32", device="cpu"))
    ours, prompt = LmEvalModel(base), "the film was"

    def ask(**options: Any) -> str:
        return ours.generate_until([SimpleNamespace(args=(prompt, {"max_gen_toks": 12, **options}))])[0]

    whole = base.generate(prompt, 12)
    assert ask(until=[]) == whole and len(whole) > 3
    assert ask(until=[whole[3]]) == whole.partition(whole[3])[0]
    with pytest.raises(DataError, match="greedily"):
        ask(do_sample=True, temperature=0.7)
    with pytest.raises(DataError, match="in a context of"):
        ask(max_gen_toks=10_000)
