"""docs/benchmarks.md from the JSON that step, parts and race have left: `python benchmarks/report.py`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import parts
import race
import step
from _measure import HERE

SECTIONS: dict[str, tuple[str, Any, str]] = {  # title, module, what of the JSON its `text` shows
    "step": ("A training step", step, "cells"), "parts": ("Its parts", parts, "rows"),
    "race": ("What an accuracy costs", race, "runs"),
}  # fmt: skip
HEAD = """# Benchmarks

Made by `make bench` and `make race` from what they measured. A ratio is taken inside each round of interleaved repetitions;
the table has the median, the least and the largest. max/min is of one item's own repetitions, so it is how noisy the
machine was: where it is above 1.1, times say little, and ratios more. A target that is missed stays in the table; what
forbids it is in lab-notes.md. No GPU was at hand: nothing here has been measured, or tested, on CUDA."""


def about(machine: dict[str, Any]) -> str:
    """A sentence on the machine, and how busy it was: loads are averages of 1, 5 and 15 minutes."""
    load, after = (" ".join(map(str, machine.get(key, ()))) for key in ("load", "load after"))
    return (
        f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores ({machine['threads']} threads), "
        f"{machine['memory, GiB']} GiB, torch {machine['torch']}\n({machine['flags']}). Load before: {load}; after: {after}."
    )


def page(found: dict[str, dict[str, Any]]) -> str:
    whole = [HEAD]
    for name, data in found.items():
        title, module, key = SECTIONS[name]
        words = str(module.__doc__).split("\n\n", 2)[-1].strip()  # without its first line and its commands
        model = data.get("model") or data["settings"]["model"]
        whole += [f"## {title}", f"{model}, {about(data['machine'])}", words, module.text(data[key])]
    return "\n\n".join(whole) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--found", type=Path, default=HERE / "found", help="the folder of the JSON")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    args = parser.parse_args()
    paths = {name: args.found / f"{name}.json" for name in SECTIONS}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
    args.out.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
