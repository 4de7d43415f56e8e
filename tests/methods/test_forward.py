"""forward against differences of losses in float32, of every task, space and family; what it refuses; runs that replay."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Done
from helpers.recipes import tiny_recipe

from zoedge.core import oracle as core_oracle
from zoedge.errors import UsageError
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import setup

EPS = 1e-3
TASKS: dict[str, list[str]] = {
    "classify": [],
    "several tokens": ["task.options={negative: ' so bad', positive: ' great'}"],
    "lm": ["task={name: lm, text: text}"],
    "choose": [],
}
SPACES = {
    "lora, frozen A": ["space={name: lora, train: b, layers: all}"],
    "prompt": ["space={name: prompt, tokens: 2}"],
    "prefix": ["space={name: prefix, tokens: 2}"],
    "several": ["space={name: several, of: {lora: {rank: 2}, prompt: {tokens: 2}}}"],
    "nf4": ["model.quantization=nf4"],
    "int8": ["model.quantization=int8"],
    "low rank": ["noise=low_rank"],
    "block": ["noise=block"],
    "sphere": ["noise=sphere"],
    "adamu": ["rule=adamu", "estimator.queries=1"],
}


def build(recipe_file: Path, more: list[str]) -> setup.Measuring:
    measuring = setup.Measuring.build(read_recipe(str(recipe_file), ["estimator={name: two_sided}", *more]))
    for leaf in measuring.space.leaves():  # where LoRA's B is 0, half of the slopes are
        leaf.value.add_(torch.randn(leaf.value.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    return measuring


def ask(measuring: setup.Measuring, most: float = math.inf) -> core_oracle.StepOracle:
    run = measuring.run(None)  # type: ignore[arg-type]
    run.most = most
    return core_oracle.StepOracle(run, measuring.task.batch(0), 0, run.steps, 7)


def check_slopes(measuring: setup.Measuring, eps: float = EPS, error: float = 1e-3) -> None:
    """Assert that slopes are those of differences, also in pieces, and that the model is as before."""
    losses = ask(measuring).losses([(), *(((c * eps, q),) for q in range(2) for c in (1, -1, 2, -2))])
    here, probes = losses[0], [losses[i : i + 4] for i in (1, 5)]
    slopes = [(8 * (a - b) - (c - d)) / (12 * eps) for a, b, c, d in probes]
    size = math.sqrt(sum(x * x for x in slopes))
    for oracle in (ask(measuring), ask(measuring, 1.0)):
        assert oracle.slopes(2) == pytest.approx(slopes, abs=5e-3 * size + error)
        assert oracle.asked == pytest.approx([here], rel=1e-5)
    assert ask(measuring).losses([()]) == [here], "the same bits as before"


@pytest.mark.parametrize("task", TASKS)
def test_slopes_of_every_task_are_those_of_differences(task: str, recipe_file: Path) -> None:
    if task == "choose":
        rows = recipe_file.parent / "rows.jsonl"
        rows.write_text(
            "".join(f'{{"text": "film {i}", "a": "good", "b": "so bad", "label": {i % 2}}}\n' for i in range(8))
        )
        more = [
            "task={name: choose, prompt: '{text} was', choices: [a, b], label: label}",
            f"data={{train: {rows}}}",
            "eval={select: last}",
        ]
        check_slopes(build(recipe_file, more))
        return
    check_slopes(build(recipe_file, TASKS[task]))


@pytest.mark.parametrize("case", SPACES)
def test_slopes_of_every_space_and_noise_are_those_of_differences(case: str, recipe_file: Path) -> None:
    check_slopes(build(recipe_file, [part for part in SPACES[case] if not part.startswith("estimator.")]))


def test_slopes_of_every_family_are_those_of_differences(
    families: dict[str, Path], tmp_path: Path, reviews: Path
) -> None:
    for name, folder in families.items():
        (tmp_path / name).mkdir()
        # OPT's ReLU has kinks: across them a difference is off in proportion to eps, by .13 of 10 at 1e-3
        measuring = build(tiny_recipe(tmp_path / name, folder, reviews), ["space={name: lora, layers: all}"])
        check_slopes(measuring, 1e-4, 2e-2)


def test_workers_share_the_examples(tmp_path: Path, llama: Path, reviews: Path) -> None:
    """What each of three workers would hear, in one process: the numbers of a worker alone."""
    from zoedge.run.workers import Workers

    measuring = build(tiny_recipe(tmp_path, llama, reviews), ["train.batch=5"])
    run, batch = measuring.run(None), measuring.task.batch(0)  # type: ignore[arg-type]
    alone = core_oracle.StepOracle(run, batch, 0, run.steps, 7).slopes(2)
    said: dict[int, list[float]] = {}

    class Spoken(Workers):
        def __init__(self, index: int):
            self.index, self.count, self.wish, self.stop, self.sent = index, 3, 0, 0, 0

        def _gather(self, values: Any) -> list[list[float]]:
            said[self.index] = list(values)
            return [said.get(i, list(values)) for i in range(3)]

    for index in (0, 1, 2, 0):  # the last one hears all three
        run.workers = Spoken(index)
        heard = core_oracle.StepOracle(run, batch, 0, run.steps, 7).slopes(2)
    assert heard == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_a_run_learns_and_replays(recipe_file: Path, zoedge: Callable[..., Done]) -> None:
    more = ["estimator={name: forward, queries: 2}", "train.steps=30", "train.batch=8", "rule={name: sgd, lr: 0.1}"]
    done = zoedge("finetune", recipe_file, *more, "--plain")
    assert done.code == 0, done.err
    run = recipe_file.parent / "runs" / "tiny"
    assert zoedge("verify", run, "--replay", "--adapter", run / "adapter").code == 0
    log = Log.open(run / "run.zlog")
    assert len(log[0].g) == 2 and len(log[0].losses) == 1
    first, last = (sum(r.losses[0] for r in list(log)[part]) / 10 for part in (slice(0, 10), slice(20, 30)))
    assert last < first


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("task.objective=accuracy", "estimator: forward goes only with task.objective: loss, not accuracy"),
        ("estimator.queries=0", "estimator.queries"),
        (
            "space=full",
            "estimator: forward differentiates adapters and virtual tokens, not space: full - write estimator",
        ),
        ("space=scales", "not space: scales - write estimator: two_sided"),
        ("space={name: several, of: {scales: {}, lora: {}}}", "not space: several - write estimator: two_sided"),
    ],
)
def test_what_makes_no_sense_is_refused(change: str, sentence: str, recipe_file: Path) -> None:
    more = ["model.quantization=nf4"] if "scales" in change else []
    with pytest.raises(UsageError, match=sentence):
        read_recipe(str(recipe_file), ["estimator={name: forward}", *more, change])


def test_a_cache_that_is_filled_meanwhile_has_the_bits_of_any_other(recipe_file: Path, tmp_path: Path) -> None:
    """It is kept between runs: what another estimator reads of it must not depend on who filled it."""
    measuring = setup.Measuring.build(read_recipe(str(recipe_file), ["space.layers=last 1"]))
    base, rows = measuring.base, measuring.texts.train
    assert base.cut > 0
    found = []
    for is_differentiated in (True, False):
        (tmp_path / str(is_differentiated)).mkdir()
        cache = base.open_trunk(rows, tmp_path / str(is_differentiated))
        assert cache is not None
        with base.differentiate() if is_differentiated else nullcontext():
            found.append(cache.read(range(20), 64))
        base.kept.clear()
    assert torch.equal(*found) and float(found[0].abs().max()) > 0
