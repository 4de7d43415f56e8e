"""Files of rows as people have them: tables, pointers, folders of other libraries, and what the message says to type."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zoedge.errors import DataError
from zoedge.recipe.sections import Data
from zoedge.scoring.rows.fields import require_fields
from zoedge.scoring.rows.files import read_rows
from zoedge.scoring.rows.sets import load_rows

ROWS = [{"text": f"a film {i}", "label": "positive"} for i in range(4)]


def said_of(path: Path) -> str:
    with pytest.raises(DataError) as e:
        read_rows(path, path.name)
    return str(e.value)


@pytest.mark.parametrize("ending", ["txt", "jsonl", "json", "csv", "tsv", "parquet", "arrow"])
def test_pointers_of_git_lfs(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 269060552\n")
    assert said_of(path) == f"a.{ending} is a Git LFS pointer, not the file itself. Fetch it: git lfs pull"


def test_a_column_that_stands_twice(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.ipc as ipc
    import pyarrow.parquet as pq

    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    with ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    for ending in ("parquet", "arrow"):
        assert said_of(tmp_path / f"a.{ending}") == f"a.{ending}: the column 'label' stands twice."
    (tmp_path / "a.csv").write_text("text,label,label\na,b,c\n")
    assert said_of(tmp_path / "a.csv") == "a.csv:1: a column's name stands twice."


def test_fields_up_to_a_mebibyte_and_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "x" * ((1 << 20) - 20) + ",b\n")
    (rows, _) = read_rows(tmp_path / "a.csv", "a.csv")
    assert len(rows[0].fields["text"]) == (1 << 20) - 20
    (tmp_path / "a.tsv").write_text("text\tlabel\na, b\tc\n")
    assert read_rows(tmp_path / "a.tsv", "a.tsv")[0][0].fields == {"text": "a, b", "label": "c"}


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (
            "text;label\na, b;c\n",
            "a.csv:1: its columns are separated by semicolons, and a .csv file has commas. Rewrite it: ",
        ),
        (
            "text\tlabel\na, b\tc\n",
            "a.csv:1: its columns are separated by tabs, and a .csv file has commas. Rewrite it: ",
        ),
        (
            "text|label\na, b|c\n",
            "a.csv:1: its columns are separated by bars, and a .csv file has commas. Rewrite it: ",
        ),
        ('text, label\n"a, b", c\n', "a.csv:1: spaces stand around a column's name. Rewrite it: "),
        (
            'text,label\n"a, b", "c"\n',
            "a.csv:2: a space before a quote, so that the quotes would be text. Rewrite it: ",
        ),
    ],
)
def test_a_table_that_is_written_otherwise_and_its_way_out(raw: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(raw)
    sentence = said_of(tmp_path / "a.csv")
    assert sentence.startswith(what)
    command = re.findall(r'python -c "(.*?\(.*\))"', sentence)[0]
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    rows, _ = read_rows(tmp_path / "NEW.csv", "NEW.csv")
    assert [row.fields for row in rows] == [{"text": "a, b", "label": "c"}]


def test_a_table_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a film I liked,positive\na dull film it was,negative\n")
    rows, _ = read_rows(tmp_path / "a.csv", "a.csv")
    with pytest.raises(DataError, match=r"put the names above it: sed '1i text,label' OLD\.csv > NEW\.csv"):
        require_fields(rows, ["text"], "label")


ONE = {
    "pandas": {k: {str(i): row[k] for i, row in enumerate(ROWS)} for k in ("text", "label")},
    "columns": {k: [row[k] for row in ROWS] for k in ("text", "label")},
    "wrapped": {"version": "1.1", "data": ROWS},
}


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_of_one_object(indent: int | None, tmp_path: Path) -> None:
    for name, value in ONE.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value, indent=indent))
    columns = (
        "one object of columns (text, label), not rows. Write an array, or one object a line; with pandas: df.to_json("
    )
    assert said_of(tmp_path / "pandas.json").startswith(f"pandas.json: {columns}")
    assert said_of(tmp_path / "columns.json").startswith(f"columns.json: {columns}")
    assert said_of(tmp_path / "wrapped.json") == (
        "wrapped.json: one object, whose rows are in its key data. Write them alone: jq -c '.data[]' OLD.json > NEW.jsonl"
    )
    (tmp_path / "columns.jsonl").write_text(json.dumps(ONE["columns"]))
    assert said_of(tmp_path / "columns.jsonl").startswith(f"columns.jsonl: {columns}")
    talk: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]}
    for row in (ROWS[0], talk):
        (tmp_path / "one.json").write_text(json.dumps(row, indent=indent))
        assert [r.fields for r in read_rows(tmp_path / "one.json", "one.json")[0]] == [row]
    (tmp_path / "pretty.jsonl").write_text(json.dumps(ROWS[0], indent=1))
    assert said_of(tmp_path / "pretty.jsonl") == (
        "pretty.jsonl:1: an object over several lines. Write each on one: jq -c . OLD > NEW.jsonl"
    )


def test_folders_of_datasets_and_clones_of_hub_sets(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.ipc as ipc
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(ROWS)
    for folder, split in (("saved", ""), ("both/train", ""), ("both/test", "")):
        (tmp_path / folder).mkdir(parents=True)
        with ipc.new_stream(str(tmp_path / folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table if "test" not in folder else table[:1])
        (tmp_path / folder / "dataset_info.json").write_text("{}")
        (tmp_path / folder / "state.json").write_text(json.dumps({"_split": split}))
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "clone" / "data").mkdir(parents=True)
    for i in range(2):
        pq.write_table(table[2 * i : 2 * i + 2], tmp_path / "clone" / "data" / f"train-0000{i}-of-00002.parquet")
    pq.write_table(table[:1], tmp_path / "clone" / "data" / "test-00000-of-00001.parquet")

    def read(source: str, key: str = "data.train") -> list[dict[str, Any]]:
        return [row.fields for row in load_rows(str(tmp_path / source), key, Data(train="x"))[0]]

    for source in ("saved", "both", "both:train", "clone", "clone/data", "clone:train", "clone/data/train-*.parquet"):
        assert read(source) == ROWS, source
    assert read("both", "data.test") == read("clone:test") == read("clone", "data.test") == ROWS[:1]
    with pytest.raises(DataError, match=r"clone:valid: no file of the split 'valid'"):
        read("clone", "data.valid")
    with pytest.raises(DataError, match=r"none-\*\.parquet: no file has such a name\."):
        read("clone/data/none-*.parquet")
