"""What lies in the cache is what was written: digests, the memos of digests, and drafts that a kill leaves."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zoedge.errors import StorageError
from zoedge.recipe.sections import Model
from zoedge.scoring.models.loading import load_base, prepare_folder
from zoedge.scoring.sources import create, file_digests
from zoedge.scoring.sources.cache import DraftFolder, cache_folder
from zoedge.scoring.sources.create import SUMS_FILE, create_once
from zoedge.scoring.sources.file_digests import file_sha256, oldest_memo, without_memos


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("ZOEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flip(path: Path, at: int | None = None) -> None:
    """Change one bit of a file, in its middle if not said otherwise."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 64
    path.write_bytes(raw)


# -- digests and their memos


@pytest.fixture
def settled(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that may be remembered although it was written this second."""
    monkeypatch.setattr(file_digests, "SETTLING_SECONDS", -1.0)
    (tmp_path / "file").write_bytes(b"one")
    return tmp_path / "file"


def reads(path: Path) -> int:
    """How often asking for a file's digest reads the file."""
    with pytest.MonkeyPatch.context() as patch:
        count, own = [0], hashlib.file_digest

        def counted(*args: Any) -> Any:
            count[0] += 1
            return own(*args)

        patch.setattr(hashlib, "file_digest", counted)
        assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    return count[0]


def test_a_digest_is_remembered_until_the_file_changes(settled: Path) -> None:
    assert [reads(settled), reads(settled)] == [1, 0]
    settled.write_bytes(b"two")
    os.utime(settled, (1, 1))
    assert [reads(settled), reads(settled)] == [1, 0]
    with without_memos():
        assert reads(settled) == 1
    assert reads(settled) == 0


def test_a_file_written_this_second_is_not_remembered(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")  # a file system may give the next write the same time
    assert [reads(tmp_path / "file")] * 2 == [1, 1]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda raw: raw[:40],
    "empty": lambda raw: b"",
    "other characters": lambda raw: b"g" * 64 + raw[64:],
    "not UTF-8": lambda raw: b"\xff" + raw[1:],
    "another digest": lambda raw: hashlib.sha256(b"other").hexdigest().encode() + raw[64:],
    "the bare digest of older versions": lambda raw: raw[:64],
    "a later time": lambda raw: raw[:65] + b"9" + raw[66:],
    "three words": lambda raw: b"a b c",
    "more": lambda raw: raw + raw,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_memo_is_not_believed(settled: Path, damage: str) -> None:
    assert reads(settled) == 1
    (memo,) = cache_folder("digests").iterdir()
    memo.write_bytes(DAMAGE[damage](memo.read_bytes()))
    assert [reads(settled), reads(settled)] == [1, 0]


def test_a_memo_of_another_file_is_not_believed(settled: Path) -> None:
    other = settled.with_name("other")
    other.write_bytes(b"other")
    assert [reads(settled), reads(other)] == [1, 1]
    mine, theirs = (file_digests.memo_path(file_digests.file_version(p, p.stat())) for p in (settled, other))
    shutil.copy(theirs, mine)
    assert reads(settled) == 1


@pytest.mark.parametrize("hours,read", [(0, 0), (23.9, 0), (24.1, 1), (-1, 1)])
def test_a_memo_is_believed_for_a_day(settled: Path, monkeypatch: pytest.MonkeyPatch, hours: float, read: int) -> None:
    assert oldest_memo([settled]) is None and reads(settled) == 1
    now = file_digests.time.time()
    monkeypatch.setattr(file_digests.time, "time", lambda: now + hours * 3600)  # or the clock was set back
    age = oldest_memo([settled])
    assert (age is None) if read else (age is not None and abs(age - hours * 3600) < 2)
    assert reads(settled) == read


# -- what create_once made


def write_two(draft: Path) -> None:
    (draft / "inner").mkdir(parents=True)
    (draft / "a").write_text("first")
    (draft / "inner" / "b").write_text("second")


def swap(folder: Path) -> None:
    (folder / "a").write_text("second")
    (folder / "inner" / "b").write_text("first")


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit": (lambda f: flip(f / "a"), "a is not what was written"),
    "a bit below": (lambda f: flip(f / "inner" / "b"), "inner/b is not what was written"),
    "a cut": (lambda f: (f / "a").write_text("fi"), "a is not what was written"),
    "a file more": (
        lambda f: (f / "chat_template.jinja").write_text("x"),
        "chat_template.jinja is not what was written",
    ),
    "a file less": (lambda f: (f / "a").unlink(), "a is not what was written"),
    "two swapped": (swap, "a, inner/b is not what was written"),
    "a bit of the digests": (lambda f: flip(f / SUMS_FILE, 3), "a is not what was written"),
    "a bit of a name": (lambda f: flip(f / SUMS_FILE, 66), "!, a is not what was written"),
    "no digests": (lambda f: (f / SUMS_FILE).unlink(), "it has no digests to compare it with"),
    "digests that are no text": (lambda f: (f / SUMS_FILE).write_bytes(b"\xff"), "it cannot be read"),
    "a line more": (lambda f: (f / SUMS_FILE).open("a").write("\n"), "is not what was written"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_is_not_what_was_written_is_made_again(
    fresh: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    target = cache_folder("made") / "thing"
    create_once(target, write_two)
    whole = {p.name: p.read_bytes() for p in target.rglob("*") if p.is_file()}
    do, sentence = CHANGES[change]
    do(target)
    capsys.readouterr()
    assert create_once(target, write_two) == target
    err = capsys.readouterr().err
    assert err.startswith(f"zoedge: {target}: ") and sentence in err and err.endswith(": it is made again\n")
    assert {p.name: p.read_bytes() for p in target.rglob("*") if p.is_file()} == whole
    assert os.listdir(target.parent) == ["thing"]
    create_once(target, write_two)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("which", ["thing.jsonl", "thing.jsonl.sha256"])
def test_a_file_that_is_not_what_was_written_is_made_again(
    fresh: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    target = cache_folder("made") / "thing.jsonl"
    create_once(target, lambda draft: draft.write_text("text") and None)
    for damage in (flip, Path.unlink):
        damage(target.parent / which)
        create_once(target, lambda draft: draft.write_text("text") and None)
        assert target.read_text() == "text"
        assert ("it is made again" in capsys.readouterr().err) == (which != "thing.jsonl" or damage is flip)


def test_a_disk_that_gives_back_something_else_is_an_error(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, target = Path.rename, cache_folder("made") / "thing"

    def rot(self: Path, to: Path) -> Path:
        flip(self / "a")
        return own(self, to)

    monkeypatch.setattr(Path, "rename", rot)
    with pytest.raises(
        StorageError, match=r"thing: it was written, and now a is not what was written. Is the disk fail"
    ):
        create_once(target, write_two)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_flipped_bit_of_a_quantised_base_changes_nothing(
    llama: Path, fresh: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    spec = Model(source=str(llama), quantization="nf4")
    first = load_base(spec)
    raw = (first.path / file).read_bytes()
    tensors = first.model.state_dict().items()  # copied, because the file is mapped
    whole = {name: tensor.clone() for name, tensor in tensors if isinstance(tensor, torch.Tensor)}
    flip(first.path / file)
    again = load_base(spec)
    assert f"{file} is not what was written: it is made again" in capsys.readouterr().err
    assert (again.path / file).read_bytes() == raw
    for name, tensor in again.model.state_dict().items():
        assert name not in whole or torch.equal(tensor, whole[name]), name


# -- drafts


def test_drafts_of_processes_that_were_killed_are_swept(llama: Path, fresh: Path) -> None:
    folder = cache_folder("quantised")
    alive = DraftFolder(folder)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom zoedge.scoring.sources.cache import DraftFolder\n"
        "draft = DraftFolder(Path(sys.argv[1]))\nPath(draft.name, 'half').write_text('x')\nprint(draft.name, flush=True)\n"
        "time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    draft = Path(child.stdout.readline().strip())
    with DraftFolder(folder):
        assert draft.exists()  # its process lives
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert draft.exists()
    _, target, _ = prepare_folder(Model(source=str(llama), quantization="nf4"))
    assert set(folder.iterdir()) == {target, Path(alive.name)}
    alive.cleanup()
    assert create.find_damage(target) == ""
