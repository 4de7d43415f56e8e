"""What other programs load: a plain PEFT adapter (LoRA, prompt or prefix), or the model with LoRA merged in.

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
from ...methods.spaces.lora import infer_head
from ...recipe.recipe import Recipe

MARKER_FILE, CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = (
    "zoedge.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
)

MAX_JSON_BYTES = 8 << 20

TENSOR_NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


# -- folders


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A draft beside `folder` that takes its place if the block succeeds. UsageError: something else is there."""
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder)
    with storage.replace_folder(folder) as draft:
        yield draft


def check_replaceable(folder: Path) -> None:
    """UsageError unless nothing of others would be lost: no folder, an empty one, or an export and nothing else."""
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
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_marker(draft: Path, facts: dict[str, Any]) -> None:
    """The last file: an export without it is not complete."""
    storage.reach_failpoint("export.marker")
    write_durably(draft / MARKER_FILE, encode_json(facts))


def read_marker(folder: Path) -> dict[str, Any]:
    """A complete export's zoedge.json. DamagedError: there is none (export interrupted?), or not one of ours."""
    path = folder / MARKER_FILE
    if not path.is_file():
        raise DamagedError(f"{folder}: no {MARKER_FILE}: not a complete zoedge export. `zoedge export` writes one.")
    found = read_json(path)
    names = found.get("files")
    good = (
        found.get("kind") in ("peft", "merged") and isinstance(names, list) and all(isinstance(n, str) for n in names)
    )
    if found.get("zoedge") != 1 or not good:
        raise DamagedError(f"{path}: not the marker of an export that this version reads.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file's table. DamagedError if it is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        found = json.loads(raw) if len(raw) <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedError(f"{path}: cannot be read ({type(e).__name__}).") from None
    if not isinstance(found, dict):
        raise DamagedError(f"{path}: not a table, or larger than {MAX_JSON_BYTES >> 20} MiB.")
    return found


# -- what both kinds say of themselves


def redact_source(source: str) -> str:
    """A source as it may be published: a hub id or a packaged name as it is, of a folder the last component alone."""
    path = Path(os.path.expanduser(source))
    if HUB_ID.fullmatch(source) and not path.is_dir():
        return source
    return os.path.basename(os.path.abspath(path)).rpartition("\\")[2] or "base"


def describe_export(
    kind: str, recipe: Recipe, space: Space, base: bytes, log: AnyLog | None, steps: int | None
) -> dict[str, Any]:
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
    """(folder inside the export's, space) of each adapter: of one alone, the export's own."""
    return list(space.named_members().items())


def has_adapter(space: Space) -> bool:
    return all(member.options is not None and member.options.adapter for _, member in list_members(space))


def get_options(space: Space) -> AbstractSpace:
    """Return the recipe's part that made a space. Only the parameters of an optimiser have none."""
    assert space.options is not None
    return space.options


def get_space_word(space: Space) -> str:
    return type(space).__module__.rpartition(".")[2]


def check_finite(space: Space) -> Space:
    if not all(bool(value.isfinite().all()) for _, value in space.tensors()):
        raise DivergedError("The trained tensors are not finite: nothing to export. Replay to an earlier step.")
    return space
