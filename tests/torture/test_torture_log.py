"""Damage to a log's bytes and a disk that says no: T1 every cut, T2 flips and edits, T3 every call that fails.

A line a suite with its counts and its seed; `make torture` runs the nightly sizes.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers.faults import (
    OPS,
    SEED,
    SHA,
    Failing,
    Fast,
    Tally,
    disk,
    fds_open,
    header,
    note,
    put,
    same,
    sizes,
    states,
    step,
    write,
)  # fmt: skip

from zoedge.commands.export import folder as export_folder
from zoedge.core import canonical, storage
from zoedge.errors import DamagedError, StorageError
from zoedge.log.log import Log
from zoedge.log.repair import repair


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    before = fds_open()
    with disk(Fast()):
        yield
    assert fds_open() == before


EVERY_K = (2, 7, 18, 39, 82)  # of every slot size


# -- T1


@pytest.mark.parametrize("k, sync_every", sizes([(2, 1), (3, 16), (8, 4096)], product(EVERY_K, (1, 16, 4096))))
def test_t1_cut_at_every_byte(tmp_path: Path, k: int, sync_every: int) -> None:
    """An exact whole-record prefix; resumed, it becomes the log that was never cut, byte for byte."""
    head = header(k, sync_every, block=canonical.encode_canonical({"a": "b"}))
    raw = write(tmp_path / "whole.zlog", head)
    meant, path, size, tally = states(head, raw), tmp_path / "run.zlog", head.slot_size, Tally(f"T1 cuts K={k}")
    for cut in range(len(raw) + 1):
        put(path, raw[:cut])
        whole, torn = divmod(cut - head.length, size)
        if (log := tally.opened(path, meant, whole)) is None:
            assert cut < head.length
            continue
        assert (log.seq, log.torn, log.size) == (whole, torn, cut - torn)
        aside = path.with_suffix(".torn")
        aside.unlink(missing_ok=True)
        with Log.resume(path) as log:
            assert path.stat().st_size == log.size == cut - torn
            assert (aside.read_bytes() if torn else b"") == raw[cut - torn : cut] and aside.exists() == bool(torn)
            for op in OPS[whole:]:
                op(log)
        assert path.read_bytes() == raw
    tally.close()
    assert tally.cases == len(raw) + 1 and tally.detected == head.length


# -- T2


@pytest.mark.parametrize("k, sync_every", sizes([(2, 1), (3, 16), (8, 1)], product(EVERY_K, (1, 16))))
def test_t2_every_flipped_bit_is_refused(tmp_path: Path, k: int, sync_every: int) -> None:
    """Every bit of header, block, padding and slots; a slot's flip is named with its slot and offset."""
    head = header(k, sync_every)
    path = tmp_path / "run.zlog"
    raw, tally = write(path, head), Tally(f"T2 flips K={k}")
    with path.open("r+b", buffering=0) as file:
        for at, bit in product(range(len(raw)), range(8)):
            file.seek(at)
            file.write(bytes([raw[at] ^ 1 << bit]))
            tally.cases += 1
            with pytest.raises(DamagedError) as e:
                Log.open(path)
            tally.detected += 1
            if at >= head.length:
                slot = (at - head.length) // head.slot_size
                assert f"slot {slot} (byte {head.length + slot * head.slot_size}, " in str(e.value)
            file.seek(at)
            file.write(raw[at : at + 1])
    tally.close()
    assert tally.cases == 8 * len(raw) and Log.open(path).state.end is not None


