"""Every task trains, resumes and replays; its losses are those of a plain forward; goals without a gradient."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import train as play_run

from zoedge.commands import finetune
from zoedge.core import digests, engine
from zoedge.core.types import Record
from zoedge.errors import DataError, UsageError
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.sections import Model
from zoedge.run import folder as run_folder
from zoedge.run import replay, setup
from zoedge.run.display import Live, Plain
from zoedge.run.evaluate import Score, evaluate, format_scores
from zoedge.scoring.models.loading import load_base
from zoedge.scoring.rows.row import Row
from zoedge.scoring.tasks import _objective
from zoedge.scoring.tasks._examples import Examples
from zoedge.scoring.tasks._prompt import FILTERS, render_template, template_fields
from zoedge.scoring.tasks._training import token_losses

TASKS = {  # name -> (overrides, a row of number i)
    "choose": (
        "{name: choose, prompt: '{text}', option: ' {choice}', choices: [a, b, c], label: label}",
        lambda i: {"text": f"film {i}", "a": "great fun", "b": "dull", "c": f"so so {i}", "label": i % 3},
    ),
    "generate": (
        "{name: generate, prompt: '{text} was', answer: answers, tokens: 3}",
        lambda i: {"text": f"the film {i}", "answers": ["great" if i % 2 else "very dull", "it"]},
    ),
    "lm": ("{name: lm}", lambda i: {"text": "the plot is great and " * (1 + i % 3) + str(i)}),
    "chat": (
        "{name: chat, format: plain}",
        lambda i: {"prompt": f"the film {i} was", "completion": " great" if i % 2 else " dull"},
    ),
}
OBJECTIVES = [("choose", "accuracy"), ("generate", "f1"), ("generate", "exact_match"), ("classify", "accuracy")]


def rows_file(folder: Path, task: str, count: int = 24) -> Path:
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(TASKS[task][1](i)) + "\n" for i in range(count)))
    return path


def overrides(folder: Path, task: str, *more: str) -> list[str]:
    own = [f"task={TASKS[task][0]}", f"data.train={rows_file(folder, task)}"] if task in TASKS else []
    return [*own, "data.valid={split: 4}", "data.test={split: 6}", "train.steps=6", "space.layers=all", *more]


# -- runs


@pytest.mark.parametrize("layers", ["all", "last 2"])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains_resumes_and_replays(task: str, layers: str, recipe_file: Path, tmp_path: Path) -> None:
    settings = overrides(tmp_path, task, f"space.layers={layers}")
    whole = play_run(recipe_file, tmp_path / "a", overrides=settings)
    play_run(recipe_file, tmp_path / "b", until=2, overrides=settings)
    assert play_run(recipe_file, tmp_path / "b", overrides=settings) == whole
    with Log.open(tmp_path / "a" / run_folder.LOG_FILE) as log:
        assert all(record.g[0] for record in log) and not any(record.flags for record in log)
        run = replay.build_replay_run(log)
        for _ in engine.play(run, len(log)):
            pass
        assert digests.digest(run.space) == whole[0]


@pytest.mark.parametrize(("task", "objective"), OBJECTIVES)
def test_a_goal_without_a_gradient_trains_and_replays(
    task: str, objective: str, recipe_file: Path, tmp_path: Path
) -> None:
    settings = overrides(tmp_path, task, f"task.objective={objective}", "estimator.eps=1.0")
    final, _ = play_run(recipe_file, tmp_path / "a", overrides=settings)
    with Log.open(tmp_path / "a" / run_folder.LOG_FILE) as log:
        losses = [loss for record in log for loss in record.losses]
        assert all(0 <= loss <= 1 and loss * 4 * 3 * 5 * 7 == pytest.approx(round(loss * 420)) for loss in losses)
        run = replay.build_replay_run(log)
        for _ in engine.play(run, len(log)):
            pass
        assert digests.digest(run.space) == final


# -- losses


def plain_losses(base: Any, examples: Examples, chosen: list[int]) -> list[float]:
    """Cross-entropy of each scored token, by the library's own forward of one sequence at a time."""
    found = []
    for i in chosen:
        with torch.inference_mode():
            logits = base.model(input_ids=torch.tensor([examples.tokens[i]])).logits[0].double()
        log_p = torch.log_softmax(logits, -1)
        found += [-float(log_p[row, target]) for row, target in zip(examples.rows[i], examples.targets[i])]
    return found


