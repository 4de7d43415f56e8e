"""Export as a PEFT adapter folder, and read such a folder back."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ...core.run import Run
from ...core.storage import write_durably
from ...core.types import AbstractSpace, Space
from ...errors import DamagedError, IdentityError, StorageError, ZoedgeError, make_printable
from ...log.packed import AnyLog
from ...recipe.parts import restore_part
from ...recipe.recipe import Recipe, part_name
from .card import read_tokenizer_files, render_model_card
from .folder import (
    CARD_FILE,
    CONFIG_FILE,
    MARKER_FILE,
    MAX_JSON_BYTES,
    TENSOR_NAME,
    WEIGHTS_FILE,
    check_exportable,
    describe_export,
    encode_json,
    get_options,
    list_members,
    read_json,
    read_marker,
    replace_folder,
    write_marker,
)

# -- the adapter


def write_peft(
    run: Run, log: AnyLog, recipe: Recipe, folder: Path, tokenizer_from: Path | None = None, steps: int | None = None
) -> Path:
    """Write the space at its current value as a PEFT adapter. log: gives base and fingerprint; steps: after how many.

    Of several spaces, each in a folder of its own inside `folder`, by its word: PEFT loads one onto another.

    UsageError: `folder` holds something else, or the space has no such export. DivergedError: not finite.
    StorageError: disk.
    """
    space = check_exportable(run.space)
    facts = describe_export("peft", recipe, space, log.header.base, log, steps)
    found = list_members(space)
    for name, member in found:
        several = {"together": [word for word, _ in found]} if len(found) > 1 else {}
        write_adapter(member, facts | several, folder / name, log, tokenizer_from)
    return folder


def write_adapter(space: Space, facts: dict[str, Any], folder: Path, log: AnyLog, tokenizer_from: Path | None) -> None:
    """One of PEFT's adapters, as `peft` writes it."""
    options, said = get_options(space), space.describe()
    tensors = {options.key.format(name): value.detach().cpu().clone() for name, value in space.tensors()}
    raw, payload = encode_tensors(tensors)
    data = add_metadata(raw, payload=payload, log=log.fingerprint)
    config = options.peft(said) | {"base_model_name_or_path": facts["source"], "revision": facts["revision"]}
    readme = render_model_card({**facts, "title": options.title})
    files = {
        CONFIG_FILE: encode_json(config),
        **dict(read_tokenizer_files(tokenizer_from)),
        CARD_FILE: readme,
        WEIGHTS_FILE: data,
    }
    table = {"name": part_name(options), **asdict(options)}
    with replace_folder(folder) as draft:
        for name, raw in files.items():
            write_durably(draft / name, raw)
        more = {"space": table, "trained": said, "payload": payload, "files": list(files)}
        write_marker(draft, {**facts, **more})


