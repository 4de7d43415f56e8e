"""A run goes on, is verified and delivers only with the files that it was begun with; what changed is said by name."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.recipes import TINY, write_reviews
from helpers.runs import train

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
