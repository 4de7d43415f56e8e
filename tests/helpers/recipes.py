"""Recipes and rows that train a tiny model in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.models import WORDS


def fitting(kind: str, word: str) -> dict[str, Any]:
    """A recipe's table with that part, and with what the part says it goes only with."""
    from zoedge.core.parts import load_part

    table: dict[str, Any] = {kind: {"name": word}}
    for other, allowed in getattr(load_part(kind, word), "only_with", {}).items():
        key, _, option = other.partition(".")
        table.setdefault(key, {}).update({option or "name": allowed[0]})
    return table


def tiny_recipe(folder: Path, llama: Path, reviews: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(
        f"""version: 1
name: tiny
seed: 7
model: {{source: "{llama}", quantization: nf4}}
data: {{train: "{reviews}", valid: {{split: 10}}, test: {{split: 20}}, max_length: 64}}
task: {{name: classify, prompt: "{{text}} It was", options: {{negative: " terrible", positive: " great"}}}}
space: {{name: lora, rank: 4, alpha: 8, targets: [q_proj, v_proj], layers: last 2}}
noise: rademacher
estimator: {{name: two_sided, eps: 1e-2}}
rule: {{name: sgd, lr: 1e-2, schedule: linear}}
train: {{steps: 24, batch: 4}}
eval: {{every: 10, calibrate: 16, select: last, closed_form: false}}
log: {{hash_every: 5}}
output: {{dir: "{folder / "runs"}"}}
"""
    )
    return path


TINY = """version: 1
name: tiny
model: {source: model, quantization: none}
data: {train: rows.jsonl, valid: {split: 10}, max_length: 64}
task: {name: classify, prompt: "{text} It was", options: {negative: " terrible", positive: " great"}}
space: {name: lora, rank: 2, targets: [q_proj], layers: last 1}
rule: {name: sgd, lr: 1e-2}
train: {steps: 4, batch: 4}
eval: {every: 4, calibrate: 4, select: last, closed_form: false}
log: {hash_every: 2}
"""


def write_reviews(path: Path) -> None:
    """Write 80 labelled rows of like length variety as JSON lines."""
    with path.open("w") as file:
        for i in range(80):
            words = [WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(3 + i % 9)]
            text = " ".join([*words, "fun bright" if i % 2 else "dull boring"])
            file.write(json.dumps({"text": text, "label": ("negative", "positive")[i % 2]}) + "\n")
