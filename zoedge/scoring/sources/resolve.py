"""Where models and texts come from: a path, a hub id, or a file inside a published package, pinned by its sha256.

Packaged sources need no model hub: pip fetches one archive into the cache, its digest is checked, the file is taken
out, nothing of it is imported. Nothing else in zoedge opens the network.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import DataError, make_printable, suggest_nearest
from . import hub
from .catalog import PACKAGED_MODELS, PACKAGED_TEXTS
from .hub import HUB_ID_PATTERN
from .packaged import packaged_model, packaged_text


def resolve_model(source: str, revision: str | None = None) -> Path:
    """The folder of a model: a local folder, a packaged name, or (where a hub is reachable) a hub id."""
    if source in PACKAGED_MODELS:
        return packaged_model(source)
    if (folder := Path(os.path.expanduser(source))).is_dir():
        return folder
    if HUB_ID_PATTERN.fullmatch(source) and not folder.is_file():
        return hub.download_snapshot(
            "model", source, revision, ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
        )
    raise DataError(
        f"model.source: no folder '{make_printable(source)}', and not a packaged model "
        f"({', '.join(PACKAGED_MODELS)}) or a hub id, "
        f"ORG/NAME{suggest_nearest(source, PACKAGED_MODELS) or '.'}"
    )


def resolve_text(source: str, key: str = "data") -> tuple[Path, str]:
    """(file, or a hub data set's folder; what to call it) of a data source: a path, a packaged text, or a hub id.

    Of a folder, the file that `key` (data.train, data.valid, data.test; else the test rows) is about: train.jsonl, ....
    A hub id may name a split, ORG/SET:validation or ORG/SET:CONFIG/test; without one, it is the train split.
    """
    if source in PACKAGED_TEXTS:
        return packaged_text(source), source
    path = Path(os.path.expanduser(source))  # which leaves ~nobody as it is; pathlib's own raises RuntimeError
    if path.is_file():
        return path, source
    if path.is_dir():
        which = key.rpartition(".")[2]
        if found := find_split_file(source, which if which in SPLIT_NAMES else "test"):
            return Path(os.path.expanduser(found)), found
        names = sorted(p.name for p in path.iterdir() if p.suffix in ROW_SUFFIXES)
        some = f"It has: {', '.join(map(make_printable, names[:20]))}. Name one" if names else "Name a file of rows"
        raise DataError(
            f"{key}: the folder {make_printable(source)} has no {which if which in SPLIT_NAMES else 'test'}.jsonl. {some}."
        )
    name = source.partition(":")[0]
    if HUB_ID_PATTERN.fullmatch(name) and not path.suffix[1:].isalpha():
        return hub.download_snapshot("dataset", name, None, ["*.parquet", "*.jsonl", "*.csv"]), source
    there = {str(p) for p in path.parent.glob("*") if p.suffix in ROW_SUFFIXES}
    raise DataError(
        f"{key}: no file '{make_printable(source)}', and not a packaged text ({', '.join(PACKAGED_TEXTS)}) or a hub id, ORG/SET"
        f"{suggest_nearest(str(path), there | set(PACKAGED_TEXTS)) or '.'}"
    )


ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")

SPLIT_NAMES = {
    "train": ("train",),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}  # files of a data folder


def find_split_file(source: str, which: str) -> str | None:
    """The file of a split in a folder of data, as a user would name it; None: no folder, or none in it.

    DataError: several.
    """
    folder = Path(os.path.expanduser(source))
    if source in PACKAGED_TEXTS or not folder.is_dir() or (folder / "dataset_info.json").exists():
        return None
    for word in SPLIT_NAMES[which]:
        if found := [f"{word}{ending}" for ending in ROW_SUFFIXES if (folder / f"{word}{ending}").is_file()]:
            if len(found) > 1:
                raise DataError(f"data.{which}: {make_printable(source)} has {' and '.join(found)}. Name one of them.")
            return os.path.join(source, found[0])
    return None
