"""One thing changed in a user's folder: what bad and hostile inputs are made of."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.recipes import TINY

Change = Callable[[Path], Any]


ROW = b'{"text": "a film", "label": "positive"}\n'


ROWS = b"".join(ROW.replace(b"film", b"film %d" % i) for i in range(30))


GO = "finetune my.yaml name=other"  # trains in runs/other


def put(name: str, data: bytes | str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return change


def recipe(old: str, new: str) -> Change:
    """my.yaml with `new` for `old`; for '', appended."""
    assert old in TINY
    return put("my.yaml", TINY.replace(old, new) if old else TINY + new)


def rows(data: bytes, name: str = "rows.jsonl") -> Change:
    def change(folder: Path) -> None:
        put(name, data)(folder)
        recipe("rows.jsonl", name)(folder)

    return change


def config(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def edit(name: str, change: Callable[[bytes], bytes]) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


LOG = "runs/tiny/run.zlog"


ADAPTER = "verify tiny --adapter runs/tiny/adapter"


def tree(folder: Path) -> dict[str, Any]:
    """What lies there: folders are not listed, an empty one is no loss."""

    def of(path: Path) -> Any:
        return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "pipe"

    return {str(p.relative_to(folder)): of(p) for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
