"""Files that mean harm: each ends in a sentence, within 512 MiB and 10 s, and runs, fetches and writes nothing.

The commands run in tests/helpers/hostile.py, which holds them to that. A case is a finished run's folder with one thing in it
that a stranger wrote. What a fuzzer found stands here too; TRACK_RECORD.md says which.
"""

# ruff: noqa: E501 - a case a line
from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.changes import ADAPTER, GO, LOG, ROWS, Change, config, edit, flip, link, pipe, put, recipe, rows, tree
from helpers.paths import HELPERS

from zoedge.commands.export.folder import MARKER_FILE, WEIGHTS_FILE
from zoedge.core import canonical
from zoedge.log import log, slots
from zoedge.log.packed import pack_log

HUGE = b"\xff" * 4
VICTIM = "../victim"  # outside the folder that a command may write in


class Evil:
    """A pickle of it writes beside the folder when it is opened."""

    def __reduce__(self) -> Any:
        return (eval, (f"open({VICTIM!r}, 'w').write('owned')",))


PICKLE = pickle.dumps(Evil())
CODE = f"open({VICTIM!r}, 'w').write('owned')\n"


class Case(NamedTuple):
    command: str
    change: Change
    code: int
    sentence: str
    torch: bool = True  # what it runs in has imported torch: 512 MiB more than that


# -- forgeries with every digest made right


def signed(raw: bytes) -> bytes:
    """A log with the digests of its header and slots made right."""
    new = bytearray(raw)
    length, block = struct.unpack_from("<II", raw, 12)
    new[480:512] = hashlib.sha256(new[:480] + new[512 : 512 + block]).digest()
    value = bytes(new[480:496])
    if 512 <= length <= len(new):
        for i in range(length, len(new) - 63, 64):
            new[i + 48 : i + 64] = value = slots.chain_value(value, bytes(new[i : i + 48]))
    return bytes(new)


def forge(at: int, data: bytes) -> Change:
    return edit(LOG, lambda raw: signed(raw[:at] + data + raw[at + len(data) :]))


def slot(at: int, data: bytes) -> Change:
    """In the first STEP."""

    def change(raw: bytes) -> bytes:
        (length,) = struct.unpack_from("<I", raw, 12)
        first = next(i for i in range(length, len(raw), 64) if raw[i] == slots.STEP) + at
        return signed(raw[:first] + data + raw[first + len(data) :])

    return edit(LOG, change)


def block(change: Callable[[dict[str, Any]], Any] | bytes, fields: bytes = b"") -> Change:
    """Another block, of any bytes or of a table that was changed; `fields`: at 56, the count of elements."""

    def apply(raw: bytes) -> bytes:
        length, size = struct.unpack_from("<II", raw, 12)
        new = change if isinstance(change, bytes) else b""
        if not isinstance(change, bytes):
            table = canonical.decode_canonical(raw[512 : 512 + size])
            change(table)
            new = canonical.encode_canonical(table)
        padded = new + bytes(-len(new) % 512)
        sizes = struct.pack("<II", 512 + len(padded), len(new))
        head = raw[:12] + sizes + raw[20:56] + (fields or raw[56:64]) + raw[64:512]
        return signed(head + padded + raw[length:])

    return edit(LOG, apply)


def setting(section: str, **values: Any) -> Change:
    return block(lambda table: table["recipe"][section].update(values))


def shapes(rank: int, value: Any, elements: int) -> Change:
    def change(table: dict[str, Any]) -> None:
        table["recipe"]["space"]["rank"] = rank
        table["space"] = {"shapes": value}

    return block(change, struct.pack("<Q", elements))


def packed(change: Callable[[bytearray], Any]) -> Change:
    """runs/tiny/run.zpack, its fields changed, its digest made right."""

    def apply(folder: Path) -> None:
        raw = bytearray(pack_log(log.Log.open(folder / LOG))[:-32])
        raw = change(raw) or raw
        (folder / "run.zpack").write_bytes(bytes(raw) + hashlib.sha256(raw).digest())

    return apply


