"""Classification: which tokens are scored, where, and in which batches."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoedge.errors import DataError
from zoedge.scoring.rows.row import Row
from zoedge.scoring.tasks._examples import SHUFFLE_WINDOW, Examples
from zoedge.scoring.tasks.classify import Classify

FILM = [
    Row("f:1", {"text": "the film is bright", "label": "positive"}),
    Row("f:2", {"text": "a plot", "label": "negative"}),
]


@pytest.fixture(scope="session")
def starts(opt: Path) -> Any:
    """A tokenizer that puts </s> first, as OPT's does."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(opt)


@pytest.fixture(scope="session")
def ends(opt: Path) -> Any:
    """A tokenizer that puts <s> first and appends </s>."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(opt)
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return own


def words(tokenizer: Any, ids: list[int]) -> list[str]:
    return [tokenizer.decode([i]) for i in ids]


# -- tokens


def test_options_of_one_token_share_one_sequence(tokenizer: Any) -> None:
    task = Classify(options={"positive": " great", "negative": " terrible", "dull": " boring"})
    examples, counts = task.encode(FILM, tokenizer, 64, "error")
    assert examples.sequences_each == 1 and len(examples) == 2 and counts == {"truncated": 0, "dropped": 0}
    assert words(tokenizer, examples.tokens[0])[-2:] == [" It", " was"]
    assert tokenizer.decode(examples.tokens[0]) == "the film is bright It was"
    assert examples.rows == [[len(ids) - 1] for ids in examples.tokens]
    assert [words(tokenizer, t) for t in examples.targets] == [[" great", " terrible", " boring"]] * 2
    assert examples.labels == [0, 1] and examples.names == ["f:1", "f:2"]


def test_options_of_several_tokens_have_a_sequence_each(tokenizer: Any) -> None:
    """Sequence and scored tokens are exactly the verbalised text's: all but its last token are fed."""
    options = {"negative": " not very good", "positive": " great", "so": "!"}
    examples, _ = Classify(options=options).encode(FILM, tokenizer, 64, "error")
    assert examples.sequences_each == 3 and len(examples) == 2 and len(examples.tokens) == 6
    for i, row in enumerate(FILM):
        for j, option in enumerate(options.values()):
            ids, rows, targets = (x[i * 3 + j] for x in (examples.tokens, examples.rows, examples.targets))
            prompt, whole = (tokenizer(f"{row.fields['text']} It was{end}").input_ids for end in ("", option))
            assert ids == whole[:-1] and targets == whole[len(prompt) :] and whole[: len(prompt)] == prompt
            assert rows == list(range(len(prompt) - 1, len(whole) - 1))
            assert tokenizer.decode(targets) == option
            assert [([*ids, targets[-1]])[r + 1] for r in rows] == targets
    assert examples.labels == [1, 0]


def test_one_option_of_several_tokens_is_enough(tokenizer: Any) -> None:
    options = {"negative": " terrible", "positive": " great fun"}
    assert Classify(options=options).encode(FILM, tokenizer, 64, "error")[0].sequences_each == 2


def test_an_option_whose_token_depends_on_the_prompt_has_sequences_of_its_own() -> None:
    """One column of the head would not do: rows would need others."""

    def pairs(texts: list[str], **options: Any) -> Any:
        ids = [[ord(c) + 256 * ord(before) for before, c in zip(" " + text, text)] for text in texts]
        return SimpleNamespace(input_ids=ids, special_tokens_mask=[[0] * len(row) for row in ids])

    rows = [Row("f:1", {"text": "ab", "label": "positive"}), Row("f:2", {"text": "abc", "label": "positive"})]
    task = Classify(prompt="{text}", options={"negative": "-", "positive": "+"})
    assert task.encode(rows[:1], pairs, 64, "error")[0].sequences_each == 1
    examples, _ = task.encode(rows, pairs, 64, "error")
    assert examples.sequences_each == 2 and examples.targets == [
        [ord(c) + 256 * ord(end)] for end in "bc" for c in "-+"
    ]


