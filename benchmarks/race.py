"""What an accuracy costs: forward passes of a sample, and seconds, for recipes and for first-order LoRA beside them.

    python benchmarks/race.py [two-sided gauss-newton mezo as2p stp fzoo adam lozo aligned start first-order closed-form
        logistic-regression] [--rows films products topics trec] [--seeds 3] [--smoke]

All train the same LoRA matrices of the same 4-bit base from the same start, on the same batches, over the same cached
lower layers; aligned trains its own few numbers. A recipe has its own noise, estimator, rule and steps; first-order is torch's
backpropagation and AdamW, whose backward pass counts as two forwards. closed-form is `space.start: probe` alone, fitted to
CLOSED_ROWS rows drawn by the seed; start is closed-form of START_ROWS rows and then the steps that a recipe without a space
takes; logistic-regression is scikit-learn's on the last hidden states of the same rows, as one would type it
without zoedge. Accuracy is raw, on validation rows, looked at LOOKS times a run; looking is not timed. Seconds are of
the main thread's CPU, which works in every parallel region: another process that takes turns with the race does not
count. Peaks are of the run alone, from when the base is loaded. Finished runs are kept: a killed race goes on, and a run that
was measured on another machine than the last one says so.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _measure import arguments, machine, peak, rest_peak, save, table

RECIPES = "two-sided", "gauss-newton", "mezo", "as2p", "stp", "fzoo", "adam", "lozo"
FIRST, ALIGNED, START = "first-order", "aligned", "start"
CLOSED, LOGISTIC = "closed-form", "logistic-regression"
CLOSED_ROWS = 128, 256, 512, 1024, 1500
START_ROWS = 512
REACHED = 0.60, 0.65, 0.70, 0.75, 0.80, 0.83, 0.85, 0.90, 0.93
LOOKS = 20
SPACE = {  # of the recipes that write none: as two-sided
    "space": "{name: lora, rank: 8, alpha: 16, targets: all, layers: last 1}", "noise": "rademacher",
    "train": "{steps: 6000, batch: 16, threads: 1}",
}  # fmt: skip
ROWS = {"films": "two-sided", "products": "first-products", "topics": "first-topics", "trec": "first-questions"}
STEPS, LR = 300, 1e-3  # of first-order: docs/lab-notes.md has it at 0.86 after as many steps
ALIGNED_STEPS = 150


def forward_only(model: Any, name: str, seed: int, args: Any) -> Iterator[int]:
    """A run of a recipe's method; yields each step's forward passes of a sample."""
    from zoedge.recipe.reading import read_recipe

    recipe = read_recipe(name, [])
    if recipe.space != model.recipe.space:
        sys.exit(f"{name}: its space is not two-sided's: there is nothing to compare.")
    steps = min(recipe.train.steps, args.steps)
    for record in model.trial(recipe.noise, recipe.estimator, recipe.rule, steps, seed):
        yield len(record.losses) * model.recipe.train.batch


def own_space(model: Any, name: str, seed: int, args: Any) -> Iterator[int]:
    """Steps in a space of their own, which is computed or fitted first, and which the model has from then on."""
    import torch

    from zoedge.core.engine import play
    from zoedge.core.memory import MemoryLog
    from zoedge.core.run import Run
    from zoedge.methods.noise.normal import Normal
    from zoedge.recipe.reading import read_recipe
    from zoedge.run.basis import align_space
    from zoedge.run.display import Quiet
    from zoedge.run.start import fit_features
    from zoedge.scoring.probe.features import option_logits, write_module

    bench, recipe = model.measuring, read_recipe(ALIGNED if name == ALIGNED else "gauss-newton", [])
    options, rule, batch = recipe.space, recipe.rule, recipe.train.batch
    if name == ALIGNED:
        options = replace(options, rank=len(bench.recipe.task.labels) - 1)
        steps, passes = min(args.steps, ALIGNED_STEPS), 256
        bench.space = options.attach(bench.base, seed, Normal())
        with TemporaryDirectory() as folder:
            align_space(bench, bench.space, Path(folder), Quiet())
    else:
        steps, rule = min(args.steps, recipe.train.steps), replace(rule, lr=0.1)
        bench.space = replace(options, start="probe").attach(bench.base, seed, Normal())
        features = features_of(model, START_ROWS, seed)
        passes = len(features.labels)
        logits = option_logits(bench.base, torch.tensor(bench.texts.train.targets[0]))
        found = fit_features(features, logits, write_module(bench.base)[0])
        bench.space.freeze_term(found.module, found.a, found.b)
    task = bench.recipe.task.make_training(bench.texts.train, seed, batch)
    run = Run(seed, steps, MemoryLog(), bench.space, recipe.noise, rule, recipe.estimator, task, bench.base)
    for record in play(run, steps):
        yield len(record.losses) * batch + passes
        passes = 0


def features_of(model: Any, rows: int, seed: int) -> Any:
    """The features of so many training rows, drawn by the seed."""
    import torch

    from zoedge.scoring.probe.features import collect_features

    base, train = model.measuring.base, model.measuring.texts.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = sorted(order[:rows], key=lambda i: len(train.tokens[i]))
    return collect_features(base, train, chosen, (chosen[i : i + 16] for i in range(0, len(chosen), 16)))


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

    h = base.kept[id(batch.examples)].read(batch.index, batch.ids.shape[1]).clone()  # it was computed in inference mode
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
    release_memory()
    rest_peak()
    logits = option_logits(bench.base, torch.tensor(train.targets[0]))
    held = collect_features(bench.base, valid, list(range(len(valid))), iter(valid.sorted_batches(16)))
    for rows in sorted({min(rows, len(train)) for rows in CLOSED_ROWS if rows <= max(128, args.steps)}):
        began = time.thread_time()
        features = features_of(model, rows, seed)
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
    kept, total = bench.space, min(args.steps, {FIRST: STEPS, ALIGNED: ALIGNED_STEPS}.get(name, 10**6))
    if name in (FIRST, ALIGNED, START):
        steps = (first_order if name == FIRST else partial(own_space, name=name))(model, seed=seed, args=args)
        total = min(total, 250) if name == START else total
    else:
        steps, total = forward_only(model, name, seed, args), min(total, read_recipe(name, []).train.steps)
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
    bench.space = kept
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


def text(sets: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """Two tables a set of rows: passes to each accuracy, and seconds. Ends and peaks are medians over the seeds."""
    return "\n\n".join(f"### {rows}\n\n{tables(runs)}" for rows, runs in sets.items())


def tables(runs: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The tables of one set of rows."""
    made = []
    last_cpu = next((found.get("cpu") for seeds in reversed(runs.values()) for found in seeds.values()), None)
    for title, column in (("forward passes of a sample to", 0), ("seconds to", 1)):
        lines = []
        for name, seeds in runs.items():
            curves = [found["curve"] for found in seeds.values()]
            ends = [curve[-1] for curve in curves if curve] or [[0.0] * 5]  # diverged before the first look
            last = [f"{statistics.median(end[i] for end in ends):{form}}" for i, form in ((2, ".1%"), (column, ",.0f"))]
            peaks = f"{statistics.median(found['peak'] for found in seeds.values()):.0f}"
            cpus = {found.get("cpu") for found in seeds.values()}
            where = (
                ""
                if cpus == {last_cpu}
                else ", ".join(f" ({cpu or 'another machine'})" for cpu in sorted(cpus, key=str))
            )
            shares = [reached(curves, share, column) for share in REACHED]
            lines.append([f"{name}{where}", str(len(seeds)), *shares, *last, peaks])
        made.append(table([title, "seeds", *(f"{share:.0%}" for share in REACHED), "end", "at", "peak, MiB"], lines))
    return "\n\n".join(made)


