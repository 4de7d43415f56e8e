"""`eps: auto` and `lr: auto` are found before a run begins, by forward passes on its own training batches.

eps is the smallest radius of EPS_LADDER at which a slope has the same value as at 1.25 times the radius.

lr is found by short trial runs of the same engine. Each starts from the same point, along the same directions, on the same
batches, and has a log of its own under search/. The lr of the best trial is divided by CAUTION_FACTOR.

Both depend on recipe, base and data alone: a search that was killed goes on where its logs end, and finds the same. The
run itself sees only numbers, and its header has them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core import digests, engine
from ..core import oracle as core_oracle
from ..core.memory import Journal
from ..core.types import Space
from ..core.watchdog import lowest_loss
from ..errors import DamagedError, DivergedError, LockedError
from ..log.header import Header
from ..log.log import Log
from ..recipe.recipe import TRUNK_KEY, WATCHDOG_KEY, Recipe
from . import folder as run_folder
from . import identity, setup
from .display import Plain
from .setup import cache_trunk

SEARCH_FOLDER = "search"  # the trials' logs, in the run's folder

PROBE_SEQ = 2**32 - 1  # the slot number of the directions that slopes are measured along: no run has so many steps

EPS_LADDER = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

WIDENING_FACTOR = 1.25  # a slope is compared with the slope at this many times the radius
MAX_SLOPE_NOISE = 0.1  # how much the two may differ, as a share of their size
SLOPE_DIRECTIONS = 4  # the directions that slopes are compared along

MAX_TRIALS = 12  # the most trial runs of a search
TRIAL_SHARE = 0.01  # the steps of a trial, as a share of the run's
MIN_TRIAL_STEPS = 40  # the fewest steps of a trial

JUDGING_BATCHES = 16  # the batches after a trial's own, on which its end is scored

SETTLING_STEPS = 8  # steps over which a trial's first and newest losses are averaged
DIVERGENCE_RATIO = 2.0  # a trial whose newest losses are this many times its first ones has diverged

LEAST_GAIN = 1.2  # how many times as fast as in fp32 a product in bf16 must be

CAUTION_FACTOR = 3.0  # a short run tolerates a longer step than a long one


@dataclass(frozen=True)
class SearchResult:
    """A value, and what it was chosen by.

    Attributes:
        tried: of each candidate, the noise over the signal (eps) or the loss (lr).
        passes: the forward passes that it took, each of one sample.
    """

    value: float
    tried: dict[float, float]
    passes: int


def fill_from_log(recipe: Recipe, header: Header) -> Recipe:
    """Return the recipe with the numbers that a run of it has begun with, in the place of each `auto`."""
    about = header.about.get("recipe")
    numbers: dict[str, Any] = {}
    for path in recipe.auto:
        section, key = path.split(".")
        logged = about.get(section) if isinstance(about, dict) else None
        if isinstance(logged, dict) and isinstance(value := logged.get(key), float):
            numbers[path] = value
        elif path == TRUNK_KEY and isinstance(logged, dict):
            numbers[path] = logged.get(key)
        elif path == "train.watchdog" and isinstance(logged, dict):
            numbers[path] = identity.recipe_from_header(header, header.where).train.watchdog
    return recipe.with_numbers(numbers)


def choose_trunk_type(measuring: setup.Measuring, folder: Path, show: Plain) -> setup.Measuring:
    """Choose the type of the lower blocks' products where the recipe leaves it open, and return the same with it."""
    from ..scoring.models.speed import compare_types

    base = measuring.base
    if TRUNK_KEY not in measuring.recipe.auto:
        return measuring
    word, ratio = "fp32", None
    if base.cut and base.device.type == "cpu":
        ratio = compare_types(base.model.config.hidden_size)
        word = "bf16" if ratio > LEAST_GAIN else "fp32"
        show.say(f"trunk_dtype auto: {word} (bf16 is {ratio:.2f} times as fast as fp32 here)")
    run_folder.append_metric(folder, event="auto", key=TRUNK_KEY, value=word, ratio=ratio)
    base.lower_trunk(word)
    return replace(measuring, recipe=measuring.recipe.with_numbers({TRUNK_KEY: word}))