@pytest.fixture(scope="module")
def bases(llama: Path, opt: Path) -> dict[str, Any]:
    """Float32, so that comparisons are close. Not trained on: no adapter."""
    return {p.name: load_base(Model(source=str(p), quantization="none", compute_dtype="fp32")) for p in (llama, opt)}


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("task", TASKS)
def test_the_batchs_mean_is_the_cross_entropy_of_a_scored_token(task: str, family: str, bases: Any) -> None:
    base, made = bases[family], read_recipe("two-sided", [f"task={TASKS[task][0]}"]).task
    rows = [Row(f"f:{i}", TASKS[task][1](i)) for i in range(5)]
    examples, _ = made.encode(rows, base.tokenizer, 90, "error")
    scores = token_losses(base, examples.collate([3, 0, 4]), 2)
    wanted = plain_losses(base, examples, [3, 0, 4])
    assert scores.shape == (2, 3) and scores.dtype == torch.float64
    assert scores.mean(1).tolist() == pytest.approx([math.fsum(wanted) / len(wanted)] * 2, rel=1e-4)
    assert made.make_training(examples, 0, 2).score(base, examples.collate([3, 0, 4]), 2).tolist() == scores.tolist()
    whole = plain_losses(base, examples, list(range(5)))
    judged = made.make_training(examples, 0, 2).evaluate(base, examples, 4)
    assert judged["loss"] == pytest.approx(math.fsum(whole) / len(whole), rel=1e-4) and judged["count"] == 5


@pytest.mark.parametrize("objective", ["loss", "accuracy"])
def test_the_likeliest_candidate_is_by_the_mean_of_its_tokens(objective: str, bases: Any) -> None:
    base = bases["llama"]
    made = read_recipe("two-sided", [f"task={TASKS['choose'][0]}", f"task.objective={objective}"]).task
    rows = [Row(f"f:{i}", TASKS["choose"][1](i)) for i in range(6)]
    examples, _ = made.encode(rows, base.tokenizer, 90, "error")
    picks = []
    for some in examples.choices:
        means = [sum(x) / len(x) for i in range(3) if (x := plain_losses(base, some, [i]))]
        picks.append(means.index(min(means)))
    right = [float(pick == i % 3) for i, pick in enumerate(picks)]
    task = made.make_training(examples, 0, 6)
    found = task.evaluate(base, examples, 4)
    assert found["accuracy"] == sum(right) / 6 and found["majority"] == pytest.approx(2 / 6)
    if objective == "accuracy":
        batch = task.batch(0)
        assert task.score(base, batch, 2).tolist() == [[1 - right[i] for i in batch.index]] * 2
        assert batch.tokens == batch.flat.branches.ids.numel() == 6 * 7 < batch.flat.ids.numel() == 18 * 6


@pytest.mark.parametrize("good", [" great", " great fun"])
def test_classified_right_or_wrong(good: str, bases: Any) -> None:
    """Options of one token, and of several: 1 where the likeliest option is not the label."""
    base = bases["llama"]
    options = f"options: {{negative: ' terrible', positive: '{good}'}}"
    made = read_recipe("two-sided", [f"task={{name: classify, objective: accuracy, {options}}}"]).task
    words = ("the film", "a plot", "very", "it was so dull")
    rows = [Row("f", {"text": text, "label": label}) for text in words for label in ("negative", "positive")]
    examples, _ = made.encode(rows, base.tokenizer, 90, "error")
    losses = made.make_training(examples, 0, 8).score(base, examples.collate(range(8)), 2)
    softer = made.make_training(examples, 0, 8).option_log_probs(base, examples)
    assert losses.tolist() == [[float(int(p.argmax()) != i % 2) for i, p in enumerate(softer)]] * 2
    assert losses[0].view(4, 2).sum(1).tolist() == [1.0] * 4


