"""`zoedge cache`: a second run, a resume and eval read what a first run computed; it is listed, limited and removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Done

import zoedge as package
from zoedge.commands.cache import find_entries, list_cache
from zoedge.errors import UsageError
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.sections import Cache, parse_size
from zoedge.run.identity import recipe_changes, recipe_digest
from zoedge.scoring.models.base import Base


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder without trunks, but with the quantised base of the other tests."""
    import os
    import shutil

    old, new = Path(os.environ["ZOEDGE_CACHE"]), tmp_path / "cache"
    for kind in ("quantised", "digests"):
        if (old / kind).is_dir():
            shutil.copytree(old / kind, new / kind)
    monkeypatch.setenv("ZOEDGE_CACHE", str(new))
    return new


FINITE_CHECK = 8  # sequences by which a new run finds out whether the base is finite, before it opens its cache


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each forward of the lower blocks had."""
    sizes: list[int] = []
    real = Base.trunk
    monkeypatch.setattr(Base, "trunk", lambda self, ids, *more: sizes.append(len(ids)) or real(self, ids, *more))
    return sizes


def test_the_second_run_a_resume_and_eval_start_at_once(
    recipe_file: Path, tmp_path: Path, fresh: Path, forwards: list[int], zoedge: Callable[..., Done]
) -> None:
    folder = tmp_path / "runs" / "tiny"
    more = ["train.steps=6", "eval.every=3", "log.hash_every=2"]
    first = package.finetune(recipe_file, *more)
    assert first is not None and sum(forwards) > 80
    log = (folder / "run.zlog").read_bytes()
    forwards.clear()
    package.finetune(recipe_file, *more, run_dir=tmp_path / "second")
    assert (tmp_path / "second" / "run.zlog").read_bytes() == log
    assert sum(forwards) <= FINITE_CHECK
    forwards.clear()
    (folder / "run.zlog").write_bytes(log[: -7 * 64 - 20])  # two steps are left
    package.finetune(recipe_file, *more)
    assert (folder / "run.zlog").read_bytes() == log and not forwards
    done = zoedge("eval", folder, "--json")
    assert done.code == 0 and not forwards, "zero-shot, closed form and after"
    package.finetune(recipe_file, *more, "rule.lr=2e-3", run_dir=tmp_path / "a sweep's other point")
    assert sum(forwards) <= FINITE_CHECK


def test_a_limit_of_nothing_keeps_nothing(recipe_file: Path, tmp_path: Path, fresh: Path, forwards: list[int]) -> None:
    more = ["train.steps=3", "eval.every=3"]
    logs = []
    for limit in ("0GB", "4KB", "4GB"):
        forwards.clear()
        run = tmp_path / limit
        package.finetune(recipe_file, *more, f"cache.limit={limit}", run_dir=run)
        with Log.open(run / "run.zlog") as log:
            logs.append((list(log), log.state.end))
        assert forwards and len(list((fresh / "trunk").glob("*"))) == (4 if limit == "4GB" else 0), limit
    assert logs[0] == logs[1] == logs[2], "the same steps and the same end"


def test_the_limit_is_no_part_of_a_runs_identity(recipe_file: Path) -> None:
    plain, other = (read_recipe(str(recipe_file), overrides) for overrides in ([], ["cache.limit=1.5 GiB"]))
    assert recipe_digest(plain) == recipe_digest(other) and not list(recipe_changes(plain.resolved(), other.resolved()))
    assert "cache" not in plain.resolved(), "old logs' headers keep their bytes"
    assert other.resolved()["cache"] == {"limit": "1.5 GiB"}
    assert plain.cache == Cache() and parse_size(Cache().limit) == 4 * 10**9
    sizes = {"4GB": 4 * 10**9, "1.5 GiB": 3 * 2**29, "500MB": 5 * 10**8, "0GB": 0, "2 KiB": 2048, "2KB": 2000}
    assert {text: parse_size(text) for text in sizes} == sizes
    for wrong in ("4", "4gb", "much", "-1GB", "1TB", ""):
        with pytest.raises(UsageError, match=r"cache\.limit: .*a size such as 4GB or 500MB; 0GB keeps nothing"):
            read_recipe(str(recipe_file), [f"cache.limit='{wrong}'"])


def test_it_is_listed_and_removed(
    recipe_file: Path, tmp_path: Path, fresh: Path, forwards: list[int], zoedge: Callable[..., Done]
) -> None:
    assert "in all 0 B" in zoedge("cache", "ls").out or (fresh / "quantised").exists()
    package.finetune(recipe_file, "train.steps=2", "eval.every=2")
    done = zoedge("cache", "ls")
    lines = done.out.splitlines()
    assert lines[0].split() == ["name", "what", "size", "used"] and lines[-1].endswith(str(fresh))
    trunks = [line for line in lines if line.startswith("trunk/")]
    assert len(trunks) == 4 and all("llama, below block 1, float32" in line for line in trunks)
    assert any(line.startswith("quantised/") for line in lines)
    entries = [json.loads(line) for line in zoedge("cache", "ls", "--json").out.splitlines()]
    assert {e["name"] for e in entries} == {entry.name for entry in list_cache()} and all(e["bytes"] for e in entries)
    name = trunks[0].split()[0]
    done = zoedge("cache", "rm", name)
    assert done.code == 2 and "add --yes" in done.err and len(list((fresh / "trunk").iterdir())) == 4
    for wrong in ("trunk/nothing", "../trunk", "", "quantised/..", str(tmp_path)):
        done = zoedge("cache", "rm", name, wrong, "--yes")
        assert done.code == 2 and "Nothing was removed" in done.err and len(list((fresh / "trunk").iterdir())) == 4
    assert "did you mean" in zoedge("cache", "rm", name[:-1], "--yes").err
    done = zoedge("cache", "rm", name, name, "--yes")
    assert done.code == 0 and done.out.startswith(f"removed {name}: ") and len(done.out.splitlines()) == 1
    assert len(list((fresh / "trunk").iterdir())) == 3
    (fresh / "texts").mkdir(exist_ok=True)
    for name in ("films.jsonl", "films.jsonl.sha256"):
        (fresh / "texts" / name).write_text("{}")
    assert [entry.name for entry in list_cache() if entry.name.startswith("texts")] == ["texts/films.jsonl"]
    assert zoedge("cache", "rm", "texts", "--yes").code == 0 and not list((fresh / "texts").iterdir())
    (fresh / "trunk" / "0123456789abcdef.trunk").write_bytes(b"no header")
    assert find_entries(["trunk/0123456789ab"])[0].what == "damaged"
    assert zoedge("cache", "rm", "trunk", "quantised", "--yes").code == 0 and not list_cache()
    assert zoedge("cache", "rm", "trunk", "--yes").code == 0, "a kind that has nothing is no fault"
    forwards.clear()
    package.finetune(recipe_file, "train.steps=2", "eval.every=2", run_dir=tmp_path / "again")
    assert sum(forwards) > 80, "all of it is made again"
