"""The soak's own arithmetic, and a soak of a minute."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import HELPERS
from helpers.soak import RECORD, Samples, compare

from zoedge.core.types import Record

SOAK = HELPERS / "soak.py"


def test_the_slope_is_that_within_lifetimes() -> None:
    """2 MiB an hour and 4 KiB a step, at levels of their own; what comes before it is warm does not count."""
    samples = Samples()
    for life, level in enumerate((100.0, 300.0, 50.0)):
        cold = [(0.0, 0, 1000.0, 9)] * 15
        warm = [(life + i / 3600, 500 * i, level + 2 * i / 3600, 7) for i in range(45)]
        samples.lifetimes.append(cold + warm)
    samples.lifetimes.append([(9.0, 1, 1.0, 1)] * 19)  # too short to tell
    assert samples.slope(0) == pytest.approx(2.0) and samples.slope(1) == pytest.approx(2 / 3600 / 500)
    assert samples.files() == [7, 7, 7] and [len(life) for life in samples.warm()] == [45] * 3
    assert Samples().slope(0) == 0.0


def test_a_record_is_below_what_memory_may_grow_by() -> None:
    record = Record(70_000, 70_001, 0.5, (0.25,), (1.5, 1.25), 0, 123_456, 0.999)
    size = sys.getsizeof
    whole = size(record) + sum(map(size, record)) + sum(map(size, record.g)) + sum(map(size, record.losses))
    assert 300 < whole < RECORD


def test_one_other_byte_is_a_difference(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        (tmp_path / name / "run.zlog").write_bytes(b"log")
        (tmp_path / name / "adapter" / "weights").write_bytes(b"w")
        (tmp_path / name / "metrics.jsonl").write_text(name)
    assert compare(tmp_path / "a", tmp_path / "b") == []
    (tmp_path / "b" / "adapter" / "weights").write_bytes(b"v")
    (tmp_path / "b" / "more").write_bytes(b"")
    assert compare(tmp_path / "a", tmp_path / "b") == ["adapter/weights differs", "more differs"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_soak_of_a_minute() -> None:
    argv = [sys.executable, str(SOAK), "--minutes", "1", "--every", "4", "15"]
    done = subprocess.run(argv, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"(?s)T13 soak: [\d,]+ steps.*open files [\d ]*; memory.*those of the run left alone: ok", done.stdout
    )