def bomb(raw: bytearray) -> bytearray:
    (size,) = struct.unpack_from("<I", raw, 32)
    stream = zlib.compress(bytes(600 << 20), 1)
    return raw[:32] + struct.pack("<I", len(stream)) + raw[36:64] + stream + raw[64 + size :]


def torn_elsewhere(folder: Path) -> None:
    (folder / LOG).write_bytes((folder / LOG).read_bytes()[:-30])
    (folder / LOG).with_suffix(".torn").symlink_to(folder / VICTIM)


# -- safetensors


def tensors(header: bytes | dict[str, Any], payload: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def entry(*shape: int, at: tuple[int, int] = (0, 0), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


def weights(data: bytes) -> Change:
    return put("model/model.safetensors", data)


def pickled(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model" / "model.safetensors").unlink()
        (folder / "model" / name).write_bytes(PICKLE)

    return change


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model" / "model.safetensors", "w") as file:
        file.writestr("archive/data.pkl", PICKLE)


def adapter(change: Callable[[bytes], bytes]) -> Change:
    """The adapter's file changed, its payload's digest made right there and in the marker."""

    def apply(folder: Path) -> None:
        path = folder / "runs" / "tiny" / "adapter" / WEIGHTS_FILE
        raw = change(path.read_bytes())
        path.write_bytes(raw)

    return apply


def renamed_tensor(raw: bytes) -> bytes:
    start = 8 + int.from_bytes(raw[:8], "little")
    text = re.sub(rb'"base_model[^"]*lora_A[^"]*"', b'"../../../tmp/x"', raw[8:start])
    return tensors(text, raw[start:])


def doubled_tensor(raw: bytes) -> bytes:
    start = 8 + int.from_bytes(raw[:8], "little")
    text = raw[8:start].rstrip()
    name = re.search(rb'"base_model[^}]*\}', text)
    assert name
    return tensors(text[:-1] + b"," + name[0] + b"}", raw[start:])


def marker(change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(raw: bytes) -> bytes:
        table = json.loads(raw)
        change(table)
        return json.dumps(table).encode()

    return edit(f"runs/tiny/adapter/{MARKER_FILE}", apply)


# -- models, chats, rows


def coded(tokenizer: bool) -> Change:
    """Code in the model's folder, which its configuration names."""

    def change(folder: Path) -> None:
        (folder / "model" / "evil.py").write_text(CODE)
        if tokenizer:
            path = folder / "model" / "tokenizer_config.json"
            names = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
            path.write_text(json.dumps(json.loads(path.read_text()) | names))
        else:
            config(model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})(folder)

    return change


def templated(template: str) -> Change:
    def change(folder: Path) -> None:
        task = next(line for line in (folder / "my.yaml").read_text().splitlines() if line.startswith("task"))
        recipe(task, "task: {name: chat}")(folder)
        put("rows.jsonl", ROWS.replace(b"text", b"prompt").replace(b"label", b"completion"))(folder)
        (folder / "model" / "chat_template.jinja").write_text(template)

    return change


def sparse(name: str) -> Change:
    """600 MiB of NUL bytes in one line, which take no room."""

    def change(folder: Path) -> None:
        rows(b"", name)(folder)
        os.truncate(folder / name, 600 << 20)

    return change


def parquet(folder: Path) -> None:
    """30 million rows in a few megabytes."""
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1_000_000, "int8"), ["a film " * 100])
    schema = pyarrow.schema([("text", column.type), ("label", column.type)])
    with pyarrow.parquet.ParquetWriter(folder / "rows.parquet", schema, compression="zstd") as writer:
        for _ in range(30):
            writer.write_table(pyarrow.table({"text": column, "label": column}))
    assert (folder / "rows.parquet").stat().st_size < 8 << 20
    recipe("rows.jsonl", "rows.parquet")(folder)


def indexed(folder: Path) -> None:
    """An index whose shard is a file outside."""
    (folder / "model" / "model.safetensors").rename(folder / "outside.safetensors")
    put("model/x.safetensors", tensors({}))(folder)
    names = {"model.norm.weight": "../outside.safetensors"}
    put("model/model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": names}))(folder)


