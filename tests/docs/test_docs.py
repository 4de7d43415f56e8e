"""The pages that docs/generate.py makes are up to date, and say what they should."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType
from typing import Any

import pytest
from helpers.paths import ROOT

from zoedge.commands import lab
from zoedge.core.parts import PART_FOLDERS, list_words
from zoedge.recipe.reading import list_shipped, read_recipe


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_methods_page_is_up_to_date(generate: Any) -> None:
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == generate.page(), "make docs"


def test_the_commands_page_is_up_to_date(generate: Any) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == generate.cli(), "make docs"
    assert "## zoedge finetune\n" in page and "## zoedge log diff\n" in page and "  --dry-run " in page


def test_the_labs_page_is_up_to_date_and_has_every_experiment(generate: Any) -> None:
    page = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    assert page == generate.lab(), "make docs"
    for name, _ in lab.list_experiments():
        found = json.loads((ROOT / "docs" / "lab" / f"{name}.json").read_text(encoding="utf-8"))
        assert f"## {name}\n" in page and (ROOT / "docs" / "lab" / f"{name}.svg").exists()
        assert vars(lab.make_experiment(name, [])).keys() == found["options"].keys(), "run it again with --out docs/lab"
        assert found["claims"] and all(claim["paper"] in page.replace("\\|", "|") for claim in found["claims"])


def test_the_methods_page_has_every_part_and_recipe(generate: Any) -> None:
    page = generate.page()
    for path in list_shipped():
        elsewhere = path.stem in ("quickstart", "two-sided") or path.stem.startswith(("mezo-", "first-"))
        assert elsewhere or f"### {path.stem}\n" in page
    for kind in ("noise", "estimator", "rule"):
        for word in list_words(PART_FOLDERS[kind]):
            assert f"### {word}\n" in page
    assert generate.state(read_recipe("adam").rule) == 2 and generate.state(read_recipe("mezo").rule) == 0
