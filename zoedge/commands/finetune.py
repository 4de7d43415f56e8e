"""`zoedge finetune`, and the function `zoedge.finetune`: a run from its recipe to its exports and its report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from ..core import digests
from ..errors import UsageError, make_printable
from ..log.log import Log
from ..recipe.recipe import Recipe
from ..run import auto, branch, identity, setup, signals, trackers
from ..run import folder as run_folder
from ..run import train as run_train
from ..run.auto import search_auto
from ..run.branch import Parent
from ..run.display import Plain
from ..run.evaluation import Evaluator, Stopwatch
from ..run.outcome import Outcome, digest_row_files, find_better_step, load_outcome
from ..run.trust import note_own_log
from ..run.workers import Workers
from . import report
from .estimate import fit, machine


def finetune(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *overrides: str | Mapping[str, Any],
    run_dir: str | os.PathLike[str] | None = None,
    resume: str = "auto",
    display: str | Plain = "quiet",
    parent: Parent | None = None,
) -> Outcome | None:
    """Train as a recipe says, or go on where the run's log ends, and return when the run is finished.

    Calls from several threads of a process are taken one after another, because the libraries that they use are the process's.
    Of several processes that a launcher has started, the first returns the outcome, the others None.

    Args:
        recipe: a file, the name of a shipped recipe, or a recipe's table.
        overrides: "rule.lr=1e-3", or {"rule.lr": 1e-3}.
        run_dir: the run's folder; None: output.dir/name.
        resume: auto, or never, which refuses a run that exists.
        display: quiet, plain, json, auto (the live panel on a terminal), or a display of one's own.
        parent: for a branch, the run whose first steps come first.

    Raises:
        ZoedgeError: of every kind. Its text is the sentence that the command line prints: UsageError (the recipe), DataError
            (data or model), IdentityError (the folder's run is another), DamagedError, LockedError, DivergedError or
            StorageError.
        Stopped: after Ctrl-C or SIGTERM. Nothing is lost, and the same call goes on.
    """
    from ..run.display import make_display as display_of
    from ..run.folder import run_folder
    from ..run.workers import is_follower, is_launched

    if resume not in ("auto", "never"):
        raise UsageError(f"resume: '{make_printable(str(resume))}' is not auto or never.")
    if isinstance(display, str) and display not in ("quiet", "plain", "json", "auto"):
        raise UsageError(f"display: '{make_printable(display)}' is not quiet, plain, json or auto.")
    checked = load_recipe(recipe, overrides)
    if is_follower():
        follow(checked)
        return None
    show = display_of(display) if isinstance(display, str) else display
    folder = Path(run_dir) if run_dir else run_folder(checked)
    workers = connect_workers(checked) if is_launched() else None
    from ..scoring.models.libraries import LIBRARY_LOCK  # here: it imports torch

    try:
        with LIBRARY_LOCK:
            return train(checked, folder, show, resume == "auto", parent, workers)
    finally:
        show.close()


def connect_workers(recipe: Recipe | None) -> Workers:
    """Return the processes of this launch, which share the steps of a run.

    recipe: whose timeout and device hold; None: the defaults. LostError: the processes do not find each other.
    """
    import torch

    from ..run.workers import Workers

    cuda = torch.cuda.is_available() and (recipe is None or recipe.model.device != "cpu")
    return Workers(recipe.train.timeout if recipe else None, cuda)


def follow(recipe: Recipe | None = None, trust_code: bool = False) -> None:
    """Take a share of the steps of worker 0's run, until it ends.

    Args:
        recipe: None: as worker 0's log says.
        trust_code: whether a reward function that only worker 0's log names may run.
    """
    from tempfile import TemporaryDirectory

    from ..run import follow as run_follow

    with TemporaryDirectory(prefix="zoedge-") as folder:
        run_follow.follow_leader(recipe, Path(folder), connect_workers(recipe), trust_code)


def load_recipe(recipe: Any, overrides: tuple[Any, ...] = ()) -> Recipe:
    """Return the checked recipe of a file, a name, a table or a recipe. UsageError lists every mistake at once."""
    from ..recipe.reading import build_recipe, read_recipe
    from ..recipe.recipe import Recipe

    texts = [text for override in overrides for text in format_override(override)]
    if isinstance(recipe, Recipe) and not texts:
        return recipe
    table = recipe.resolved() if isinstance(recipe, Recipe) else recipe
    if isinstance(table, (str, os.PathLike)):
        return read_recipe(os.fspath(table), texts)
    if not isinstance(table, Mapping):
        raise UsageError(
            f"recipe: {make_printable(repr(recipe))} is not a file, a shipped recipe's name, or a recipe's table."
        )
    return build_recipe(json.loads(dump_json(dict(table))), {}, "the recipe", texts)


def format_override(override: Any) -> list[str]:
    """Return one override as texts key=value. A value is written as JSON, which YAML reads back as the same value."""
    if isinstance(override, str):
        return [override]
    if isinstance(override, Mapping):
        return [f"{key}={dump_json(value)}" for key, value in override.items()]
    raise UsageError(
        f"'{make_printable(repr(override))}' is not key=value, such as 'rule.lr=1e-3' or {{'rule.lr': 1e-3}}."
    )


def dump_json(value: Any) -> str:
    """Return a value as JSON, in which a path is a text. UsageError: YAML could not have held such a value."""
    try:
        return json.dumps(value, default=os.fspath, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise UsageError(f"The recipe holds what no recipe can: {make_printable(str(e))}.") from None


def train(
    recipe: Recipe,
    folder: Path,
    show: Plain,
    resume: bool = True,
    parent: Parent | None = None,
    workers: Workers | None = None,
) -> Outcome:
    """Begin the run in `folder`, or go on with it where its log ends, and return when it is finished.

    Args:
        recipe: what to train; numbers that are `auto` are found first.
        folder: the run's folder.
        show: who is told of progress.
        resume: False refuses a folder that holds a run already.
        parent: the run whose first steps come first, for a branch.
        workers: the processes that share the steps; this one is the first and owns the log, the others `follow`.

    Raises:
        IdentityError: the folder holds a run of something else, or the parent is another.
        DataError: the run cannot fit into memory, or its data or model are wrong.
        Stopped: a signal came; `zoedge resume` goes on.
    """
    path = folder / run_folder.LOG_FILE
    check_request(recipe, folder, resume)
    recipe = recall_numbers(recipe, folder, parent, show)
    if (outcome := find_finished(recipe, folder, show)) is not None:
        if workers:
            workers.share(b"")
        return outcome
    plan = fit.check_memory(recipe)
    for message in run_folder.claim_folder(folder):
        show.warn(message)
    began, stopwatch = time.monotonic(), Stopwatch()
    with signals.handle_signals(folder, show, workers) as stop, ExitStack() as stack:
        measuring, log = open_run(recipe, folder, show, stopwatch, parent)
        with log:
            fresh = not len(log)
            run_train.begin_session(measuring, log, show, stopwatch, workers)
            listeners = stack.enter_context(closing(trackers.Trackers(measuring.recipe, folder, show.warn)))
            evaluator = Evaluator(measuring, log, show, stopwatch, listeners)
            before, closed_form = evaluator.begin(fresh)
            run_train.train_steps(measuring, log, show, stop, evaluator, listeners, workers)
            log.finish(digests.digest(measuring.space))
        show.close()
        report_rounding(measuring, folder, show)
        steps, chosen = run_train.choose_delivery(recipe, log, show)
        run_train.return_to_step(measuring, log, steps, show)
        with stopwatch("export"):
            adapter = write_exports(measuring, log, folder, show, steps)
        after = evaluator.after(steps)
    seconds = time.monotonic() - began
    record_end(measuring, folder, plan, stopwatch, seconds, adapter, steps)
    write_page(recipe, path, show)
    better = find_better_step(folder, steps, log, recipe.eval.drift)
    size = path.stat().st_size
    return Outcome(
        folder, log.fingerprint, size, len(log), before, closed_form, after, seconds, adapter, steps, better, chosen
    )


def find_finished(recipe: Recipe, folder: Path, show: Plain) -> Outcome | None:
    """Return the outcome of a run that is finished, and whose exports are whole; None: there is something to do."""
    path = folder / run_folder.LOG_FILE
    outcome = load_outcome(recipe, folder, path) if path.exists() else None
    if outcome is not None and (damage := find_damage(recipe, outcome)):
        show.warn(f"{folder}: this run is finished, but {damage}: it is delivered again")
        return None
    if outcome is not None:
        show.say(f"{folder}: this run is finished already. For another, change the recipe's name or seed.")
    return outcome


def find_damage(recipe: Recipe, outcome: Outcome) -> str:
    """Return which export of a finished run is gone or damaged; '': none. What is no export any more is set aside."""
    from .export.whole import find_export_damage, set_aside

    for kind, name in (("peft", run_folder.ADAPTER_FOLDER), ("merged", "merged")):
        place = outcome.folder / name
        if kind in recipe.output.export and (damage := find_export_damage(place, outcome.fingerprint, outcome.at)):
            aside = set_aside(place)
            return f"{damage} (kept as {aside})" if aside else damage
    return ""


def remove_empty(folder: Path) -> None:
    """Remove a run's folder if nothing was written there, because the run could not begin."""
    with suppress(OSError):
        folder.rmdir()


def check_request(recipe: Recipe, folder: Path, resume: bool) -> None:
    """Refuse, before anything slow begins, what cannot be delivered at the end.

    Raises UsageError where a package is missing, or the folder holds a run that must not go on.
    """
    if recipe.output.report:
        report.require_matplotlib("output.report")
    trackers.check_packages(recipe.log.trackers)
    if (folder / run_folder.LOG_FILE).exists() and not resume:
        raise UsageError(f"{folder} holds a run already. Go on with `zoedge resume {folder}`, or choose another name.")


def recall_numbers(recipe: Recipe, folder: Path, parent: Parent | None, show: Plain) -> Recipe:
    """Return the recipe with the `auto` numbers that this run, or else its parent, has begun with.

    The recipe counts that is in the log: that the one beside it has been edited is said.
    """
    path = folder / run_folder.LOG_FILE
    if path.exists():
        with Log.open(path) as log:
            if parent is not None:
                branch.check_same_parent(log.header, parent, folder)
            if edit := identity.find_recipe_edit(log.header, folder / run_folder.RECIPE_FILE):
                show.warn(edit)
            return auto.fill_from_log(recipe, log.header)
    return recipe if parent is None else auto.fill_from_log(recipe, parent.log.header)


def open_run(
    recipe: Recipe, folder: Path, show: Plain, stopwatch: Stopwatch, parent: Parent | None
) -> tuple[setup.Measuring, Log]:
    """Load the base and the rows, and open the log: a new one, or the folder's own.

    Before a new one begins, its start is computed, and the numbers that are `auto` are found.
    """
    from ..run.finite import check_finite  # here: these import torch
    from ..run.start import compute_start

    path = folder / run_folder.LOG_FILE
    log = Log.resume(path) if path.exists() else None
    known = log or (None if parent is None else parent.log)
    try:
        with show.phase(f"loading {recipe.model.source} ({recipe.model.quantization})"), stopwatch("load"):
            measuring = setup.Measuring.build(recipe, None if known is None else known.header)
            measuring.task.load_reward()
    except BaseException:
        if log is not None:
            log.close()
        remove_empty(folder)
        raise
    measuring.base.around_trunk = lambda: stopwatch("trunk")
    if log is not None:
        note_own_log(log.header)  # whoever asks for it by a recipe of their own, or with --trust-code, trusts its code
        return measuring, log
    check_finite(measuring)
    measuring = auto.choose_trunk_type(measuring, folder, show)
    if parent is None:
        with stopwatch("start"):
            compute_start(measuring, folder, show)
    if recipe.auto:
        measuring = search_auto(measuring, folder, show)
    log = setup.begin_run(measuring, folder, parent)
    run_folder.append_place(folder)
    return measuring, log


def record_end(
    measuring: setup.Measuring,
    folder: Path,
    plan: fit.Plan | None,
    stopwatch: Stopwatch,
    seconds: float,
    adapter: Path | None,
    steps: int,
) -> None:
    """Note what the run took (seconds by part; bytes predicted and measured), and that it is finished.

    The cache then loses what is beyond its limit, which the run itself needs no more.
    """
    setup.close_store(measuring.base)
    run_folder.append_metric(folder, event="time", **stopwatch.seconds)
    if plan is not None:
        predicted, measured = fit.predict_parts(plan, measuring.texts), machine.read_run_peak(measuring.base)
        run_folder.append_metric(folder, event="memory", predicted=predicted, measured=measured)
    options = {"select": measuring.recipe.eval.select, "drift": measuring.recipe.eval.drift}
    files = digest_row_files(measuring.recipe)
    run_folder.append_end(folder, seconds=seconds, adapter=adapter and str(adapter), at=steps, files=files, **options)


def write_page(recipe: Recipe, path: Path, show: Plain) -> None:
    """Write the run's report.html, where the recipe asks for it."""
    if recipe.output.report:
        with show.phase("writing the report"):
            report.write_report([path], path.parent / report.REPORT_FILE)


def write_exports(measuring: setup.Measuring, log: Log, folder: Path, show: Plain, steps: int) -> Path | None:
    """Write the exports that the recipe asks for, and return the adapter's folder; None: no adapter is asked for.

    steps: after how many steps the space stands.
    """
    from .export import merged, peft

    log.confirm()  # another program may have put another run's folder in the place of this one
    recipe, adapter = measuring.recipe, None
    if "peft" in recipe.output.export:
        with show.phase("writing the adapter"):
            adapter = peft.write_peft(
                measuring.run(log), log, recipe, folder / run_folder.ADAPTER_FOLDER, measuring.base.path, steps
            )
    if "merged" in recipe.output.export:
        with show.phase("writing the merged model"):
            merged.write_merged(recipe, measuring.space, folder / "merged", log=log, steps=steps)
    return adapter


def report_rounding(measuring: setup.Measuring, folder: Path, show: Plain) -> None:
    """Note and print how much of the intended update 16-bit weights took up.

    It counts all steps so far, on a sample of each tensor. A space in float32 has no such figure.
    """
    applied, nearest, intended = measuring.space.kept
    if intended:
        shares = {"applied": applied / intended, "nearest": nearest / intended}
        run_folder.append_metric(folder, event="rounding", storage=measuring.space.storage, **shares)
        show.say(
            f"{measuring.space.storage} weights took up {shares['applied']:.1%} of the intended update (stochastic rounding; "
            f"to nearest: {shares['nearest']:.1%})"
        )