def coloured(folder: Path) -> None:
    shutil.copyfile(folder / LOG, folder / "other.zlog")
    setting("task", prompt="\x1b]0;owned\x07{text}")(folder)
    forge(96, b"another!")(folder)  # and the digest of its recipe


QUESTION = "{% for m in messages %}{{ m.content }}{% endfor %}"
BOMB = "a: &a [x,x]\n" + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
SHOW, CHECK, REPLAY = "log show tiny", "verify tiny", "replay tiny -o rebuilt"
PACKED = "verify run.zpack"
CASES: dict[str, Case] = {
    # logs: what stands in the header and the slots
    "a header of 4 GiB": Case(SHOW, forge(12, b"\0\xfe\xff\xff"), 5, "a header of 4294966784 bytes", False),
    "a block of 4 GiB": Case(SHOW, forge(16, HUGE), 5, "a block of 4294967295 bytes", False),
    "slots of 64 KiB": Case(SHOW, forge(20, b"\xff\xff"), 5, "directions in slots of 65535 bytes", False),
    "65,535 directions": Case(CHECK, forge(22, b"\xff\xff"), 5, "65535 directions in slots of 64", False),
    "syncs of 4 G steps": Case(CHECK, forge(68, HUGE), 5, "sync_every 4294967295", False),
    "reserved bytes": Case(CHECK, forge(72, b"x"), 5, "reserved bytes are not zero", False),
    "a slot of no kind": Case(CHECK, slot(0, b"\7"), 5, r"damaged at slot 1 .*unknown kind 7", False),
    "255 directions in a slot": Case(CHECK, slot(2, b"\xff"), 5, "255 directions and 2 losses do not fit", False),
    "a weight that is no number": Case(CHECK, slot(24, b"\0\0\xc0\x7f"), 5, "a weight is not finite", False),
    "a step of the far future": Case(CHECK, slot(8, HUGE), 5, "it says that it stands after 4294967295 steps", False),
    "a link to an endless log": Case(SHOW, link(LOG, "/dev/zero"), 74, "symbolic links", False),
    "a link to a log": Case(SHOW, link(LOG, "../../rows.jsonl"), 74, "symbolic links", False),
    "a pipe for a log": Case(SHOW, pipe("runs/tiny/run.zlog"), 74, "not a regular file", False),
    "600 MiB of zeros for a log": Case(SHOW, lambda f: (put(LOG, b"")(f), os.truncate(f / LOG, 600 << 20)), 5, "not its magic", False),
    "600 MiB of zeros after a log": Case(SHOW, lambda f: os.truncate(f / LOG, 600 << 20), 5, r"damaged at slot \d+", False),
    # logs: the block
    "a block of brackets": Case("log show tiny --json", block(b"[" * 90_000), 5, "the header's block cannot be read", False),
    "a block of tables in tables": Case("log show tiny --json", block(b'{"a":' * 900 + b"1" + b"}" * 900), 5, "cannot be read", False),
    "a key twice in the block": Case("log show tiny --json", block(b'{"recipe":1,"recipe":2}'), 5, "not one object of canonical", False),
    "a number of 900,000 digits": Case("log show tiny --json", block(b'{"a":' + b"9" * 900_000 + b"}"), 5, "ValueError", False),
    "escape sequences in a log's recipe": Case("log diff tiny other.zlog", coloured, 0, "", False),
    "no recipe": Case(REPLAY, block(b"{}"), 5, "the header's recipe cannot be read"),
    "a list for a recipe": Case(REPLAY, block(b'{"recipe":[]}'), 2, "not a table of keys and values"),
    "a recipe of 80,000 keys": Case(
        REPLAY, block(lambda t: t["recipe"].update({f"k{i}": 1 for i in range(80_000)})), 2, r"(?s)unknown key.*and \d+ more"
    ),
    "a recipe of 100,000 targets": Case(
        REPLAY, block(lambda t: t["recipe"]["space"].update(targets=[1] * 100_000)), 2, r"(?s)is not a text.*and \d+ more"
    ),
    "a recipe 40 deep": Case(REPLAY, block(lambda t: t["recipe"].update(a=json.loads("[" * 40 + "]" * 40))), 2, "at most 16 deep"),
    "a name with a path": Case(REPLAY, block(lambda t: t["recipe"].update(name="../../x")), 2, "is not a name"),
    "NUL in a path": Case("eval tiny", setting("data", train="a\0/b"), 2, "without NUL"),
    "8 EiB of elements": Case(REPLAY, forge(56, b"\0" * 7 + b"\x80"), 5, "is not one of 9,223,372,036,854,775,808 elements"),
    "4 TiB of elements, and all agrees": Case(
        REPLAY, shapes(1, [["m", 2**39, 2**39]], 2**40), 3, r"1,099,511,627,776 elements, needs 4,398\.0 GB"
    ),
    "700 MB of elements, and all agrees": Case(REPLAY, shapes(1, [["m", 2**26, 10**8]], 2**26 + 10**8), 3, "needs 0.7 GB"),
    "a rank that multiplies texts": Case(REPLAY, shapes(2**30, [["m", "ab", "cd"]], 7), 5, "is not one of 7 elements"),
    "shapes that are a text": Case(REPLAY, shapes(2, "abc", 7), 5, "is not one of 7 elements"),
    "other names of tensors": Case(
        REPLAY, block(lambda t: t["space"].update(shapes=[["../../x", *s[1:]] for s in t["space"]["shapes"]])), 4, "trained tensors are not"
    ),
    "a noise of the future": Case(REPLAY, forge(24, b"\x63"), 2, "knows no noise with id 99"),
    "a command for a goal": Case(
        "eval tiny", setting("task", objective="os:system"), 2, r"rewards by os:system, a Python file .*add --trust-code"
    ),
    "a command for a goal, trusted": Case(
        "eval tiny --trust-code", setting("task", objective="os:system"), 3, r"there is no os\.py in"
    ),
    "a model outside": Case("eval tiny", setting("model", source="../../../../etc"), 3, "no config.json|no folder"),
    "a data file outside": Case("eval tiny", setting("data", train="/etc/passwd"), 3, "'no ending' is not read"),
    "a hub's model": Case("eval tiny", setting("model", source="a/b"), 3, "offline, and not in the hub's cache"),
    "notes that are none": Case(
        "replay tiny --at best", put("runs/tiny/metrics.jsonl", "[" * 90_000 + '\n[]\n{"event": "valid", "step": [], "loss": {}}\n'),
        2, "no validation loss is noted",
    ),
    "the torn tail's file is a link": Case("resume tiny", torn_elsewhere, 74, "cannot read or mend the log"),
    # packed logs
    "a packed bomb of 600 MiB": Case(PACKED, packed(bomb), 5, "its stream has another length", False),
    "4 G packed steps": Case(PACKED, packed(lambda raw: raw.__setitem__(slice(16, 20), HUGE)), 5, "sizes do not fit", False),
    "4 G packed directions": Case(PACKED, packed(lambda raw: raw.__setitem__(slice(20, 24), HUGE)), 5, "it is .* bytes and says", False),
    "a packed header of 4 GiB": Case(PACKED, packed(lambda raw: raw.__setitem__(slice(12, 16), HUGE)), 5, "sizes do not fit", False),
    # recipes
    "a bomb of aliases": Case(GO, put("my.yaml", BOMB), 2, r"my\.yaml:1:4: anchors and aliases", False),
    "a tag that runs": Case(GO, put("my.yaml", f"a: !!python/object/apply:eval [{CODE!r}]"), 2, r"my\.yaml:1:4: the tag", False),
    "a merge key": Case(GO, recipe("", "<<: {seed: 1}\n"), 2, r"my\.yaml:11:1: <<: unknown key"),
    "60,000 brackets": Case(GO, put("my.yaml", "[" * 60_000), 2, "nested more than 16 deep", False),
    "30,000 mistakes": Case(GO, recipe("", "output: {export: [" + "1," * 30_000 + "]}"), 2, r"(?s)'peft' or 'merged'.*and \d+ more"),
    "a link to an endless recipe": Case("finetune zero.yaml", link("zero.yaml", "/dev/zero"), 2, "No recipe", False),
    "600 MiB of recipe": Case(GO, lambda f: os.truncate(f / "my.yaml", 600 << 20), 2, "larger than 64 KiB", False),
    "escape sequences in a recipe": Case(GO, recipe("sgd", '"\\e[31m"'), 2, r"rule: no '\\x1b\[31m'"),
    # rows
    "rows of brackets": Case(GO, rows(b"[" * 1_000_000 + b"\n" + ROWS), 3, "a JSON array|nested more than 16 deep"),
    "a number of a million digits": Case(GO, rows(b'{"text": ' + b"9" * 1_000_000 + b"}\n"), 3, "a number of 1,000,000 digits"),
    "600 MiB in a line": Case(GO, sparse("rows.jsonl"), 3, r"rows\.jsonl:1: longer than 1 MiB"),
    "600 MiB in a CSV's line": Case(GO, sparse("rows.csv"), 3, r"rows\.csv:1: longer than 1 MiB"),
    "600 MiB of Parquet": Case(GO, sparse("rows.parquet"), 3, "not a readable Parquet file"),
    "a Parquet footer of 2 GiB": Case(GO, rows(b"PAR1" + bytes(99) + b"\xff\xff\xff\x7fPAR1", "rows.parquet"), 3, "not a readable"),
    "30 million rows in a few megabytes": Case(GO, parquet, 3, "memory ended"),
    "escape sequences in a row": Case(GO, rows(ROWS + b'{"text": "a", "\\u001b[31m": 1}\n'), 3, r'rows\.jsonl:31: .*\\x1b\[31m'),
    # models
    **{
        f"a pickle as {name}": Case(GO, pickled(name), 3, "has no .safetensors weights")
        for name in ("pytorch_model.bin", "model.pt", "model.ckpt", "model.npz", "tf_model.h5")
    },
    "a pickle as .safetensors": Case(GO, weights(PICKLE), 3, "a pickle, an archive or HDF5 under this name"),
    "an archive as .safetensors": Case(GO, zipped, 3, "a pickle, an archive or HDF5 under this name"),
    "a pickle for a tokenizer": Case(GO, put("model/tokenizer.json", PICKLE), 3, r"model\.source: model: "),
    "a header of 2**62": Case(GO, weights(tensors({}, length=2**62)), 3, "a header of 4,611,686,018,427,387,904 bytes"),
    "a tensor twice": Case(GO, weights(tensors(b'{"a":{},"a":{}}')), 3, "it has the same key twice"),
    "a header of brackets": Case(GO, weights(tensors(b"[" * 90_000)), 3, "its header cannot be read"),
    "150,000 empty tensors": Case(GO, weights(tensors({f"t{i}": entry(0) for i in range(150_000)})), 3, "a header of|tensors, where"),
    "tensors that overlap": Case(
        GO, weights(tensors({"a": entry(2, at=(0, 8)), "b": entry(2, at=(4, 12))}, bytes(12))), 3, r"model\.source: model: "
    ),
    "a tensor of 2**62 elements": Case(GO, weights(tensors({"a": entry(2**31, 2**31)})), 3, r"model\.source: model: "),
    "an empty tensor of huge sizes": Case(GO, weights(tensors({"a": entry(2**62, 0)})), 3, r"model\.source: model: "),
    "a tensor named ../../x": Case(
        GO, edit("model/model.safetensors", lambda raw: raw.replace(b'"model.norm.weight"', b'"../../../tmp/abcd"')), 3, r"model\.norm\.weight"
    ),
    "a shard outside": Case(GO, indexed, 3, r"has no \.\./outside\.safetensors, which its index names"),
    "an index of brackets": Case(GO, put("model/model.safetensors.index.json", "[" * 90_000), 3, "is not an index of shards"),
    "code for a model": Case(GO, coded(False), 3, "'evil' is not supported yet"),
    "code for a tokenizer": Case(GO, coded(True), 3, r"model\.source: model: "),
    "a quantiser of another library": Case(GO, config(quantization_config={"quant_method": "gptq", "bits": 4}), 3, r"model\.source: model"),
    "a config of brackets": Case(GO, put("model/config.json", "[" * 900_000), 3, "config.json is not valid JSON"),
    "10**9 layers": Case(GO, config(num_hidden_layers=10**9), 3, "says 1,000,000,000 layers"),
    "2**40 hidden units": Case(GO, config(hidden_size=2**40), 3, "Will not fit: needs"),
    "minus one head": Case(GO, config(num_attention_heads=-1), 3, r"model\.source: model: "),
    "endless weights": Case(GO, link("model/model.safetensors", "/dev/zero"), 3, "is not a regular file"),
    "an endless tokenizer": Case(GO, link("model/tokenizer.json", "/dev/zero"), 3, "is not a regular file"),
    "a pipe for a tokenizer": Case(GO, pipe("model/tokenizer_config.json"), 3, "is not a regular file"),
    # chat templates
    "a template that loops": Case(GO, templated("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"), 3, "was ended"),
    "a template that swells": Case(GO, templated("{{ 'x' * 10**10 }}"), 3, "was ended"),
    "a template that swells a little each time": Case(GO, templated("{{ 'x' * 10**7 }}" + QUESTION), 3, "was ended"),
    "a template that reaches for Python": Case(GO, templated("{{ ''.__class__.__mro__[1].__subclasses__() }}"), 3, "is unsafe"),
    "a template that reaches for globals": Case(GO, templated("{{ cycler.__init__.__globals__.os.system('x') }}"), 3, "unsafe"),
    "a template that formats": Case(GO, templated("{{ '{0.__class__}'.format(messages) }}"), 3, "no token of an answer|unsafe"),
    "a template that reads a file": Case(GO, templated("{% include '/etc/passwd' %}"), 3, "the chat template: "),
    "a template that imports": Case(GO, templated("{% import 'os' as os %}"), 3, "the chat template: "),
    "a template of 10,000 brackets": Case(GO, templated("{{ " + "(" * 10_000), 3, "the chat template: "),
    # adapters and exports
    "an adapter's header of 2**62": Case(ADAPTER, adapter(lambda raw: tensors({}, length=2**62)), 5, "a header of 4,611,686,018"),
    "an adapter's name with a path": Case(ADAPTER, adapter(renamed_tensor), 5, r"'\.\./\.\./\.\./tmp/x' is not a tensor's name"),
    "an adapter's tensor twice": Case(ADAPTER, adapter(doubled_tensor), 5, "it has the same key twice"),
    "an adapter that is a pickle": Case(ADAPTER, adapter(lambda raw: PICKLE), 5, "a pickle, an archive"),
    "an adapter's empty tensors": Case(ADAPTER, adapter(lambda raw: tensors({f"t{i}": entry(0) for i in range(150_000)})), 5, "where at most"),
    "an endless adapter": Case(ADAPTER, link(f"runs/tiny/adapter/{WEIGHTS_FILE}", "/dev/zero"), 5, "no such file"),
    "an endless marker": Case(ADAPTER, link(f"runs/tiny/adapter/{MARKER_FILE}", "/dev/zero"), 5, "no zoedge.json"),
    "a marker of brackets": Case(ADAPTER, put(f"runs/tiny/adapter/{MARKER_FILE}", "[" * 900_000), 5, "cannot be read"),
    "a marker of huge sizes": Case(ADAPTER, marker(lambda t: t["space"].update(rank=2**62)), 4, r"is \[4611686018427387904, 64\], not \[2, 64\]"),
    "a marker of a rank that multiplies texts": Case(
        ADAPTER, marker(lambda t: (t["space"].update(rank=2**30), t.update(trained={"shapes": [["m", "ab", "cd"]]}))), 5, "cannot be read"
    ),
    "an adapter of another log": Case(ADAPTER, marker(lambda t: t.update(log="0" * 32)), 4, "is of another log"),
    "an adapter_config of brackets": Case(ADAPTER, put("runs/tiny/adapter/adapter_config.json", "[" * 900_000), 5, "cannot be read"),
    "a flipped adapter": Case(ADAPTER, edit(f"runs/tiny/adapter/{WEIGHTS_FILE}", flip(-3)), 5, "its bytes are not what was written"),
    "an output that is a link": Case("replay tiny -o out", link("out", ".."), 2, "is there and is not a folder"),
    "an output whose marker claims other files": Case(
        "replay tiny -o model", put("model/zoedge.json", json.dumps({"zoedge": 1, "kind": "peft", "files": ["../my.yaml", "x"]})), 2,
        "holds what zoedge did not write",
    ),
    "a copy to a link": Case("log export tiny -o out", link("out", VICTIM), 2, "is there already", False),
    "a run folder that is a link": Case("finetune my.yaml --run-dir out", link("out", "/dev/zero"), 74, "cannot write there"),
}  # fmt: skip


