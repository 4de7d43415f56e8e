"""pack and apply: the same adapter elsewhere, from one file and the base; whatever else the file holds is refused."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.logs import with_digest

import zoedge as package
from zoedge.commands.pack import pack_run
from zoedge.errors import DamagedError, UsageError, ZoedgeError
from zoedge.log.log import Log
from zoedge.log.shared import MAGIC, SharedLog
from zoedge.run.folder import open_any_log

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished run's folder, copied, and gone into."""
    folder = tmp_path / "home"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def away(home: Path, zoedge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another machine: film.zoe and the base, nothing else; gone into."""
    done = zoedge("pack", "runs/tiny", "-o", "film.zoe")
    assert done.code == 0, done.err
    folder = tmp_path / "away"
    folder.mkdir()
    shutil.move("film.zoe", folder)
    shutil.copytree("model", folder / "elsewhere")
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_the_same_adapter_elsewhere(zoedge: Any, home: Path, away: Path) -> None:
    own = contents(home / "runs" / "tiny" / "adapter")
    shutil.move(home, home.with_name("gone"))
    done = zoedge("apply", "film.zoe", "--base", "elsewhere", "-o", "adapter")
    assert done.code == 0, done.err
    assert contents(away / "adapter") == own, "every byte that `export` wrote there"
    facts = json.loads(own["zoedge.json"])
    (base, proven, adapter) = done.out.splitlines()
    assert base.endswith(f"elsewhere: the one that was trained on (sha256 {facts['base'][:16]}..)")
    assert proven == (f"proven   4 steps replayed, fingerprint {facts['log']}, state {facts['state'][:16]}: as packed")
    assert adapter == "adapter  adapter"
    assert zoedge("apply", "film.zoe", "--base", "elsewhere", "-o", "adapter").code == 0, "its own export is replaced"
    replayed = zoedge("replay", "film.zoe", "-o", "rebuilt")
    assert replayed.code == 0 and (away / "rebuilt" / WEIGHTS).read_bytes() == own[WEIGHTS]


def test_other_commands_read_it(zoedge: Any, away: Path) -> None:
    done = zoedge("verify", "film.zoe", "--replay")
    assert done.code == 0 and "replayed 4 steps" in done.out
    assert zoedge("log", "show", "film.zoe").code == 0
    found = package.replay("film.zoe")
    assert found.steps == 4 and found.fingerprint in zoedge("log", "show", "film.zoe").out


def test_it_is_small(home: Path) -> None:
    raw, log, _ = pack_run("runs/tiny")
    with Log.open(home / "runs" / "tiny" / "run.zlog") as own:
        from zoedge.log.packed import pack_log

        assert len(raw) == len(pack_log(own)) + 96 and log.fingerprint == own.fingerprint
    assert raw == pack_run("runs/tiny")[0], "the same bytes every time"


def test_another_base_or_tokenizer_is_refused(zoedge: Any, away: Path) -> None:
    weights = away / "elsewhere" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    shutil.copytree("elsewhere", "other")
    (away / "other" / "model.safetensors").write_bytes(raw)
    done = zoedge("apply", "film.zoe", "--base", "other")
    assert done.code == 4 and not (away / "applied").exists()
    assert (
        "film.zoe was not made from what is in" in done.err
        and "the base model (model.source, quantization)" in done.err
    )
    shutil.copytree("elsewhere", "words")
    table = json.loads((away / "words" / "tokenizer.json").read_text())
    table["added_tokens"][0]["lstrip"] = not table["added_tokens"][0]["lstrip"]
    (away / "words" / "tokenizer.json").write_text(json.dumps(table))
    done = zoedge("apply", "film.zoe", "--base", "words")
    assert done.code == 4 and "the tokenizer (sha256 " in done.err and "the base model" not in done.err
    done = zoedge("apply", "film.zoe")  # the recipe says `model`, which is not here
    assert done.code == 3 and "model" in done.err and not (away / "applied").exists()


def test_mistakes_get_sentences(zoedge: Any, home: Path) -> None:
    assert zoedge("pack", "runs/tiny", "-o", "film.zoe").code == 0
    assert zoedge("log", "export", "runs/tiny", "--packed", "-o", "run.zpack").code == 0
    (home / "mine").mkdir()
    (home / "mine" / "note.txt").write_text("of the user's")
    for command, code, said in (
        (["pack", "runs/tiny", "-o", "film.zoe"], 2, "film.zoe is there already; name another file."),
        (["pack", "run.zpack", "-o", "x.zoe"], 2, "run.zpack is packed already. Share it as it is, or pack the run"),
        (["pack", "film.zoe", "-o", "x.zoe"], 2, "film.zoe is packed already"),
        (["pack", "nothing", "-o", "x.zoe"], 2, "No run 'nothing'"),
        (["pack", "runs/tiny", "-o", "x.zoe", "--at", "99"], 2, "--at 99: not last, best or a number of steps"),
        (
            ["apply", "run.zpack"],
            2,
            "run.zpack is no shared fine-tune (.zoe): `zoedge pack RUN -o FILE.zoe` makes one.",
        ),
        (["apply", "runs/tiny/run.zlog"], 2, "is no shared fine-tune"),
        (["apply", "film.zoe", "-o", "mine"], 2, "mine is there and is not an export of zoedge"),
        (["apply", "film.zoe", "--device", "tpu"], 2, "'tpu' is not cpu or cuda"),
        (["apply", "film.zoe", "--base", "nowhere"], 3, "nowhere"),
        (["apply", "gone.zoe"], 2, "No run 'gone.zoe'"),
        (["apply", "rows.jsonl"], 5, "not a readable zoedge log"),
        (["resume", "film.zoe"], 5, "not a readable zoedge log"),
    ):
        done = zoedge(*command)
        assert done.code == code and said in done.err, (command, done.err)
    assert not (home / "x.zoe").exists() and (home / "mine" / "note.txt").read_text() == "of the user's"


def test_what_tells_of_this_machine_is_said(home: Path, zoedge: Any) -> None:
    recipe = (home / "my.yaml").read_text().replace("rows.jsonl", str(home / "rows.jsonl"))
    (home / "there.yaml").write_text(recipe.replace("name: tiny", "name: there"))
    assert zoedge("finetune", "there.yaml", "--quiet").code == 0
    done = zoedge("pack", "runs/there", "-o", "there.zoe")
    assert done.code == 0 and f"note: the recipe inside names a place on this machine: data.train {home}" in done.out
    assert "note:" not in zoedge("pack", "runs/tiny", "-o", "tiny.zoe").out


def test_an_unfinished_run_is_said_to_be_one(home: Path, zoedge: Any) -> None:
    log = home / "runs" / "tiny" / "run.zlog"
    header = Log.open(log).header
    log.write_bytes(log.read_bytes()[: header.length + 3 * header.slot_size])
    done = zoedge("pack", "runs/tiny", "-o", "film.zoe")
    assert done.code == 0 and "note: the run is not finished: " in done.out and " of 4 steps" in done.out
    assert zoedge("apply", "film.zoe", "--base", "model").code == 0


def test_a_run_that_chose_its_best_step_shares_that_one(home: Path, zoedge: Any) -> None:
    assert zoedge("finetune", "my.yaml", "name=chosen", "eval.select=best", "eval.every=1", "--quiet").code == 0
    notes = home / "runs" / "chosen" / "metrics.jsonl"
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    for line in lines:
        if line.get("event") == "valid":
            line["loss"] = 0.01 if line["step"] == 3 else 9.0
        for key in ("sum", "looks"):  # as versions before the checksums of looks wrote them
            line.pop(key, None)
    notes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert zoedge("pack", "runs/chosen", "-o", "film.zoe").code == 0
    notes.unlink()
    found = package.replay("film.zoe")
    assert found.steps == 3 and found.state == package.replay("runs/chosen", at=3).state
    done = zoedge("apply", "film.zoe", "--base", "model")
    assert done.code == 0 and "proven   3 steps replayed" in done.out
    assert package.replay("film.zoe", at=4).steps == 4, "the others are there too"


@pytest.mark.parametrize("space", ["prompt", "scales", "full"])
def test_spaces_that_begin_with_the_base(space: str, home: Path, zoedge: Any) -> None:
    """prompt needs the base to export, scales and full have no adapter: the whole model is written."""
    text = (home / "my.yaml").read_text()
    text = text.replace("space: {name: lora, rank: 2, targets: [q_proj], layers: last 1}", f"space: {{name: {space}}}")
    text = text.replace("quantization: none", "quantization: nf4") if space == "scales" else text
    (home / "other.yaml").write_text(text.replace("name: tiny", "name: other"))
    assert zoedge("finetune", "other.yaml", "--quiet").code == 0
    assert zoedge("pack", "runs/other", "-o", "film.zoe").code == 0
    done = zoedge("apply", "film.zoe", "--base", "model", "-o", "applied")
    assert done.code == 0, done.err
    to = "peft" if space == "prompt" else "merged"
    assert zoedge("export", "runs/other", "--to", to, "-o", "exported", "--force").code == 0
    assert contents(home / "applied") == contents(home / "exported")


# -- hostile bytes


def inner(raw: bytes, change: Callable[[bytearray], None]) -> bytes:
    """The packed log inside changed, both digests made anew."""
    packed = bytearray(raw[64:-64])
    change(packed)
    return with_digest(raw[:64] + with_digest(bytes(packed)))


@pytest.fixture
def small(home: Path) -> bytes:
    return pack_run("runs/tiny")[0]


def refused(raw: bytes) -> str:
    with pytest.raises(DamagedError) as e:
        SharedLog(Path("film.zoe"), raw)
    assert len(str(e.value)) < 500
    return str(e.value)


def test_every_flipped_bit_and_every_cut_is_refused(small: bytes) -> None:
    SharedLog(Path("film.zoe"), small)
    for i in range(len(small)):
        flipped = bytearray(small)
        flipped[i] ^= 1 << i % 8
        refused(bytes(flipped))
        refused(small[:i])
    refused(small + b"\0")
    assert with_digest(small[:-32]) == small, "that cut, signed anew, is the whole file"
    for i in {*range(0, len(small), 7), *range(len(small) - 72, len(small))} - {len(small) - 32}:
        with pytest.raises(ZoedgeError):
            SharedLog(Path("film.zoe"), with_digest(small[:i]))


FORGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (lambda raw: with_digest(b"\x89ZFU" + raw[4:-32]), "not its magic"),
    "major": (lambda raw: with_digest(raw[:8] + b"\2\0" + raw[10:-32]), "format 2.0 is not one"),
    "reserved": (lambda raw: with_digest(raw[:20] + b"\1" + raw[21:-32]), "reserved bytes are not zero"),
    "steps": (lambda raw: with_digest(raw[:12] + struct.pack("<I", 5) + raw[16:-32]), "it delivers step 5 of 4"),
    "huge steps": (lambda raw: with_digest(raw[:12] + b"\xff" * 4 + raw[16:-32]), "it delivers step 4294967295 of 4"),
    "state": (lambda raw: with_digest(raw[:32] + bytes(32) + raw[64:-32]), "its log knows another state of step 4"),
    "no log": (lambda raw: with_digest(raw[:64] + bytes(96)), "not its magic"),
    "two logs": (lambda raw: with_digest(raw[:-32] + raw[64:-32]), "bytes and says"),
    "a log's length": (lambda raw: inner(raw, lambda p: p.__setitem__(slice(12, 16), b"\xff" * 4)), "sizes do not fit"),
    "steps of the log": (lambda raw: inner(raw, lambda p: p.__setitem__(slice(16, 20), b"\xff" * 4)), "not"),
    "directions": (lambda raw: inner(raw, lambda p: p.__setitem__(slice(20, 24), b"\xff" * 4)), "bytes and says"),
    "known states": (lambda raw: inner(raw, lambda p: p.__setitem__(slice(28, 32), b"\xff" * 4)), "sizes do not fit"),
    "stream": (lambda raw: inner(raw, lambda p: p.__setitem__(slice(32, 36), b"\xff" * 4)), "bytes and says"),
    "a bomb": (lambda raw: inner(raw, lambda p: p.__setitem__(slice(64, 66), b"\0\0")), "not a readable packed log"),
    "itself inside": (lambda raw: with_digest(raw[:64] + raw), "not its magic"),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_is_forged_and_signed_is_refused_without_memory(what: str, small: bytes) -> None:
    make, said = FORGED[what]
    raw = make(small)
    tracemalloc.start()
    assert said in refused(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20, f"{peak} bytes"


def test_the_forger_can_forge(small: bytes) -> None:
    assert inner(small, lambda packed: None) == small == with_digest(small[:-32]) and small[:8] == MAGIC


def test_a_state_that_is_not_reached_is_refused(home: Path, zoedge: Any) -> None:
    raw, _, _ = pack_run("runs/tiny", "3")  # of step 3 the log knows no state
    (home / "film.zoe").write_bytes(with_digest(raw[:32] + bytes(32) + raw[64:-32]))
    done = zoedge("apply", "film.zoe", "--base", "model")
    assert done.code == 8 and "after step 3 the state is" in done.err and "the file says 000000000000.." in done.err
    assert not (home / "applied").exists()
    (home / "film.zoe").write_bytes(raw)
    assert zoedge("apply", "film.zoe", "--base", "model").code == 0


def test_names_inside_open_nothing(home: Path, zoedge: Any) -> None:
    """A recipe that names a pipe as its data: whoever opened it would wait for ever."""
    import os

    os.rename("rows.jsonl", "real.jsonl")
    os.mkfifo("rows.jsonl")
    assert zoedge("pack", "runs/tiny", "-o", "film.zoe").code == 0
    assert zoedge("apply", "film.zoe", "--base", "model").code == 0
    os.rename("model", "elsewhere")
    os.mkfifo("model")
    assert zoedge("apply", "film.zoe", "--base", "elsewhere").code == 0


def test_only_regular_files_are_read(home: Path, tmp_path: Path) -> None:
    import os

    os.mkfifo("pipe.zoe")
    with pytest.raises(UsageError):
        open_any_log("pipe.zoe")
    (home / "film.zoe").write_bytes(pack_run("runs/tiny")[0])
    os.symlink("film.zoe", "link.zoe")
    with pytest.raises(ZoedgeError):
        open_any_log("link.zoe")