def encode_tensors(tensors: dict[str, Tensor]) -> tuple[bytes, str]:
    """(a safetensors file, the SHA-256 of its tensor payload)."""
    raw = safetensors.torch.save(tensors, {"format": "pt"})
    return raw, hashlib.sha256(memoryview(raw)[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()


def add_metadata(raw: bytes, **metadata: str) -> bytes:
    """A safetensors file with more metadata, in sorted order: the library's own has none (13 orders in 20 calls)."""
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:start])
    table["__metadata__"] |= metadata
    header = json.dumps(table, separators=(",", ":"), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[start:]


def load_adapter(
    folder: Path, space: Space | None = None, base: bytes | None = None, fingerprint: str | None = None
) -> dict[str, Tensor]:
    """An exported adapter's float32 tensors under the space's own names (`space.tensors()`), all of them or an error.

    Trusts nothing: marker, digest of the payload, names, shapes, finite values, and the configuration by which PEFT
    would read it must agree with each other, and with space, base (its digest) and log fingerprint where given.
    DamagedError: the files are not what was written. IdentityError: they are, and of something else.
    """
    facts = read_marker(folder)
    if facts["kind"] != "peft":
        raise IdentityError(f"{folder} is a merged model, not an adapter.")
    for what, wanted in (("base", None if base is None else base.hex()), ("log", fingerprint)):
        if wanted is not None and facts.get(what) != wanted:
            raise IdentityError(
                f"{folder} is of another {what}: {make_printable(str(facts.get(what)), 16)}, not {wanted[:16]}..."
            )
    options, said = parse_description(facts, folder)
    expected, settings = options.exported(said), options.peft(said)
    if space is not None:
        about = space.describe()
        check_shapes(folder, get_options(space).exported(about), expected)
        for key, value in get_options(space).peft(about).items():
            if settings.get(key) != value:
                raise IdentityError(f"{folder}: its {key} is {settings.get(key)!r}, not {value!r}.")
    config = read_json(folder / CONFIG_FILE)
    for key, value in settings.items():
        if config.get(key) != value:
            raise DamagedError(
                f"{folder / CONFIG_FILE}: {key} is {make_printable(repr(config.get(key)))}, and was written as {value!r}."
            )
    raw = read_bounded(folder / WEIGHTS_FILE, MAX_JSON_BYTES + 8 + 4 * sum(map(math.prod, expected.values())))
    header, start = parse_header(raw, folder / WEIGHTS_FILE)
    said = header.pop("__metadata__", {})
    payload = hashlib.sha256(memoryview(raw)[start:]).hexdigest()
    if not payload == said.get("payload") == facts.get("payload"):
        raise DamagedError(
            f"{folder / WEIGHTS_FILE}: its bytes are not what was written (payload sha256 {payload[:16]}..)."
        )
    if said.get("log") != facts.get("log"):
        raise DamagedError(f"{folder / WEIGHTS_FILE}: it is of another log than its {MARKER_FILE} says.")
    names = {options.key.format(name): name for name in expected}
    check_shapes(
        folder, {key: expected[name] for key, name in names.items()}, {k: tuple(v["shape"]) for k, v in header.items()}
    )
    try:
        tensors = safetensors.torch.load(raw)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as e:
        raise DamagedError(f"{folder / WEIGHTS_FILE}: {make_printable(str(e))}.") from None
    found = {name: tensors[key] for key, name in names.items()}
    for name, value in found.items():
        if not bool(value.isfinite().all()):
            raise DamagedError(f"{folder / WEIGHTS_FILE}: {name} holds values that are not finite.")
    return found


def parse_description(facts: dict[str, Any], folder: Path) -> tuple[AbstractSpace, dict[str, Any]]:
    """(the space's options, its description) of a marker, from which everything about an adapter's tensors follows."""
    try:
        options, said = restore_part("space", facts["space"]), facts["trained"]
        sizes = [n for shape in options.exported(said).values() for n in shape]
        good = options.elements(said) > 0 and all(isinstance(n, int) and n > 0 for n in sizes)
        good = good and all(TENSOR_NAME.fullmatch(name) for name in options.exported(said))
    except (TypeError, KeyError, ValueError, AttributeError, ZoedgeError):
        good = False
    if not good:
        raise DamagedError(f"{folder / MARKER_FILE}: its description of the adapter cannot be read.")
    return options, said


def find_adapters(folder: Path) -> list[Path]:
    """The adapters of an export: itself, or those of several spaces."""
    return [folder] if (folder / MARKER_FILE).exists() else sorted(p.parent for p in folder.glob(f"*/{MARKER_FILE}"))


def check_shapes(folder: Path, wanted: dict[str, tuple[int, ...]], found: dict[str, Any]) -> None:
    """IdentityError unless the same names have the same shapes."""
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing or extra:
        parts = [
            f"{len(s)} {how} ({make_printable(min(s))})" for s, how in ((missing, "missing"), (extra, "unknown")) if s
        ]
        raise IdentityError(f"{folder} is not an adapter of this space: of {len(wanted)} tensors, {', '.join(parts)}.")
    for name, shape in wanted.items():
        if tuple(found[name]) != shape:
            raise IdentityError(f"{folder}: {name} is {list(found[name])}, not {list(shape)}.")


def read_bounded(path: Path, limit: int) -> bytes:
    """A file of at most `limit` bytes."""
    try:
        if not path.is_file():
            raise DamagedError(f"{path}: no such file.")
        if (size := path.stat().st_size) > limit:
            raise DamagedError(f"{path}: {size:,} bytes, where at most {limit:,} make sense.")
        return path.read_bytes()
    except OSError as e:
        raise StorageError(f"{path}: cannot be read: {e.strerror}.") from e


def parse_header(raw: bytes, path: Path) -> tuple[dict[str, Any], int]:
    """(a safetensors header, where the payload starts), checked for what the library lets pass: names such as ../../x."""
    from ...scoring.models import checkpoint

    try:
        header, start = checkpoint.parse_header(raw, len(raw))
    except ValueError as e:
        raise DamagedError(f"{path}: {e}.") from None
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not TENSOR_NAME.fullmatch(name):
            raise DamagedError(f"{path}: '{make_printable(name)}' is not a tensor's name.")
        if not isinstance(entry, dict) or entry.get("dtype") != "F32" or not isinstance(entry.get("shape"), list):
            raise DamagedError(f"{path}: {name} is not a float32 tensor.")
    return header, start
