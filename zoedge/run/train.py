"""A run from beginning to end: load, look, play, look again, export. The loop itself is `engine.play`."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack, closing
from pathlib import Path

from ..commands import report
from ..commands.estimate import fit, machine
from ..commands.finetune import report_rounding, write_exports
from ..core import digests, engine, oracle
from ..core.canonical import encode_canonical
from ..core.types import SKIPPED
from ..errors import UsageError
from ..log.log import Log
from ..recipe.recipe import Recipe, part_name
from . import auto, branch, evaluation, identity, replay, setup, trackers
from . import folder as run_folder
from .auto import search_auto
from .display import Plain
from .evaluation import Evaluator
from .outcome import Outcome, find_better_step, load_outcome
from .setup import cache_trunk
from .signals import handle_signals
from .workers import Workers

ZERO_STEP_LIMIT = 20  # steps in a row without a difference, and it is said


def train(
    recipe: Recipe,
    folder: Path,
    show: Plain,
    resume: bool = True,
    parent: branch.Parent | None = None,
    workers: Workers | None = None,
) -> Outcome:
    """Begin the run in `folder`, as a branch of `parent` if there is one, or go on with it; returns when it is finished.

    workers: who shares the steps; this one is the first, and the run's log is its. The others `follow`.

    IdentityError: the folder holds a run of something else, or the parent is another. DataError: it cannot fit. Stopped: a
    signal; `zoedge resume` goes on.
    """
    path = folder / run_folder.LOG_FILE
    if recipe.output.report:
        report.require_matplotlib("output.report")
    trackers.check_packages(recipe.log.trackers)
    if path.exists() and not resume:
        raise UsageError(f"{folder} holds a run already. Go on with `zoedge resume {folder}`, or choose another name.")
    if path.exists():
        with Log.open(path) as log:
            recipe = auto.fill_from_log(recipe, log.header)
            if parent is not None:
                branch.check_same_parent(log.header, parent, folder)
    elif parent is not None:
        recipe = auto.fill_from_log(recipe, parent.log.header)
    if path.exists() and (outcome := load_outcome(recipe, folder, path)):
        show.say(f"{folder}: this run is finished already. For another, change the recipe's name or seed.")
        if workers:
            workers.share(b"")
        return outcome
    case = fit.check_memory(recipe)
    for said in run_folder.claim_folder(folder):
        show.warn(said)
    began, took = time.monotonic(), evaluation.Stopwatch()
    with handle_signals(folder, show, workers) as stop, ExitStack() as stack:
        with show.phase(f"loading {recipe.model.source} ({recipe.model.quantization})"), took("load"):
            bench = setup.Bench.build(recipe)
        if recipe.auto and not path.exists():
            recipe = search_auto(bench, folder, show)
        log = Log.resume(path) if path.exists() else setup.begin_run(bench, folder, parent)
        with log:
            identity.check_same_run(log.header, bench.header(), folder)
            resumed = len(log)
            record_session(bench, log, show)
            if workers:
                workers.share(path.read_bytes())
            with took("trunk"):
                introduce_run(bench, log, show)
            listeners = stack.enter_context(closing(trackers.Trackers(recipe, folder, show.warn)))
            looker = Evaluator(bench, log, show, took, listeners)
            before = looker.before()
            if not resumed:
                looker.curvature(0)
            still, rewinds = 0, log.state.rewinds
            for record in stop.between(took.each("steps", engine.play(bench.run(log, workers), recipe.train.steps))):
                still = 0 if any(record.g) or record.flags & SKIPPED else still + 1
                if log.state.rewinds > rewinds:
                    resumed, rewinds = record.step, log.state.rewinds
                    show.warn(
                        f"the loss was far over its best, or not finite: back to step {record.step:,}, with half the lr"
                    )
                if record.step >= resumed:
                    if still == ZERO_STEP_LIMIT:
                        show.warn(explain_zero_steps(recipe, record.step))
                    show.step(record)
                    listeners.step(record)
                    looker.at(record.step + 1)
                    looker.curvature(record.step + 1)
                elif looker.missed(record.step + 1, resumed):
                    looker.at(record.step + 1)
            log.finish(digests.digest(bench.space))
        show.close()
        report_rounding(bench, folder, show)
        at = run_folder.resolve_step(log, recipe.eval.select)
        if at < len(log):
            with show.phase(f"replaying to step {at:,}, of the lowest validation loss"):
                replay.copy_values(
                    bench.space, replay.build_replay_run(log).space
                )  # to where it began; on this device, as when resuming
                for _ in engine.play(bench.run(log), at):
                    pass
        with took("export"):
            adapter = write_exports(bench, log, folder, show, at)
        after = looker.after(at)
    run_folder.append_metric(folder, event="time", **took.seconds)
    if case is not None:
        run_folder.append_metric(
            folder,
            event="memory",
            predicted=fit.predict_parts(case, bench.texts),
            measured=machine.read_run_peak(bench.base),
        )
    seconds, chosen = time.monotonic() - began, (at, find_better_step(folder, at, log))
    run_folder.append_metric(
        folder, event="finished", seconds=seconds, adapter=adapter and str(adapter), at=at, select=recipe.eval.select
    )
    if recipe.output.report:
        with show.phase("writing the report"):
            report.write_report([path], folder / report.REPORT_FILE)
    return Outcome(folder, log.fingerprint, path.stat().st_size, len(log), before, after, seconds, adapter, *chosen)


def objective_name(recipe: Recipe) -> str:
    """What the run lowers: a task that can only lower its loss has no such option."""
    return str(getattr(recipe.task, "objective", "loss"))


def explain_zero_steps(recipe: Recipe, step: int) -> str:
    """Why gamma may be 0 for many steps in a row, and what to change."""
    objective = objective_name(recipe)
    radius = "rho" if hasattr(recipe.estimator, "rho") else "eps"
    few, other = "", ""
    if objective != "loss":
        few, other = (
            f"{objective} takes few values, and no prediction of a batch flips; ",
            ", or set task.objective: loss",
        )
    return (
        f"gamma was 0 at steps {step + 2 - ZERO_STEP_LIMIT:,}..{step + 1:,}: nothing is being learnt. {few}an "
        "adapter that starts at 0 "
        f"(LoRA's B) all but hides a small estimator.{radius}. Raise estimator.{radius} (tenfold) or train.batch{other}."
    )


def record_session(bench: setup.Bench, log: Log, show: Plain) -> None:
    """Record where the run goes on, if it is elsewhere than before."""
    environment, again = setup.describe_environment(bench.base), bool(log.state.sessions)
    if log.session(hashlib.sha256(encode_canonical(environment)).digest()):
        texts = {"train": bench.texts.train, "valid": bench.texts.valid, "test": bench.texts.test}
        run_folder.append_metric(log.path.parent, event="session", at=time.time(), step=len(log), **environment)
        run_folder.append_metric(
            log.path.parent, event="rows", **{k: len(v) for k, v in texts.items() if v is not None}
        )
        if again:
            show.warn(
                "the environment is another than before (recorded); the log stays exact, the losses may differ in bits"
            )


def introduce_run(bench: setup.Bench, log: Log, show: Plain) -> None:
    """Say what is about to happen, and compute the lower layers."""
    recipe, texts = bench.recipe, bench.texts
    trained = log.header.elements
    sets = {"train": texts.train, "valid": texts.valid, "test": texts.test}
    passes = oracle.count_evaluations(recipe.estimator, recipe.train.steps)[1]
    facts = {
        "rows": ", ".join(f"{len(v):,} {k}" for k, v in sets.items() if v is not None),
        "steps": f"{recipe.train.steps:,} of {passes} forward passes of {recipe.train.batch} rows",
        "method": ", ".join(part_name(x) for x in (recipe.space, recipe.noise, recipe.estimator, recipe.rule)),
    }
    title = f"{recipe.name}: {recipe.model.source}, {recipe.model.quantization}, {trained:,} trained"
    show.start(recipe.train.steps, title, facts)
    for which, counts in texts.counts.items():
        for what, number in counts.items():
            if number:
                show.warn(f"{number:,} {which} rows {what}")
    if len(log):
        show.say(f"resuming: replaying {len(log):,} logged steps, then going on")
    cache_trunk(bench, log.path.parent, show)
    for name in ("eps", "rho"):
        smooth = objective_name(recipe) == "loss"  # other goals are steps
        if smooth and hasattr(recipe.estimator, name) and (wrong := auto.diagnose_radius(bench, name)):
            show.warn(wrong)
