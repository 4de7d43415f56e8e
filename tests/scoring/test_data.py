"""Rows of text: each fault with its line, the same rows from any format, and sets that never overlap."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoedge.errors import DataError
from zoedge.recipe.sections import Data, Split
from zoedge.scoring.rows.fields import rename_fields
from zoedge.scoring.rows.files import read_rows
from zoedge.scoring.rows.row import Row, seeded_permutation
from zoedge.scoring.rows.sets import in_content_order, load_sets, row_content, split_by_hash
from zoedge.scoring.sources import hub, resolve
from zoedge.scoring.tasks.classify import Classify

GOOD = [{"text": f"film {i}", "label": "positive" if i % 2 else "negative", "score": i / 4} for i in range(40)]


def json_file(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def csv_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., str]:
    """What is said about a JSON lines file of these lines, as rows.jsonl ('' if nothing is wrong)."""

    def say(*raw: bytes | str, end: bytes = b"\n", skip: bool = False) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(end.join(r.encode() if isinstance(r, str) else r for r in raw))
        try:
            read_rows(path, "rows.jsonl", skip)
        except DataError as e:
            return str(e)
        return ""

    return say


OK = '{"text": "a", "label": "b"}'


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ('{"text": "a" "label": 5}', "not valid JSON: expected ',' or '}' at column 14"),
        ('{"text": ["a" "b"]}', "not valid JSON: expected ',', ']' or '}' at column 15"),
        ('{"text": }', "not valid JSON: expected value at column 10"),
        ('{"text": "a', "not valid JSON: unterminated string starting at column 10"),
        ('{"text": "\\x"}', "not valid JSON: invalid \\escape at column"),
        ('{"text": "a"} x', "not valid JSON: extra data at column 15"),
        ('{"text": "\x01"}', "not valid JSON: invalid control character at"),
        ('{"text": NaN}', "not valid JSON: NaN is not JSON"),
        ('{"text": -Infinity}', "not valid JSON: -Infinity is not JSON"),
        ('{"text": 1, "text": 2}', 'not valid JSON: the key "text" stands twice'),
        ('{"a": {"b\\u001b": 1, "b\\u001b": 2}}', 'not valid JSON: the key "b\\x1b" stands twice'),
        (
            '{"text": ' + "9" * 5000 + "}",
            "not valid JSON: a number of 5,000 digits",
        ),
        ('{"text": "\\ud800"}', "half a character (a lone surrogate)"),
        ('{"\\udc00": 1}', "half a character (a lone surrogate)"),
        ("[" * 100000, "nested more than 16 deep"),
        ('{"a": ' + "[" * 20 + "]" * 20 + "}", "nested more than 16 deep"),
        ("[1, 2]", "a line must be an object, {...}"),
        ('"text"', "a line must be an object, {...}"),
        ("null", "a line must be an object, {...}"),
        ("\ufeff" + OK, "not valid JSON: a BOM inside the file at column 1"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 10 of the line)"),
        (b'{"text": "\xed\xa0\x80"}', "not UTF-8 (byte 10 of the line)"),
        (b'{"text": "' + b"x" * (2 << 20) + b'"}', "longer than 1 MiB"),
    ],
)
def test_a_bad_line_is_named(lines: Callable[..., str], bad: Any, what: str) -> None:
    said = lines(OK, "", OK, bad, OK)
    assert said.startswith(f"rows.jsonl:4: {what}")
    assert said.endswith(" (1 bad line of 4; data.skip_bad_lines=true drops and counts them)") and "\n" not in said
    assert lines(OK, "", OK, bad, OK, skip=True) == ""


def test_the_third_likely_mistake_word_by_word(lines: Callable[..., str]) -> None:
    bad = '{"text": "' + "x" * 44 + '" "label": 1}'
    assert lines(*[OK] * 1041, bad, *[OK] * 3958) == (
        "rows.jsonl:1042: not valid JSON: expected ',' or '}' at column 57 "
        "(1 bad line of 5,000; data.skip_bad_lines=true drops and counts them)"
    )


def test_twenty_faults_are_shown_and_the_rest_counted(lines: Callable[..., str], tmp_path: Path) -> None:
    said = lines(*[OK, "{"] * 1500).splitlines()
    assert len(said) == 22 and said[0].startswith("rows.jsonl:2: ") and said[19].startswith("rows.jsonl:40: ")
    assert said[20:] == [
        "... and 1,480 more", "(1,500 bad lines of 3,000; data.skip_bad_lines=true drops and counts them)"
    ]  # fmt: skip
    rows, faults = read_rows(tmp_path / "rows.jsonl", "rows.jsonl", True)
    assert len(rows) == len(faults) == 1500 and [r.where for r in rows[:2]] == ["rows.jsonl:1", "rows.jsonl:3"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_at_the_start_alone(lines: Callable[..., str], end: bytes) -> None:
    assert lines("\ufeff" + OK, OK, end=end) == ""
    assert "BOM inside" in lines("\ufeff\ufeff" + OK, OK, end=end)
    assert "BOM inside" in lines("", "\ufeff" + OK, end=end)


def test_a_line_of_one_mebibyte_is_read(lines: Callable[..., str]) -> None:
    long = OK[:-2] + "x" * ((1 << 20) - len(OK)) + OK[-2:]
    assert len(long) == 1 << 20 and lines(OK, long, OK) == "" and lines(OK, long) == ""
    assert "rows.jsonl:2: longer than 1 MiB" in lines(OK, "x" + long, OK) and "longer" in lines(OK, "x" + long)


def test_what_is_no_file_of_rows(lines: Callable[..., str], tmp_path: Path) -> None:
    assert lines("") == lines("", "  ", "") == "rows.jsonl: no rows: the file is empty."
    assert lines("hello", "you", skip=True).endswith("(2 bad lines of 2; is it the right file?)")
    assert lines("[{", skip=True) == "rows.jsonl:1: a JSON array. Write one object a line: jq -c '.[]' OLD > NEW.jsonl"
    assert "a JSON array" in lines("\ufeff  [" + "1," * (1 << 20) + "1]")
    for name, what in [("a.md", "'.md'"), ("a", "'no ending'"), ("a.jsonl.gz", "'.gz'")]:
        (tmp_path / name).write_text(OK)
        with pytest.raises(
            DataError, match=f"^{name}: {what} is not read. Use .jsonl, .json, .csv, .tsv, .parquet, .txt, .arrow.$"
        ):
            read_rows(tmp_path / name, name)
    with pytest.raises(DataError, match=r"^x.jsonl: cannot be read: No such file or directory.$"):
        read_rows(tmp_path / "x.jsonl", "x.jsonl")
    json_file(tmp_path / "UPPER.JSONL", GOOD)
    assert len(read_rows(tmp_path / "UPPER.JSONL", "UPPER.JSONL")[0]) == 40


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "rows.csv: no rows: the file is empty."),
        (b"text,label\n", "rows.csv: no rows: the file is empty."),
        (b"text,text\na,b\n", "rows.csv:1: a column's name stands twice."),
        (b"text,label\na,b\nc\n", "rows.csv:3: not 2 columns, as in the header (1 bad line of 2; data.skip"),
        (b"text,label\na,b\nc,d,e\n", "rows.csv:3: not 2 columns, as in the header (1 bad line of 2; data.skip"),
        (b'text,label\na,b\n"c"d,e\n', "rows.csv:3: not valid CSV: ',' expected after '\"'. Mend the line."),
        (b'text,label\na,b\n"c,e\nf,g\n', "not valid CSV: unexpected end of data. Mend the line."),
        (b"text,label\na,b\n\xff,c\n", "rows.csv:3: not UTF-8"),
    ],
)
def test_faults_of_csv(tmp_path: Path, raw: bytes, what: str) -> None:
    (tmp_path / "rows.csv").write_bytes(raw)
    with pytest.raises(DataError) as e:
        read_rows(tmp_path / "rows.csv", "rows.csv")
    assert what in str(e.value) and str(e.value).startswith("rows.csv:")


def test_a_lost_quote_is_never_skipped(tmp_path: Path) -> None:
    """It swallows every row after it: 'one bad line' would be all the user saw of a thousand."""
    (tmp_path / "rows.csv").write_text('text,label\na,b\n"c,d\n' + "e,f\n" * 1000)
    with pytest.raises(DataError, match="not valid CSV"):
        read_rows(tmp_path / "rows.csv", "rows.csv", skip_bad=True)


def test_csv_with_quotes_newlines_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes('\ufefftext,label\n"a, ""b""\nc",1\n\nd,2\n'.encode())
    rows, _ = read_rows(tmp_path / "rows.csv", "rows.csv")
    assert [r.fields for r in rows] == [{"text": 'a, "b"\nc', "label": "1"}, {"text": "d", "label": "2"}]


def test_faults_of_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"^rows.parquet: not a readable Parquet file: "):
        read_rows(tmp_path / "rows.parquet", "rows.parquet")
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"^rows.parquet: not a readable Parquet file: .*utf-8"):
        read_rows(tmp_path / "rows.parquet", "rows.parquet")


# -- fields


def encoded(rows: list[dict[str, Any]], tokenizer: Any, task: Classify | None = None, **more: Any) -> Any:
    named = [Row(f"rows.jsonl:{i + 1}", fields) for i, fields in enumerate(rows)]
    return (task or Classify()).encode(named, tokenizer, more.get("limit", 64), more.get("overflow", "error"))


def said_of(rows: list[dict[str, Any]], tokenizer: Any, task: Classify | None = None, **more: Any) -> str:
    with pytest.raises(DataError) as e:
        encoded(rows, tokenizer, task, **more)
    return str(e.value)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": "a"}, 'field "label": missing. It has: text.'),
        ({"text": "a", "label": None}, 'field "label": null.'),
        ({"text": "a", "label": float("inf")}, 'field "label": inf is not a text or a finite number.'),
        ({"text": "a", "label": ["positive"]}, "field \"label\": ['positive'] is not a text or a finite number."),
        (
            {"text": "a", "label": "positiv"},
            'label "positiv" is not one of task.options (negative, positive) - did you mean',
        ),
        ({"text": "a", "label": 1}, 'label "1" is not one of task.options (negative, positive).'),
        ({"text": "a", "label": "\x1b[31m"}, 'label "\\x1b[31m" is not one of task.options'),
        ({"text": "", "label": "positive"}, 'field "text": empty.'),
        ({"text": " \t\n", "label": "positive"}, 'field "text": empty.'),
        ({"label": "positive", "\x1b": 1}, 'field "text": missing. It has: label, \\x1b.'),
        ({"text": {"a": 1}, "label": "positive"}, "field \"text\": {'a': 1} is not a text or a finite number."),
    ],
)
def test_a_row_that_the_task_cannot_use(tokenizer: Any, row: dict[str, Any], what: str) -> None:
    said = said_of([*GOOD, row], tokenizer)
    assert said.startswith(f"rows.jsonl:41: {what}") and "\n" not in said and "\x1b" not in said


def test_labels_of_which_none_is_known(tokenizer: Any) -> None:
    rows = [{"text": f"film {i}", "label": i % 3 % 2} for i in range(30)]
    assert said_of(rows, tokenizer) == (
        "rows.jsonl: no row's label is one of task.options (negative, positive). There is: 0 (20 rows), 1 (10 rows). "
        "Name them in task.options: {0: ..., 1: ...}."
    )


def test_unusable_rows_are_named_in_the_files_order(tokenizer: Any, tmp_path: Path) -> None:
    json_file(tmp_path / "a.jsonl", [*GOOD, *({"text": f"film {i}", "label": "x"} for i in range(99))])
    with pytest.raises(DataError) as e:
        Classify().encode(drawn(Data(train=str(tmp_path / "a.jsonl")))["train"], tokenizer, 64, "error")
    assert [line.rpartition("a.jsonl:")[2][:3] for line in str(e.value).splitlines()[:20]] == [
        f"{i}:"[:3] for i in range(41, 61)
    ]


def test_twenty_unusable_rows_are_shown(tokenizer: Any) -> None:
    said = said_of([*GOOD, *[{"text": "a", "label": "x"}] * 50], tokenizer).splitlines()
    assert len(said) == 21 and said[0].startswith("rows.jsonl:41: ") and said[20] == "... and 30 more"


def test_numbers_and_truth_values_are_labels_too(tokenizer: Any) -> None:
    for values in ((0, 1), ("0", "1"), (False, True), (0.5, 1.5)):
        keys = [json.dumps(v).strip('"') for v in values]
        task = Classify(options=dict(zip(keys, (" terrible", " great"))))
        examples, _ = encoded([{"text": "a film", "label": v} for v in values], tokenizer, task)
        assert examples.labels == [0, 1]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"sentence": "a long film", "class": "x", "id": 1}, "text (task.prompt), label (task.label)"),
        ({"id": 1, "sentence": "a long film", "label": "x"}, "text (task.prompt)"),
        ({"text": "a long film", "labels": "x", "class": 1}, "label (task.label)"),
    ],
)
def test_the_fourth_likely_mistake_keys_that_are_not_there(tokenizer: Any, row: dict[str, Any], what: str) -> None:
    rows = [row | {key: f"{row[key]}{i % (2 if key == 'class' else 99)}" for key in row} for i in range(10)]
    rows[3].pop("id", None)
    guess = {"text": "sentence", "label": "class" if "class" in row and "labels" not in row else "labels"}
    fields = ", ".join(f"{name}: {guess[name]}" for name in ("text", "label") if name not in row)
    whole = 9 if "id" in row else 10
    assert said_of(rows, tokenizer) == (
        f"rows.jsonl: no row has {what}. Keys: {', '.join(row)} ({whole}/10 rows). Add data.fields: {{{fields}}}."
    )


def test_nothing_to_suggest(tokenizer: Any) -> None:
    assert said_of([{"a": 1}] * 2, tokenizer).endswith("Keys: a (2/2 rows). Add data.fields: {text: a, label: ...}.")


def test_fields_are_renamed_all_at_once() -> None:
    rows = [Row("f:1", {"a": 1, "b": 2, "c": 3}), Row("f:2", {"a": 4})]
    assert [r.fields for r in rename_fields(rows, {"a": "b", "b": "a"})] == [{"a": 2, "b": 1, "c": 3}, {"a": 4, "b": 4}]
    assert rows[0].fields == {"a": 1, "b": 2, "c": 3}
    assert rename_fields(rows, {"a": "gone"})[0].fields["a"] == 1  # a file that already has our name
    with pytest.raises(DataError, match=r"^f: data.fields.text: no row has 'aa' - did you mean 'a'"):
        rename_fields(rows, {"text": "aa"})
    with pytest.raises(DataError, match=r"^f: data.fields.text: no row has 'zz'. Keys: a, b, c.$"):
        rename_fields(rows, {"text": "zz"})


# -- sets


def drawn(data: Data, fields: tuple[str, ...] = ("text",)) -> dict[str, Any]:
    rows, parts, counts = load_sets(data, fields)
    return {"train": rows, **parts, "counts": counts}


def texts_of(rows: list[Row]) -> list[str]:
    return [str(r.fields["text"]) for r in rows]


def twins(count: int) -> list[dict[str, Any]]:
    """Each text three times, with other labels, numbers and notes."""
    return [{"text": f"film {i // 3}", "label": "positive" if i % 2 else "negative", "id": i} for i in range(count)]


def test_sets_never_overlap_and_depend_on_no_order(tmp_path: Path) -> None:
    data = Data(train=str(tmp_path / "a.jsonl"), valid=Split(split=30), test=Split(split=0.2), limit=100)
    rows = twins(300)
    json_file(tmp_path / "a.jsonl", rows)
    found = drawn(data)
    again = drawn(data)
    json_file(tmp_path / "a.jsonl", [rows[i * 7 % 300] for i in range(300)])
    other = drawn(data)
    seen: list[set[str]] = []
    for which, wanted in (("train", 100), ("valid", 30), ("test", 60)):
        content_ = [r.fields for r in found[which]]
        assert content_ == [r.fields for r in again[which]] == [r.fields for r in other[which]]
        assert wanted <= len(content_) < wanted + 3  # equal texts stay together
        assert not any(set(texts_of(found[which])) & s for s in seen)
        seen.append(set(texts_of(found[which])))
    assert not any(found["counts"].values()) and {"also in test", "also in valid"} < found["counts"].keys()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=2), min_size=2, max_size=30), st.integers(1, 29), st.sampled_from(["valid", "test"]))
def test_shares_are_whole_and_apart(values: list[str], size: int, salt: str) -> None:
    rows = [Row(f"f:{i}", {"text": text, "id": i}) for i, text in enumerate(values)]
    try:
        rest, taken = split_by_hash(rows, size, salt, ["text"])
    except DataError as e:
        assert "cannot take" in str(e) and (size >= len(rows) or len(set(values)) <= size)
        return
    assert rest and taken and sorted(rest + taken) == sorted(rows) and not {*texts_of(rest)} & {*texts_of(taken)}
    assert len(taken) >= size and len(taken) - size < max(map(values.count, values))
    assert split_by_hash(rows[::-1], size, salt, ["text"]) == (rest[::-1], taken[::-1])


def test_shares_of_different_names_are_independent() -> None:
    rows = [Row(f"f:{i}", {"text": str(i)}) for i in range(1000)]
    taken = {salt: set(texts_of(split_by_hash(rows, 0.5, salt)[1])) for salt in ("valid", "test", "limit")}
    for a, b in (("valid", "test"), ("test", "limit"), ("limit", "valid")):
        assert len(taken[a]) == 500 and 200 < len(taken[a] & taken[b]) < 300


def test_what_cannot_be_shared() -> None:
    rows = [Row(f"f:{i}", {"text": "same", "id": i}) for i in range(10)]
    with pytest.raises(DataError, match=r"^data.valid: cannot take 3 of 1 different rows and leave some.$"):
        split_by_hash(rows, 3, "valid", ["text"])
    for size in (10, 11, 0.01):
        with pytest.raises(DataError, match=rf"^data.test: cannot take {size} of 10 different rows and leave some.$"):
            split_by_hash(rows, size, "test")


def test_a_test_file_that_shares_rows_with_train_is_counted(tmp_path: Path) -> None:
    json_file(tmp_path / "a.jsonl", GOOD)
    json_file(
        tmp_path / "b.jsonl", [GOOD[3] | {"label": "negative", "note": 1}, GOOD[5], {"text": "new", "label": "x"}]
    )
    found = drawn(Data(train=str(tmp_path / "a.jsonl"), test=str(tmp_path / "b.jsonl"), valid=Split(split=5)))
    held = {"film 3", "film 5"} - {*texts_of(found["valid"])}
    assert found["counts"]["also in test"] == len(held) and held and found["counts"]["also in valid"] == 0
    assert len(found["train"]) == 35 and len(found["test"]) == 3


def test_bad_lines_are_counted_over_all_files(tmp_path: Path) -> None:
    for name, bad in (("a", 2), ("b", 3)):
        json_file(tmp_path / f"{name}.jsonl", GOOD)
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write("{\n" * bad)
    data = Data(train=str(tmp_path / "a.jsonl"), valid=str(tmp_path / "b.jsonl"), skip_bad_lines=True)
    assert drawn(data)["counts"]["unreadable, dropped"] == 5
    with pytest.raises(DataError, match=r"a\.jsonl:42: .*\n\(2 bad lines of 42"):
        drawn(data.model_copy(update={"skip_bad_lines": False}))


def test_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    """SNLI marks those whose annotators did not agree with -1."""
    json_file(tmp_path / "a.jsonl", [{"text": f"film {i}", "gold": i % 3 - 1} for i in range(30)])
    data = Data(
        train=str(tmp_path / "a.jsonl"), valid=Split(split=5), fields={"label": "gold"}, without={"label": "-1"}
    )
    found = drawn(data)
    assert {row.fields["label"] for row in found["train"] + found["valid"]} == {0, 1}
    assert len(found["train"]) + len(found["valid"]) == 20 and found["counts"]["left out by data.without"] == 10
    for wrong, said in (
        ({"lable": "-1"}, "no row has 'lable' - did you mean 'label'?"),
        ({"text": "film 1"}, "none of 1 "),
    ):
        json_file(tmp_path / "a.jsonl", [{"text": "film 1", "label": 1}])
        with pytest.raises(DataError, match=re.escape(said)):
            drawn(Data(train=str(tmp_path / "a.jsonl"), without=wrong))


def test_places_that_are_not_there(tmp_path: Path) -> None:
    json_file(tmp_path / "train.jsonl", GOOD)
    there = str(tmp_path / "train.jsonl")
    for data, what in (
        (
            Data(train=str(tmp_path / "..")),
            f"data.train: the folder {tmp_path}/.. has no train.jsonl. Name a file of rows.",
        ),
        (
            Data(train=there, valid=str(tmp_path)),
            f"data.valid: the folder {tmp_path} has no valid.jsonl. It has: train.js",
        ),
        (
            Data(train=str(tmp_path / "trian.jsonl")),
            f"data.train: no file '{tmp_path}/trian.jsonl', and not a packaged text",
        ),
        (Data(train=there, valid=str(tmp_path / "x.csv")), f"data.valid: no file '{tmp_path}/x.csv'"),
        (
            Data(train=there, test="film-review"),
            "data.test: no file 'film-review', and not a packaged text (film-reviews, ",
        ),
    ):
        with pytest.raises(DataError) as e:
            drawn(data)
        assert str(e.value).startswith(what)
        assert ("trian" not in what) or f"did you mean '{there}'?" in str(e.value)


def test_the_same_rows_from_any_format_are_the_same_examples(tmp_path: Path, tokenizer: Any) -> None:
    rows = [*twins(30), *({"text": str(i), "label": "negative", "id": i} for i in range(5))]
    made = {
        json_file(tmp_path / "a.jsonl", rows), csv_file(tmp_path / "a.csv", rows[::-1]),
        parquet_file(tmp_path / "a.parquet", rows), json_file(tmp_path / "a.json", [r | {"x": None} for r in rows]),
    }  # fmt: skip
    digests: dict[str, set[bytes]] = {}
    for path in made:
        found = drawn(Data(train=str(path), valid=Split(split=6), test=Split(split=6)))
        for which in ("train", "valid", "test"):
            examples, _ = Classify().encode(found[which], tokenizer, 64, "error")
            digests.setdefault(which, set()).add(examples.digest())
    assert [len(v) for v in digests.values()] == [1, 1, 1]
    json_file(tmp_path / "a.jsonl", [r | ({"text": "another"} if r["id"] == 2 else {}) for r in rows])
    again, _ = Classify().encode(drawn(Data(train=str(tmp_path / "a.jsonl")))["train"], tokenizer, 64, "error")
    assert again.digest() not in digests["train"]


def test_mixed_is_not_the_files_order_and_not_the_labels() -> None:
    rows = [Row(f"f:{i}", {"text": str(i), "label": str(i // 500)}) for i in range(1000)]
    found = in_content_order(rows, ["text"])
    assert sorted(found) == sorted(rows) and found == in_content_order(rows[::-1], ["text"])
    assert 30 < sum(r.fields["label"] == "1" for r in found[:100]) < 70


def test_what_tells_rows_apart() -> None:
    a = Row("f:1", {"x": "1", "y": "2"})
    for same in (
        {"y": "2", "x": "1"},
        {"x": 1, "y": 2},
        {"x": "1", "y": "2", "z": None},
        {"x": "1", "y": "2", "z": ""},
    ):
        assert row_content(a) == row_content(Row("f:2", same))
    for other in ({"x": "12", "y": ""}, {"x": "2", "y": "1"}, {"x": "1"}, {"x": "1 ", "y": "2"}):
        assert row_content(a) != row_content(Row("f:2", other)) and row_content(a, ["x", "y"]) != row_content(
            Row("", other), ["x", "y"]
        )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(-3, 2**40))
def test_shuffled_is_a_permutation_that_its_arguments_decide(count: int, seed: int, epoch: int) -> None:
    order = seeded_permutation(count, seed, epoch)
    assert sorted(order) == list(range(count)) and order == seeded_permutation(count, seed, epoch)
    assert count < 20 or order not in (
        seeded_permutation(count, seed, epoch + 1),
        seeded_permutation(count, seed ^ 1, epoch),
        sorted(order),
    )


def test_orders_that_no_release_may_change() -> None:
    """Where one of these changes, every log's batches do: a log names its data by a digest in this order."""
    assert seeded_permutation(8, 0, 0) == [2, 5, 6, 4, 3, 0, 7, 1]
    rows = [Row("", {"text": str(i)}) for i in range(8)]
    assert "".join(texts_of(in_content_order(rows, ["text"]))) == "47316520"
    assert "".join(texts_of(split_by_hash(rows, 3, "valid", ["text"])[1])) == "125"


