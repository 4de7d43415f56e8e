"""This module takes the steps of a run: it notes where the run begins, plays the loop, and returns to a chosen step.

The loop itself is `engine.play`; `commands/finetune.py` tells the whole story of a run.
"""

from __future__ import annotations

import hashlib
import time

from ..core import engine, oracle
from ..core.canonical import encode_canonical
from ..core.types import SKIPPED
from ..log.log import Log
from ..recipe.recipe import Recipe, part_name
from ..scoring.sources.file_digests import MEMO_SECONDS, oldest_memo
from . import auto, identity, replay, setup, trackers
from . import folder as run_folder
from .display import Plain
from .evaluation import Evaluator, Stopwatch
from .outcome import explain_delivery
from .setup import cache_trunk
from .signals import SignalHandler
from .workers import Workers

ZERO_STEP_LIMIT = 20  # after so many steps in a row without a difference, the user is warned


def begin_session(
    measuring: setup.Measuring, log: Log, show: Plain, stopwatch: Stopwatch, workers: Workers | None
) -> None:
    """Prove that the log is of this run, note where it goes on, and compute the lower layers.

    IdentityError: base, tokenizer, data, recipe or arithmetic are not those of the log.
    """
    folder = log.path.parent
    here = measuring.header()
    identity.check_same_run(log.header, here, folder)
    for what in identity.held_out_differences(log.header, here):
        show.warn(
            f"{what} is not what the run began with: its losses there before and after the change are not compared"
        )
    identity.check_states_known(log)
    if dropped := run_folder.mend_looks(folder, log):
        show.warn(
            f"{folder / run_folder.METRICS_FILE}: {dropped} lines were not as the run had written them; it looks again"
        )
    record_session(measuring, log, show)
    if workers:
        workers.share(log.path.read_bytes())
    with stopwatch("trunk"):
        introduce_run(measuring, log, show)


def train_steps(
    measuring: setup.Measuring,
    log: Log,
    show: Plain,
    stop: SignalHandler,
    evaluator: Evaluator,
    listeners: trackers.Trackers,
    workers: Workers | None,
) -> None:
    """Play the log to the run's last step, and evaluate the validation rows on the way.

    Steps that the log already holds are replayed: only an evaluation that a kill prevented is made up for.
    """
    from .snapshot import Snapshots  # here: it imports torch

    recipe, shown_from = measuring.recipe, len(log)
    zero_steps, rewinds = 0, log.state.rewinds
    run = measuring.run(log, workers)
    snapshots = Snapshots(run, log, show)
    # several workers compare their states at each digest in the log: all of them replay all of it
    start = 0 if workers else snapshots.restore(lambda step: not evaluator.missed_any(step, shown_from))
    steps = engine.play(run, recipe.train.steps, start)
    for record in stop.between(evaluator.took.each("steps", steps)):
        zero_steps = 0 if any(record.g) or record.flags & SKIPPED else zero_steps + 1
        if log.state.rewinds > rewinds:
            shown_from, rewinds = record.step, log.state.rewinds
            show.warn(f"the loss was far over its best, or not finite: back to step {record.step:,}, with half the lr")
        if record.step >= shown_from:
            if zero_steps == ZERO_STEP_LIMIT:
                show.warn(explain_zero_steps(recipe, record.step))
            show.step(record)
            listeners.step(record)
            evaluator.at(record.step + 1)
            evaluator.curvature(record.step + 1)
            snapshots.offer(record.step + 1)
        elif evaluator.missed(record.step + 1, shown_from):
            evaluator.at(record.step + 1)
    snapshots.remove()


def choose_delivery(recipe: Recipe, log: Log, show: Plain) -> tuple[int, str]:
    """Return the step that a recipe delivers of a whole log, and `Outcome.chosen`; say so if it drifted beyond eval.drift."""
    options, folder = recipe.eval, log.path.parent
    steps = run_folder.resolve_step(log, options.select, options)
    chosen = explain_delivery(folder, steps, log, options)
    if options.select == "best" and (others := run_folder.count_former_looks(folder)):
        show.warn(f"{others:,} looks at former validation rows are left out: losses of two sets are not compared")
    look = run_folder.validation_looks(folder, log).get(steps)
    if options.drift is not None and look is not None and not look.is_within(options.drift):
        show.warn(f"step {steps:,} is delivered, {chosen}")
    return steps, chosen


def return_to_step(measuring: setup.Measuring, log: Log, steps: int, show: Plain) -> None:
    """Move the space back to where it was after so many steps: to its start, then along the log."""
    if steps == len(log):
        return
    with show.phase(f"replaying to step {steps:,}, which is delivered"):
        start = replay.build_replay_run(log).space  # computed on this device, as when resuming
        replay.copy_values(measuring.space, start)
        for _ in engine.play(measuring.run(log), steps):
            pass


def objective_name(recipe: Recipe) -> str:
    """Return what the run lowers: loss, a metric, or the user's function."""
    return str(recipe.task.objective)


def explain_zero_steps(recipe: Recipe, step: int) -> str:
    """Return why gamma may have been 0 for many steps in a row, and what to change."""
    objective = objective_name(recipe)
    option = recipe.estimator.radius_option
    radius = f"estimator.{option}" if option else "rule.lr"
    reason, other = "", ""
    if objective != "loss":
        reason = f"{objective} takes few values, and no prediction of a batch flips; "
        other = ", or set task.objective: loss"
    return (
        f"gamma was 0 at steps {step + 2 - ZERO_STEP_LIMIT:,}..{step + 1:,}: nothing is being learnt. {reason}an "
        "adapter that starts at 0 "
        f"(LoRA's B) all but hides a small {radius}. Raise {radius} (tenfold) or train.batch{other}."
    )


def record_session(measuring: setup.Measuring, log: Log, show: Plain) -> None:
    """Log the environment that the run goes on in, if it is another than before."""
    if log.state.end is not None:
        return  # nothing can follow the end of a log, and nothing is measured any more
    environment, again = setup.describe_environment(measuring.base), bool(log.state.sessions)
    if log.session(hashlib.sha256(encode_canonical(environment)).digest()):
        texts = {"train": measuring.texts.train, "valid": measuring.texts.valid, "test": measuring.texts.test}
        run_folder.append_metric(log.path.parent, event="session", at=time.time(), step=len(log), **environment)
        run_folder.append_metric(
            log.path.parent, event="rows", **{k: len(v) for k, v in texts.items() if v is not None}
        )
        if again:
            show.warn(
                "the environment is another than before (recorded); the log stays exact, the losses may differ in bits"
            )


def introduce_run(measuring: setup.Measuring, log: Log, show: Plain) -> None:
    """Say what is about to happen, and compute the lower layers."""
    recipe, texts = measuring.recipe, measuring.texts
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
        if (age := oldest_memo(measuring.base.path.iterdir())) is not None:
            show.say(
                f"the digests of the base's files were computed {age / 3600:.1f} hours ago; after "
                f"{MEMO_SECONDS / 3600:.0f} hours, or with `zoedge verify --against`, they are computed again"
            )
    cache_trunk(measuring, log.path.parent, show)
    smooth, name = objective_name(recipe) == "loss", recipe.estimator.radius_option  # other goals are steps
    if smooth and name and (wrong := auto.diagnose_radius(measuring, name)):
        show.warn(wrong)
