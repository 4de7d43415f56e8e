"""What the system limits, memory, threads and names, ends in a sentence that names it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from zoedge.cli import describe_error
from zoedge.errors import DataError, is_out_of_memory
from zoedge.scoring.models.checkpoint import translate_errors

ENDED = "Is the input what it should be? Less of it at a time, a smaller model, or more memory (ulimit -v, -u)."
LIMITS = [
    RuntimeError("can't start new thread"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    RuntimeError("std::bad_alloc"),
    RuntimeError("unable to mmap 140 bytes from file </x>: Cannot allocate memory (12)"),
    ImportError("libtorch.so: failed to map segment from shared object"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    MemoryError(),
]


@pytest.mark.parametrize("error", LIMITS, ids=lambda e: str(e)[:30])
def test_a_limit_of_memory_or_threads_is_named(error: Exception) -> None:
    """And it is no fault of the model's files, where it comes while they are read."""
    assert is_out_of_memory(error)
    what = "no thread can be started, or memory ended" if "thread" in str(error) else "memory ended"
    assert describe_error(error) == (f"{what}. {ENDED}", 3)
    with pytest.raises(type(error)) as e, translate_errors(Path("model")):
        raise error
    assert e.value is error


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), OSError(errno.ENOSPC, "No space left on device")])
def test_other_errors_are_no_limit_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(DataError), translate_errors(Path("model")):
        raise error


BYTES = os.fsdecode(b"n\xffme")


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


@pytest.mark.parametrize(
    "old,command",
    [
        ("my.yaml", [f"finetune {BYTES}", f"validate {BYTES}", f"estimate {BYTES}"]),
        ("rows.jsonl", [f"finetune my.yaml name=b data.train={BYTES}", f"eval tiny --data {BYTES}"]),
        ("model", [f"finetune my.yaml name=b model.source={BYTES}", f"quantize {BYTES} --to nf4"]),
        ("runs/tiny", [f"verify {BYTES}", f"resume {BYTES}", f"replay {BYTES} -o out", f"eval {BYTES}", f"report {BYTES}"]),
        ("nothing", ["finetune my.yaml --run-dir " + BYTES, f"export tiny --to peft -o {BYTES}", f"no {BYTES}"]),
    ],
)  # fmt: skip
def test_a_name_that_is_not_utf_8_is_no_bug(zoedge: Any, place: Path, old: str, command: list[str]) -> None:
    """A recipe or log cannot hold it; everything else may have it."""
    if (place / old).exists():
        (place / old).rename(place / Path(old).parent / BYTES)
    if old == "runs/tiny":
        (place / "runs" / BYTES).rename(place / BYTES)
    for line in command:
        done = zoedge(*line.split(" "))
        assert done.code in (0, 2, 3, 4), (line, done)
        assert "Traceback" not in done.err and "This is a bug" not in done.err