def bits(raw: bytes, chance: random.Random, size: int, start: int, other: bytes) -> bytes:
    """2 to 16 flipped bits."""
    new = bytearray(raw)
    for bit in chance.sample(range(8 * len(raw)), chance.randint(2, 16)):
        new[bit // 8] ^= 1 << bit % 8
    return bytes(new)


def burst(raw: bytes, chance: random.Random, size: int, start: int, other: bytes) -> bytes:
    """Some bytes in a row overwritten: by noise, zeros or ones, where a disk does it or anywhere."""
    length = chance.choice((2, 16, size, 512, 4096))
    at, grid = chance.randrange(len(raw)), chance.choice((1, size, 512))
    at = at // grid * grid
    fill = chance.choice((chance.randbytes(length), bytes(length), b"\xff" * length))
    return (raw[:at] + fill + raw[at + length :])[: len(raw)]


def edit(raw: bytes, chance: random.Random, size: int, start: int, other: bytes) -> bytes:
    """Slots, or runs of bytes, deleted, repeated, swapped."""
    width = chance.choice((size, size, chance.randint(1, 200)))
    count = (len(raw) - start) // width
    i, j = sorted(start + width * chance.randrange(count) for _ in range(2))
    a, b = raw[i : i + width], raw[j : j + width]
    how = chance.randrange(3)
    if how == 0:
        return raw[:i] + raw[i + width :]
    return raw[:j] + a + raw[j:] if how == 1 else raw[:i] + b + raw[i + width : j] + a + raw[j + width :]


def splice(raw: bytes, chance: random.Random, size: int, start: int, other: bytes) -> bytes:
    """A part from another run's log."""
    i, j = sorted(start + size * chance.randrange((len(raw) - start) // size + 1) for _ in range(2))
    return chance.choice((raw[:i] + other[i:], other[:i] + raw[i:], raw[:i] + other[i:j] + raw[j:]))


@pytest.mark.parametrize("count", sizes([2_000], [250_000]))
@pytest.mark.parametrize("how", [bits, burst, edit, splice], ids=lambda f: f.__name__)
def test_t2_random_damage(tmp_path: Path, how: Callable[..., bytes], count: int) -> None:
    """Refused, or a shorter run that says it has no END (a cut at a boundary, the last W slots zeroed); never another."""
    chance, path, tally = random.Random(SEED), tmp_path / "run.zlog", Tally(f"T2 {how.__name__}")
    cases = []
    for k, sync_every in ((2, 1), (2, 4), (7, 16)):
        head, ops = header(k, sync_every), [*OPS[:-1], *[step, note] * 10, OPS[-1]]
        raw = write(tmp_path / f"{k}-{sync_every}.zlog", head, ops)
        other = write(tmp_path / f"{k}-{sync_every}-other.zlog", header(k, sync_every, seed=8), ops)
        cases.append((head, raw, other, states(head, raw), states(head, other)))
    while tally.cases < count:
        head, raw, other, ours, theirs = chance.choice(cases)
        if (data := how(raw, chance, head.slot_size, head.length, other)) in (raw, other):
            continue
        put(path, data)
        meant = ours if data[: head.length] == raw[: head.length] else theirs
        if (log := tally.opened(path, meant)) is not None:
            assert log.seq < len(meant) - 1 or log.torn
    tally.close()


# -- T3


def create(path: Path) -> None:
    Log.create(path, header()).close()


def append(path: Path) -> None:
    with Log.resume(path) as log:
        for op in OPS[log.seq :]:
            op(log)


def export_(path: Path) -> None:
    with storage.replace_folder(path.parent / "adapter") as draft:
        storage.write_durably(draft / "weights", b"new" * 100)
        export_folder.write_marker(draft, {"zoedge": 1, "kind": "peft", "files": ["weights"]})


ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
SCENES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "create": (create, "nothing"), "append": (append, "header"), "mend": (append, "torn"), "repair": (repair, "damaged"),
    "export": (export_, "export"),
}  # fmt: skip


def scene(folder: Path, before: str, raw: bytes, length: int) -> Path:
    """A folder in which a scenario begins."""
    folder.mkdir()
    data = {"header": raw[:length], "torn": raw[:-90], "damaged": raw[: length + 200] + b"!!" + raw[length + 202 :]}
    if before in data:
        put(folder / "run.zlog", data[before])
    if before == "export":
        (folder / "adapter").mkdir()
        put(folder / "adapter" / "weights", b"old")
        put(
            folder / "adapter" / export_folder.MARKER_FILE,
            export_folder.encode_json({"zoedge": 1, "kind": "peft", "files": ["weights"]}),
        )
    return folder / "run.zlog"


def whole_export(folder: Path) -> bytes | None:
    """What a complete export holds; None: it is not complete."""
    try:
        export_folder.read_marker(folder)
    except DamagedError:
        return None
    return (folder / "weights").read_bytes()


def cases(name: str, tmp_path: Path, raw: bytes, length: int) -> Iterator[Failing]:
    """Every call of a scenario, failing in every way."""
    act, before = SCENES[name]
    with disk(Failing()) as whole:
        act(scene(tmp_path / f"{name}-whole", before, raw, length))
    for call, what in enumerate(whole.calls):
        for short in range(64) if what == "write" and name == "append" else (0, 1, 100) if what == "write" else (0,):
            for number in ERRORS:
                for sticky in (True, False):
                    yield Failing(call, number, short, sticky)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("most", sizes([1_000], [100_000]))
def test_t3_every_call_that_fails(tmp_path: Path, name: str, most: int) -> None:
    """StorageError, exit 74, nothing after it; what is there is a whole prefix, and the next try ends as if none had failed."""
    act, before = SCENES[name]
    head, tally, chance = header(), Tally(f"T3 {name}"), random.Random(SEED)
    raw = write(tmp_path / "whole.zlog", head)
    meant = states(head, raw)
    every = list(cases(name, tmp_path, raw, head.length))
    for i, failing in enumerate(chance.sample(every, min(most, len(every)))):
        path = scene(tmp_path / f"{name}-{i}", before, raw, head.length)
        tally.cases += 1
        with disk(failing):
            try:
                act(path)
                done = True
            except StorageError as e:
                assert e.exit_code == 74
                done = False
                tally.detected += 1
        if done:  # what failed was tidying up
            tally.recovered += 1
        made = {p.name for p in path.parent.iterdir()}
        if name == "export":
            tally.wrong += whole_export(path.parent / "adapter") not in (None, b"old", b"new" * 100)
            tally.lost += not (path.parent / "adapter").exists() and not any(".old-" in x for x in made)
        elif path.exists() and name != "repair":
            log = Log.open(path)
            tally.wrong += not same(log.state, meant[log.seq])
            tally.lost += name == "mend" and log.seq < len(meant) - 3
        elif name == "repair":
            data = path.read_bytes()
            tally.wrong += not raw.startswith(data) and data[: head.length + 128] != raw[: head.length + 128]
        with disk(Fast()):
            if name != "repair" or b"!!" in path.read_bytes():
                create(path) if not path.exists() and name in ("create",) else None
                act(path) if name != "create" else None
            if name in ("append", "mend"):
                tally.wrong += path.read_bytes() != raw
    tally.close()


def test_a_failed_sync_is_never_tried_again(tmp_path: Path) -> None:
    """The kernel may have dropped the page and say yes the second time: after a failure no call follows, close included."""
    create(tmp_path / "run.zlog")
    for number in ERRORS:
        with disk(Failing(-1, number, sticky=False)) as failing:
            log = Log.resume(tmp_path / "run.zlog")
            failing.call = len(failing.calls) + 1  # write, datasync
            with pytest.raises(StorageError, match="could not be synced"):
                step(log)
            made = list(failing.calls)
            for op in (step, note, lambda log: log.finish(SHA[1])):
                with pytest.raises(StorageError):
                    op(log)
            log.close()
            assert failing.calls == made and made[-1] == "datasync"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_second_names(tmp_path: Path, number: int) -> None:
    """FAT, and some that lie in user space: a log is begun there too, and none is replaced."""
    with disk(Failing(3, number, sticky=False)) as failing:  # open, write, sync, link
        create(tmp_path / "run.zlog")
        assert failing.calls[3:5] == ["link", "rename"]
        failing.calls.clear()
        with pytest.raises(FileExistsError):
            create(tmp_path / "run.zlog")
    assert len(Log.open(tmp_path / "run.zlog")) == 0 and [p.name for p in tmp_path.iterdir()] == ["run.zlog"]