def test_majority_counts_places_in_the_list(tokenizer: Any, bases: Any) -> None:
    """A candidate list's commonest right place, also where lists differ in length."""
    made = read_recipe(
        "two-sided", ["task={name: choose, prompt: '{q}', option: '{choice}', choices: [c], label: a}"]
    ).task
    rows = [Row(f"f:{i}", {"q": "it", "c": list("xyz")[: 2 + i % 2], "a": [a]}) for i, a in enumerate("yzyzx")]
    rows[4].fields["a"] = ["x", "y"]
    examples, _ = made.encode(rows, bases["llama"].tokenizer, 90, "error")
    assert made.make_training(examples, 0, 1).evaluate(bases["llama"], examples, 1)["majority"] == 3 / 5


# -- generation


def greedy(base: Any, ids: list[int], tokens: int) -> str:
    """One token at a time, without a cache, one sequence: the first line of it."""
    out: list[int] = []
    for _ in range(tokens):
        with torch.inference_mode():
            out.append(int(base.model(input_ids=torch.tensor([ids + out])).logits[0, -1].argmax()))
        if out[-1] == base.tokenizer.eos_token_id or "\n" in base.tokenizer.decode(out[-1:]):
            break
    return base.tokenizer.decode(out, skip_special_tokens=True).partition("\n")[0].strip()


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_batch_answers_as_one_prompt_at_a_time(family: str, bases: Any) -> None:
    base = bases[family]
    texts = ["the film", "a very very dull plot was it", "bright", "so good but boring and great"]
    prompts = [base.tokenizer(text).input_ids for text in texts]
    wanted = [greedy(base, ids, 12) for ids in prompts]
    assert base.generate_answers(prompts, 2, 12) == [wanted, wanted] and len(set(wanted)) > 1


def test_points_answer_for_themselves(recipe_file: Path, tmp_path: Path) -> None:
    bench = setup.Measuring.build(read_recipe(str(recipe_file), overrides(tmp_path, "generate", "space.layers=all")))
    batch = bench.task.batch(0)
    deltas = [lambda leaf, c=c: torch.full_like(leaf.value, c) for c in (0.0, 0.3)]
    with bench.space.visit(deltas):
        both = bench.task.texts(bench.base, batch, 2)
    alone = []
    for delta in deltas:
        with bench.space.visit([delta]):
            alone += bench.task.texts(bench.base, batch, 1)
    assert both == alone and both[0] != both[1]


def test_what_ends_an_answer(bases: Any) -> None:
    from zoedge.scoring.models.decode import stop_tokens

    tokenizer = bases["llama"].tokenizer
    found = stop_tokens(tokenizer)
    assert found[0] == tokenizer.eos_token_id
    assert set(found[1:]) == {i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])} and len(found) > 1


# -- goals


