"""What every method's recipe reaches on the embedded model and data: `python benchmarks/methods.py [NAME ...]`.

Each recipe of recipes/mezo.yaml's model, data, task and space as it is shipped, over three seeds, from the same initial
values and batches, one after the other in one process on one thread. Writes benchmarks/methods.json, from which
docs/methods.md has its numbers.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from zoedge.errors import DivergedError
from zoedge.lab._model import SharedModel
from zoedge.recipe.reading import read_recipe

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "benchmarks" / "methods.json"
SEEDS = range(3)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    paths = [p for p in sorted((ROOT / "recipes").glob("*.yaml")) if "\n# The paper: " in p.read_text(encoding="utf-8")]
    found = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {"methods": {}}
    with tempfile.TemporaryDirectory() as folder:
        model = SharedModel(read_recipe("mezo", []), Path(folder))
        for path in paths:
            if names and path.stem not in names:
                continue
            recipe = read_recipe(str(path))
            if any(getattr(recipe, key) != getattr(model.recipe, key) for key in ("model", "data", "task", "space")):
                continue  # measured elsewhere
            scores, passes = [], 0
            for seed in SEEDS:
                try:
                    for record in model.trial(recipe.noise, recipe.estimator, recipe.rule, recipe.train.steps, seed):
                        passes += len(record.losses)
                except DivergedError:
                    print(f"{path.stem}: seed {seed} diverged", flush=True)
                scores.append(model.score())
            entry = {
                "accuracy": [s.accuracy for s in scores], "calibrated": [s.calibrated for s in scores],
                "loss": [round(s.loss, 4) for s in scores], "passes": passes // len(SEEDS),
            }  # fmt: skip
            found["methods"][path.stem] = entry
            print(path.stem, json.dumps(entry), flush=True)
            machine = f"{platform.machine()}, torch {torch.__version__}, one thread"
            found |= {"date": time.strftime("%Y-%m-%d"), "machine": machine}
            TARGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