def main() -> None:
    parser = arguments(__doc__, "race.json")
    names = (*RECIPES, ALIGNED, START, FIRST, CLOSED, LOGISTIC)
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(names))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["films"], help="which rows, and their task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10**6, help="of a run, at most")
    parser.add_argument("--smoke", action="store_true", help="few rows and steps: does it run?")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    args.steps = min(args.steps, 4) if args.smoke else args.steps
    settings = {"model": args.model, "threads": args.threads, "steps": args.steps, "smoke": args.smoke}
    found: dict[str, Any] = {"machine": machine() | {"threads": args.threads}, "settings": settings, "sets": {}}
    if args.json.exists():
        found = json.loads(args.json.read_text(encoding="utf-8"))
        if found["settings"] != settings:
            sys.exit(f"{args.json} is of {found['settings']}, not of {settings}: name another with --json.")
    for rows in args.rows:
        race(args, found, rows, args.names or names)
    found["machine"]["load after"] = machine()["load"]
    save(args.json, found)
    print(f"\n{found['machine']}\n\n{text(found['sets'])}")


def race(args: Any, found: dict[str, Any], rows: str, names: Sequence[str]) -> None:
    """Run what `found` has not yet of one set of rows."""
    from zoedge.lab._model import SharedModel
    from zoedge.recipe.reading import read_recipe

    sizes = ["data.limit=64", "data.valid.split=16", "data.test.split=16"]
    if not args.smoke:
        sizes = ["data.valid.split=500"] + (["data.limit=1500"] if rows != "films" else [])
    written = [f"{key}={value}" for key, value in SPACE.items()] if rows != "films" else []
    runs = found["sets"].setdefault(rows, {})
    if all(str(seed) in runs.get(name, {}) for seed in range(args.seeds) for name in names):
        return
    with TemporaryDirectory() as folder:
        recipe = read_recipe(ROWS[rows], [f"model.source={args.model}", *sizes, *written])
        model = SharedModel(recipe, Path(folder))
        for seed in range(args.seeds):
            for name in names:
                seeds = runs.setdefault(name, {})
                if str(seed) not in seeds:
                    seeds[str(seed)] = run(model, name, seed, args) | {"cpu": machine()["cpu"]}
                    save(args.json, found)
                    print(f"{rows}, {name}, seed {seed}: {seeds[str(seed)]['curve'][-1:]}", flush=True)


if __name__ == "__main__":
    main()