@pytest.mark.parametrize(
    ("output", "golds", "f1", "exact"),
    [
        ("the 16th century", ["16th century"], 1.0, 1.0),
        ("The 16th, century!", ["x", "16th century"], 1.0, 1.0),
        ("in the 16th century", ["16th century"], 0.8, 0.0),
        ("cat cat", ["cat dog"], 0.5, 0.0),
        ("dog", ["cat"], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("the", ["a"], 0.0, 1.0),
        ("theory", ["ory"], 0.0, 0.0),
    ],
)
def test_squads_metrics(output: str, golds: list[str], f1: float, exact: float) -> None:
    """Worked by hand: 0.8 = 2 * 1 * (2/3) / (1 + 2/3), 0 where no word is shared even if both are empty."""
    assert _objective.f1(output, golds) == pytest.approx(f1) and _objective.exact_match(output, golds) == exact


@pytest.fixture
def goals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's beside the recipe."""
    (tmp_path / "my_goals.py").write_text(
        "import math\n"
        "def length(examples, outputs): return [len(o) + len(e['text']) for e, o in zip(examples, outputs)]\n"
        "def broken(examples, outputs): return examples[0]['nothing']\n"
        "def short(examples, outputs): return [1.0]\n"
        "def nan(examples, outputs): return [math.nan] * len(outputs)\n"
        "def words(examples, outputs): return ['1'] * len(outputs)\n"
        "def none(examples, outputs): return None\n"
        "number = 3\n"
    )
    (tmp_path / "json.py").write_text("def loads(examples, outputs): return [0.0] * len(outputs)\n")
    (tmp_path / "wrong_goals.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    _objective.load_function.cache_clear()
    sys.modules.pop("my_goals", None)
    return "my_goals"


def test_a_function_of_the_users_is_the_reward(goals: str) -> None:
    notes = [{"where": "f:1", "row": {"text": "ab"}}, {"where": "f:2", "row": {"text": ""}}]
    assert _objective.compute_rewards(f"{goals}:length", notes, ["x", "yz"]) == [3.0, 2.0]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("my_goals:broken", r"my_goals:broken raised: KeyError: 'nothing'\."),
        ("my_goals:short", r"my_goals:short gave 1 rewards for 2 outputs\."),
        ("my_goals:nan", r"my_goals:nan gave nan for f:1: not a finite number\."),
        ("my_goals:words", r"my_goals:words gave '1' for f:1: not a finite number\."),
        ("my_goals:none", r"my_goals:none raised: TypeError: 'NoneType' object is not iterable\."),
        ("my_goals:number", r"the module my_goals has no function 'number'\."),
        ("my_goals:absent", r"the module my_goals has no function 'absent'\."),
        ("no_such_goals:f", r"there is no no_such_goals\.py in .*, where no_such_goals is looked for\."),
        ("os:system", r"there is no os\.py in .*, where os is looked for\."),
        ("subprocess:call", r"there is no subprocess\.py in .*"),
        ("json:loads", r"the name json is taken by another module\. Call the file otherwise\."),
        ("wrong_goals:f", r"wrong_goals cannot be imported from here: SyntaxError: .*\."),
    ],
)
def test_a_function_that_fails_is_told_in_one_sentence(goals: str, name: str, sentence: str) -> None:
    before = list(sys.path)
    notes = [{"where": f"f:{i}", "row": {}} for i in (1, 2)]
    with pytest.raises(DataError, match=rf"^task.objective: {sentence}$"):
        _objective.compute_rewards(name, notes, ["", ""])
    assert sys.path == before


def test_a_function_that_is_not_there_is_told_before_a_run_is_begun(
    goals: str, recipe_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"has no function 'lenght'\.$"):
        finetune.train(read_recipe(str(recipe_file), [f"task.objective={goals}:lenght"]), tmp_path / "run", Told())
    assert not (tmp_path / "run" / run_folder.LOG_FILE).exists()


