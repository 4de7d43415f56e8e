"""This module finds a model or a text that a recipe names: a path, a hub id, or a file inside a published package.

Packaged sources need no hub. pip fetches one archive into the cache, its SHA-256 is checked, and the file is taken out
without importing anything. Nothing in zoedge but this package opens the network.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import DataError, make_printable, suggest_nearest
from . import hub
from .catalog import PACKAGED_MODELS, PACKAGED_TEXTS
from .hub import HUB_ID_PATTERN
from .packaged import gguf_model, packaged_model, packaged_text
from .pickles import explain_conversion
from .places import locate


def resolve_model(source: str, revision: str | None = None) -> Path:
    """Return the folder of a model, which is named by a local folder, a GGUF file, a packaged model's name, or a hub id.

    revision: of a hub id. DataError: there is no such model, or it cannot be fetched.
    """
    if source in PACKAGED_MODELS:
        return packaged_model(source)
    source = locate(source)
    if (folder := Path(os.path.expanduser(source))).is_dir():
        return folder
    if folder.suffix.lower() == ".gguf" and folder.is_file():
        return gguf_model(folder)
    if HUB_ID_PATTERN.fullmatch(source) and not folder.is_file():
        patterns = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
        snapshot = hub.download_snapshot("model", source, revision, patterns)
        if (snapshot / "config.json").is_file() and not any(snapshot.glob("*.safetensors")):
            raise DataError(
                f"The model '{source}' has no .safetensors weights there. Perhaps the hub's converter has made them: "
                "model.revision: refs/pr/N, where N is its number on the model's page. Or its weights are pickles. "
                f"{explain_conversion(source)}"
            )
        return snapshot
    begins = (
        ""
        if folder.is_absolute()
        else f" Relative paths begin in the current folder, {make_printable(os.getcwd(), 300)}."
    )
    raise DataError(
        f"model.source: no folder '{make_printable(source)}', and not a packaged model "
        f"({', '.join(PACKAGED_MODELS)}) or a hub id, "
        f"ORG/NAME{suggest_nearest(source, PACKAGED_MODELS) or '.'}{begins}"
    )


def resolve_text(source: str, key: str = "data") -> tuple[Path, str]:
    """Return the file of a data source, or the folder of a hub's data set, and its name for messages.

    Args:
        source: a path, a packaged text's name, or a hub id. A hub id, or the folder of a clone of one, may name a split,
            as ORG/SET:validation or ORG/SET:CONFIG/test; without one it means the train split. The last part of a path
            may have stars, such as data/train-*.parquet.
        key: the recipe's key that names the source. Of a folder, data.train means its train.jsonl, data.valid its
            valid.jsonl, and any other key its test.jsonl, or the same with another ending.

    Raises:
        DataError: there is no such source, or it cannot be fetched.
    """
    if source in PACKAGED_TEXTS:
        return packaged_text(source), source
    path = Path(os.path.expanduser(source))  # pathlib's own expanduser raises RuntimeError for ~nobody
    if path.is_file():
        return path, source
    if path.is_dir():
        which = key.rpartition(".")[2]
        which = which if which in SPLIT_NAMES else "test"
        file = find_split_file(source, which)
        if file is not None:
            return Path(os.path.expanduser(file)), file
        if is_data_set(path):
            return path, source if which == "train" else f"{source}:{which}"
        names = sorted(p.name for p in path.iterdir() if p.suffix in ROW_SUFFIXES)
        hint = f"It has: {', '.join(map(make_printable, names[:20]))}. Name one" if names else "Name a file of rows"
        raise DataError(f"{key}: the folder {make_printable(source)} has no {which}.jsonl. {hint}.")
    folder, _, split = source.partition(":")
    if split and Path(os.path.expanduser(folder)).is_dir():
        return Path(os.path.expanduser(folder)), source
    if "*" in path.name and path.parent.is_dir():
        return path, source  # the files that it names, one after another
    name = source.partition(":")[0]
    if HUB_ID_PATTERN.fullmatch(name) and not path.suffix[1:].isalpha():
        return hub.download_snapshot("dataset", name, None, ["*.parquet", "*.jsonl", "*.csv"]), source
    nearby = {str(p) for p in path.parent.glob("*") if p.suffix in ROW_SUFFIXES}
    raise DataError(
        f"{key}: no file '{make_printable(source)}', and not a packaged text ({', '.join(PACKAGED_TEXTS)}) or a hub id, ORG/SET"
        f"{suggest_nearest(str(path), nearby | set(PACKAGED_TEXTS)) or '.'}"
    )


def is_data_set(folder: Path) -> bool:
    """Return whether a folder is laid out as a data set of a hub is, or as datasets' save_to_disk writes one."""
    if any((folder / name).is_file() for name in ("README.md", ".gitattributes", "dataset_dict.json", "state.json")):
        return True
    shards = any(SHARD_PATTERN.search(file.name) for file in folder.iterdir())
    return shards or any((folder / name).is_dir() for name in ("data", "train"))


SHARD_PATTERN = re.compile(r"-\d+-of-\d+\.")

ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")

SPLIT_NAMES = {  # set -> the names, without an ending, that its file may have in a folder of data
    "train": ("train",),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}


def find_split_file(source: str, which: str) -> str | None:
    """Return the file of a set in a folder of data, as a user would name it; None: there is no such folder or file.

    which: train, valid or test. DataError: the folder has several files for the set.
    """
    source = locate(source)
    folder = Path(os.path.expanduser(source))
    if source in PACKAGED_TEXTS or not folder.is_dir() or (folder / "dataset_info.json").exists():
        return None
    for word in SPLIT_NAMES[which]:
        names = [f"{word}{ending}" for ending in ROW_SUFFIXES if (folder / f"{word}{ending}").is_file()]
        if len(names) > 1:
            raise DataError(f"data.{which}: {make_printable(source)} has {' and '.join(names)}. Name one of them.")
        if names:
            return os.path.join(source, names[0])
    return None
