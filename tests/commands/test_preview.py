"""What `zoedge preview` shows is what training scores: against the batch's tensors, and against the texts themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoedge.cli import preview as cli_preview
from zoedge.commands.preview import build_preview, split_into_spans
from zoedge.recipe.reading import read_recipe
from zoedge.run import setup
from zoedge.scoring import texts as scoring_texts
from zoedge.scoring.models.loading import load_tokenizer

TALK = [{"role": "user", "content": "Is it good?"}, {"role": "assistant", "content": "It was great"}]
CASES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "classify": ("{}", lambda i: {"text": f"the film {i} is bright", "label": ["negative", "positive"][i % 2]}),
    "several tokens": (
        '{name: classify, options: {negative: " very bad", positive: " great"}}',
        lambda i: {"text": f"the film {i} is bright", "label": ["negative", "positive"][i % 2]},
    ),
    "choose": (
        '{name: choose, prompt: "{text}"}',
        lambda i: {"text": f"the plot {i}.", "choice1": "It was good", "choice2": "It was very bad", "label": i % 2},
    ),
    "generate": (
        "{name: generate, tokens: 4}",
        lambda i: {"question": f"who is actor {i}?", "answer": ["the dull one", "x"]},
    ),
    "lm": ("lm", lambda i: {"text": f"a story of the film {i} — naïve"}),
    "chat": (
        "{name: chat, format: plain}",
        lambda i: {"messages": [{"role": "user", "content": f"Film {i}?"}, TALK[1], *TALK]},
    ),
    "mlm": (
        '{name: mlm, prompt: "{text} It was{mask}."}',
        lambda i: {"text": f"the film {i} is bright", "label": ["negative", "positive"][i % 2]},
    ),
}


def written(case: str, folder: Path, model: Path) -> Path:
    task, row = CASES[case]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(12)))
    task = "classify" if task == "{}" else task
    (folder / "my.yaml").write_text(
        f'version: 1\nmodel: {{source: "{model}"}}\ndata: {{train: "{folder}/rows.jsonl", valid: {{split: 3}}, '
        f"max_length: 90}}\ntask: {task}\ntrain: {{batch: 4}}\nseed: 3\n"
    )
    return folder / "my.yaml"


@pytest.mark.parametrize("case", CASES)
def test_what_is_shown_is_what_is_scored(case: str, tmp_path: Path, llama: Path, roberta: Path) -> None:
    model = roberta if case == "mlm" else llama
    recipe = read_recipe(str(written(case, tmp_path, model)))
    found = build_preview(recipe, 6)
    tokenizer = load_tokenizer(model)
    texts = scoring_texts.load_datasets(recipe.data, recipe.task, recipe.seed, tokenizer, 90, len(tokenizer))
    task = recipe.task.make_training(texts.train, recipe.seed, recipe.train.batch)
    examples, per = texts.train, texts.train.sequences_each
    order = [i for step in (0, 1) for i in texts.train.plan(4, 3, step)][:6]
    assert [row.where for row in found.rows] == [examples.names[i] for i in order] and len(found.rows) == 6
    batch = task.batch(0)
    for n, (row, i) in enumerate(zip(found.rows, order)):
        assert len(row.sequences) == per
        for j, sequence in enumerate(row.sequences):
            ids = [token for piece in sequence.pieces for token in piece.ids]
            s = i * per + j
            one = case in ("classify", "mlm")
            targets = [examples.targets[s][examples.labels[i]]] if one else examples.targets[s]
            assert sequence.scored == targets
            if n < 4:
                row_of_batch = batch.targets[n * per + j].tolist()
                assert [t for t in row_of_batch if t >= 0] == examples.targets[s]
            if case == "mlm":
                place = examples.rows[s][0]
                assert [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]] == examples.tokens[s]
                assert ids[place] == targets[0]
            else:
                assert ids[:-1] == examples.tokens[s], "what a forward reads"
                assert [ids[r + 1] for r in examples.rows[s]] == targets
            assert "".join(piece.text for piece in sequence.pieces) == tokenizer.decode(ids)
        if case in ("classify", "several tokens", "mlm"):
            assert row.label == list(recipe.task.options)[examples.labels[i]]
            shown = "".join(p.text for p in row.sequences[row.right].pieces if p.kind == "scored")
            assert shown == recipe.task.options[row.label]
    assert found.lengths == [len(ids) for ids in examples.tokens] and found.sizes == {"train": 9, "valid": 3}
    assert found.scored == sum(map(len, examples.rows))


def test_an_answer_is_scored_and_its_question_is_not(tmp_path: Path, llama: Path) -> None:
    row = build_preview(read_recipe(str(written("chat", tmp_path, llama))), 1).rows[0]
    text = "".join(cli_preview.format_spans(row.sequences[0].pieces, False))
    plain = text.replace("][", "")
    assert "[It was great" in plain and "Is it good?" in plain and "[Is" not in plain and plain.count("[It was") == 2


def test_half_a_character_is_shown_with_its_other_half(tokenizer: Any) -> None:
    ids = tokenizer("good — naïve", add_special_tokens=False).input_ids
    assert any("\ufffd" in tokenizer.decode([i]) for i in ids), "a byte-level tokenizer splits it"
    found = split_into_spans(ids, {len(ids) - 1}, tokenizer)
    assert "".join(p.text for p in found) == "good — naïve" and not any("\ufffd" in p.text for p in found)
    assert [i for p in found for i in p.ids] == ids and found[-1].kind == "scored"


def test_the_command_in_words_and_as_json(
    finished: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Callable[..., Any]
) -> None:
    monkeypatch.chdir(finished)
    done = zoedge("preview", "my.yaml", "-n", 2)
    marked = [line for line in done.out.splitlines() if line.endswith("]   of terrible | great")]
    assert (
        done.code == 0 and len(marked) == 2 and all("It was[ terrible]" in x or "It was[ great]" in x for x in marked)
    )
    assert "\x1b" not in done.out, "a pipe gets no colours"
    assert "rows     70 train, 10 valid; task classify" in done.out and "(limit 64); 1.0 scored a sequence" in done.out
    found = json.loads(zoedge("preview", "my.yaml", "--json").out)
    assert len(found["rows"]) == 3 and found["quantiles"]["max"] == max(found["lengths"]) and found["double"] == 0
    bars = [line for line in done.out.splitlines() if " - " in line and "█" in line]
    assert sum(int(line.split()[-1]) for line in bars) == len(found["lengths"]) == 70
    counts = found["labels"]
    assert sum(counts.values()) == 70 and f"negative {counts['negative']}" in done.out


def test_no_weights_are_read(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Callable[..., Any]
) -> None:
    monkeypatch.chdir(finished)
    from zoedge.scoring.models import checkpoint, loading

    monkeypatch.setattr(loading, "from_pretrained", None)
    monkeypatch.setattr(checkpoint, "base_identity", None)
    assert zoedge("preview", "my.yaml").code == 0


def test_colours_on_a_terminal(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    found = build_preview(read_recipe("my.yaml"), 1)
    bright = [line for line in cli_preview.format_rows(found, True) if "\x1b[1;32m" in line]
    assert len(bright) == 1 and "\x1b[1;32m " in bright[0] and "[ " not in bright[0].replace("\x1b[", "")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    cli_preview.preview("my.yaml", [], 1)
    assert "\x1b[1;32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "")
    cli_preview.preview("my.yaml", [], 1)
    assert "\x1b" not in capsys.readouterr().out


def test_what_looks_wrong_is_said(tmp_path: Path, opt: Path, zoedge: Callable[..., Any]) -> None:
    """OPT's tokenizer puts </s> first; a text that begins with it has it twice. Long rows are cut, and counted."""
    path = written("classify", tmp_path, opt)
    lines = [
        {"text": "</s>" * (i % 2) + "a dull film " * (1 + 9 * (i == 4)) + str(i), "label": "negative"}
        for i in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = zoedge("preview", path, "data.on_overflow=truncate", "data.max_length=20", "data.valid=null", "-n", 0)
    assert done.code == 0 and "note     1 train rows truncated" in done.out
    assert "warning  double BOS: 6 rows begin with it twice." in done.out and "max 20  (limit 20)" in done.out
    assert cli_preview.escape_text("a\x1b[2J\nb") == "a\\x1b[2J⏎\nb"


@pytest.mark.parametrize(
    "args,code,said",
    [
        (["my.yaml", "data.max_length=8"], 3, "samples ("),
        (["my.yaml", "model.source=nowhere"], 3, "model.source: no folder 'nowhere'"),
        (["my.yaml", "task={name: mlm}"], 3, "task: mlm fills a mask, and this base reads what comes next."),
        (["my.yaml", "rule.learning_rate=1"], 2, "rule.learning_rate: unknown key - zoedge calls this 'rule.lr'."),
        (["your.yaml"], 2, "No recipe 'your.yaml': no such file"),
        (["my.yaml", "-n", "-1"], 2, "Invalid value for '-n'"),
    ],
)
def test_mistakes(
    args: list[str], code: int, said: str, finished: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Callable[..., Any]
) -> None:
    monkeypatch.chdir(finished)
    done = zoedge("preview", *args)
    assert done.code == code and said in done.err and done.out == ""


def test_virtual_tokens_take_of_the_context(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    more = ["data.max_length=500", "space={name: prompt, tokens: 6}"]
    assert build_preview(read_recipe("my.yaml", more), 0).limit == 90
    both = ["data.max_length=500", "space={name: several, of: {prompt: {tokens: 5}, lora: {}}}"]
    assert build_preview(read_recipe("my.yaml", both), 0).limit == 91
    bench = setup.Measuring.build(read_recipe("my.yaml", more))
    assert bench.limit == 90, "as training has it"