# -- hub data sets


@pytest.fixture
def hub_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[str], set[str]]]:
    """Give it file names; it gives a function from a source to the files whose rows are read."""

    def make(*names: str) -> Callable[[str], set[str]]:
        for name in names:
            parquet_file(tmp_path / "snapshot" / name, [{"text": name, "label": "positive"}])
        (tmp_path / "snapshot" / "README.md").write_text("train")
        asked: list[Any] = []
        monkeypatch.setattr(hub, "download_snapshot", lambda *args: asked.append(args) or tmp_path / "snapshot")

        def get(source: str) -> set[str]:
            rows, _ = read_rows(*resolve.resolve_text(source))
            assert asked[-1][:2] == ("dataset", "org/set")
            return set(texts_of(rows))

        return get

    return make


def test_a_hub_set_gives_its_train_split_unless_another_is_named(hub_set: Any) -> None:
    names = [f"data/{s}-0000{i}-of-00002.parquet" for s in ("train", "validation", "test") for i in (0, 1)]
    get = hub_set(*names, "data/constrained-00000-of-00001.parquet")
    assert get("org/set") == get("org/set:train") == {*names[:2]}
    assert get("org/set:validation") == {*names[2:4]} and get("org/set:test") == {*names[4:]}
    with pytest.raises(DataError, match=r"^org/set:dev: no file of the split 'dev'. It has: data/constrained-00000"):
        get("org/set:dev")


