"""What other programs load: a plain PEFT adapter (LoRA, prompt or prefix), or the model with LoRA merged in.

    FOLDER/   adapter_config.json, adapter_model.safetensors   (peft)    float32, PEFT's names, payload digest inside
              config.json, model*.safetensors                  (merged)  no quantization_config: 16 or 32-bit weights
              tokenizer files, README.md
              zoedge.json   written last: what it is of (base, log, state, payload), and that it is complete

A folder appears whole or not at all: it is written beside its place under another name, file by file and synced, then
renamed. Only what carries our marker is ever replaced. No file names a path of the machine that wrote it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ...core import storage
from ...core.engine import Run, digest
from ...core.storage import write_durably
from ...errors import (
    DamagedError,
    DataError,
    DivergedError,
    IdentityError,
    ReplayError,
    StorageError,
    UsageError,
    ZoedgeError,
    plain,
)
from ...methods.spaces.lora import head_of
from ...recipe.check import Model, Recipe, rebuilt, word_of
from ...scoring.models.base import COLUMNS, DTYPES, Base

MARKER, CONFIG, WEIGHTS, CARD = "zoedge.json", "adapter_config.json", "adapter_model.safetensors", "README.md"
TEXT_LIMIT = 8 << 20
NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
SHARD = 256 << 20  # bytes of a merged file; it is held twice while it is written, as tensors and as bytes
ROWS = 1 << 22  # elements that are compared in float64 at a time
KEPT = 0.5  # the least share of an update that a merge must keep


# -- folders


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A draft beside `folder` that takes its place if the block succeeds. UsageError: something else is there."""
    folder = Path(os.path.abspath(folder))
    replaceable(folder)
    with storage.replaced(folder) as draft:
        yield draft


def replaceable(folder: Path) -> None:
    """UsageError unless nothing of others would be lost: no folder, an empty one, or an export and nothing else."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is there and is not a folder. Name another one.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        known = {*marker(folder)["files"], MARKER}
    except DamagedError:
        raise UsageError(
            f"{folder} is there and is not an export of zoedge (no {MARKER}). Name another folder."
        ) from None
    if foreign := sorted(p.name for p in folder.iterdir() if p.name not in known):
        raise UsageError(
            f"{folder} holds what zoedge did not write ({plain(foreign[0])}). Move it, or name another folder."
        )


def text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def mark(draft: Path, facts: dict[str, Any]) -> None:
    """The last file: an export without it is not complete."""
    storage.point("export.marker")
    write_durably(draft / MARKER, text(facts))


def marker(folder: Path) -> dict[str, Any]:
    """A complete export's zoedge.json. DamagedError: there is none (export interrupted?), or not one of ours."""
    path = folder / MARKER
    if not path.is_file():
        raise DamagedError(f"{folder}: no {MARKER}: not a complete zoedge export. `zoedge export` writes one.")
    found = table(path)
    names = found.get("files")
    good = (
        found.get("kind") in ("peft", "merged") and isinstance(names, list) and all(isinstance(n, str) for n in names)
    )
    if found.get("zoedge") != 1 or not good:
        raise DamagedError(f"{path}: not the marker of an export that this version reads.")
    return found