def resolve_numbers(measuring: setup.Measuring, folder: Path, say: Callable[[str], None]) -> setup.Measuring:
    """Search a number for every `auto` of the recipe, and return the same with these numbers.

    The space keeps the bits that it had.
    """
    recipe = measuring.recipe
    if "estimator.eps" in recipe.auto:
        result = find_radius(measuring)
        recipe = recipe.with_numbers({"estimator.eps": result.value})
        say(f"eps auto: {result.value:g} ({result.passes:,} forward passes of a sample)")
        run_folder.append_metric(folder, event="auto", key="estimator.eps", **format_result(result))
    if "rule.lr" in recipe.auto and (known := known_learning_rate(measuring)) is not None:
        recipe = recipe.with_numbers({"rule.lr": known})
        say(f"lr auto: {known:g} (known for this space: no search)")
        run_folder.append_metric(folder, event="auto", key="rule.lr", **format_result(SearchResult(known, {}, 0)))
    if "rule.lr" in recipe.auto:
        result = find_learning_rate(replace(measuring, recipe=recipe), folder / SEARCH_FOLDER)
        recipe = recipe.with_numbers({"rule.lr": result.value})
        run = (
            recipe.train.steps
            * recipe.train.batch
            * core_oracle.count_evaluations(recipe.estimator, recipe.train.steps)[1]
        )
        say(
            f"lr auto: {result.value:g} ({len(result.tried)} trials, {result.passes:,} forward passes of a sample, "
            f"{result.passes / run:.1%} of the run's)"
        )
        run_folder.append_metric(folder, event="auto", key="rule.lr", **format_result(result))
    return replace(measuring, recipe=replace(recipe, auto=frozenset()))


def format_result(result: SearchResult) -> dict[str, Any]:
    """Return a result as fields of metrics.jsonl; infinity becomes null, as JSON has none."""
    tried = {f"{key:g}": value if math.isfinite(value) else None for key, value in sorted(result.tried.items())}
    return {"value": result.value, "tried": tried, "passes": result.passes}


# -- eps


def measure_slopes(measuring: setup.Measuring, eps: float, directions: int) -> list[float]:
    """Return (f(theta + eps z) - f(theta - eps z)) / 2 eps on the first batch, for each of some directions z."""
    run = measuring.run(None)  # type: ignore[arg-type]
    oracle = core_oracle.StepOracle(run, measuring.task.batch(0), 0, run.steps, PROBE_SEQ)
    losses = oracle.losses([((sign * eps, q),) for q in range(directions) for sign in (1.0, -1.0)])
    return [(up - down) / (2 * eps) for up, down in zip(losses[::2], losses[1::2])]


def find_radius(measuring: setup.Measuring) -> SearchResult:
    """Find the smallest radius of EPS_LADDER whose slopes agree with those at a slightly wider radius.

    Where none agrees well enough, the radius with the best agreement is taken. Rounding errors differ between the two
    radii, and so does a slope that bends: both show as a difference.
    """
    tried: dict[float, float] = {}
    passes = 0
    for eps in EPS_LADDER:
        narrow = measure_slopes(measuring, eps, SLOPE_DIRECTIONS)
        wide = measure_slopes(measuring, eps * WIDENING_FACTOR, SLOPE_DIRECTIONS)
        passes += 4 * SLOPE_DIRECTIONS * len(measuring.task.batch(0))
        signal = math.sqrt(math.fsum(x * x for x in (*narrow, *wide)) / 2)
        noise = math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(narrow, wide)))
        tried[eps] = noise / signal if 0 < signal < math.inf else math.inf
        if tried[eps] < MAX_SLOPE_NOISE:
            break
    # where no radius has a slope, the widest is taken
    return SearchResult(min(tried, key=lambda eps: (tried[eps], -eps)), tried, passes)