def test_a_hub_set_of_several_sets_must_be_told_which(hub_set: Any) -> None:
    get = hub_set(
        "cola/train-00000-of-00001.parquet", "sst2/train-00000-of-00001.parquet", "sst2/test-00000-of-00001.parquet"
    )
    with pytest.raises(
        DataError, match=r"^org/set: several sets: cola/train, sst2/train. Name one, such as org/set:cola/train"
    ):
        get("org/set")
    assert get("org/set:cola/train") == {"cola/train-00000-of-00001.parquet"}
    assert get("org/set:sst2/test") == {"sst2/test-00000-of-00001.parquet"} == get("org/set:test")
    with pytest.raises(DataError, match="no file of the split 'test'"):
        get("org/set:cola/test")


def test_splits_that_are_more_than_a_word_or_a_folder(hub_set: Any) -> None:
    get = hub_set("train_sft.parquet", "train_gen.parquet")
    with pytest.raises(DataError, match=r"several sets: train_gen, train_sft. Name one, such as org/set:train_gen"):
        get("org/set")
    assert get("org/set:train_gen") == {"train_gen.parquet"}


def test_splits_that_are_folders(hub_set: Any) -> None:
    get = hub_set("plain/train/0000.parquet", "plain/train/0001.parquet", "plain/test/0000.parquet")
    assert get("org/set") == {"plain/train/0000.parquet", "plain/train/0001.parquet"}
    assert get("org/set:test") == {"plain/test/0000.parquet"}