def test_an_option_that_joins_the_prompts_last_token(tokenizer: Any) -> None:
    """Where a token spans prompt and option, the last tokens of the whole text are scored, as many as it grew by."""
    task = Classify(prompt="{text} ter", options={"negative": "rible bad and dull", "positive": "rific fun"})
    examples, _ = task.encode(FILM[1:], tokenizer, 64, "error")
    assert examples.sequences_each == 2
    prompt = tokenizer("a plot ter").input_ids
    for j, option in enumerate(("rible bad and dull", "rific fun")):
        whole = tokenizer(f"a plot ter{option}").input_ids
        grown = len(whole) - len(prompt)
        assert (whole[: len(prompt)] != prompt) == (j == 0)
        assert examples.targets[j] == whole[-grown:] and examples.tokens[j] == whole[:-1] and grown > 0
    with pytest.raises(DataError, match=r"^task.options: 'rible' adds no token after the prompt of f:2.$"):
        Classify(prompt="{text} ter", options={"n": "rible", "negative": " x"}).encode(FILM[1:], tokenizer, 64, "error")


def test_a_first_token_is_kept_and_a_last_one_is_not_scored(tokenizer: Any, starts: Any, ends: Any) -> None:
    for options in ({"negative": " terrible", "positive": " great"}, {"negative": " so dull", "positive": " great"}):
        task = Classify(options=options)
        plain, _ = task.encode(FILM, tokenizer, 64, "error")
        for other, first in ((starts, 2), (ends, 1)):
            found, _ = task.encode(FILM, other, 64, "error")
            assert found.sequences_each == plain.sequences_each and found.tokens == [
                [first, *ids] for ids in plain.tokens
            ]
            assert found.targets == plain.targets and found.rows == [[r + 1 for r in rows] for rows in plain.rows]


def test_spaces_around_the_prompt_alone_are_stripped(tokenizer: Any) -> None:
    task = Classify(prompt="  {text}\n{mood}  ", options={"negative": " terrible", "positive": " great"})
    row = Row("f:1", {"text": " \n a film ", "label": "positive", "mood": 7})
    assert task.render(row) == "\n a film \n7" and task.fields() == ["text", "mood"]
    examples, _ = task.encode([row], tokenizer, 64, "error")
    assert tokenizer.decode(examples.tokens[0]) == "\n a film \n7"
    assert Classify(prompt="{text} {{x}} {text}").render(row) == "\n a film  {x}  \n a film"


# -- length


def long_rows(*lengths: int) -> list[Row]:
    return [Row(f"f:{i}", {"text": "film" + " film" * (n - 3), "label": "positive"}) for i, n in enumerate(lengths)]


def test_the_sixth_likely_mistake_samples_that_are_too_long(tokenizer: Any) -> None:
    rows = long_rows(*[10] * 96, 30, 20, 11, 40)
    with pytest.raises(DataError) as e:
        Classify().encode(rows, tokenizer, 10, "error")
    assert str(e.value) == (
        "4 of 100 samples (4.0 %) are longer than 10 tokens (p99 = 30, longest 40, first f:96). Raise data.max_length, "
        "as far as the model's context goes, or set data.on_overflow: truncate (the prompt, from the left) | drop."
    )
    assert len(Classify().encode(rows, tokenizer, 40, "error")[0]) == 100


def test_samples_that_are_too_long_are_dropped(tokenizer: Any) -> None:
    examples, counts = Classify().encode(long_rows(10, 30, 9, 11), tokenizer, 10, "drop")
    assert examples.names == ["f:0", "f:2"] and counts == {"truncated": 0, "dropped": 2}
    with pytest.raises(DataError, match=r"^No sample is left: all 2 are longer than 10 tokens.$"):
        Classify().encode(long_rows(11, 12), tokenizer, 10, "drop")


