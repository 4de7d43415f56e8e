"""A model larger than its device: blocks on the disk, read once a step for all points, and the same log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoedge.core.oracle import StepOracle
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import folder, setup

HELD = "model.max_memory={cpu: 300KB}"  # of the tiny model: all but its blocks, and the last of three


def bench(recipe_file: Path, *more: str) -> setup.Measuring:
    return setup.Measuring.build(read_recipe(str(recipe_file), ["model.quantization=none", *more]))


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every weight that accelerate puts into a module."""
    from accelerate import hooks

    found: list[int] = []
    real = hooks.set_module_tensor_to_device

    def counted(module: Any, name: str, device: Any, value: Any = None, **more: Any) -> Any:
        if value is not None:
            found.append(value.nbytes)
        return real(module, name, device, value=value, **more)

    monkeypatch.setattr(hooks, "set_module_tensor_to_device", counted)
    return found


def blocks(base: Any) -> list[bool]:
    return [any(p.is_meta for p in block.parameters()) for block in base.blocks]


def test_the_last_blocks_stay_and_the_others_are_read_once_a_step(recipe_file: Path, moved: list[int]) -> None:
    all_layers = bench(recipe_file, HELD, "space.layers=all", "estimator.queries=2")
    assert blocks(all_layers.base) == [True, True, False]
    whole = bench(recipe_file, "space.layers=all", "estimator.queries=2")
    sizes = [sum(p.nbytes for p in block.parameters()) for block in whole.base.blocks]
    points = [((c, q),) for q in (0, 1) for c in (0.01, -0.01)]
    log: Any = type("Empty", (list,), {"writable": False, "next_seq": 0})()
    moved.clear()
    losses = [
        StepOracle(b.run(log), b.task.batch(0), 0, 1, 0).losses(points)  # four points, one forward
        for b in (all_layers, whole)
    ]
    assert losses[0] == losses[1]
    assert sum(moved) == sum(sizes[:2])


def test_the_same_log(recipe_file: Path, tmp_path: Path, zoedge: Callable[..., Any], moved: list[int]) -> None:
    for name, more in (("whole", []), ("held", [HELD])):
        done = zoedge(
            "finetune", recipe_file, "model.quantization=none", *more, "--run-dir", tmp_path / name, "--quiet"
        )
        assert done.code == 0, done.err
    assert moved
    logs = [Log.open(tmp_path / name / folder.LOG_FILE) for name in ("whole", "held")]
    assert list(logs[0]) == list(logs[1]) and len(logs[0]) == 24
    assert logs[0].state.end == logs[1].state.end
    assert logs[0].header.recipe == logs[1].header.recipe, "where weights lie decides no number"


@pytest.mark.parametrize("more, code, words", [
    (["model.quantization=none", "model.max_memory={cpu: 10KB}"], 3, "embeddings, norms and head take"),
    (["model.quantization=none", "model.max_memory={cpu: much}"], 2, "{cpu: 2GB}"),
    (["model.quantization=none", "model.max_memory={tpu: 1GB}"], 2, "{cpu: 2GB}"),
    (["model.max_memory={cpu: 1GB}"], 2, "a quantised base is held whole"),
    (["model.quantization=none", HELD, "space={name: full}"], 3, "leaves some on the disk"),
])  # fmt: skip
def test_refusals(recipe_file: Path, zoedge: Callable[..., Any], more: list[str], code: int, words: str) -> None:
    done = zoedge("finetune", recipe_file, *more, "--quiet")
    assert done.code == code and words in done.err, done.err