def test_there_are_thirty() -> None:
    assert len(CASES) >= 30 and sum(not case.torch for case in CASES.values()) >= 10


class Runner:
    """tests/helpers/hostile.py, with or without torch."""

    def __init__(self, folder: Path, cache: Path, torch: bool):
        environment = {**os.environ, "ZOEDGE_CACHE": str(cache), "HF_HOME": str(cache / "hub"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HELPERS / "hostile.py"), *(["torch"] if torch else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment,
        )  # fmt: skip
        self.started = self.answer()
        assert self.started["torch"] is torch

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def __call__(self, folder: Path, command: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"folder": str(folder), "argv": command.split()}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(10) == 0


@pytest.fixture(scope="module")
def runner(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], Runner]]:
    made: dict[bool, Runner] = {}
    cache = tmp_path_factory.mktemp("hostile-cache")

    def get(torch: bool) -> Runner:
        if torch not in made:
            made[torch] = Runner(finished, cache, torch)
        return made[torch]

    yield get
    for one in made.values():
        one.close()


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "user")
    (tmp_path / "victim").write_text("mine")
    return tmp_path / "user"


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_gets_a_sentence_and_does_nothing(
    name: str, folder: Path, runner: Callable[[bool], Runner]
) -> None:
    case = CASES[name]
    case.change(folder)
    big = {p: p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 1 << 29}
    for path in big:  # to be compared they need not be read
        os.rename(path, folder.parent / "big")
    before = tree(folder)
    for path in big:
        os.rename(folder.parent / "big", path)
    done = runner(case.torch)(folder, case.command)
    for path in big:
        path.unlink()
    assert done["deeds"] == ""
    assert done["code"] == case.code, done
    assert re.search(case.sentence, done["err"].strip()), done
    assert "This is a bug" not in done["err"] and "Traceback" not in done["err"] and "escaped:" not in done["err"]
    assert all(c.isprintable() or c == "\n" for c in done["err"] + done["out"]) and len(done["err"]) < 30_000
    assert tree(folder) == before and (folder.parent / "victim").read_text() == "mine"
    assert not (folder.parent / "escape").exists() and done["cpu"] < 10


