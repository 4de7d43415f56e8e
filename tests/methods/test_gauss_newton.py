"""gauss_newton against the same formulas in float64 torch, on a task with options and on one without, alone and shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Done
from helpers.recipes import tiny_recipe

from zoedge.core import oracle as core_oracle
from zoedge.core.tasks import Outputs
from zoedge.core.types import Point
from zoedge.errors import UsageError
from zoedge.log.log import Log
from zoedge.methods.estimators.gauss_newton import GaussNewton
from zoedge.recipe.reading import read_recipe
from zoedge.run import setup

M, B, C = 3, 7, 4


class Table:
    """An oracle that answers with given logits [1 + M, B, C], or with losses alone where there are no labels."""

    step, steps, lr = 0, 10, 0.5

    def __init__(self, logits: torch.Tensor, labels: list[int] | None):
        self.logits, self.labels = logits, labels

    def outputs(self, points: Sequence[Point]) -> Outputs | None:
        assert [list(point) for point in points] == [[], *([(0.5, q)] for q in range(M))]
        return None if self.labels is None else Outputs(self.logits.tolist(), self.labels)

    def each(self, points: Sequence[Point]) -> list[list[float]]:
        return self.logits.logsumexp(-1).tolist()


def solve(
    slopes: torch.Tensor, gradient: torch.Tensor, hessian: torch.Tensor, moved: torch.Tensor, trust: float
) -> list[float]:
    """The damped step, limited so that the batch moves by `trust` at most (FEWER-PASSES' section 1)."""
    damped = hessian + 0.3 * hessian.diagonal().mean() * torch.eye(M, dtype=torch.float64)
    w = torch.linalg.solve(damped, gradient)
    size = torch.einsum("m,mbc->bc", w, moved).square().sum(-1).mean().sqrt()
    return (w * min(1.0, trust / size.item())).tolist()


def random_logits(seed: int, scale: float) -> tuple[torch.Tensor, list[int]]:
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(1 + M, B, C, generator=g, dtype=torch.float64)
    return logits, torch.randint(C, (B,), generator=g).tolist()


@pytest.mark.parametrize("trust", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_the_step_among_logits_is_the_formulas(seed: int, trust: float) -> None:
    logits, labels = random_logits(seed, 2.0)
    w = GaussNewton(eps=0.5, queries=M, trust=trust, reach=1e9).measure(Table(logits, labels), [])  # type: ignore[arg-type]
    f = logits[0].requires_grad_()
    slopes = (logits[1:] - logits[0]).detach() / 0.5
    loss = torch.nn.functional.cross_entropy(f, torch.tensor(labels))
    (pull,) = torch.autograd.grad(loss, f)
    gradient = (slopes * pull).sum((1, 2))
    p = (f.detach().softmax(-1) + 1 / C) / 2
    hessian = torch.zeros(M, M, dtype=torch.float64)
    for b in range(B):
        curvature = torch.diag(p[b]) - torch.outer(p[b], p[b])
        hessian += slopes[:, b] @ curvature @ slopes[:, b].T / B
    moved = slopes - slopes.mean(-1, keepdim=True)
    assert w == pytest.approx(solve(slopes, gradient, hessian, moved, trust), rel=1e-9)


@pytest.mark.parametrize("trust", [1e-3, 1e6])
def test_the_step_among_losses_is_the_empirical_fishers(trust: float) -> None:
    logits, _ = random_logits(5, 2.0)
    w = GaussNewton(eps=0.5, queries=M, trust=trust, reach=1e9).measure(Table(logits, None), [])  # type: ignore[arg-type]
    losses = logits.logsumexp(-1)
    slopes = (losses[1:] - losses[0]) / 0.5
    wanted = solve(slopes, slopes.mean(1), slopes @ slopes.T / B, slopes[..., None], trust)
    assert w == pytest.approx(wanted, rel=1e-9)


def test_no_step_moves_the_logits_by_more_than_trust() -> None:
    for seed in range(20):
        logits, labels = random_logits(seed, 10.0 ** (seed % 5 - 1))
        w = torch.tensor(GaussNewton(eps=0.5, queries=M).measure(Table(logits, labels), []))  # type: ignore[arg-type]
        slopes = (logits[1:] - logits[0]) / 0.5
        moved = torch.einsum("m,mbc->bc", w.double(), slopes - slopes.mean(-1, keepdim=True))
        assert moved.square().sum(-1).mean().sqrt() <= 1 + 1e-6


def test_no_step_moves_theta_further_than_its_reach() -> None:
    """Of small slopes the undamped step would be long; their direction stays."""
    logits, labels = random_logits(1, 1.0)
    logits = logits[:1] + 1e-4 * (logits - logits[:1])
    far = torch.tensor(GaussNewton(eps=0.5, queries=M, trust=1e9, reach=1e9).measure(Table(logits, labels), []))  # type: ignore[arg-type]
    near = torch.tensor(GaussNewton(eps=0.5, queries=M, trust=1e9, reach=4.0).measure(Table(logits, labels), []))  # type: ignore[arg-type]
    assert Table.lr * near.norm().item() == pytest.approx(4.0 * 0.5, rel=1e-5)
    assert far.norm() > 2 * near.norm()
    assert torch.allclose(near / near.norm(), far / far.norm(), atol=1e-5)


def test_where_nothing_moves_there_is_no_step_and_where_a_loss_is_not_finite_none_is_taken() -> None:
    logits, labels = random_logits(0, 1.0)
    still = logits[:1].expand(1 + M, -1, -1)
    assert GaussNewton(eps=0.5, queries=M).measure(Table(still, labels), []) == [0.0] * M  # type: ignore[arg-type]
    logits[2, 3, 1] = math.inf
    found = GaussNewton(eps=0.5, queries=M).measure(Table(logits, labels), [])  # type: ignore[arg-type]
    assert not any(map(math.isfinite, found)), "the engine skips such a step"


TASKS = {
    "classify": [],
    "several tokens": ["task.options={negative: ' so bad', positive: ' great'}"],
    "lm": ["task={name: lm, text: text}"],
    "choose": ["task={name: choose, prompt: '{text} It was', option: ' {choice}', choices: [a, b], label: label}"],
}


@pytest.mark.parametrize("task", ["classify", "several tokens", "lm"])
def test_each_and_outputs_are_what_the_losses_are_made_of(task: str, recipe_file: Path) -> None:
    """In pieces, too: memory that holds one sequence gives the same numbers."""
    measuring = setup.Measuring.build(read_recipe(str(recipe_file), ["estimator=gauss_newton", *TASKS[task]]))
    points = [(), ((1e-2, 0),), ((-1e-2, 1),)]

    def ask(most: float = math.inf) -> core_oracle.StepOracle:
        run = measuring.run(None)  # type: ignore[arg-type]
        run.most = most
        return core_oracle.StepOracle(run, measuring.task.batch(0), 0, run.steps, 7)

    losses = ask().losses(points)
    for oracle in (ask(), ask(1.0)):
        each = oracle.each(points)
        assert [math.fsum(row) / len(row) for row in each] == pytest.approx(losses, rel=1e-5)
        assert oracle.asked == pytest.approx(losses, rel=1e-5) and all(len(row) == 4 for row in each)
        outputs = oracle.outputs(points)
        assert (outputs is None) == (task == "lm")
        if outputs is not None:
            means = [
                math.fsum(core_oracle.cross_entropy(f, y) for f, y in zip(rows, outputs.labels)) / 4
                for rows in outputs.logits
            ]
            assert means == pytest.approx(losses, rel=1e-5) and len(oracle.asked) == 6


@pytest.mark.parametrize("task", ["classify", "lm"])
def test_a_run_learns_and_replays(task: str, recipe_file: Path, zoedge: Callable[..., Done]) -> None:
    more = ["estimator={name: gauss_newton}", "rule=sgd", "train.steps=30", "train.batch=8", *TASKS[task]]
    done = zoedge("finetune", recipe_file, *more, "--plain")
    assert done.code == 0, done.err
    run = recipe_file.parent / "runs" / "tiny"
    assert zoedge("verify", run, "--replay", "--adapter", run / "adapter").code == 0
    log = Log.open(run / "run.zlog")
    assert len(log[0].g) == 4 and len(log[0].losses) == 5 and log[0].lr == 0.5 and 0 < log[29].lr < 0.02
    first, last = (sum(r.losses[0] for r in list(log)[part]) / 10 for part in (slice(0, 10), slice(20, 30)))
    assert last < first, "it learns: .83 -> .62 and 6.00 -> 5.88, the same to .01 whatever the CPU"


def test_auto_knows_the_step_size_and_searches_nothing(recipe_file: Path, zoedge: Callable[..., Done]) -> None:
    done = zoedge("finetune", recipe_file, "estimator=gauss_newton", "rule=sgd", "--dry-run")
    assert done.code == 0 and "lr: 0.5" in done.out and "gauss_newton scales its own steps" in done.out, done.out
    recipe = read_recipe(str(recipe_file), ["estimator=gauss_newton", "rule={name: sgd, lr: 0.1}"])
    assert recipe.rule.lr == 0.1 and recipe.auto == frozenset()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("rule=adam", "estimator: gauss_newton goes only with rule: sgd, not adam"),
        ("task.objective=accuracy", "estimator: gauss_newton goes only with task.objective: loss, not accuracy"),
        ("estimator.queries=0", "estimator.queries"),
        ("estimator.trust=0", "estimator.trust"),
    ],
)
def test_what_makes_no_sense_is_refused(change: str, sentence: str, recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_recipe(str(recipe_file), ["estimator={name: gauss_newton}", change])


def test_workers_share_the_examples(tmp_path: Path, llama: Path, reviews: Path) -> None:
    """What each of three workers would hear, in one process: the numbers of a worker alone."""
    from zoedge.run.workers import Workers

    measuring = setup.Measuring.build(
        read_recipe(str(tiny_recipe(tmp_path, llama, reviews)), ["estimator=gauss_newton", "train.batch=5"])
    )
    points = [(), ((1e-2, 0),)]
    run = measuring.run(None)  # type: ignore[arg-type]
    batch = measuring.task.batch(0)
    alone = core_oracle.StepOracle(run, batch, 0, run.steps, 7).outputs(points)
    assert alone is not None
    said: dict[int, list[float]] = {}

    class Spoken(Workers):
        def __init__(self, index: int):
            self.index, self.count, self.wish, self.stop, self.sent = index, 3, 0, 0, 0

        def _gather(self, values: Any) -> list[list[float]]:
            said[self.index] = list(values)
            return [said.get(i, list(values)) for i in range(3)]

    for index in (0, 1, 2, 0):  # the last one hears all three
        run.workers = Spoken(index)
        heard = core_oracle.StepOracle(run, batch, 0, run.steps, 7).outputs(points)
    assert heard is not None and heard.labels == alone.labels
    assert torch.allclose(torch.tensor(heard.logits), torch.tensor(alone.logits), atol=1e-4)
    assert len({len(values) for values in said.values()}) == 1, "all send as much"
