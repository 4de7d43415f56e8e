"""What an accuracy costs: forward passes of a sample, and seconds, for recipes and for first-order LoRA beside them.

    python benchmarks/race.py [two-sided gauss-newton mezo as2p stp fzoo adam first-order closed-form
        logistic-regression] [--seeds 3] [--smoke]

All train the same LoRA matrices of the same 4-bit base from the same start, on the same batches, over the same cached
lower layers. A recipe has its own noise, estimator, rule and steps; first-order is torch's backpropagation and AdamW,
whose backward pass counts as two forwards. closed-form is `space.start: probe` alone, fitted to CLOSED_ROWS rows drawn
by the seed; logistic-regression is scikit-learn's on the last hidden states of the same rows, as one would type it
without zoedge. Accuracy is raw, on validation rows, looked at LOOKS times a run; looking is not timed. Seconds are of
the main thread's CPU, which works in every parallel region: another process that takes turns with the race does not
count. Peaks are of the run alone, from when the base is loaded. Finished runs are kept: a killed race goes on.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _measure import arguments, machine, peak, rest_peak, save, table

RECIPES = "two-sided", "gauss-newton", "mezo", "as2p", "stp", "fzoo", "adam"
FIRST = "first-order"
CLOSED, LOGISTIC = "closed-form", "logistic-regression"
CLOSED_ROWS = 128, 256, 512, 1024, 1500
REACHED = 0.60, 0.65, 0.70, 0.75, 0.80, 0.83, 0.85
LOOKS = 40
STEPS, LR = 300, 1e-3  # of first-order: docs/lab-notes.md has it at 0.86 after as many steps


def forward_only(model: Any, name: str, seed: int, args: Any) -> Iterator[int]:
    """A run of a recipe; yields each step's forward passes of a sample."""
    from zoedge.recipe.reading import read_recipe

    recipe = read_recipe(name, [])
    if any(getattr(recipe, key) != getattr(model.recipe, key) for key in ("model", "task", "space")):
        sys.exit(f"{name}: its model, task or space is not two-sided's: there is nothing to compare.")
    steps = min(recipe.train.steps, args.steps)
    for record in model.trial(recipe.noise, recipe.estimator, recipe.rule, steps, seed):
        yield len(record.losses) * model.recipe.train.batch


def first_order(model: Any, seed: int, args: Any) -> Iterator[int]:
    """AdamW on copies of the same matrices, which go back into the space after each step: there they are scored."""
    import torch
    from _plain import adapted

    from zoedge.methods.noise.normal import Normal

    recipe, bench = model.recipe, model.measuring
    space, size = bench.space, recipe.train.batch
    space.value.copy_(recipe.space.blank(space.describe(), seed, Normal()).value)
    trained = {name: value.clone().requires_grad_() for name, value in space.tensors()}
    task = recipe.task.make_training(bench.texts.train, seed, size)
    steps = min(STEPS, args.steps)
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        batch = task.batch(step)
        with adapted(bench.base.model, trained, space.scale):
            logits = differentiable(bench.base, batch)
            torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        for name, value in space.tensors():
            value.copy_(trained[name].detach())
        yield 3 * size


def differentiable(base: Any, batch: Any) -> Any:
    """The options' logits [B, options], with a graph, from the cached lower layers on."""
    import torch

    h = base.kept[id(batch.examples)].read(batch.index, batch.ids.shape[1])
    context = base.context(h, torch.tensor([len(batch.examples.tokens[i]) for i in batch.index]), 1, None)
    for block in base.blocks[base.cut : -1]:
        h = block(h, **context)
    h = base.facts.last(base.blocks[-1], h, batch.rows, **context)
    weight = base.facts.head(base.model).weight[batch.targets[0]].float()
    return torch.nn.functional.linear(base.facts.final(base.model, h).float(), weight)[:, 0]


def fit_closed(model: Any, name: str, seed: int, args: Any) -> dict[str, Any]:
    """A curve as `run` returns it, a point for each number of rows; a pass over the rows is counted, its time is taken."""
    import torch

    from zoedge.run.evaluate import evaluate
    from zoedge.run.start import WithTerm, fit_features
    from zoedge.scoring.models.loading import release_memory
    from zoedge.scoring.probe.features import collect_features, option_logits, write_module

    bench, curve = model.measuring, []
    train, valid = bench.texts.train, bench.texts.valid
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    release_memory()
    rest_peak()
    logits = option_logits(bench.base, torch.tensor(train.targets[0]))
    held = collect_features(bench.base, valid, list(range(len(valid))), iter(valid.sorted_batches(16)))
    for rows in sorted({min(rows, len(train)) for rows in CLOSED_ROWS if rows <= max(128, args.steps)}):
        chosen, began = sorted(order[:rows], key=lambda i: len(train.tokens[i])), time.thread_time()
        features = collect_features(bench.base, train, chosen, (chosen[i : i + 16] for i in range(0, rows, 16)))
        if name == CLOSED:
            start = fit_features(features, logits, write_module(bench.base)[0])
            seconds = time.thread_time() - began
            score = evaluate(WithTerm(bench.base, start), bench.task, bench.base, valid, model.recipe.eval.calibrate)
            point = [score.accuracy, score.calibrated, score.loss]
        else:
            log_p = fit_logistic(features, held)
            seconds = time.thread_time() - began
            right = float((log_p.argmax(1) == held.labels).double().mean())
            point = [right, right, float(torch.nn.functional.nll_loss(log_p, held.labels))]
        curve.append([rows, seconds, *point])
    return {"curve": curve, "peak": peak(), "diverged": False}


