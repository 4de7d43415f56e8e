"""The lower layers' outputs are kept between runs: found again, proven when read, limited, and never in the way."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scores import load, random_examples

from zoedge.errors import StorageError
from zoedge.scoring.models import trunk_store
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.trunk import TrunkCache
from zoedge.scoring.models.trunk_blocks import partition_sequences
from zoedge.scoring.models.trunk_file import BlockFile
from zoedge.scoring.models.trunk_store import TrunkStore, trunk_key
from zoedge.scoring.sources import file_digests
from zoedge.scoring.tasks._examples import Examples

GIGABYTE = 10**9
SETS = [random_examples([90] * 66 + [41, 7, 23, 60, 1, 15], seed=seed) for seed in range(4)]  # four blocks each


@pytest.fixture(scope="module")
def shared(llama: Path) -> Base:
    base = load(llama)
    base.set_cut(2)
    return base


@pytest.fixture
def base(shared: Base, tmp_path: Path) -> Iterator[Base]:
    shared.store = TrunkStore(GIGABYTE, "tiny", make_folder(tmp_path))
    yield shared
    shared.kept.clear()
    shared.store = None
    shared.set_cut(2)


def make_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "trunk"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each forward of the lower blocks had."""
    sizes: list[int] = []
    real = Base.trunk

    def trunk(self: Base, ids: torch.Tensor, *args: Any) -> torch.Tensor:
        sizes.append(len(ids))
        return real(self, ids, *args)

    monkeypatch.setattr(Base, "trunk", trunk)
    return sizes


def open_anew(base: Base, examples: Examples, folder: Path) -> TrunkCache:
    """Open the cache of a set as another process would."""
    base.kept.clear()
    assert base.store is not None
    base.store = TrunkStore(base.store.limit, "tiny", base.store.folder)
    cache = base.open_trunk(examples, folder)
    assert cache is not None
    return cache


def states(cache: TrunkCache) -> torch.Tensor:
    return cache.read(range(len(cache.examples.tokens)), 90)


def kept_file(base: Base) -> Path:
    assert base.store is not None
    (path,) = base.store.folder.glob("*.trunk")
    return path


def test_what_one_process_computed_another_one_reads(base: Base, computed: list[int], tmp_path: Path) -> None:
    first = states(open_anew(base, SETS[0], tmp_path))
    assert sum(computed) == 72 and len(computed) == 4
    assert torch.equal(states(open_anew(base, SETS[0], tmp_path)), first) and len(computed) == 4
    equal = random_examples([90] * 66 + [41, 7, 23, 60, 1, 15], seed=0)
    assert torch.equal(states(open_anew(base, equal, tmp_path)), first) and len(computed) == 4, "by its tokens"
    head = open_anew(base, equal.head(3), tmp_path)
    assert torch.equal(head.read([0, 1, 2], 90), first[:3]) and len(computed) == 4, "a head reads its parent's"


