"""The pages' code blocks run, on a tiny model in the place of the one they name; every command line in them is one.

A comment before a block says what else there is to know of it:
    <!-- file: my.yaml -->            the block is that file
    <!-- exit 2 -->                   its command ends so, and prints the next plain block, but for numbers and "..."
    <!-- not run: needs vLLM -->      its `zoedge` lines are still parsed
Blocks of no language are outputs, of YAML without a name parts of a recipe.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.methods import Slope, check_direction, check_part, check_passes, check_replays, check_slope
from helpers.models import WORDS, save
from helpers.paths import ROOT
from typer.main import get_command

from zoedge.cli import app
from zoedge.scoring.sources import create

RUN = [
    "docs/tutorial.md",
    "docs/classify.md",
    "docs/chat.md",
    "docs/reward.md",
    "docs/howto.md",
    "docs/faq.md",
    "README.md",
]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NOT_HERE = {
    "make",
    "pip",
    "git",
    "python3",
    "accelerate",
    "vllm",
    ".venv/bin/python",
}  # lines of README that wait for no test
BLOCK = re.compile(r"^(?:<!-- ([^\n]*?) -->\n)?```(\w*)\n(.*?)^```$", re.S | re.M)
ZOEDGE: Any = get_command(app)
TEXTS = {
    "film-reviews": ["negative", "positive"],
    "product-reviews": ["negative", "positive"],
    "topics": ["business", "entertainment", "politics", "sport", "tech"],
    "trec": ["abbreviation", "description", "entity", "human", "location", "number"],
}
CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


class Block(NamedTuple):
    about: str
    language: str
    text: str

    @property
    def file(self) -> str:
        return self.about.removeprefix("file: ") if self.about.startswith("file: ") else ""

    @property
    def rests(self) -> bool:
        return self.about.startswith("not run: ")


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def lines(text: str) -> list[str]:
    """A shell block's commands, continued lines joined."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and line.strip()[0] != "#"]


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A cache in which the packaged model is a tiny one, and each packaged text a few short rows."""
    from transformers import LlamaConfig

    own = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        chat_template=CHATML,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("stocked")
    save(folder / "models" / "smollm2-135m-instruct", config, own)
    (folder / "texts").mkdir()
    for name, labels in TEXTS.items():
        with (folder / "texts" / f"{name}.jsonl").open("w") as file:
            for i in range(240):
                text = " ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(3 + i % 5))
                row = {
                    "text": f"{text} {i % 10}",
                    "label": labels[i % len(labels)],
                    "score": 1.5,
                    "title": text,
                    "lead": text,
                }
                file.write(json.dumps(row) + "\n")
    for made in (folder / "models" / "smollm2-135m-instruct", *(folder / "texts").glob("*.jsonl")):
        create.sums_path(made).write_text(create.encode_sums(made, create.list_files(made)))
    return folder


@pytest.fixture
def small(stocked: Path, llama: Path, own_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, gone into, where every run is of few steps and rows, over the stocked cache. base-model/: no chat template."""
    from zoedge.recipe import reading

    real = reading.merge_overrides

    def shorter(table: Any, *rest: Any) -> Any:
        found = real(table, *rest)
        train, data, look = (found[0].setdefault(key, {}) for key in ("train", "data", "eval"))
        if all(isinstance(some, dict) for some in (train, data, look)):
            train["steps"] = min(12, train.get("steps", 12))
            look.update(every=6, calibrate=4)
            data.update({key: {"split": 12} for key in ("valid", "test") if isinstance(data.get(key), dict)})
        return found

    shutil.copytree(llama, tmp_path / "base-model")
    monkeypatch.setattr(reading, "merge_overrides", shorter)
    monkeypatch.setenv("ZOEDGE_CACHE", str(stocked))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run(line: str, zoedge: Any, patch: pytest.MonkeyPatch) -> Any:
    """One line of a shell block: `zoedge` in this process, what else there is in a shell of its own."""
    before, pipe, command = line.rpartition(" | ")
    typed = words(command if pipe and words(command)[:1] == ["zoedge"] else line)
    with patch.context() as own:
        while typed and re.fullmatch(r"[A-Z_]+=\S*", typed[0]):
            own.setenv(*typed.pop(0).split("=", 1))
        if typed[:1] == ["zoedge"]:
            if typed[-2:-1] == [">"]:
                typed = typed[:-2]
            if pipe:
                own.setattr(sys, "stdin", io.StringIO(subprocess.check_output(["bash", "-c", before], text=True)))
            return zoedge(*(word for word in typed[1:] if word != "--check"))  # a fresh process each: test_export.py
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        return type("Done", (), {"code": done.returncode, "out": done.stdout, "err": done.stderr})


