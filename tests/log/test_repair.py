"""zoedge repair: explicit, keeps what was, says what it did; after it the run goes on to the bytes it would have had."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Done
from helpers.faults import OPS, SEED, Fast, Tally, disk, header, put, sizes, states, step, write

from zoedge.errors import DamagedError, LockedError, StorageError, UsageError
from zoedge.log import repair as repair_module
from zoedge.log.log import Log
from zoedge.log.repair import find_wrong_byte, repair


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, bytes, bytes]:
    """(a log with eight wrong bytes in slot 5, what it was, what it is)."""
    path = tmp_path / "run.zlog"
    raw = write(path, header())
    bad = raw[:1374] + b"!" * 8 + raw[1382:]
    put(path, bad)
    return path, raw, bad


def test_it_says_what_it_did_and_keeps_what_was(damaged: tuple[Path, bytes, bytes]) -> None:
    path, raw, bad = damaged
    said = repair(path)
    assert said == [
        "damaged at slot 5 (byte 1344, after 3 steps): its chain value does not match. Cut there: 8 slots, 512 bytes.",
        f"3 steps survive. As it was: {path.with_suffix('.damaged-1')}.",
    ]
    assert path.with_suffix(".damaged-1").read_bytes() == bad and path.read_bytes() == raw[:1344]
    with Log.resume(path) as log:
        for op in OPS[5:]:
            op(log)
    assert path.read_bytes() == raw


def test_the_copy_is_made_in_pieces(damaged: tuple[Path, bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """One read gives 2 GiB at most (here: 37 bytes), and a copy that is not whole stops everything."""
    path, raw, bad = damaged
    pread, most = os.pread, len(bad) - 1
    with monkeypatch.context() as patch:
        patch.setattr(repair_module, "PIECE_SIZE", 1000)
        patch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, max(0, most - at)) if n == 1000 else n, at))
        with pytest.raises(StorageError, match=f"1,{most - 1000} of its 1,{len(bad) - 1000} bytes were copied"):
            repair(path)
        assert path.read_bytes() == bad
        patch.setattr(os, "pread", lambda fd, n, at: pread(fd, 37 if n == 1000 else n, at))
        assert "3 steps survive" in repair(path)[-1]
    assert path.with_suffix(".damaged-2").read_bytes() == bad and path.read_bytes() == raw[:1344]


def test_a_copy_is_never_overwritten(damaged: tuple[Path, bytes, bytes]) -> None:
    path, _, bad = damaged
    for i in range(1, 4):
        put(path, bad + bytes(i))
        assert f".damaged-{i}" in repair(path)[-1]
    for i in range(1, 4):
        assert path.with_suffix(f".damaged-{i}").read_bytes() == bad + bytes(i)
    put(path, bad)
    path.with_suffix(".damaged-4").symlink_to(path.parent / "victim")
    assert ".damaged-5" in repair(path)[-1] and not (path.parent / "victim").exists()


@pytest.mark.parametrize("k, sync_every", sizes([(2, 1)], [(2, 16), (3, 1), (8, 1)]))
def test_one_wrong_byte_of_a_slot_is_mended(tmp_path: Path, k: int, sync_every: int) -> None:
    """Every byte of every slot, any wrong value: nothing is lost."""
    head, chance, path = header(k, sync_every), random.Random(SEED), tmp_path / "run.zlog"
    raw, tally = write(path, head), Tally(f"repair K={k}")
    stride = 1 if (k, sync_every) != (2, 1) else 7
    with disk(Fast()):
        for at in range(head.length, len(raw), stride):
            put(path, raw[:at] + bytes([raw[at] ^ chance.randrange(1, 256)]) + raw[at + 1 :])
            said = repair(path)
            tally.cases += 1
            tally.recovered += 1
            tally.wrong += path.read_bytes() != raw
            assert len(said) == 2 and f"one wrong byte, {at}," in said[0] and said[1].startswith("5 steps survive")
            path.with_suffix(".damaged-1").unlink()
    tally.close()


def test_a_byte_in_each_of_several_slots(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    raw = bytearray(write(path, header()))
    whole = bytes(raw)
    for slot in (0, 3, 4, 12):
        raw[1024 + slot * 64 + slot + 20] ^= 0x5A
    put(path, bytes(raw))
    said = repair(path)
    assert [line.split(" (")[0] for line in said[:-1]] == [f"damaged at slot {i}" for i in (0, 3, 4, 12)]
    assert path.read_bytes() == whole and Log.open(path).state.end is not None


@pytest.mark.parametrize("count", sizes([40], [3_000]))
def test_after_a_repair_the_log_is_a_prefix(tmp_path: Path, count: int) -> None:
    """Random damage: whatever is refused is repaired to whole slots of what was written, and can be resumed."""
    chance, path, head = random.Random(SEED), tmp_path / "run.zlog", header()
    raw, tally = write(path, head), Tally("repair random")
    meant = states(head, raw)
    with disk(Fast()):
        while tally.cases < count:
            data = bytearray(raw)
            for _ in range(chance.randint(1, 3)):
                at, length = chance.randrange(head.length, len(raw)), chance.choice((1, 1, 4, 64, 200))
                data[at : at + length] = chance.randbytes(min(length, len(raw) - at))
            put(path, bytes(data))
            try:
                Log.open(path)
                continue
            except DamagedError as e:
                first = int(str(e).split("slot ")[1].split()[0])
            repair(path)
            log = tally.opened(path, meant)
            assert log is not None and log.seq >= first
            with Log.resume(path) as log:
                for op in OPS[log.seq :]:
                    op(log)
            assert path.read_bytes() == raw
            path.with_suffix(".damaged-1").unlink()
    tally.close()


def test_what_is_not_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    raw = write(path, header())
    for data, words in (
        (raw, "nothing is damaged in its 5 steps.$"),
        (raw[:-7], "unfinished write, which `zoedge resume`"),
    ):
        put(path, data)
        with pytest.raises(UsageError, match=words):
            repair(path)
        assert path.read_bytes() == data and [p.name for p in tmp_path.iterdir()] == ["run.zlog"]


def test_without_a_header_nothing_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    raw = write(path, header())
    for data in (b"", raw[:511], bytes(512) + raw[512:], raw[:100] + b"\xff" + raw[101:]):
        put(path, data)
        with pytest.raises(DamagedError, match="without it nothing can be mended"):
            repair(path)
        assert path.read_bytes() == data and [p.name for p in tmp_path.iterdir()] == ["run.zlog"]


def test_a_run_that_is_being_written_is_not_repaired(damaged: tuple[Path, bytes, bytes]) -> None:
    path, _, bad = damaged
    with Log.inspect(path) as log:
        assert log.wrong and not log.writable
        with pytest.raises(StorageError):
            step(log)
        with pytest.raises(LockedError):
            repair(path)
    assert path.read_bytes() == bad


def test_a_slot_that_no_writer_writes_is_not_mended_but_cut(tmp_path: Path) -> None:
    """Its chain value is right: somebody forged it. No byte is changed until it fits."""
    path = tmp_path / "run.zlog"
    raw = write(path, header(), OPS[:3])
    assert find_wrong_byte(raw[480:496], raw[1024:1088]) is None


def test_a_run_is_repaired_verified_and_resumed(recipe_file: Path, zoedge: Callable[..., Done], tmp_path: Path) -> None:
    """To the very bytes of the run that was never damaged."""
    assert zoedge("finetune", recipe_file, "--quiet").code == 0
    run, whole = tmp_path / "runs" / "tiny", (tmp_path / "runs" / "tiny" / "run.zlog").read_bytes()
    shutil.rmtree(run / "adapter")
    (run / "metrics.jsonl").unlink()
    start = Log.open(run / "run.zlog").header.length
    bad = bytearray(whole)
    bad[start + 64 * 14 + 20 : start + 64 * 14 + 30] = b"\xff" * 10
    bad[start + 64 * 3 + 25] ^= 2
    (run / "run.zlog").write_bytes(bad)
    for command in ("verify", "resume", "replay"):
        done = zoedge(command, run)
        assert (
            done.code == 5 and f"slot 3 (byte {start + 192}, after 2 steps)" in done.err and "zoedge repair" in done.err
        )
    done = zoedge("repair", run)
    assert (
        done.code == 0 and "one wrong byte" in done.out and f"damaged at slot 14 (byte {start + 896}, after" in done.out
    )
    assert "steps survive" in done.out and "run.damaged-1" in done.out and f"zoedge verify {run}" in done.out
    assert (run / "run.damaged-1").read_bytes() == bad
    done = zoedge("verify", run, "--replay")
    assert done.code == 0 and "incomplete" in done.out, done.err
    assert zoedge("repair", run).code == 2
    assert zoedge("resume", run, "--quiet").code == 0
    assert (run / "run.zlog").read_bytes() == whole