def test_a_hub_set_of_one_file(hub_set: Any) -> None:
    get = hub_set("reviews.parquet")
    assert get("org/set") == {"reviews.parquet"}
    with pytest.raises(DataError, match=r"no file of the split 'test'. It has: reviews.parquet"):
        get("org/set:test")


def test_train_and_validation_of_one_hub_set_in_a_recipe(hub_set: Any) -> None:
    hub_set("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet")
    found = drawn(Data(train="org/set", valid="org/set:validation"))
    assert texts_of(found["train"]) == ["data/train-00000-of-00001.parquet"]
    assert texts_of(found["valid"]) == ["data/validation-00000-of-00001.parquet"]
    assert found["valid"][0].where == "org/set:validation/validation-00000-of-00001.parquet:1"


def test_a_few_rows_of_each_class() -> None:
    from zoedge.scoring.rows.sets import sample_per_class

    rows = [Row(f"a:{i}", {"text": f"text {i}", "label": "p" if i % 3 else "n"}) for i in range(60)]
    drawn = [sample_per_class(rows, 8, "label", seed, "train") for seed in (13, 13, 21)]
    for some in drawn:
        assert [r.fields["label"] for r in some].count("n") == 8 and len(some) == 16
        assert some == [r for r in rows if r in some], "in the order that they had"
    assert drawn[0] == drawn[1] != drawn[2]
    assert {r.where for r in sample_per_class(rows[::-1], 8, "label", 13, "train")} == {r.where for r in drawn[0]}, (
        "by content alone"
    )
    with pytest.raises(DataError, match=r'data.per_class: 21, and valid has 20 rows of the label "n"'):
        sample_per_class(rows, 21, "label", 0, "valid")