def without_numbers(text: str) -> str:
    return re.sub(r"[0-9a-f]{8,}|\d[\d.,e-]*\d|\d", "#", " ".join(text.split()))


@pytest.mark.parametrize("page", RUN)
def test_a_pages_blocks_run(page: str, small: Path, zoedge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    said, ran = "", 0
    for block in blocks(ROOT / page):
        if block.rests:
            continue
        if block.file:
            (small / block.file).parent.mkdir(parents=True, exist_ok=True)
            (small / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            wanted = int(block.about.removeprefix("exit ")) if block.about else 0
            for line in lines(block.text):
                if page == "README.md" and words(line)[0] in NOT_HERE:
                    continue
                done = run(line, zoedge, monkeypatch)
                assert done.code == wanted, f"{page}: {line}\n{done.out}{done.err}"
                said = done.err if wanted else ""
                ran += 1
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), names)
            ran += 1
        elif block.language == "yaml":
            part_of_a_recipe(block.text)
        elif block.language == "" and said:
            told = without_numbers(said)
            for part in filter(None, map(without_numbers, block.text.split("..."))):
                _, found, told = told.partition(part)
                assert found, f"{page}: {part}\n{said}"
            said = ""
    assert ran


def part_of_a_recipe(text: str) -> None:
    """What a page shows of a recipe is right where the rest is two-sided's."""
    from zoedge.recipe import check, reading, strict_yaml

    table, marks = strict_yaml.read_yaml(strict_yaml.read_text_file(reading.find_recipe("two-sided")), "two-sided")
    table |= strict_yaml.read_yaml(text, "the page")[0]
    check.check(table, marks, "the page's recipe")


def test_every_recipe_on_every_page_is_right() -> None:
    """Whole ones and parts of one; lm-eval's task files and other tools' configurations have keys of their own."""
    from zoedge.recipe import sections, strict_yaml

    seen = 0
    for page in PAGES:
        for block in blocks(page):
            if block.language == "yaml" and not block.rests:
                keys = strict_yaml.read_yaml(block.text, page.name)[0].keys()
                if keys <= {
                    "version",
                    "name",
                    "seed",
                    "noise",
                    "estimator",
                    "rule",
                    *sections.SECTIONS,
                    "task",
                    "space",
                }:
                    part_of_a_recipe(block.text)
                    seen += 1
    assert seen >= 9


def command_of(typed: list[str]) -> tuple[Any, list[str], str]:
    """(the command, what follows its name, its name) of the words after `zoedge`."""
    command, path = ZOEDGE, "zoedge"
    while typed and typed[0] in getattr(command, "commands", {}):
        path, command, typed = f"{path} {typed[0]}", command.commands[typed[0]], typed[1:]
    return command, typed, path


def commands(page: Path) -> Iterator[list[str]]:
    """What stands after `zoedge` in the page's shell blocks."""
    for block in blocks(page):
        if block.language == "sh":
            for line in lines(block.text):
                for part in re.split(r" (?:\||&&|&) ?", line):
                    typed = words(part)
                    while typed and re.fullmatch(r"[A-Z_]+=\S*", typed[0]):
                        typed.pop(0)
                    if typed[:1] == ["zoedge"]:
                        yield typed[1:]
                    elif "-m" in typed and typed[typed.index("-m") :][1:2] == ["zoedge"]:  # a launcher's
                        yield typed[typed.index("zoedge") + 1 :]


