"""Any log, cut, edit, recipe, file of rows and batch plan keeps what is promised. 200 examples each; 100,000 where slow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.faults import header
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoedge.core.exact import bits16
from zoedge.core.types import Record
from zoedge.errors import DamagedError, DataError, UsageError
from zoedge.log.log import Log
from zoedge.log.slots import LogState
from zoedge.recipe import check, recipe, strict_yaml
from zoedge.scoring.rows.files import read_rows
from zoedge.scoring.rows.row import seeded_permutation

FAST, SLOW = 200, 100_000
NUMBERS = st.floats(-1e9, 1e9, width=32).map(bits16)
CHECKS = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@st.composite
def written(draw: st.DrawFn) -> tuple[bytes, list[Record]]:
    """A log's bytes, and the records that were logged: one slot each, K = 2, no state is due."""
    weights = draw(st.lists(st.tuples(st.lists(NUMBERS, min_size=1, max_size=2), NUMBERS), max_size=12))
    sync_every = draw(st.integers(1, 4))
    path = Path("property.zlog")
    path.unlink(missing_ok=True)
    with Log.create(path, header(sync_every=sync_every, hash_every=10**6)) as log:
        done = [log.append(Record(i, i, lr, tuple(g), (1.0, 2.0), 0, i, 1.0)) for i, (g, lr) in enumerate(weights)]
    return path.read_bytes(), done


def opened(data: bytes) -> Log:
    path = Path("any.zlog")
    path.write_bytes(data)
    return Log.open(path)


def keeps_what_was_logged(example: tuple[bytes, list[Record]]) -> None:
    data, records = example
    log = opened(data)
    assert list(log) == records and log.torn == 0 and isinstance(log.state, LogState)


def cuts_to_a_prefix(example: tuple[bytes, list[Record]], share: float) -> None:
    data, records = example
    cut = int(share * len(data))
    try:
        log = opened(data[:cut])
    except DamagedError:
        assert cut < 1024  # within the header
    else:
        assert list(log) == records[: (cut - 1024) // 64] and log.torn == (cut - 1024) % 64


def never_reads_another_number(example: tuple[bytes, list[Record]], share: float, patch: bytes) -> None:
    data, records = example
    at = int(share * (len(data) - len(patch)))
    changed = data[:at] + patch + data[at + len(patch) :]
    try:
        found = list(opened(changed))
    except DamagedError:
        return
    assert found == records[: len(found)]  # the same, or shorter where the last synced window became zeros


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(LEAF, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3))
PLACES = ["seed", "name", "rule", "rule.lr", "train.steps", "train.batch", "data.valid", "space", "space.rank", "task",
          "estimator.eps", "noise", "output.export", "eval", "log.sync_every", "model.source", "data.fields"]  # fmt: skip


def is_read_or_refused(edits: dict[str, Any]) -> None:
    table: dict[str, Any] = {"version": 1, "model": {"source": "s"}, "data": {"train": "r.jsonl"}}
    for place, value in edits.items():
        section, _, key = place.partition(".")
        if key and isinstance(table.setdefault(section, {}), dict):
            table[section][key] = value
        else:
            table[section] = value
    try:
        found = check.check(table, {}, "my.yaml")
    except UsageError as e:
        assert str(e).startswith("my.yaml") and all(c.isprintable() or c == "\n" for c in str(e))
        return
    again, marks = strict_yaml.read_yaml(recipe.dump_recipe(found), "my.yaml")
    assert check.check(again, marks, "my.yaml") == found


def says_which_lines(lines: list[bytes]) -> None:
    path = Path("rows.jsonl")
    path.write_bytes(b"\n".join(lines))
    try:
        rows, faults = read_rows(path, "rows.jsonl", skip_bad=True)
    except DataError as e:
        assert str(e).startswith("rows.jsonl")
        return
    places = [row.where for row in rows] + [fault.split(": ")[0] for fault in faults]
    assert len(set(places)) == len(places) <= len(lines) + sum(line.count(b"\n") for line in lines)
    assert all(isinstance(row.fields, dict) and json.dumps(row.fields, allow_nan=False) for row in rows)


def visits_all(count: int, seed: int, epoch: int) -> None:
    order = seeded_permutation(count, seed, epoch)
    assert sorted(order) == list(range(count)) and order == seeded_permutation(count, seed, epoch)


LINE = (
    VALUES.map(lambda v: json.dumps({"a": v}).encode())
    | st.binary(max_size=20)
    | st.sampled_from([b"", b"{}", b"\xef\xbb\xbf{}", b'{"a": NaN}', b'{"a":1,"a":2}', b"[" * 2000, b'{"a":"\\ud800"}'])
)
PROPERTIES = {
    "a log is read as written": (keeps_what_was_logged, (written(),)),
    "a cut log is a prefix": (cuts_to_a_prefix, (written(), st.floats(0, 1))),
    "an edited log is refused": (
        never_reads_another_number, (written(), st.floats(0, 1), st.binary(min_size=1, max_size=64)),
    ),
    "a recipe is read or refused": (is_read_or_refused, (st.dictionaries(st.sampled_from(PLACES), VALUES, max_size=4),)),
    "rows are read or named": (says_which_lines, (st.lists(LINE, max_size=6),)),
    "a plan visits all": (visits_all, (st.integers(0, 60), st.integers(0, 2**64 - 1), st.integers(0, 2**32))),
}  # fmt: skip


@pytest.mark.parametrize(
    "count", [FAST, pytest.param(SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])], ids=str
)
@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds, strategies = PROPERTIES[name]
    monkeypatch.chdir(tmp_path)
    for call in ("fsync", "fdatasync"):  # without waiting for the disk
        monkeypatch.setattr(os, call, lambda fd: None)
    settings(max_examples=count, **CHECKS)(given(*strategies)(holds))()