def diagnose_radius(measuring: setup.Measuring, name: str) -> str:
    """Return a sentence on the recipe's radius if the slope at half of it is another one; else ''."""
    radius: float = vars(measuring.recipe.estimator)[name]
    (whole,), (half,) = measure_slopes(measuring, radius, 1), measure_slopes(measuring, radius / 2, 1)
    if 0.5 <= (half / whole if whole else 0.0) <= 2.0:
        return ""
    return (
        f"numerics: gamma is {whole:.4g} at {name} and {half:.4g} at {name}/2 on one batch: the loss is not smooth at "
        f"this scale. Raise estimator.{name}, or set model.compute_dtype: fp32."
    )


# -- lr


def ladder_rung(start: float, k: int) -> float:
    """Return rung k of a ladder: start times 1, 3, 10, 30, ... upwards, and 1/3, 1/10, ... downwards for negative k."""
    return float(f"{start * 10 ** (k // 2) * (3 if k % 2 else 1):.6g}")


def bracket_minimum(start: float, trial: Callable[[float], float], most: int) -> dict[float, float]:
    """Try rungs until the best lies between two others, and return the loss of each candidate; infinite: it diverged."""
    losses: dict[int, float] = {0: trial(start)}
    while len(losses) < most:
        best = min(losses, key=lambda k: (losses[k], k))
        ways = (best + 1, best - 1) if math.isfinite(losses[best]) else (best - 1,)
        if (k := next((k for k in ways if k not in losses), None)) is None:
            break
        losses[k] = trial(ladder_rung(start, k))
    return {ladder_rung(start, k): loss for k, loss in losses.items()}


def known_learning_rate(measuring: setup.Measuring) -> float | None:
    """Return the lr that suits a space whose values have the same size in every model; None: it must be searched.

    It goes over the number of trained elements, as the square of an estimated gradient grows with it, and holds for steps down
    a slope alone.
    """
    recipe, estimator = measuring.recipe, measuring.recipe.estimator
    # an estimator that reads the past compares losses of two batches, which differ by far more than a slope
    if not recipe.space.known_steps or not estimator.slope or estimator.bound or not recipe.rule.linear:
        return None
    _, rate = recipe.space.known_steps["loss" if recipe.task.objective == "loss" else "goal"]
    return float(f"{rate / sum(len(leaf.value) for leaf in measuring.space.leaves()):.2g}")


def find_learning_rate(measuring: setup.Measuring, folder: Path) -> SearchResult:
    """Find the lr whose trial ends at the lowest loss, divided by CAUTION_FACTOR. DivergedError: all trials diverged."""
    recipe = measuring.recipe
    steps = max(MIN_TRIAL_STEPS, math.ceil(recipe.train.steps * TRIAL_SHARE))
    folder.mkdir(exist_ok=True)
    passes = 0
    with SavedStart(measuring.space, folder) as start:

        def trial(lr: float) -> float:
            nonlocal passes
            trial_run = replace(measuring, recipe=trial_recipe(recipe, lr, steps))
            loss, asked = run_trial(trial_run, folder / f"lr-{lr:g}.zlog")
            start.restore()
            passes += asked
            return loss

        try:
            tried = bracket_minimum(recipe.rule.lr, trial, MAX_TRIALS)
        finally:
            start.restore()
    best = min(tried, key=lambda lr: (tried[lr], lr))
    if not math.isfinite(tried[best]):
        raise DivergedError(
            f"rule.lr: auto: every trial from {max(tried):g} down to {best:g} diverged. Write a smaller number, or raise "
            "train.batch; if the losses are not finite, set model.compute_dtype: fp32."
        )
    return SearchResult(float(f"{best / CAUTION_FACTOR:.2g}"), tried, passes)