@pytest.mark.parametrize("which", ["tokenizer", "starts", "ends"])
@pytest.mark.parametrize("option", [" great", " so very great"])
def test_truncation_keeps_the_first_token_and_the_prompts_end(request: Any, which: str, option: str) -> None:
    tokenizer = request.getfixturevalue(which)
    task = Classify(options={"negative": " terrible", "positive": option})
    rows = [Row("f:1", {"text": "a of story scene film plot actor bright", "label": "positive"}), *FILM]
    whole, _ = task.encode(rows, tokenizer, 64, "error")
    limit = max(map(len, whole.tokens)) - 3
    cut, counts = task.encode(rows, tokenizer, limit, "truncate")
    assert counts == {"truncated": 1, "dropped": 0} and len(cut) == 3 and cut.sequences_each == whole.sequences_each
    first = 0 if which == "tokenizer" else 1
    for j in range(cut.sequences_each):
        before, after = whole.tokens[j], cut.tokens[j]
        assert after == before[:first] + before[first + 3 :]  # the same tokens are missing for every option
        assert cut.targets[j] == whole.targets[j] and cut.rows[j] == [r - 3 for r in whole.rows[j]]
    assert max(map(len, cut.tokens)) == limit
    assert (
        cut.tokens[cut.sequences_each :] == whole.tokens[cut.sequences_each :]
        and cut.rows[cut.sequences_each :] == whole.rows[cut.sequences_each :]
    )


@pytest.mark.parametrize("which", ["tokenizer", "starts"])
def test_something_of_the_prompt_is_always_left(request: Any, which: str) -> None:
    tokenizer = request.getfixturevalue(which)
    task = Classify(options={"negative": " so very bad", "positive": " great"})
    first = which == "starts"
    tokens = len(tokenizer(" so very bad").input_ids) - first
    examples, _ = task.encode(FILM, tokenizer, tokens + first, "truncate")
    assert all(tokenizer.decode(ids[int(first) : int(first) + 1]) == " was" for ids in examples.tokens[::2])
    with pytest.raises(
        DataError, match=rf"^f:1: the options alone fill {tokens + first - 1} tokens. Raise data.max_length.$"
    ):
        task.encode(FILM, tokenizer, tokens + first - 1, "truncate")


# -- identity


def test_the_digest_is_of_the_tokens_alone(tokenizer: Any) -> None:
    def digest(rows: list[Row], **options: Any) -> bytes:
        return Classify(**options).encode(rows, tokenizer, 64, "error")[0].digest()

    elsewhere = [Row(f"other:{i}", {**r.fields, "note": i}) for i, r in enumerate(FILM)]
    renamed = {"prompt": "{text} {what} was", "options": {"negative": " terrible", "positive": " great"}}
    same = [digest(FILM), digest(elsewhere), digest([Row("", {**r.fields, "what": "It"}) for r in FILM], **renamed)]
    same.append(
        digest(
            [Row("", {**r.fields, "label": r.fields["label"][0]}) for r in FILM],
            options={"n": " terrible", "p": " great"},
        )
    )
    assert len(set(same)) == 1
    other = [
        Row("", FILM[0].fields | change)
        for change in ({"label": "negative"}, {"text": "the film is dull"}, {"text": "film"})
    ]
    different = [digest([row, FILM[1]]) for row in other] + [digest(FILM[::-1]), digest(FILM[:1])]
    different += [
        digest(FILM, options={"negative": " bad", "positive": " great"}),
        digest(FILM, prompt="{text} it was"),
    ]
    different += [digest(FILM, options={"positive": " great", "negative": " terrible"})]
    different += [digest(FILM, options={"negative": " so bad", "positive": " great"})]
    assert len({*same, *different}) == 1 + len(different)


def made(lengths: list[int], per: int = 1, labels: list[int] | None = None) -> Examples:
    sequences = [n for n in lengths for _ in range(per)]
    return Examples(
        per, [list(range(3, 3 + n)) for n in sequences], [[n - 1] for n in sequences], [[5, 6] for _ in sequences],
        labels or [0] * len(lengths), [f"f:{i}" for i in range(len(lengths))],
    )  # fmt: skip