def test_every_command_line_of_every_page_is_one() -> None:
    """Also where it is not run: the command exists, and so does every option."""
    seen = 0
    for page in PAGES:
        for typed in commands(page):
            command, rest, path = command_of([word for word in typed if word not in ("ls|show|cp", "ls|run")])
            if rest[-2:-1] == [">"]:
                rest = rest[:-2]
            try:
                command.make_context(path, list(rest))
            except Exception as e:
                raise AssertionError(f"{page.name}: zoedge {shlex.join(typed)}: {e}") from e
            seen += 1
    assert seen > 50


def test_every_option_that_a_text_names_exists() -> None:
    """`zoedge log export --packed` in a sentence or a table."""
    seen = 0
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for code in re.findall(r"`zoedge ([^`]+)`", text):
            command, rest, path = command_of(re.split(r"[ \[\]|]+", code))
            known = {option for p in command.params for option in p.opts} | {"--help", "--debug"}
            if getattr(command, "commands", {}):
                known |= {option for c in command.commands.values() for p in c.params for option in p.opts}
            for word in rest:
                if word.startswith("--"):
                    assert word.rstrip(".,") in known, f"{page.name}: `zoedge {code}`: {path} has no {word}"
                    seen += 1
    assert seen > 15


def test_few_blocks_are_not_run() -> None:
    resting = [(page.name, block.about) for page in PAGES for block in blocks(page) if block.rests]
    assert all(len(about) > len("not run: ") + 5 for _, about in resting)
    assert len(resting) <= 10, resting


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
            target, _, anchor = link.partition("#")
            if "://" in target:
                continue
            there = page if not target else page.parent / target
            assert there.exists(), f"{page.name}: {link}"
            if anchor and there.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in slugs, f"{page.name}: {link}"


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_the_worked_example_is_a_method(small: Path, zoedge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING's file, where the others are: it passes what every method passes, and a recipe trains with it."""
    from zoedge.core import parts
    from zoedge.methods import estimators

    (block,) = (b for b in blocks(ROOT / "CONTRIBUTING.md") if b.file)
    path = small / Path(block.file).name
    path.write_text(block.text)
    assert Path(block.file).parent == Path("zoedge/methods/estimators") and len(block.text.splitlines()) <= 80
    real, word = parts.list_words, path.stem
    monkeypatch.setattr(
        parts, "list_words", lambda folder: (*real(folder), *([word] if folder == "methods.estimators" else []))
    )
    monkeypatch.setattr(estimators, "__path__", [*estimators.__path__, str(small)])
    monkeypatch.delitem(sys.modules, f"zoedge.methods.estimators.{word}", raising=False)
    try:
        check_part("estimator", word)
        for noise in ("rademacher", "low_rank"):
            folder = small / noise
            folder.mkdir()
            check_replays((noise, word, "sgd"), folder)
            (folder / "log").unlink(missing_ok=True)
            check_direction((noise, word, "momentum"), folder)
        check_slope(word)
        check_passes(word, {}, 4)
        made = importlib.import_module(f"zoedge.methods.estimators.{word}")
        assert Path(made.__file__ or "") == path

        class Cubic(Slope):
            def losses(self, points: Any) -> list[float]:
                return [sum(2 * c + 5 * c**3 for c, q in point) for point in points]

        part = parts.load_part("estimator", word)
        assert part(eps=0.1).measure(Cubic([]), [])[0] == pytest.approx(2, rel=1e-9), "the page says so"
        for line in (
            line for b in blocks(ROOT / "CONTRIBUTING.md") if b.about == "with the example" for line in lines(b.text)
        ):
            done = run(line, zoedge, monkeypatch)
            assert done.code == 0, done.err
    finally:
        sys.modules.pop(f"zoedge.methods.estimators.{word}", None)
        shutil.rmtree(small / "__pycache__", ignore_errors=True)