def test_the_key_is_of_all_that_decides_the_bits(
    base: Base, llama: Path, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, blocks = SETS[0].tokens, partition_sequences(list(map(len, SETS[0].tokens)))

    def key(base: Base = base, tokens: Any = tokens, blocks: Any = blocks) -> bytes:
        return trunk_key(base, tokens, blocks)

    own = key()
    again = load(llama)
    again.set_cut(2)
    assert key(again) == own
    assert base.store is not None
    base.store.model = "another name"
    assert key() == own
    others = [
        key(tokens=SETS[1].tokens),
        key(blocks=partition_sequences(list(map(len, tokens)), [0, 5])),
    ]
    lowered = load(llama)
    lowered.set_cut(2)
    lowered.lower_trunk("bf16")
    others.append(key(lowered))
    for change in ({"quantization": "int8"}, {"quantization": "none"}, {"compute_dtype": "bf16"}):
        another = load(llama, **({"quantization": "nf4"} | change))
        another.set_cut(2)
        others.append(key(another))
    another = load(half)
    another.set_cut(2)
    others.append(key(another))
    base.set_cut(1)
    others.append(key())
    base.set_cut(2)
    for name, value in (("read_processor_name", lambda: "another"), ("VERSION", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(trunk_store, name, value)
            others.append(key())
    with monkeypatch.context() as patch:
        patch.setenv("MKL_CBWR", "COMPATIBLE")
        others.append(key())
    for what, value in (("__version__", "9.9"), ("get_num_threads", lambda: 7)):
        with monkeypatch.context() as patch:
            patch.setattr(torch, what, value)
            others.append(key())
    assert len({own, *others}) == 1 + len(others)


def test_a_flipped_byte_is_noticed_wherever_it_is(
    base: Base, computed: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the header's text it does no harm; in the magic or the key the file is begun anew; in a block that one is."""
    cache = open_anew(base, SETS[0], tmp_path)
    want, path = states(cache), kept_file(base)
    size = path.stat().st_size
    spots = [0, 5, 8, 39, 50, 4000, 4096, 4096 + 33, 4096 + 127, 4096 + 200]
    spots += [cache.file.first + start + k for start in cache.file.starts[:-1] for k in (0, 777)] + [size - 1]
    for spot in spots:
        raw = bytearray(path.read_bytes())
        raw[spot] ^= 16
        path.write_bytes(raw)
        capsys.readouterr()
        computed.clear()
        assert torch.equal(states(open_anew(base, SETS[0], tmp_path)), want), spot
        lines = capsys.readouterr().err.splitlines()
        is_block = 4096 <= spot < 4096 + 128 or spot >= cache.file.first
        assert len(computed) == (4 if spot < 40 else int(is_block)), spot
        assert len(lines) == (1 if computed else 0) and all("computed again" in line for line in lines), (spot, lines)
    for cut in (0, 100, 4096, size - 1, size + 1):
        with path.open("r+b") as file:
            file.truncate(cut)
        computed.clear()
        assert torch.equal(states(open_anew(base, SETS[0], tmp_path)), want)
        assert len(computed) == 4 and "computed again" in capsys.readouterr().err


@pytest.mark.parametrize("write", range(1, 9))
def test_a_process_that_is_killed_leaves_nothing_wrong(
    base: Base, computed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """At any of its writes, halfway: four blocks, a digest after each."""
    want = states(open_anew(base, SETS[0], tmp_path))
    kept_file(base).unlink()
    real, left = os.pwrite, [write]

    class Killed(BaseException):
        pass

    def pwrite(fd: int, data: Any, at: int) -> int:
        left[0] -= 1
        if left[0] == 0:
            real(fd, data[: len(data) // 2], at)
            raise Killed
        return real(fd, data, at)

    cache = open_anew(base, SETS[0], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", pwrite)
        with pytest.raises(Killed):
            states(cache)
    computed.clear()
    assert torch.equal(states(open_anew(base, SETS[0], tmp_path)), want)
    assert len(computed) == 4 - (write - 1) // 2


def test_two_processes_share_a_file_while_both_fill_it(base: Base, computed: list[int], tmp_path: Path) -> None:
    one = open_anew(base, SETS[0], tmp_path)
    two = open_anew(base, SETS[0], tmp_path)
    for _ in one.fill(one.blocks[0].numbers):
        pass
    for _ in two.fill(two.blocks[1].numbers):
        pass
    assert len(computed) == 2
    assert torch.equal(states(one), states(two)) and len(computed) == 4


def test_a_file_that_another_process_makes_first_is_taken(base: Base, tmp_path: Path) -> None:
    cache = open_anew(base, SETS[0], tmp_path)
    states(cache)
    path, (store, raw) = kept_file(base), (base.store, kept_file(base).read_bytes())
    assert store is not None
    store._create(path, b"x" * 40, {}, len(raw))
    assert path.read_bytes() == raw and list(store.folder.iterdir()) == [path], "no draft stays"


def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(
    base: Base, computed: list[int], tmp_path: Path
) -> None:
    assert base.store is not None
    paths = {}
    for i, examples in enumerate(SETS[:3]):
        cache = open_anew(base, examples, tmp_path)
        states(cache)
        assert cache.file.path is not None
        paths[i] = cache.file.path
        os.utime(paths[i], (1000.0 + i, 1000.0 + i))
    size = 512 * paths[0].stat().st_blocks
    open_anew(base, SETS[0], tmp_path)  # which is now the newest
    draft, new_draft = (base.store.folder / f".{name}.draft" for name in ("old", "new"))
    draft.touch()
    os.utime(draft, (0.0, 0.0))
    new_draft.touch()
    base.store = TrunkStore(2 * size, "tiny", base.store.folder)
    base.store.trim(base.store.limit)
    assert [paths[i].exists() for i in range(3)] == [True, False, True]
    assert new_draft.exists() and not draft.exists()
    base.store.limit = 0
    cache = open_anew(base, SETS[3], tmp_path)
    want = states(cache)
    assert cache.file.path is not None and cache.file.path.exists(), "its own is in use"
    assert not paths[0].exists() and not paths[2].exists()
    TrunkStore(0, "", base.store.folder).trim(0)
    assert not cache.file.path.exists() and torch.equal(states(cache), want), "a process that has it open goes on"
    computed.clear()
    assert torch.equal(states(open_anew(base, SETS[3], tmp_path)), want) and len(computed) == 4
    assert base.store is not None
    base.store.trim(base.store.limit, spare_own=False)
    assert not list(base.store.folder.glob("*.trunk"))


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], bool]], None]:
    """Let writes of blocks fail where `when(fd, n)` says so of the n-th one."""

    def arm(when: Callable[[int, int], bool]) -> None:
        real, count = os.pwrite, [0]

        def pwrite(fd: int, data: Any, at: int) -> int:
            count[0] += 1
            if when(fd, count[0]):
                raise OSError(28, "No space left on device")
            return real(fd, data, at)

        monkeypatch.setattr("os.pwrite", pwrite)

    return arm


def test_where_the_disk_is_full_other_files_of_the_cache_make_room(
    base: Base, tmp_path: Path, refuse: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    want = states(open_anew(base, SETS[0], tmp_path))
    old = kept_file(base)
    cache = open_anew(base, SETS[1], tmp_path)
    refuse(lambda fd, n: old.exists())
    states(cache)
    assert not old.exists() and cache.file.path is not None and capsys.readouterr().err == ""
    assert torch.equal(states(open_anew(base, SETS[0], tmp_path)), want)


def test_where_the_caches_disk_stays_full_the_runs_folder_is_taken(
    base: Base, tmp_path: Path, refuse: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    want = states(open_anew(base, SETS[0], tmp_path))
    kept_file(base).unlink()
    cache = open_anew(base, SETS[0], tmp_path)
    path = kept_file(base)
    refuse(lambda fd, n: path.exists() and n > 3)
    assert torch.equal(states(cache), want) and cache.file.path is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and str(tmp_path) in line
    assert base.store is not None and not list(base.store.folder.iterdir()), "a part of it would be in the way"
    refuse(lambda fd, n: True)
    with pytest.raises(StorageError, match=r"cannot write the trunk cache \(\d+,\d+,\d+ bytes\): No space left"):
        states(open_anew(base, SETS[1], tmp_path))


@pytest.mark.parametrize("fault", ["no folder", "a folder in its place", "always removed"])
def test_a_cache_that_cannot_be_written_is_no_fault_of_a_run(
    base: Base, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = states(open_anew(base, SETS[0], tmp_path))
    path = kept_file(base)
    path.unlink()
    assert base.store is not None
    if fault == "no folder":
        base.store.folder.rmdir()
    elif fault == "a folder in its place":
        path.mkdir()
    else:
        monkeypatch.setattr(TrunkStore, "_create", lambda *args: None)
    cache = open_anew(base, SETS[0], tmp_path)
    assert cache.file.path is None and torch.equal(states(cache), want)
    assert "cannot be kept there" in capsys.readouterr().err


def test_a_disk_that_does_not_give_a_block_back_is_as_one_that_damaged_it(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    want = states(open_anew(base, SETS[0], tmp_path))
    cache = open_anew(base, SETS[0], tmp_path)
    real = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        if at >= cache.file.first:
            raise OSError(5, "Input/output error")
        return real(fd, size, at)

    computed.clear()
    with monkeypatch.context() as patch:
        patch.setattr("os.pread", pread)
        assert not cache.file.holds(0)
    assert torch.equal(states(cache), want) and not computed


def test_weights_that_rot_behind_a_memo_fill_no_kept_file(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    """The key is of the sound weights, by a memo; what is computed of others would be read by every later run."""
    place = tmp_path / "model"
    shutil.copytree(llama, place)
    monkeypatch.setattr(file_digests, "SETTLING_SECONDS", -1e9)
    monkeypatch.setattr(file_digests, "file_version", lambda path, stat: hashlib.sha256(str(path).encode()).hexdigest())
    folder = make_folder(tmp_path)
    sound = load(place, "none")
    sound.set_cut(2)
    sound.store = TrunkStore(GIGABYTE, "tiny", folder)
    cache = sound.open_trunk(SETS[0], tmp_path)
    assert cache is not None
    first = cache.blocks[0].numbers[:1]
    cache.read(first, 90)
    weights = place / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 0x40
    weights.write_bytes(raw)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    rotten = load(place, "none")
    rotten.set_cut(2)
    rotten.store = TrunkStore(GIGABYTE, "tiny", folder)
    computed.clear()
    cache = rotten.open_trunk(SETS[0], tmp_path)
    assert cache is not None and cache.file.path in kept
    cache.read(cache.blocks[1].numbers[:1], 90)
    assert computed and cache.file.path is None
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept


def test_the_time_of_a_check_is_once(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states(open_anew(base, SETS[0], tmp_path))
    cache, hashed = open_anew(base, SETS[0], tmp_path), []
    real = BlockFile._digest
    monkeypatch.setattr(BlockFile, "_digest", lambda self, block: hashed.append(block) or real(self, block))
    cache.read([0, 1], 90)
    cache.read([0, 1, 65], 90)
    assert sorted(hashed) == sorted({cache.block_of[i] for i in (0, 1, 65)})
    assert time.time() - kept_file(base).stat().st_mtime < 60, "it counts as used"
