"""What the fuzzers share: `python tests/fuzz/NAME.py -max_total_time=30`, options as libFuzzer's; needs the extra `fuzz`.

A target takes any bytes. A ZoedgeError is an answer; every other exception is a crash, and becomes a fixture of
test_hostile.py or test_bad_inputs.py and a line in TRACK_RECORD.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="fuzz-"))


def fuzz(target: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Run libFuzzer from `seeds`; it exits the process."""
    import shutil

    import atheris

    from zoedge.errors import ZoedgeError

    def answered(data: bytes) -> None:
        try:
            target(data)
        except ZoedgeError as e:
            assert str(e), "an error without a sentence"

    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(seeds):
        (corpus / str(i)).write_bytes(seed)
    # libFuzzer leaves by _exit: what is to be tidied is tidied by a child that waits for this process to end
    import os

    gone, here = os.pipe()
    if not os.fork():
        os.close(here)
        os.read(gone, 1)
        shutil.rmtree(FOLDER, ignore_errors=True)
        os._exit(0)
    os.close(gone)
    atheris.Setup([*sys.argv, "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", str(corpus)], answered)
    atheris.Fuzz()