def trial_recipe(recipe: Recipe, lr: float, steps: int) -> Recipe:
    """Return the recipe of a trial: `steps` steps at a constant lr, without weight decay and watchdog."""
    return replace(
        recipe,
        rule=replace(recipe.rule, lr=lr, schedule="constant", weight_decay=0.0),
        train=recipe.train.model_copy(update={"steps": steps, "watchdog": None}),
        log=recipe.log.model_copy(update={"sync_every": 4096}),  # what a power cut takes is measured again
        auto=frozenset(),
    )


def run_trial(measuring: setup.Measuring, path: Path) -> tuple[float, int]:
    """Run a trial, or go on with it where its log ends.

    Return its final loss (infinite: it diverged), and its forward passes of a sample.
    """
    recipe = measuring.recipe
    with open_trial_log(path, measuring.header()) as log:
        run, asked = measuring.run(log), 0
        try:
            for record in engine.play(run, recipe.train.steps):
                asked += len(record.losses) * recipe.train.batch
                if has_diverged(log):
                    return math.inf, asked
        except DivergedError:
            return math.inf, asked
        if log.state.end is None:
            log.finish(digests.digest(measuring.space))
        losses = []
        for step in range(recipe.train.steps, recipe.train.steps + JUDGING_BATCHES):
            batch = measuring.task.batch(step)
            losses += core_oracle.StepOracle(run, batch, step, run.steps, PROBE_SEQ).losses([()])
            asked += len(batch)
    loss = math.fsum(losses) / JUDGING_BATCHES
    return loss if math.isfinite(loss) else math.inf, asked


def has_diverged(log: Journal) -> bool:
    """Return whether the mean loss of a log's newest steps is far over that of its first ones, or not finite."""
    if len(log) < 2 * SETTLING_STEPS:
        return False
    first, newest = (
        math.fsum(lowest_loss(log[i + at]) for i in range(SETTLING_STEPS)) for at in (0, len(log) - SETTLING_STEPS)
    )
    return not newest < max(DIVERGENCE_RATIO * first, first + SETTLING_STEPS)


def open_trial_log(path: Path, header: Header) -> Log:
    """Open a trial's log to go on with it; a damaged one, or one of another recipe, base or data, is begun anew."""
    if path.exists():
        with suppress(DamagedError):
            log = Log.resume(path)
            if not identity.identity_differences(log.header, header):
                return log
            log.close()
        path.unlink()
    try:
        return Log.create(path, header)
    except FileExistsError:
        raise LockedError(
            f"{path}: another zoedge process has just begun this search. Wait for it, or stop it."
        ) from None


class SavedStart:
    """The values that a space begins with, kept on disk: a copy of all weights would not fit into memory."""

    def __init__(self, space: Space, folder: Path):
        self.space, self.file = space, tempfile.TemporaryFile(dir=folder)
        self.kept = list(space.kept)
        for leaf in space.leaves():
            self.file.write(digests.host_bytes(leaf.value))

    def restore(self) -> None:
        """Set the space to the values that it began with."""
        import torch

        self.file.seek(0)
        for leaf in self.space.leaves():
            raw = bytearray(self.file.read(leaf.value.numel() * leaf.value.itemsize))
            leaf.value.copy_(torch.frombuffer(raw, dtype=leaf.value.dtype))
        self.space.kept = list(self.kept)

    def __enter__(self) -> SavedStart:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def search_auto(measuring: setup.Measuring, folder: Path, show: Plain) -> setup.Measuring:
    """Find every number that the recipe leaves to be found, and return the same with them in its recipe."""
    cache_trunk(measuring, folder, show)
    with show.phase(f"looking for {' and '.join(sorted(measuring.recipe.auto - {WATCHDOG_KEY}))}"):
        return resolve_numbers(measuring, folder, show.say)
