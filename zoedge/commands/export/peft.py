"""This module exports a space as a PEFT adapter folder, and reads such a folder back."""

from __future__ import annotations

import hashlib
import json
import math
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
from ...recipe.recipe import Recipe, describe_part
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
from .whole import file_sums

# -- the adapter


def write_peft(
    run: Run, log: AnyLog, recipe: Recipe, folder: Path, tokenizer_from: Path | None = None, steps: int | None = None
) -> Path:
    """Write the space at its current value as a PEFT adapter.

    Of several spaces, each gets a folder of its own inside `folder`, named by its word: PEFT loads one onto another.

    Args:
        log: the run's log, whose base and fingerprint the export names.
        tokenizer_from: the folder of the model whose tokenizer is written beside the adapter.
        steps: after how many steps the space stands; None: as `describe_export` finds it.

    Raises:
        UsageError: `folder` holds something else, or the space has no such export.
        DivergedError: a value is not finite.
        StorageError: the disk refuses.
    """
    space = check_exportable(run.space)
    facts = describe_export("peft", recipe, space, log.header.base, log, steps)
    members = list_members(space)
    for name, member in members:
        together = {"together": [word for word, _ in members]} if len(members) > 1 else {}
        write_adapter(member, facts | together, folder / name, log, tokenizer_from)
    return folder


def write_adapter(space: Space, facts: dict[str, Any], folder: Path, log: AnyLog, tokenizer_from: Path | None) -> None:
    """Write the folder of one adapter, as `write_peft` describes it."""
    options, description = get_options(space), space.describe()
    tensors = {options.key.format(name): value.detach().cpu().clone() for name, value in space.tensors()}
    raw, payload = encode_tensors(tensors)
    data = add_metadata(raw, payload=payload, log=log.fingerprint)
    config = options.peft(description) | {"base_model_name_or_path": facts["source"], "revision": facts["revision"]}
    readme = render_model_card({**facts, "title": options.title})
    files = {
        CONFIG_FILE: encode_json(config),
        **dict(read_tokenizer_files(tokenizer_from)),
        CARD_FILE: readme,
        WEIGHTS_FILE: data,
    }
    table = describe_part(options)
    with replace_folder(folder) as draft:
        for name, raw in files.items():
            write_durably(draft / name, raw)
        adapter_facts = {"space": table, "trained": description, "payload": payload, "files": list(files)}
        adapter_facts["sha256"] = file_sums(draft, list(files))
        write_marker(draft, {**facts, **adapter_facts})


