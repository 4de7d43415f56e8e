"""doctor --fix-hints: each hint is reached by a condition made up for it, and by nothing else."""

# ruff: noqa: E501 - a case a line
from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Done

from zoedge.commands.doctor import hints
from zoedge.commands.doctor.hints import MINIMUM_VERSIONS, MachineFacts

WELL: dict[str, Any] = {"versions": {**MINIMUM_VERSIONS, "kernels": None}, "cores": 4, "cache": "/c"}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {  # facts, what is said, what to type
    "a GPU and a CPU-only torch": ({"gpu": True, "cuda_build": False, "cuda_works": False}, r"^there is a GPU, and this torch is a CPU-only build", r"^pip uninstall torch && pip install torch"),
    "a GPU that torch cannot use": ({"gpu": True, "cuda_works": False}, r"^there is a GPU, and torch cannot use it", r"^nvidia-smi"),
    "an old bitsandbytes": ({"versions": {"bitsandbytes": "0.49.1"}}, r"^bitsandbytes 0\.49\.1 is older than 0\.50\.2", r"^pip install --upgrade 'bitsandbytes>=0\.50\.2'$"),
    "no peft": ({"versions": {"peft": None}}, r"^peft is not installed$", r"^pip install 'peft>=0\.21'$"),
    "the package kernels": ({"versions": {"kernels": "0.11"}}, r"^the package kernels is installed", r"^pip uninstall kernels$"),
    "a cache that cannot be written": ({"cache_fault": "Read-only file system"}, r"^the cache folder /c cannot be written \(Read-only file system\)$", r"^export ZOEDGE_CACHE="),
    "too small a disk": ({"disk": 200 << 20}, r"^200 MiB are free at /c,", r"^export ZOEDGE_CACHE="),
    "too many threads": ({"environment": {"OMP_NUM_THREADS": "64"}}, r"^OMP_NUM_THREADS is 64, and there are 4 cores: threads wait", r"^export OMP_NUM_THREADS=4$"),
    "too few threads": ({"environment": {"MKL_NUM_THREADS": "1"}}, r"^MKL_NUM_THREADS is 1, and there are 4 cores: the others are not used$", r"^unset MKL_NUM_THREADS "),
    "much in swap": ({"swapped": 6 << 30, "memory": 1 << 30}, r"^6\.0 GiB are swapped out, more than the 1\.0 GiB of memory", r"^zoedge finetune RECIPE model\.quantization=nf4 train\.rows=512"),
    "the hub's offline switch": ({"environment": {"HF_HUB_OFFLINE": "1"}}, r"^HF_HUB_OFFLINE is set", r"^unset HF_HUB_OFFLINE"),
    "an extra's package": ({"missing": {"lab": ["scipy"]}}, r"^scipy not installed \(the extra 'lab'\)$", r"^pip install 'zoedge\[lab\]'$"),
    "other bits": ({"numerics": False}, r"^the arithmetic of replay gives other bits here", r"^ATEN_CPU_CAPABILITY=default zoedge doctor"),
    "a product that changes": ({"forward": False}, r"^a 4-bit product changes between calls", r"^zoedge finetune RECIPE model\.quantization=none$"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_condition_has_its_hint_and_no_other(name: str) -> None:
    facts, what, how = CASES[name]
    merged = WELL | facts | {"versions": WELL["versions"] | facts.get("versions", {})}
    ((said, typed),) = hints.find_hints(MachineFacts(**merged))
    assert re.search(what, said) and re.search(how, typed)


def test_a_machine_that_is_well_has_none() -> None:
    assert (
        hints.find_hints(MachineFacts(**WELL))
        == []
        == hints.find_hints(MachineFacts(**WELL | {"environment": {"OMP_NUM_THREADS": "4", "HF_HUB_OFFLINE": "0"}}))
    )
    assert (
        hints.find_hints(
            MachineFacts(
                **WELL | {"versions": {"torch": "2.13.0+cpu", "bitsandbytes": "0.50.2", "transformers": "5.100"}}
            )
        )
        == []
    )


def test_every_hint_is_reached() -> None:
    """There are as many cases as places in the source that yield a hint."""
    nodes = ast.walk(ast.parse(Path(hints.__file__).read_text()))
    assert len(CASES) == sum(isinstance(node, ast.Yield) for node in nodes)


def test_versions_and_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(hints.__file__).parents[3] / "pyproject.toml").read_text())["project"]
    for name, least in MINIMUM_VERSIONS.items():
        assert any(line.startswith(f"{name}>={least}") for line in project["dependencies"])
    assert hints.EXTRA_PACKAGES.keys() <= project["optional-dependencies"].keys()


def test_the_facts_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    facts = hints.gather_facts()
    assert facts.cache == str(tmp_path / "cache") and not facts.cache_fault and facts.disk > 0
    assert facts.environment["OMP_NUM_THREADS"] == "3" and facts.versions["torch"] and facts.numerics
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOEDGE_CACHE", str(tmp_path / "file" / "cache"))
    assert hints.gather_facts().cache_fault == "Not a directory"


def test_as_a_user_types_it(zoedge: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    from zoedge.commands.doctor import doctor

    good = {
        "numerics": "1 pair of noise and rule gives its golden bits: replay is exact here",
        "forward": "nf4 product stable",
    }
    monkeypatch.setattr(doctor, "examine", lambda: (good, True))
    monkeypatch.setattr(
        hints,
        "gather_facts",
        lambda numerics, forward: MachineFacts(
            **WELL | {"gpu": True, "cuda_build": False, "numerics": numerics, "forward": forward}
        ),
    )
    done = zoedge("doctor", "--fix-hints")
    assert (
        done.code == 0
        and "\nthere is a GPU, and this torch is a CPU-only build\n  pip uninstall torch && pip install torch "
        in done.out
    )
    assert "GPU, and this torch" not in zoedge("doctor").out
    assert json.loads(zoedge("doctor", "--json", "--fix-hints").out)["hints"][0][0].startswith("there is a GPU")
    monkeypatch.setattr(doctor, "examine", lambda: (good | {"forward": "CHANGES"}, False))
    done = zoedge("doctor", "--fix-hints")
    assert done.code == 8 and "a 4-bit product changes" in done.out and "other bits" not in done.out
    monkeypatch.setattr(doctor, "examine", lambda: ({"numerics": "normal sgd gives 12"}, False))
    assert "other bits" in (done := zoedge("doctor", "--fix-hints")).out and "a 4-bit product" not in done.out
    monkeypatch.setattr(hints, "gather_facts", lambda numerics, forward: MachineFacts(**WELL))
    assert "nothing is in the way" in zoedge("doctor", "--fix-hints").out