def test_a_digest_cannot_be_had_by_moving_a_boundary() -> None:
    assert made([2, 3]).digest() != made([3, 2]).digest()
    a, b = Examples(1, [[1], [2, 3]]), Examples(1, [[1, 2], [3]])
    assert a.digest() != b.digest() and a.digest() == Examples(1, [[1], [2, 3]]).digest()
    assert Examples(2, [[1], [2, 3]]).digest() != a.digest()


@pytest.mark.parametrize("per", [1, 2])
def test_a_batchs_check_changes_with_every_number_in_it(per: int) -> None:
    lengths = [4, 7, 5]

    def check(change: Any = None) -> int:
        examples = made(lengths, per)
        if change:
            change(examples)
        return examples.collate([0, 1, 2]).check

    first = check()
    assert first == check() == zip_crc(made(lengths, per), [0, 1, 2])
    found = [first]
    for s in range(3 * per):
        for i in range(lengths[s // per]):
            for id_ in (0, 2, 400):
                found.append(check(lambda e: e.tokens[s].__setitem__(i, id_)))
        found.append(check(lambda e: e.tokens[s].pop()))
        found.append(check(lambda e: e.rows[s].__setitem__(0, 1)))
        found.append(check(lambda e: e.targets[s].__setitem__(1, 9)))
    found += [check(lambda e: e.labels.__setitem__(k, 1)) for k in range(3)]
    found += [made(lengths, per).collate(c).check for c in ([0, 1], [1, 0, 2], [0, 1, 2, 2])]
    assert len(set(found)) == len(found)


def zip_crc(examples: Examples, chosen: list[int]) -> int:
    """The check written out in another way: little-endian int64 of the padded arrays, one after another."""
    import zlib

    import numpy as np

    index = [i * examples.sequences_each + j for i in chosen for j in range(examples.sequences_each)]
    whole = b""
    for part, fill in ((examples.tokens, 0), (None, 0), (examples.rows, 0), (examples.targets, -1)):
        table = [part[i] if part else [len(examples.tokens[i])] for i in index]
        width = max(map(len, table))
        whole += np.array([row + [fill] * (width - len(row)) for row in table], dtype="<i8").tobytes()
    return zlib.crc32(whole + np.array([examples.labels[i] for i in chosen], dtype="<i8").tobytes())


def test_collate_pads_on_the_right() -> None:
    batch = made([2, 4], labels=[1, 0]).collate([1, 0])
    assert batch.ids.tolist() == [[3, 4, 5, 6], [3, 4, 0, 0]] and batch.rows.tolist() == [[3], [1]]
    assert batch.labels.tolist() == [0, 1] and batch.index == [1, 0] and len(batch) == 2 and batch.tokens == 8
    examples = Examples(2, [[3], [3, 4, 5]], [[0], [1, 2]], [[7], [8, 9]], [1])
    batch = examples.collate([0])
    assert batch.targets.tolist() == [[7, -1], [8, 9]] and batch.rows.tolist() == [[0, 0], [1, 2]] and len(batch) == 1


def test_the_first_examples(tokenizer: Any) -> None:
    examples, _ = Classify(options={"negative": " so bad", "positive": " great"}).encode(FILM, tokenizer, 64, "error")
    one = examples.head(1)
    assert (len(one), one.sequences_each, one.names, one.labels) == (1, 2, ["f:1"], [1])
    assert (one.tokens, one.rows, one.targets) == (examples.tokens[:2], examples.rows[:2], examples.targets[:2])
    assert examples.head(1) is one and examples.head(99).digest() == examples.digest()


# -- the plan


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 120), st.integers(1, 40), st.integers(0, 2**64 - 1), st.randoms(use_true_random=False))
def test_an_epoch_has_every_example_at_most_once(count: int, size: int, seed: int, draw: random.Random) -> None:
    examples = made([draw.randint(1, 30) for _ in range(count)])
    per_epoch = max(1, count // size)
    for epoch in (0, 1):
        steps = [examples.plan(size, seed, epoch * per_epoch + k) for k in range(per_epoch)]
        assert all(len(step) == size and set(step) <= set(range(count)) for step in steps)
        often = Counter(i for step in steps for i in step)
        if size <= count:
            assert max(often.values()) == 1 and len(often) == per_epoch * size
        else:  # as evenly as can be
            assert len(often) == count and max(often.values()) - min(often.values()) <= 1


def test_the_plan_is_a_pure_function_of_seed_and_step() -> None:
    lengths = [random.Random(i).randint(1, 30) for i in range(100)]
    steps = list(range(40)) * 2
    random.Random(0).shuffle(steps)
    found = made(lengths)
    for step in steps:  # out of order, and with other questions between
        found.plan(7, 1, step + 1)
        assert found.plan(7, 0, step) == made(lengths).plan(7, 0, step)
    plans = [[found.plan(7, seed, k) for k in range(14)] for seed in (0, 1, 2**64 - 1)]
    assert plans[0] != plans[1] != plans[2] != plans[0]
    assert plans[0] != [found.plan(7, 0, 14 + k) for k in range(14)]  # the second epoch


def test_a_plan_that_no_release_may_change() -> None:
    examples = made([3, 9, 4, 8, 5, 7, 6, 2, 1, 10, 3])
    assert [examples.plan(3, 0, k) for k in range(4)] == [[2, 4, 6], [5, 3, 9], [8, 10, 0], [0, 6, 5]]


def test_every_length_has_the_same_chance_at_any_time() -> None:
    """Batches hold like lengths (less padding), but neither an epoch's order nor what it leaves out depends on them."""
    count, size, epochs = 203, 8, 60
    lengths = [random.Random(i).randint(1, 100) for i in range(count)]
    examples = made(lengths)
    per_epoch = count // size
    plans = [[examples.plan(size, 5, e * per_epoch + k) for k in range(per_epoch)] for e in range(epochs)]
    often = Counter(i for plan in plans for step in plan for i in step)
    expected = epochs * per_epoch * size / count
    longest = sorted(range(count), key=lambda i: lengths[i])[-20:]
    assert all(often[i] > 0.8 * expected for i in range(count))
    assert sum(often[i] for i in longest) / (20 * expected) == pytest.approx(1, abs=0.02)
    mean = sum(lengths) / count
    for k in range(per_epoch):
        at = [lengths[i] for plan in plans for i in plan[k]]
        assert sum(at) / len(at) == pytest.approx(mean, rel=0.25)
    padded = sum(max(lengths[i] for i in step) * size for plan in plans for step in plan)
    assert padded < 1.25 * sum(lengths[i] for plan in plans for step in plan for i in step)
    assert count > size * SHUFFLE_WINDOW  # or there would be one window


def test_like_lengths_together() -> None:
    examples = made([5, 1, 4, 2, 3])
    assert examples.sorted_batches(2) == [[1, 3], [4, 2], [0]]


# -- what a recipe may say


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"options": {"a": "x"}}, "options: at least two, all different"),
        ({"options": {}}, "options: at least two, all different"),
        ({"options": {"a": "x", "b": "x"}}, "options: at least two, all different"),
        ({"prompt": "It was"}, "prompt: write fields as"),
        ({"prompt": ""}, "prompt: write fields as"),
        ({"prompt": "{}"}, "prompt: write fields as"),
        ({"prompt": "{0}"}, "prompt: write fields as"),
        ({"prompt": "{text!r}"}, "prompt: write fields as"),
        ({"prompt": "{text:>1000000000}"}, "prompt: write fields as"),
        ({"prompt": "{text:{width}}"}, "prompt: write fields as"),
        ({"prompt": "{text.__class__}"}, "prompt: write fields as"),
        ({"prompt": "{text[0]}"}, "prompt: write fields as"),
        ({"prompt": "{text"}, "prompt: expected '}' before end of string. Write fields as"),
        ({"prompt": "{text} }"}, "prompt: single '}' encountered in format string. Write fields as"),
    ],
)
def test_options_and_prompts_that_cannot_be_meant(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Classify(**options)