def test_a_good_run_passes_the_same_guard(folder: Path, runner: Callable[[bool], Runner]) -> None:
    """Training from local files opens no socket and starts no process; nor does a replay, or a check of its adapter."""
    for command in (f"{GO} --quiet", "replay other -o rebuilt", "verify other --adapter rebuilt"):
        done = runner(True)(folder, command)
        assert (done["code"], done["deeds"]) == (0, ""), done


@pytest.mark.parametrize(
    "deed",
    [
        "import socket; socket.socket()", "import os; os.system('true')", "import subprocess; subprocess.run(['true'])",
        f"open({VICTIM!r}, 'w')", "open('/etc/passwd')", "import pickle; pickle.loads(pickle.dumps(print))",
        "exec(compile('1', 'evil.py', 'exec'))", "import os; os.rename('my.yaml', '../x')", "bytearray(600 << 20)",
    ],
)  # fmt: skip
def test_the_guard_sees(deed: str, folder: Path) -> None:
    program = (
        "import os, resource, sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\nimport hostile\n"
        "resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))\n"
        "os.chdir(sys.argv[2])\nhostile.guard(Path('.'), os.memfd_create('deeds'))\n"
        f"try:\n    {deed}\nexcept (PermissionError, MemoryError) as e:\n    print(type(e).__name__)\n"
    )
    command = [sys.executable, "-c", program, str(HELPERS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == ("MemoryError" if "bytearray" in deed else "PermissionError"), done.stderr
