"""This module makes the folders that other programs load: a plain PEFT adapter, or a model with the trained weights merged in.

    FOLDER/   adapter_config.json, adapter_model.safetensors   (peft)    float32, PEFT's names, payload digest inside
              config.json, model*.safetensors                  (merged)  no quantization_config: 16 or 32-bit weights
              tokenizer files, README.md
              zoedge.json   written last: what it is of (base, log, state, payload), and that it is complete

A folder appears whole or not at all: it is written beside its place under another name, file by file and synced, then
renamed. Only what carries our marker is ever replaced. No file names a path of the machine that wrote it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core import storage
from ...core.digests import digest
from ...core.storage import write_durably
from ...core.types import AbstractSpace, Space
from ...errors import DamagedError, DivergedError, ReplayError, UsageError, make_printable
from ...log.packed import AnyLog
from ...methods.spaces._peft import infer_head
from ...recipe.recipe import Recipe

MARKER_FILE = "zoedge.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"

MAX_JSON_BYTES = 8 << 20

TENSOR_NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


# -- folders


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft beside `folder`, which takes its place if the block succeeds.

    UsageError: something that is no export of ours stands there.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder)
    with storage.replace_folder(folder) as draft:
        yield draft


def check_replaceable(folder: Path) -> None:
    """Raise UsageError unless there is no folder, an empty one, or an export of ours and nothing else."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is there and is not a folder. Name another one.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        known = {*read_marker(folder)["files"], MARKER_FILE}
    except DamagedError:
        raise UsageError(
            f"{folder} is there and is not an export of zoedge (no {MARKER_FILE}). Name another folder."
        ) from None
    if foreign := sorted(p.name for p in folder.iterdir() if p.name not in known):
        raise UsageError(
            f"{folder} holds what zoedge did not write ({make_printable(foreign[0])}). Move it, or name another folder."
        )


def encode_json(value: Any) -> bytes:
    """Return a value as the bytes of an indented JSON file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_marker(draft: Path, facts: dict[str, Any]) -> None:
    """Write the marker, which is the last file of an export: one without it is not complete."""
    storage.reach_failpoint("export.marker")
    write_durably(draft / MARKER_FILE, encode_json(facts))


def read_marker(folder: Path) -> dict[str, Any]:
    """Return the marker of a complete export. DamagedError: there is none (was the export interrupted?), or it is not ours."""
    path = folder / MARKER_FILE
    if not path.is_file():
        raise DamagedError(f"{folder}: no {MARKER_FILE}: not a complete zoedge export. `zoedge export` writes one.")
    marker = read_json(path)
    names = marker.get("files")
    good = (
        marker.get("kind") in ("peft", "merged") and isinstance(names, list) and all(isinstance(n, str) for n in names)
    )
    if marker.get("zoedge") != 1 or not good:
        raise DamagedError(f"{path}: not the marker of an export that this version reads.")
    return marker


def read_json(path: Path) -> dict[str, Any]:
    """Return the table in a small JSON file. DamagedError: it cannot be read, or is no table."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        table = json.loads(raw) if len(raw) <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedError(f"{path}: cannot be read ({type(e).__name__}).") from None
    if not isinstance(table, dict):
        raise DamagedError(f"{path}: not a table, or larger than {MAX_JSON_BYTES >> 20} MiB.")
    return table


# -- what both kinds say of themselves


def redact_source(source: str) -> str:
    """Return the base's source as it may be published.

    A hub id or a packaged name stays as it is; of a folder, only the last component is kept.
    """
    path = Path(os.path.expanduser(source))
    if HUB_ID.fullmatch(source) and not path.is_dir():
        return source
    return os.path.basename(os.path.abspath(path)).rpartition("\\")[2] or "base"


def describe_export(
    kind: str, recipe: Recipe, space: Space, base: bytes, log: AnyLog | None, steps: int | None
) -> dict[str, Any]:
    """Return the fields of the marker, but for payload and files.

    steps: after how many steps the space stands; None: the last step of which the log knows this state, or the length of a log
    without an END. ReplayError: the log knows another state of step `steps`.
    """
    state, fingerprint = digest(space), None
    if log is not None:
        fingerprint, end = log.fingerprint, log.state.end
        known = log.state.hashes | ({} if end is None else {len(log): end})
        if steps is None:
            matching = [step for step, known_as in known.items() if known_as == state[:24]]
            steps = max(matching) if matching else len(log) if end is None else None
        elif known.get(steps, state[:24]) != state[:24]:
            raise ReplayError(f"The state to be exported is not the one that the log says of step {steps}.")
    spec = recipe.model
    return {
        "zoedge": 1,
        "kind": kind,
        "base": base.hex(),
        "source": redact_source(spec.source),
        "revision": spec.revision,
        "quantization": spec.quantization,
        "double_quant": spec.double_quant,
        "recipe": recipe.name,
        "steps": steps,
        "head": infer_head(p.name for leaf in space.leaves() for p in leaf.parts),
        "log": fingerprint,
        "state": state.hex(),
    }


def check_exportable(space: Space) -> Space:
    """Return the space if PEFT has a format for it and its values are finite; else UsageError or DivergedError."""
    if not has_adapter(space):
        raise UsageError(
            f"The space '{get_space_word(space)}' has no adapter in PEFT's format. Write the whole model: --to merged."
        )
    if not space.complete:
        title = get_options(space).title
        raise UsageError(f"A {title} is a change from values of the base: it is exported where the base is.")
    return check_finite(space)


def list_members(space: Space) -> list[tuple[str, Space]]:
    """Return the adapters of an export as (folder inside the export's, space); one adapter alone is in the export's own, ""."""
    return list(space.named_members().items())


def has_adapter(space: Space) -> bool:
    """Return whether PEFT has a format for the space, or for every member of it."""
    return all(member.options is not None and member.options.adapter for _, member in list_members(space))


def get_options(space: Space) -> AbstractSpace:
    """Return the recipe's part that made a space. Only the parameters of an optimiser have none."""
    assert space.options is not None
    return space.options


def get_space_word(space: Space) -> str:
    """Return the recipe's word for a space, such as "lora"."""
    return type(space).__module__.rpartition(".")[2]


def check_finite(space: Space) -> Space:
    """Return the space. DivergedError: a trained tensor is not finite."""
    if not all(bool(value.isfinite().all()) for _, value in space.tensors()):
        raise DivergedError("The trained tensors are not finite: nothing to export. Replay to an earlier step.")
    return space