@pytest.mark.parametrize("task", ["choose", "generate", "classify"])
def test_the_reward_of_what_is_chosen_or_generated(task: str, goals: str, recipe_file: Path, tmp_path: Path) -> None:
    """The outputs are the candidate's, the generated and the label's text; the loss is 1 - reward."""
    settings = overrides(tmp_path, task, f"task.objective={goals}:length")
    bench = setup.Measuring.build(read_recipe(str(recipe_file), settings))
    batch = bench.task.batch(0)
    with bench.space.visit([lambda leaf: None]):
        losses = bench.task.score(bench.base, batch, 1)[0]
        rows = [note["row"] for note in batch.notes]
        if task == "generate":
            outputs = [{text} for text in bench.task.texts(bench.base, batch, 1)[0]]
        else:
            outputs = [
                {"a", "b", "c"} and {row[k] for k in "abc"} if task == "choose" else {"negative", "positive"}
                for row in rows
            ]
    for loss, row, possible in zip(losses.tolist(), rows, outputs):
        assert 1 - loss - len(row["text"]) in {float(len(text)) for text in possible}
    score = evaluate(bench.space, bench.task, bench.base, bench.texts.test, 4)
    assert score.reward is not None and score.reward > 5 and "reward" in score.columns()


def test_what_is_rewarded_is_part_of_the_datas_identity(tokenizer: Any) -> None:
    def digest(objective: str, **change: Any) -> bytes:
        row = {"text": "a film", "a": "x", "b": "y", "c": "z", "label": 0} | change
        made = read_recipe("two-sided", [f"task={TASKS['choose'][0]}", f"task.objective={objective}"]).task
        return made.encode([Row("f:1", row)], tokenizer, 90, "error")[0].digest()

    assert digest("loss") == digest("loss", note=1) != digest("loss", c="w")
    assert digest("m:f") != digest("m:f", note=1)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("{name: classify, objective: f1}", "objective: 'f1' is not loss, accuracy or module:function"),
        ("{name: choose, objective: os.system}", "objective: 'os.system' is not loss, accuracy or module:function"),
        ("{name: generate, objective: 'a b:c'}", "objective: 'a b:c' is not loss, f1, exact_match or module:function"),
        ("{name: generate, prompt: '{text:shout}'}", "What follows a colon is a filter: strip, lower"),
        ("{name: choose, option: ' {query}'}", "option: the candidate is nowhere in it: write {choice}, or set blank"),
        ("{name: choose, choices: []}", "choices: name the fields with the candidates"),
        ("{name: generate, tokens: 0}", "task.tokens: 0 is not at least 1"),
        (
            "{name: chat, format: chatlm}",
            "format: 'chatlm' is not own or chatml or llama2 or plain or FILE.jinja - did you mean 'chatml'?",
        ),
    ],
)
def test_options_that_cannot_be_meant(task: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        read_recipe("two-sided", [f"task={task}"])


# -- templates and rows


@pytest.mark.parametrize(
    ("word", "text", "wanted"),
    [
        ("strip", " a\n", "a"), ("lower", "IT", "it"), ("capital", "is it", "Is it"), ("uncapital", "The Cat", "the Cat"),
        ("uncapital", "I am", "I am"), ("uncapital", "It", "it"), ("asked", "is it", "is it?"), ("asked", "is it?", "is it?"),
        ("unended", "He fell. ", "He fell"), ("unended", "He fell!", "He fell!"), ("connective", "cause", "because"),
        ("connective", "effect", "so"), ("bullets", "A\n@highlight\nB", "A\n- B"),
        ("lower_first", "It Was", "it Was"), ("lower_first", "I am", "i am"), ("drop_last", "It fell.", "It fell"),
        ("drop_last", "waving at camera", "waving at camer"),
    ],
)  # fmt: skip
def test_filters(word: str, text: str, wanted: str) -> None:
    assert render_template(f"<{{x:{word}}}>", Row("f:1", {"x": text})) == f"<{wanted}>"


def test_filters_follow_one_another_and_say_what_they_do_not_take() -> None:
    assert render_template("{x:strip,capital,asked} {{{y}}}", Row("f:1", {"x": " is it ", "y": 3})) == "Is it? {3}"
    assert template_fields("{b} {a:lower} {b}") == ["b", "a"] and len(FILTERS) == 10
    with pytest.raises(DataError, match=r'^f:1: field "x": "why" is not effect or cause\.$'):
        render_template("{x:connective}", Row("f:1", {"x": "why"}))


@pytest.mark.parametrize(
    ("task", "row", "sentence"),
    [
        ("choose", {"label": 4}, 'f:1: "4" (label) is not a candidate: x, y, z.'),
        ("choose", {"label": "w"}, 'f:1: "w" (label) is not a candidate: x, y, z.'),
        ("choose", {"label": None}, 'f:1: field "label": null.'),
        ("choose", {"label": ["x", "w"]}, 'f:1: "w" (label) is not a candidate: x, y, z.'),
        ("choose", {"b": ""}, 'f:1: field "b": empty.'),
        ("choose", {"b": "x", "c": "x"}, "f:1: 1 candidate in a, b, c: no choice."),
        ("generate", {"answers": []}, 'f:1: field "answers": [] is not a text or a finite number.'),
        ("generate", {"answers": ["", "b"]}, 'f:1: field "answers": empty.'),
        ("generate", {"text": None}, 'f:1: field "text": null.'),
        ("lm", {"text": " "}, 'f:1: field "text": empty.'),
        ("lm", {"text": "a"}, "f:1: one token: nothing follows it that could be scored."),
    ],
)
def test_a_bad_row_and_its_sentence(task: str, row: dict[str, Any], sentence: str, tokenizer: Any) -> None:
    good = {"text": "a film", "a": "x", "b": "y", "c": "z", "label": 0, "answers": ["b"]}
    made = read_recipe("two-sided", [f"task={TASKS[task][0]}"]).task
    with pytest.raises(DataError) as e:
        made.encode([Row("f:1", good | row), Row("f:2", good)], tokenizer, 90, "error")
    assert str(e.value) == sentence


def test_the_right_one_by_number_or_text(tokenizer: Any) -> None:
    made = read_recipe("two-sided", [f"task={TASKS['choose'][0]}"]).task
    for label, wanted in ((2, 2), ("2", 2), ("y", 1), (["z", "x"], 2)):
        row = {"text": "a film", "a": "x", "b": "y", "c": "z", "label": label}
        assert made.encode([Row("f:1", row)], tokenizer, 90, "error")[0].labels == [wanted]


@pytest.mark.parametrize("task", TASKS)
def test_rows_that_are_too_long(task: str, tokenizer: Any) -> None:
    made = read_recipe("two-sided", [f"task={TASKS[task][0]}"]).task
    rows = [Row(f"f:{i}", TASKS[task][1](i)) for i in range(3)]
    long = {"prompt" if task == "chat" else "text": "very " * 40 + "dull and"}
    rows.append(Row("f:3", rows[0].fields | long))
    with pytest.raises(DataError, match=r"^1 of 4 samples \(25.0 %\) are longer than 30 tokens .* first f:3\)\. Raise"):
        made.encode(rows, tokenizer, 30, "error")
    dropped, counts = made.encode(rows, tokenizer, 30, "drop")
    assert dropped.names == ["f:0", "f:1", "f:2"] and counts == {"truncated": 0, "dropped": 1}
    whole, _ = made.encode(rows, tokenizer, 900, "error")
    cut, counts = made.encode(rows, tokenizer, 30, "truncate")
    assert counts == {"truncated": 1, "dropped": 0} and cut.tokens[:3] == whole.tokens[:3]
    first = 0
    after, before = cut.tokens[3], whole.tokens[3]
    assert after == before[:first] + before[len(before) - len(after) + first :] and len(after) <= 30
    assert len(after) == 30 or task in ("generate", "choose")  # which leave room for what is longer
    ahead = [*after, cut.targets[3][-1]]
    assert [ahead[row + 1] for row in cut.rows[3]] == cut.targets[3]
    assert cut.targets[3] == whole.targets[3][-len(cut.targets[3]) :] and (task == "lm") == (
        len(cut.targets[3]) < len(whole.targets[3])
    )


def test_an_answer_that_leaves_no_room(tokenizer: Any) -> None:
    made = read_recipe("two-sided", [f"task={TASKS['generate'][0]}", "task.tokens=20"]).task
    with pytest.raises(DataError, match=r"^f:1: 20 tokens of answer leave no room for a prompt in 20\. Raise"):
        made.encode([Row("f:1", TASKS["generate"][1](0))], tokenizer, 20, "truncate")


def test_the_first_examples_keep_what_belongs_to_them(tokenizer: Any) -> None:
    rows = [Row(f"f:{i}", TASKS["choose"][1](i)) for i in range(4)]
    made = read_recipe("two-sided", [f"task={TASKS['choose'][0]}", "task.objective=m:f"]).task
    examples, _ = made.encode(rows, tokenizer, 90, "error")
    one = examples.head(2)
    assert one.digest() == made.encode(rows[:2], tokenizer, 90, "error")[0].digest() != examples.digest()
    assert [note["row"] for note in one.notes] == [row.fields for row in rows[:2]] and len(one.choices) == 2
    assert [note["where"] for note in examples.collate([3, 1]).notes] == ["f:3", "f:1"]


# -- what is shown


def test_a_score_shows_what_applies() -> None:
    chosen = Score(0.5, 10, accuracy=0.75, majority=0.5)
    written = Score(0.5, 10, f1=0.25, exact_match=0.125)
    assert chosen.columns() == {"accuracy": "75.0 %", "loss": "0.5000"}
    assert chosen.sentence() == "accuracy 75.0 %, 50.0 % by the commonest label, loss 0.5000"
    assert written.sentence() == "F1 25.0 %, exact match 12.5 %, loss 0.5000"
    both = Score(0.5, 10, 0.75, 0.5, 0.5)
    assert both.sentence() == "accuracy 75.0 % raw, 50.0 % calibrated, 50.0 % by the commonest label, loss 0.5000"
    assert (
        format_scores({"zero-shot": None, "after": both}, "rows")[-1]
        == "on 10 rows; always the commonest label: 50.0 %"
    )
    assert (
        format_scores({"zero-shot": written, "after": written}, "rows")[-1] == "on 10 rows"
        and len(format_scores({"a": written}, "x")) == 3
    )
    assert Score.of({"loss": 0.5, "count": 10, "f1": 0.25, "exact_match": 0.125, "event": "after"}) == written


def test_the_panel_has_a_column_for_what_applies() -> None:
    from rich.console import Console

    panel, console = Live(10), Console(width=100, record=True)
    panel.title, panel.scored = "x", [(5, Score(0.5, 10, f1=0.25, exact_match=0.125))]
    console.print(panel.draw(panel.figures(Record(4, 4, 1e-3, (1.0,), (1.0,)))))
    text = console.export_text()
    assert "exact match" in text and "25.0 %" in text and "12.5 %" in text and "raw" not in text


class Told(Plain):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.mark.parametrize(("eps", "warns"), [("1e-4", True), ("1.0", False)])
def test_nothing_that_moves_is_said_once(eps: str, warns: bool, recipe_file: Path, tmp_path: Path) -> None:
    settings = [
        "task.objective=accuracy",
        f"estimator.eps={eps}",
        "train.steps=45",
        "eval.every=99",
        "output.export=[]",
    ]
    show = Told()
    finetune.train(read_recipe(str(recipe_file), settings), tmp_path / "run", show)
    said = [text for text in show.warned if text.startswith("gamma was 0")]
    assert said == show.warned, "a goal that takes few values is not called rough"
    assert said == (
        [
            "gamma was 0 at steps 1..20: nothing is being learnt. accuracy takes few values, and no prediction of a batch "
            "flips; an adapter that starts at 0 (LoRA's B) all but hides a small estimator.eps. Raise estimator.eps "
            "(tenfold) or train.batch, or set task.objective: loss."
        ]
        if warns
        else []
    )