def fit_logistic(features: Any, held: Any) -> Any:
    """The log-probabilities of the held-out rows by scikit-learn's logistic regression, its C chosen by 5-fold
    cross-validation, on standardised hidden states."""
    import torch
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    search = LogisticRegressionCV(
        Cs=8, cv=5, scoring="neg_log_loss", l1_ratios=(0.0,), max_iter=2000, use_legacy_attributes=False
    )
    found = make_pipeline(StandardScaler(), search).fit(features.states.numpy(), features.labels.numpy())
    return torch.tensor(found.predict_log_proba(held.states.numpy()))


def run(model: Any, name: str, seed: int, args: Any) -> dict[str, Any]:
    """A curve of [forward passes of a sample, seconds, accuracy, calibrated, loss], and the peak in MiB."""
    from zoedge.errors import DivergedError
    from zoedge.recipe.reading import read_recipe
    from zoedge.run.evaluate import evaluate
    from zoedge.scoring.models.loading import release_memory

    if name in (CLOSED, LOGISTIC):
        return fit_closed(model, name, seed, args)
    bench, recipe = model.measuring, model.recipe
    total = min(args.steps, STEPS if name == FIRST else read_recipe(name, []).train.steps)
    steps = first_order(model, seed, args) if name == FIRST else forward_only(model, name, seed, args)
    curve, passes, seconds, most, diverged = [], 0, 0.0, 0.0, False
    release_memory()
    rest_peak()
    for step in range(1, total + 1):
        began = time.thread_time()
        try:
            passes += next(steps)
        except DivergedError:
            diverged = True
            break
        seconds += time.thread_time() - began
        if step % max(1, total // LOOKS) == 0 or step == total:
            most = max(most, peak())
            score = evaluate(bench.space, bench.task, bench.base, bench.texts.valid, recipe.eval.calibrate)
            curve.append([passes, seconds, score.accuracy, score.calibrated, score.loss])
            release_memory()
            rest_peak()
    return {"curve": curve, "peak": most, "diverged": diverged}


def reached(curves: list[list[list[float]]], share: float, column: int) -> str:
    """The median over the seeds of what it took until the accuracy was first seen; how many of the seeds, if not all."""
    found = [next((point[column] for point in curve if point[2] >= share), None) for curve in curves]
    there = [value for value in found if value is not None]
    if not there:
        return "never"
    form = ",.0f" if column == 0 else ",.1f"
    return f"{statistics.median(there):{form}}" + (
        f" ({len(there)} of {len(found)})" if len(there) < len(found) else ""
    )


def text(runs: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Two tables: passes to each accuracy, and seconds. Ends and peaks are medians over the seeds."""
    made = []
    for title, column in (("forward passes of a sample to", 0), ("seconds to", 1)):
        lines = []
        for name, seeds in runs.items():
            curves = [found["curve"] for found in seeds.values()]
            ends = [curve[-1] for curve in curves if curve] or [[0.0] * 5]  # diverged before the first look
            last = [f"{statistics.median(end[i] for end in ends):{form}}" for i, form in ((2, ".1%"), (column, ",.0f"))]
            peaks = f"{statistics.median(found['peak'] for found in seeds.values()):.0f}"
            lines.append([name, *(reached(curves, share, column) for share in REACHED), *last, peaks])
        made.append(table([title, *(f"{share:.0%}" for share in REACHED), "end", "at", "peak, MiB"], lines))
    return "\n\n".join(made)


def main() -> None:
    parser = arguments(__doc__, "race.json")
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join((*RECIPES, FIRST, CLOSED, LOGISTIC)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10**6, help="of a run, at most")
    parser.add_argument("--smoke", action="store_true", help="few rows and steps: does it run?")
    args = parser.parse_args()
    import torch

    from zoedge.lab._model import SharedModel
    from zoedge.recipe.reading import read_recipe

    torch.set_num_threads(args.threads)
    split = ["data.limit=64", "data.valid.split=16", "data.test.split=16"] if args.smoke else ["data.valid.split=500"]
    args.steps = min(args.steps, 4) if args.smoke else args.steps
    settings = {"model": args.model, "threads": args.threads, "steps": args.steps, "data": split}
    found: dict[str, Any] = {"machine": machine() | {"threads": args.threads}, "settings": settings, "runs": {}}
    if args.json.exists():
        found = json.loads(args.json.read_text(encoding="utf-8"))
        if found["settings"] != settings:
            sys.exit(f"{args.json} is of {found['settings']}, not of {settings}: name another with --json.")
    with TemporaryDirectory() as folder:
        model = SharedModel(read_recipe("two-sided", [f"model.source={args.model}", *split]), Path(folder))
        for seed in range(args.seeds):
            for name in args.names or (*RECIPES, FIRST, CLOSED, LOGISTIC):
                seeds = found["runs"].setdefault(name, {})
                if str(seed) not in seeds:
                    seeds[str(seed)] = run(model, name, seed, args)
                    save(args.json, found)
                    print(f"{name}, seed {seed}: {seeds[str(seed)]['curve'][-1:]}", flush=True)
    found["machine"]["load after"] = machine()["load"]
    save(args.json, found)
    print(f"\n{found['machine']}\n\n{text(found['runs'])}")


if __name__ == "__main__":
    main()