def table(path: Path) -> dict[str, Any]:
    """A small JSON file's table. DamagedError if it is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(TEXT_LIMIT + 1)
        found = json.loads(raw) if len(raw) <= TEXT_LIMIT else None
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedError(f"{path}: cannot be read ({type(e).__name__}).") from None
    if not isinstance(found, dict):
        raise DamagedError(f"{path}: not a table, or larger than {TEXT_LIMIT >> 20} MiB.")
    return found


# -- what both kinds say of themselves


def public(source: str) -> str:
    """A source as it may be published: a hub id or a packaged name as it is, of a folder the last component alone."""
    path = Path(os.path.expanduser(source))
    if HUB_ID.fullmatch(source) and not path.is_dir():
        return source
    return os.path.basename(os.path.abspath(path)).rpartition("\\")[2] or "base"


def about(kind: str, recipe: Recipe, space: Any, base: bytes, log: Any, steps: int | None) -> dict[str, Any]:
    """The marker's fields but payload and files. ReplayError: the log knows another state of step `steps`.

    Without `steps`: the last step of which the log knows this state; of a log without an END, its length.
    """
    state, fingerprint = digest(space), None
    if log is not None:
        fingerprint, end = log.fingerprint, log.state.end
        known = log.state.hashes | ({} if end is None else {len(log): end})
        if steps is None:
            found = [step for step, known_as in known.items() if known_as == state[:24]]
            steps = max(found) if found else len(log) if end is None else None
        elif known.get(steps, state[:24]) != state[:24]:
            raise ReplayError(f"The state to be exported is not the one that the log says of step {steps}.")
    spec = recipe.model
    return {
        "zoedge": 1, "kind": kind, "base": base.hex(), "source": public(spec.source), "revision": spec.revision,
        "quantization": spec.quantization, "double_quant": spec.double_quant, "recipe": recipe.name, "steps": steps,
        "head": head_of(p.name for leaf in space.leaves() for p in leaf.parts),
        "log": fingerprint, "state": state.hex(),
    }  # fmt: skip


def exportable(space: Any) -> Any:
    """The space itself. UsageError: PEFT has no such thing, or the base is missing. DivergedError: not finite."""
    if not adapts(space):
        raise UsageError(
            f"The space '{word(space)}' has no adapter in PEFT's format. Write the whole model: --to merged."
        )
    if not space.complete:
        title = space.options.title
        raise UsageError(f"A {title} is a change from values of the base: it is exported where the base is.")
    return finite(space)


def members(space: Any) -> list[tuple[str, Any]]:
    """(folder inside the export's, space) of each adapter: of one alone, the export's own."""
    return list(getattr(space, "members", {"": space}).items())


def adapts(space: Any) -> bool:
    return all(hasattr(getattr(member, "options", None), "peft") for _, member in members(space))


def word(space: Any) -> str:
    return type(space).__module__.rpartition(".")[2]


def finite(space: Any) -> Any:
    if not all(bool(value.isfinite().all()) for _, value in space.tensors()):
        raise DivergedError("The trained tensors are not finite: nothing to export. Replay to an earlier step.")
    return space


def tokenizer_files(folder: Path | None) -> Iterator[tuple[str, bytes]]:
    """The tokenizer's files and chat template."""
    from ...scoring.models.loading import load_tokenizer

    if folder is None:
        return
    with tempfile.TemporaryDirectory() as draft:
        load_tokenizer(folder).save_pretrained(draft)
        for path in sorted(Path(draft).iterdir()):
            raw = path.read_bytes()
            yield path.name, text(scrubbed(json.loads(raw))) if path.name == "tokenizer_config.json" else raw


def scrubbed(config: dict[str, Any]) -> dict[str, Any]:
    """Without what it remembers of the machine that wrote it: transformers notes how and whence a file was loaded."""
    here = ("is_local", "local_files_only")
    paths = {k for k, v in config.items() if isinstance(v, str) and os.path.isabs(v) and not k.endswith("_token")}
    return {k: v for k, v in config.items() if k not in paths and k not in here}


LOADING = {
    "nf4": "load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant={double_quant}",
    "fp4": "load_in_4bit=True, bnb_4bit_quant_type='fp4', bnb_4bit_use_double_quant={double_quant}",
    "int8": "load_in_8bit=True, llm_int8_threshold=0.0",
}


def card(facts: dict[str, Any], dtype: str = "") -> bytes:
    """The model card: what it is, of which base and log, and how to load it."""
    source, quantized = facts["source"], facts["quantization"] in LOADING
    scheme, auto = LOADING.get(facts["quantization"], "").format(**facts), f"AutoModelFor{facts['head']}"
    named = f"base_model: {source}\n" if HUB_ID.fullmatch(source) else ""
    if facts["kind"] == "peft":
        title, library = facts["title"], "peft"
        at = f", revision={facts['revision']!r}" if facts["revision"] else ""
        option = f", quantization_config=BitsAndBytesConfig({scheme})" if quantized else ""
        lines = [
            f"from transformers import {auto}{', BitsAndBytesConfig' if quantized else ''}",
            "from peft import PeftModel",
            f"base = {auto}.from_pretrained({source!r}{at}{option})" + ("" if named else "  # its folder"),
            "model = PeftModel.from_pretrained(base, FOLDER)",
        ]
    else:
        title, library = f"merged model, {dtype}", "transformers"
        lines = [
            f"from transformers import {auto}",
            f"model = {auto}.from_pretrained(FOLDER)",
        ]
    double = ", double quantisation" if facts["quantization"] in ("nf4", "fp4") and facts["double_quant"] else ""
    rows = [
        ("base", f"{plain(source)}{' at ' + plain(facts['revision']) if facts['revision'] else ''}"),
        ("base sha256", facts["base"]),
        ("quantisation in training", facts["quantization"] + double),
        ("recipe", facts["recipe"]),
        ("steps", facts["steps"]),
        ("log fingerprint", facts["log"]),
        ("state sha256", facts["state"]),
        ("trained together, each loaded onto the one before", ", ".join(facts.get("together", [])) or None),
    ]
    said = "".join(f"- {name}: {value}\n" for name, value in rows if value is not None)
    return (
        f"---\nlibrary_name: {library}\n{named}tags:\n- zoedge\n- zeroth-order\n---\n\n# {facts['recipe']}: {title}\n\n"
        f"Fine-tuned with zoedge by forward passes alone.\n\n{said}\n```python\n" + "\n".join(lines) + "\n```\n"
    ).encode()


# -- the adapter


def peft(
    run: Run, log: Any, recipe: Recipe, folder: Path, tokenizer_from: Path | None = None, steps: int | None = None
) -> Path:
    """Write the space at its current value as a PEFT adapter. log: gives base and fingerprint; steps: after how many.

    Of several spaces, each in a folder of its own inside `folder`, by its word: PEFT loads one onto another.

    UsageError: `folder` holds something else, or the space has no such export. DivergedError: not finite.
    StorageError: disk.
    """
    space = exportable(run.space)
    facts = about("peft", recipe, space, log.header.base, log, steps)
    found = members(space)
    for name, member in found:
        several = {"together": [word for word, _ in found]} if len(found) > 1 else {}
        adapter(member, facts | several, folder / name, log, tokenizer_from)
    return folder


def adapter(space: Any, facts: dict[str, Any], folder: Path, log: Any, tokenizer_from: Path | None) -> None:
    """One of PEFT's adapters, as `peft` writes it."""
    options, said = space.options, space.describe()
    tensors = {options.key.format(name): value.detach().cpu().clone() for name, value in space.tensors()}
    raw, payload = serialised(tensors)
    data = labelled(raw, payload=payload, log=log.fingerprint)
    config = options.peft(said) | {"base_model_name_or_path": facts["source"], "revision": facts["revision"]}
    readme = card({**facts, "title": options.title})
    files = {CONFIG: text(config), **dict(tokenizer_files(tokenizer_from)), CARD: readme, WEIGHTS: data}
    table = {"name": word_of(options), **asdict(options)}
    with replacing(folder) as draft:
        for name, raw in files.items():
            write_durably(draft / name, raw)
        more = {"space": table, "trained": said, "payload": payload, "files": list(files)}
        mark(draft, {**facts, **more})


def serialised(tensors: dict[str, Tensor]) -> tuple[bytes, str]:
    """(a safetensors file, the SHA-256 of its tensor payload)."""
    raw = safetensors.torch.save(tensors, {"format": "pt"})
    return raw, hashlib.sha256(memoryview(raw)[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()


def labelled(raw: bytes, **metadata: str) -> bytes:
    """A safetensors file with more metadata, in sorted order: the library's own has none (13 orders in 20 calls)."""
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:start])
    table["__metadata__"] |= metadata
    header = json.dumps(table, separators=(",", ":"), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[start:]


def load_adapter(
    folder: Path, space: Any = None, base: bytes | None = None, fingerprint: str | None = None
) -> dict[str, Tensor]:
    """An exported adapter's float32 tensors under the space's own names (`space.tensors()`), all of them or an error.

    Trusts nothing: marker, digest of the payload, names, shapes, finite values, and the configuration by which PEFT
    would read it must agree with each other, and with space, base (its digest) and log fingerprint where given.
    DamagedError: the files are not what was written. IdentityError: they are, and of something else.
    """
    facts = marker(folder)
    if facts["kind"] != "peft":
        raise IdentityError(f"{folder} is a merged model, not an adapter.")
    for what, wanted in (("base", None if base is None else base.hex()), ("log", fingerprint)):
        if wanted is not None and facts.get(what) != wanted:
            raise IdentityError(
                f"{folder} is of another {what}: {plain(str(facts.get(what)), 16)}, not {wanted[:16]}..."
            )
    options, said = described(facts, folder)
    expected, settings = options.exported(said), options.peft(said)
    if space is not None:
        about = space.describe()
        agree(folder, space.options.exported(about), expected)
        for key, value in space.options.peft(about).items():
            if settings.get(key) != value:
                raise IdentityError(f"{folder}: its {key} is {settings.get(key)!r}, not {value!r}.")
    config = table(folder / CONFIG)
    for key, value in settings.items():
        if config.get(key) != value:
            raise DamagedError(
                f"{folder / CONFIG}: {key} is {plain(repr(config.get(key)))}, and was written as {value!r}."
            )
    raw = bounded(folder / WEIGHTS, TEXT_LIMIT + 8 + 4 * sum(map(math.prod, expected.values())))
    header, start = header_of(raw, folder / WEIGHTS)
    said = header.pop("__metadata__", {})
    payload = hashlib.sha256(memoryview(raw)[start:]).hexdigest()
    if not payload == said.get("payload") == facts.get("payload"):
        raise DamagedError(f"{folder / WEIGHTS}: its bytes are not what was written (payload sha256 {payload[:16]}..).")
    if said.get("log") != facts.get("log"):
        raise DamagedError(f"{folder / WEIGHTS}: it is of another log than its {MARKER} says.")
    names = {options.key.format(name): name for name in expected}
    agree(
        folder, {key: expected[name] for key, name in names.items()}, {k: tuple(v["shape"]) for k, v in header.items()}
    )
    try:
        tensors = safetensors.torch.load(raw)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as e:
        raise DamagedError(f"{folder / WEIGHTS}: {plain(str(e))}.") from None
    found = {name: tensors[key] for key, name in names.items()}
    for name, value in found.items():
        if not bool(value.isfinite().all()):
            raise DamagedError(f"{folder / WEIGHTS}: {name} holds values that are not finite.")
    return found


def described(facts: dict[str, Any], folder: Path) -> tuple[Any, dict[str, Any]]:
    """(the space's options, its description) of a marker, from which everything about an adapter's tensors follows."""
    try:
        options, said = rebuilt("space", facts["space"]), facts["trained"]
        sizes = [n for shape in options.exported(said).values() for n in shape]
        good = options.elements(said) > 0 and all(isinstance(n, int) and n > 0 for n in sizes)
        good = good and all(NAME.fullmatch(name) for name in options.exported(said))
    except (TypeError, KeyError, ValueError, AttributeError, ZoedgeError):
        good = False
    if not good:
        raise DamagedError(f"{folder / MARKER}: its description of the adapter cannot be read.")
    return options, said


def inside(folder: Path) -> list[Path]:
    """The adapters of an export: itself, or those of several spaces."""
    return [folder] if (folder / MARKER).exists() else sorted(p.parent for p in folder.glob(f"*/{MARKER}"))


def agree(folder: Path, wanted: dict[str, tuple[int, ...]], found: dict[str, Any]) -> None:
    """IdentityError unless the same names have the same shapes."""
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing or extra:
        parts = [f"{len(s)} {how} ({plain(min(s))})" for s, how in ((missing, "missing"), (extra, "unknown")) if s]
        raise IdentityError(f"{folder} is not an adapter of this space: of {len(wanted)} tensors, {', '.join(parts)}.")
    for name, shape in wanted.items():
        if tuple(found[name]) != shape:
            raise IdentityError(f"{folder}: {name} is {list(found[name])}, not {list(shape)}.")


def bounded(path: Path, limit: int) -> bytes:
    """A file of at most `limit` bytes."""
    try:
        if not path.is_file():
            raise DamagedError(f"{path}: no such file.")
        if (size := path.stat().st_size) > limit:
            raise DamagedError(f"{path}: {size:,} bytes, where at most {limit:,} make sense.")
        return path.read_bytes()
    except OSError as e:
        raise StorageError(f"{path}: cannot be read: {e.strerror}.") from e


def header_of(raw: bytes, path: Path) -> tuple[dict[str, Any], int]:
    """(a safetensors header, where the payload starts), checked for what the library lets pass: names such as ../../x."""
    from ...scoring.models import loading

    try:
        header, start = loading.header_of(raw, len(raw))
    except ValueError as e:
        raise DamagedError(f"{path}: {e}.") from None
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not NAME.fullmatch(name):
            raise DamagedError(f"{path}: '{plain(name)}' is not a tensor's name.")
        if not isinstance(entry, dict) or entry.get("dtype") != "F32" or not isinstance(entry.get("shape"), list):
            raise DamagedError(f"{path}: {name} is not a float32 tensor.")
    return header, start


# -- merged weights


@dataclass(frozen=True)
class Merge:
    """What a merge wrote. kept: the share of each module's update that survived the cast; size: bytes of weights."""

    folder: Path
    dtype: str
    kept: dict[str, float]
    size: int

    @property
    def least(self) -> tuple[str, float]:
        return min(self.kept.items(), key=lambda item: item[1])

    def __str__(self) -> str:
        name, least = self.least
        middle = sorted(self.kept.values())[len(self.kept) // 2]
        return (
            f"{self.dtype}, {self.size / 1e6:,.1f} MB; of its {len(self.kept)} updates, {middle:.4%} (median) "
            f"survive rounding, {least:.4%} at least ({name})"
        )


def merged(
    recipe: Recipe, space: Any, folder: Path, dtype: str | None = None, force: bool = False,
    base_folder: Path | str | None = None, log: Any = None, steps: int | None = None,
) -> Merge:  # fmt: skip
    """Write the trained weights as a plain model, W dequantised from what was trained on; nothing is quantised again.

    W + alpha/rank * B A, say, is float32, then cast to `dtype` (fp16, bf16, fp32; default: what a space says that it is
    stored in, else fp16), as is every other tensor. The base is loaded anew on
    the CPU (a used one may give garbage, docs/traps.md) and never held twice: besides it, one shard (256 MB, or one
    larger tensor), as tensors and as bytes. base_folder: where the base is, if not where the recipe says. log: whose
    base this must be.

    Of each update U (alpha/rank * B A, or trained - base), in Frobenius norms and float64,
    kept = 1 - |cast(W + U) - (W + U)| / |U|: 1 if nothing is lost (or U = 0), 0 or less if rounding is as large as the
    update. DataError if it is below 0.5 and not `force`, if a value overflows, or the disk is too small. IdentityError:
    the base is not the log's. UsageError: `folder` holds something else.
    """
    from ...scoring.models.loading import load

    for _, member in members(space):
        if not hasattr(member, "merged"):
            raise UsageError(f"The space '{word(member)}' moves no weight of the base: there is nothing to merge.")
    finite(space)
    dtype = dtype or stored_in(space)
    if dtype not in DTYPES:
        raise UsageError(f"dtype: '{dtype}' is not {', '.join(DTYPES)}.")
    replaceable(Path(os.path.abspath(folder)))
    spec = recipe.model.model_copy(update={"device": "cpu", "compute_dtype": "fp32"})
    base = load(spec.model_copy(update={"source": str(base_folder)}) if base_folder else spec)
    if log is not None and base.digest != log.header.base:
        raise IdentityError(
            f"The base in {base.path} is not the one that was trained on (sha256 {log.header.base[:4].hex()}.. -> "
            f"{base.digest[:4].hex()}..)."
        )
    facts = about("merged", recipe, space, base.digest, log, steps)
    facts["dtype"] = dtype
    shards = list(sharded(weights(base.model), DTYPES[dtype].itemsize))
    size = sum(x.numel for shard in shards for x in shard) * DTYPES[dtype].itemsize
    merge = Merger(space, dtype, force)
    merge.expect({x.name: x.shape for shard in shards for x in shard})
    payloads: dict[str, str] = {}
    placed: dict[str, str] = {}
    with replacing(folder) as draft:
        if (free := shutil.disk_usage(draft).free) < size + (64 << 20):
            raise DataError(f"{folder}: the merged model needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.")
        files = [*plain_config(base, DTYPES[dtype]), *tokenizer_files(base.path), (CARD, card(facts, dtype))]
        for name, raw in files:
            write_durably(draft / name, raw)
        for i, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            raw, payloads[name] = serialised({x.name: merge(x) for x in shard})
            write_durably(draft / name, raw)
            del raw
            placed |= {x.name: name for x in shard}
        if len(shards) > 1:
            index = {"metadata": {"total_size": size}, "weight_map": placed}
            write_durably(draft / "model.safetensors.index.json", text(index))
        names = sorted(p.name for p in draft.iterdir())
        mark(draft, {**facts, "payload": payloads, "kept": merge.kept, "files": names})
    return Merge(folder, dtype, merge.kept, size)


def stored_in(space: Any) -> str:
    """The type that loses nothing of a space that moves 16 or 32-bit weights; fp16 for the others, as models come."""
    return next(
        (word for word, kind in DTYPES.items() if str(kind) == f"torch.{getattr(space, 'storage', '')}"), "fp16"
    )


class Weight(NamedTuple):
    """A tensor to be written: its shape, and how to get it in float32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


def weights(model: nn.Module) -> Iterator[Weight]:
    """Every parameter once, tied ones under their first name, those of Linear modules dequantised when read."""
    from ...scoring.models.loading import weight_of

    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, value in module.named_parameters(recurse=False):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(module, nn.Linear) and key == "weight":
                shape: tuple[int, ...] = (module.out_features, module.in_features)
                yield Weight(f"{prefix}.{key}", shape, partial(weight_of, module))
            else:
                yield Weight(f"{prefix}.{key}", tuple(value.shape), partial(value.data.to, torch.float32))


def sharded(found: Iterable[Weight], width: int) -> Iterator[list[Weight]]:
    """Consecutive weights of at most SHARD bytes together, `width` bytes an element."""
    shard: list[Weight] = []
    for x in found:
        if shard and sum(y.numel for y in (*shard, x)) * width > SHARD:
            yield shard
            shard = []
        shard.append(x)
    yield shard


class Merger:
    """Adds the updates and casts; `kept` fills as it goes."""

    def __init__(self, space: Any, dtype: str, force: bool):
        self.space, self.shapes = space, space.changes()
        self.dtype, self.force = dtype, force
        self.kept: dict[str, float] = {}

    def expect(self, found: dict[str, tuple[int, ...]]) -> None:
        """IdentityError unless the base has every adapted module, in its shape."""
        for name, shape in self.shapes.items():
            if found.get(name) != shape:
                raise IdentityError(f"The base has no {name} of {list(shape)}: it is not the one that was trained on.")

    def __call__(self, x: Weight) -> Tensor:
        value = x.read()
        if x.name in self.shapes:
            name = x.name.removesuffix(".weight")
            changed, update = self.space.merged(x.name, value)
            out = changed.to(DTYPES[self.dtype])
            self.kept[name] = kept = survived(value, update, out)
            if kept < KEPT and not self.force:
                apart = ", or keep the adapter apart (--to peft)" if adapts(self.space) else ""
                raise DataError(
                    f"In {self.dtype}, {max(0.0, kept):.0%} of the update of {name} survives rounding. Use --dtype "
                    f"fp32{apart}; --force writes it all the same."
                )
        else:
            out = value.to(DTYPES[self.dtype])
        if not bool(out.isfinite().all()):
            raise DataError(f"{x.name} does not fit {self.dtype} (values overflow). Use --dtype fp32.")
        return out.contiguous()


def survived(value: Tensor, update: Tensor, out: Tensor) -> float:
    """1 - |out - (value + update)| / |update|, in float64, some rows at a time. The same shape each."""
    rows, lost, whole = max(1, ROWS // value[0].numel()), 0.0, 0.0
    for i in range(0, len(value), rows):
        u = update[i : i + rows].double()
        lost += (out[i : i + rows].double() - (value[i : i + rows].double() + u)).square().sum().item()
        whole += u.square().sum().item()
    return 1.0 - math.sqrt(lost / whole) if whole else 1.0


def plain_config(base: Base, dtype: torch.dtype) -> Iterator[tuple[str, bytes]]:
    """config.json and generation_config.json of an ordinary, unquantised model."""
    config = {**table(base.path / "config.json"), "dtype": str(dtype).removeprefix("torch.")}
    for key in ("quantization_config", "torch_dtype"):
        config.pop(key, None)
    yield "config.json", text(scrubbed(config))
    if not base.model.can_generate():
        return
    own = base.path / "generation_config.json"
    said = table(own) if own.is_file() else json.loads(base.model.generation_config.to_json_string())
    yield own.name, text(scrubbed(said))


# -- the proof


def check(kind: str, folder: Path, bench: Any) -> float:
    """Largest |difference| of logits between an export, loaded in a fresh process, and `bench`'s trained model here.

    peft: the base loaded as for training, then PeftModel.from_pretrained. merged: the plain model in float32.
    gguf-lora: `folder` is a file, and the difference is one of weights (export_gguf.difference).
    Two models are in memory meanwhile, one a process. bench: recipe, base, space. DataError: it does not load.
    """
    return compare([(kind, folder, bench)])[0]


def compare(jobs: Sequence[tuple[str, Path, Any]]) -> list[float]:
    """`check` of several exports in one fresh process."""
    with tempfile.TemporaryDirectory() as draft:
        asked = []
        for i, (kind, folder, bench) in enumerate(jobs):
            path = Path(draft) / f"{i}.safetensors"
            safetensors.torch.save_file(reference_of(kind, bench), path)
            spec = bench.recipe.model.model_dump()
            asked.append({"kind": kind, "folder": str(folder), "spec": spec, "reference": str(path)})
        path_ = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
        # -P: a torch.py in the user's folder must not be what is imported
        done = subprocess.run(
            [sys.executable, "-P", "-m", "zoedge.commands.export.folder"], input=json.dumps(asked), capture_output=True,
            text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path_))}, check=False,
        )  # fmt: skip
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise DataError(f"The export does not load in a fresh process: {plain(why, 400)}")
    return [float(x) for x in json.loads(done.stdout.splitlines()[-1])]


def reference_of(kind: str, bench: Any) -> dict[str, Tensor]:
    """What the fresh process compares with: the trained matrices, of which a GGUF file is; else ids and their logits."""
    if kind == "gguf-lora":
        matrices = {name: value.detach().cpu().clone() for name, value in bench.space.tensors()}
        return {**matrices, "scale": torch.tensor(bench.space.scale, dtype=torch.float64)}
    ids = probes(bench.base.model.config.vocab_size, bench.base.context_length)
    return {"ids": ids, "logits": trained(bench.base, bench.space, ids)}


def probes(vocabulary: int, context: int) -> Tensor:
    """Token ids [2, <= 32], spread over the vocabulary, always the same."""
    length = min(32, context)
    return ((torch.arange(2 * length) * 7919 + 11) % vocabulary).view(2, length)


@torch.inference_mode()
def trained(base: Base, space: Any, ids: Tensor) -> Tensor:
    """float32 logits [2, T, vocabulary] of the trained model, by the forward that training scores with."""
    everywhere = SimpleNamespace(
        ids=ids, rows=torch.arange(ids.shape[1]).expand(len(ids), -1), index=range(len(ids)),
        branches=None, examples=SimpleNamespace(tokens=ids),
    )  # fmt: skip
    with space.visit([lambda leaf: None]):
        h = base.hidden(everywhere, 1)
    size = base.model.config.vocab_size
    parts = [torch.arange(i, min(i + COLUMNS, size)) for i in range(0, size, COLUMNS)]
    return torch.cat([base.logits(h, some).cpu() for some in parts], dim=-1)


@torch.inference_mode()
def difference(kind: str, folder: str, spec: dict[str, Any], reference: str) -> float:
    """The fresh process's half of `check`."""
    from ...scoring.models.loading import auto_class, load, tame

    known = safetensors.torch.load_file(reference)
    if kind == "gguf-lora":
        from . import gguf

        return gguf.difference(folder, spec, known)
    if kind == "merged":
        device = torch.device("cpu")
        model: Any = auto_class(Path(folder))[0].from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    else:
        from peft import PeftModel

        base = load(Model(**spec))
        device, model = base.device, base.model
        for inner in inside(Path(folder)):
            model = PeftModel.from_pretrained(model, inner)
        tame(base.model, base.dtype)  # PEFT has put everything into evaluation mode
        base.model.get_output_embeddings().float()  # logits in float32, as `trained` has them
        type(model).base_model_torch_dtype = base.dtype  # a prefix is cast to it; it is that of the first parameter
    logits = model(input_ids=known["ids"].to(device)).logits.float().cpu()
    return float((logits[:, -known["ids"].shape[1] :] - known["logits"]).abs().max())  # virtual tokens come first


def main() -> int:
    try:
        print(json.dumps([difference(**job) for job in json.load(sys.stdin)]))
    except ZoedgeError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