def encode_tensors(tensors: dict[str, Tensor]) -> tuple[bytes, str]:
    """Return a safetensors file of the tensors, and the SHA-256 of its tensor payload in hexadecimal digits."""
    raw = safetensors.torch.save(tensors, {"format": "pt"})
    return raw, hashlib.sha256(memoryview(raw)[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()


def add_metadata(raw: bytes, **metadata: str) -> bytes:
    """Return a safetensors file with more metadata, in sorted order.

    The library writes metadata in no fixed order (13 orders in 20 calls), so that its files differ from one call to the next.
    """
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:start])
    table["__metadata__"] |= metadata
    header = json.dumps(table, separators=(",", ":"), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[start:]


def load_adapter(
    folder: Path, space: Space | None = None, base: bytes | None = None, fingerprint: str | None = None
) -> dict[str, Tensor]:
    """Return all float32 tensors of an exported adapter, under the space's own names (`space.tensors()`).

    Nothing is trusted. The marker, the digest of the payload, names, shapes and the configuration by which PEFT would read the
    adapter must agree with each other, and every value must be finite.

    Args:
        space, base, fingerprint: the space, the base's digest and the log's fingerprint that it must be of, where given.

    Raises:
        DamagedError: the files are not what was written.
        IdentityError: they are, but belong to something else.
    """
    facts = read_marker(folder)
    if facts["kind"] != "peft":
        raise IdentityError(f"{folder} is a merged model, not an adapter.")
    for what, wanted in (("base", None if base is None else base.hex()), ("log", fingerprint)):
        if wanted is not None and facts.get(what) != wanted:
            raise IdentityError(
                f"{folder} is of another {what}: {make_printable(str(facts.get(what)), 16)}, not {wanted[:16]}..."
            )
    options, description = parse_description(facts, folder)
    expected, settings = options.exported(description), options.peft(description)
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
    metadata = header.pop("__metadata__", {})
    payload = hashlib.sha256(memoryview(raw)[start:]).hexdigest()
    if not payload == metadata.get("payload") == facts.get("payload"):
        raise DamagedError(
            f"{folder / WEIGHTS_FILE}: its bytes are not what was written (payload sha256 {payload[:16]}..)."
        )
    if metadata.get("log") != facts.get("log"):
        raise DamagedError(f"{folder / WEIGHTS_FILE}: it is of another log than its {MARKER_FILE} says.")
    names = {options.key.format(name): name for name in expected}
    check_shapes(
        folder, {key: expected[name] for key, name in names.items()}, {k: tuple(v["shape"]) for k, v in header.items()}
    )
    try:
        tensors = safetensors.torch.load(raw)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as e:
        raise DamagedError(f"{folder / WEIGHTS_FILE}: {make_printable(str(e))}.") from None
    own_tensors = {name: tensors[key] for key, name in names.items()}
    for name, value in own_tensors.items():
        if not bool(value.isfinite().all()):
            raise DamagedError(f"{folder / WEIGHTS_FILE}: {name} holds values that are not finite.")
    return own_tensors


def parse_description(facts: dict[str, Any], folder: Path) -> tuple[AbstractSpace, dict[str, Any]]:
    """Return the space's options and its description from a marker: they fix the names and shapes of an adapter's tensors."""
    try:
        options, description = restore_part("space", facts["space"]), facts["trained"]
        sizes = [n for shape in options.exported(description).values() for n in shape]
        good = options.elements(description) > 0 and all(isinstance(n, int) and n > 0 for n in sizes)
        good = good and all(TENSOR_NAME.fullmatch(name) for name in options.exported(description))
    except (TypeError, KeyError, ValueError, AttributeError, ZoedgeError):
        good = False
    if not good:
        raise DamagedError(f"{folder / MARKER_FILE}: its description of the adapter cannot be read.")
    return options, description


def find_adapters(folder: Path) -> list[Path]:
    """Return the folders of an export's adapters: its own, or those of several spaces."""
    return [folder] if (folder / MARKER_FILE).exists() else sorted(p.parent for p in folder.glob(f"*/{MARKER_FILE}"))


def check_shapes(folder: Path, wanted: dict[str, tuple[int, ...]], shapes: dict[str, Any]) -> None:
    """Raise IdentityError unless both have the same names, with the same shapes."""
    missing, extra = wanted.keys() - shapes.keys(), shapes.keys() - wanted.keys()
    if missing or extra:
        parts = [
            f"{len(s)} {how} ({make_printable(min(s))})" for s, how in ((missing, "missing"), (extra, "unknown")) if s
        ]
        raise IdentityError(f"{folder} is not an adapter of this space: of {len(wanted)} tensors, {', '.join(parts)}.")
    for name, shape in wanted.items():
        if tuple(shapes[name]) != shape:
            raise IdentityError(f"{folder}: {name} is {list(shapes[name])}, not {list(shape)}.")


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the bytes of a file. DamagedError: there is none, or it is larger than `limit` bytes."""
    try:
        if not path.is_file():
            raise DamagedError(f"{path}: no such file.")
        if (size := path.stat().st_size) > limit:
            raise DamagedError(f"{path}: {size:,} bytes, where at most {limit:,} make sense.")
        return path.read_bytes()
    except OSError as e:
        raise StorageError(f"{path}: cannot be read: {e.strerror}.") from e


def parse_header(raw: bytes, path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and the offset of its payload.

    DamagedError: it is malformed, or has what the library lets pass, such as a tensor named ../../x.
    """
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
