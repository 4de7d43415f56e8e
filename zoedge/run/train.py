"""A run from beginning to end: load, look, play, look again, export. The loop itself is `engine.play`."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..commands import report
from ..commands.estimate import fit, machine
from ..core import engine
from ..core.storage import write_durably
from ..core.types import SKIPPED, Record
from ..errors import UsageError, ZoedgeError
from ..log.log import Log, canonical
from ..recipe.check import WATCHDOG, Recipe, word_of
from . import auto, branch, curvature, evaluate, setup, trackers
from .display import Plain, Quiet
from .evaluate import Score
from .workers import Workers

SAMPLES = 6  # held-out rows whose answers are noted before and after
STILL = 20  # steps in a row without a difference, and it is said


@dataclass
class Outcome:
    """What a finished run has to show. before and after: on the test rows (else the validation rows).

    at: the step that is delivered and scored. better: one whose validation loss was clearly lower.
    """

    folder: Path
    fingerprint: str
    size: int
    steps: int
    before: Score | None
    after: Score | None
    seconds: float
    adapter: Path | None
    at: int
    better: int | None


class Stopped(ZoedgeError):
    """Ctrl-C or SIGTERM: nothing is lost."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.exit_code = 128 + number


class Interrupt(BaseException):
    """A signal has come. No Exception: libraries swallow those."""


@dataclass
class Signals:
    """SIGINT and SIGTERM. A step is finished first; anything else is left where it is: the log is written ahead, files
    are written whole, and looks are taken again. A second signal exits at once, whatever is going on."""

    seen: int = 0
    waits: bool = False
    workers: Any = None  # who must stop after the same step

    def __call__(self, number: int, frame: Any) -> None:
        if self.seen:
            raise SystemExit(128 + number)
        self.seen = number
        if not self.waits:
            raise Interrupt

    def between(self, steps: Iterator[Record]) -> Iterator[Record]:
        """The steps, each whole. Interrupt: a signal came meanwhile."""
        while True:
            self.waits = True
            try:
                record = next(steps, None)
            finally:
                self.waits = self.workers is not None  # they all stop after the same step, or they would miss this one
            if self.ended():
                raise Interrupt
            if record is None:
                self.waits = False
                return
            yield record

    def ended(self) -> bool:
        if self.workers is None:
            return self.seen > 0
        self.workers.wish = self.seen
        self.seen = self.seen or self.workers.stop
        return self.workers.stop > 0


@contextmanager
def signals(folder: Path, show: Plain, workers: Any = None) -> Iterator[Signals]:
    """While open, a signal ends in Stopped, which says how to go on."""
    here = Signals(workers=workers)
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup, `&`
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python lets no other thread handle them
    old = {number: signal.signal(number, here) for number in numbers}
    try:
        yield here
    except Interrupt:
        show.close()
        path = folder / setup.LOG
        if workers and workers.index:
            raise Stopped("Stopped with worker 0.", here.seen) from None
        if not path.exists():
            raise Stopped("Stopped before the first step.", here.seen) from None
        with Log.open(path) as log:
            raise Stopped(
                f"Stopped after step {len(log):,}; nothing is lost. Go on with: zoedge resume {folder}", here.seen
            ) from None
    finally:
        for number, former in old.items():
            signal.signal(number, former)


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
    path = folder / setup.LOG
    if recipe.output.report:
        report.needed("output.report")
    trackers.demand(recipe.log.trackers)
    if path.exists() and not resume:
        raise UsageError(f"{folder} holds a run already. Go on with `zoedge resume {folder}`, or choose another name.")
    if path.exists():
        with Log.open(path) as log:
            recipe = auto.from_log(recipe, log.header)
            if parent is not None:
                branch.same(log.header, parent, folder)
    elif parent is not None:
        recipe = auto.from_log(recipe, parent.log.header)
    if path.exists() and (outcome := done_before(recipe, folder, path)):
        show.say(f"{folder}: this run is finished already. For another, change the recipe's name or seed.")
        if workers:
            workers.share(b"")
        return outcome
    case = fit.gate(recipe)
    for said in setup.claim(folder):
        show.warn(said)
    began, took = time.monotonic(), machine.Took()
    with signals(folder, show, workers) as stop, ExitStack() as stack:
        with show.phase(f"loading {recipe.model.source} ({recipe.model.quantization})"), took("load"):
            bench = setup.Bench.build(recipe)
        if recipe.auto and not path.exists():
            recipe = found(bench, folder, show)
        log = Log.resume(path) if path.exists() else setup.begin(bench, folder, parent)
        with log:
            setup.same(log.header, bench.header(), folder)
            resumed = len(log)
            session(bench, log, show)
            if workers:
                workers.share(path.read_bytes())
            with took("trunk"):
                introduce(bench, log, show)
            listeners = stack.enter_context(closing(trackers.Trackers(recipe, folder, show.warn)))
            looker = Looker(bench, log, show, took, listeners)
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
                    if still == STILL:
                        show.warn(nothing_moves(recipe, record.step))
                    show.step(record)
                    listeners.step(record)
                    looker.at(record.step + 1)
                    looker.curvature(record.step + 1)
                elif looker.missed(record.step + 1, resumed):
                    looker.at(record.step + 1)
            log.finish(engine.digest(bench.space))
        show.close()
        rounding(bench, folder, show)
        at = setup.step_of(log, recipe.eval.select)
        if at < len(log):
            with show.phase(f"replaying to step {at:,}, of the lowest validation loss"):
                setup.move(
                    bench.space, setup.replayer(log).space
                )  # to where it began; on this device, as when resuming
                for _ in engine.play(bench.run(log), at):
                    pass
        with took("export"):
            adapter = deliver(bench, log, folder, show, at)
        after = looker.after(at)
    setup.note(folder, event="time", **took.seconds)
    if case is not None:
        setup.note(
            folder, event="memory", predicted=fit.predicted(case, bench.texts), measured=machine.most(bench.base)
        )
    seconds, chosen = time.monotonic() - began, (at, better(folder, at, log))
    setup.note(
        folder, event="finished", seconds=seconds, adapter=adapter and str(adapter), at=at, select=recipe.eval.select
    )
    if recipe.output.report:
        with show.phase("writing the report"):
            report.write([path], folder / report.NAME)
    return Outcome(folder, log.fingerprint, path.stat().st_size, len(log), before, after, seconds, adapter, *chosen)


def follow(recipe: Recipe | None, folder: Path, workers: Workers) -> None:
    """Take a share of worker 0's steps. Its log comes to `folder`, and is replayed: what was learnt is never sent.

    recipe: None, as the log says. IdentityError: the base, the data or the arithmetic here is another.
    """
    path = folder / setup.LOG

    def received() -> bool:
        handed = workers.share(None)  # nothing: the run was finished already
        if handed:
            write_durably(path, handed)
        return bool(handed)

    with signals(folder, Quiet(), workers) as stop:
        if recipe is None:
            if not received():
                return
            with Log.open(path) as log:
                recipe = setup.recipe_of(log.header, "worker 0's log")
        bench = setup.Bench.build(recipe)
        if not path.exists() and not received():
            return
        with Log.resume(path) as log:
            bench.recipe = auto.from_log(recipe, log.header)
            setup.same(log.header, bench.header(), folder)
            bench.texts.valid = bench.texts.test = None  # worker 0 looks, tells and delivers
            keep(bench, folder, Quiet())
            for _ in stop.between(engine.play(bench.run(log, workers), bench.recipe.train.steps)):
                pass


def goal(recipe: Recipe) -> str:
    """What the run lowers: a task that can only lower its loss has no such option."""
    return str(getattr(recipe.task, "objective", "loss"))


def nothing_moves(recipe: Recipe, step: int) -> str:
    """Why gamma may be 0 for many steps in a row, and what to change."""
    objective = goal(recipe)
    radius = "rho" if hasattr(recipe.estimator, "rho") else "eps"
    few, other = "", ""
    if objective != "loss":
        few, other = (
            f"{objective} takes few values, and no prediction of a batch flips; ",
            ", or set task.objective: loss",
        )
    return (
        f"gamma was 0 at steps {step + 2 - STILL:,}..{step + 1:,}: nothing is being learnt. {few}an adapter that starts at 0 "
        f"(LoRA's B) all but hides a small estimator.{radius}. Raise estimator.{radius} (tenfold) or train.batch{other}."
    )


def better(folder: Path, at: int, log: Log) -> int | None:
    """The step of the lowest validation loss, if it is before `at` and two later looks or more found a higher one."""
    losses = setup.looks(folder, log)
    best = min(losses, key=losses.__getitem__, default=at)
    return best if best < at and sum(step > best and losses[step] > losses[best] for step in losses) >= 2 else None


def done_before(recipe: Recipe, folder: Path, path: Path) -> Outcome | None:
    """The outcome of a run that this very recipe has finished in `folder`. IdentityError: another recipe has begun one."""
    with Log.open(path) as log:
        setup.same_recipe(log.header, recipe, folder)
        lines = {str(line.get("event")): line for line in setup.notes(folder)}
        if log.state.end is None or "finished" not in lines:
            return None
        if lines["finished"].get("select", "last") != recipe.eval.select:
            return None  # nothing is trained again: another step is delivered
        try:
            scores = [Score.of(lines[event]) if event in lines else None for event in ("before", "after")]
            last = lines["finished"]
            adapter, at = Path(last["adapter"]) if last["adapter"] else None, int(last.get("at", len(log)))
            chosen = (at, better(folder, at, log))
            return Outcome(
                folder, log.fingerprint, log.size, len(log), *scores, float(last["seconds"]), adapter, *chosen
            )
        except (KeyError, TypeError, ValueError):  # somebody has written in metrics.jsonl: it is looked at anew
            return None


def found(bench: setup.Bench, folder: Path, show: Plain) -> Recipe:
    """The recipe with every number that it leaves to be found."""
    keep(bench, folder, show)
    with show.phase(f"looking for {' and '.join(sorted(bench.recipe.auto - {WATCHDOG}))}"):
        return auto.resolve(bench, folder, show.say)


def keep(bench: setup.Bench, folder: Path, show: Plain) -> None:
    """What is computed once, on all threads; what follows takes those that the recipe wants."""
    texts, threads = bench.texts, bench.recipe.train.threads
    for which, examples in {"train": texts.train, "valid": texts.valid, "test": texts.test}.items():
        if examples is not None:
            show.track(bench.base.keep(examples, folder), len(examples.tokens), f"lower layers, once ({which})")
    if threads:
        torch.set_num_threads(threads)


def session(bench: setup.Bench, log: Log, show: Plain) -> None:
    """Record where the run goes on, if it is elsewhere than before."""
    environment, again = setup.environment(bench.base), bool(log.state.sessions)
    if log.session(hashlib.sha256(canonical(environment)).digest()):
        texts = {"train": bench.texts.train, "valid": bench.texts.valid, "test": bench.texts.test}
        setup.note(log.path.parent, event="session", at=time.time(), step=len(log), **environment)
        setup.note(log.path.parent, event="rows", **{k: len(v) for k, v in texts.items() if v is not None})
        if again:
            show.warn(
                "the environment is another than before (recorded); the log stays exact, the losses may differ in bits"
            )


def introduce(bench: setup.Bench, log: Log, show: Plain) -> None:
    """Say what is about to happen, and compute the lower layers."""
    recipe, texts = bench.recipe, bench.texts
    trained = log.header.elements
    sets = {"train": texts.train, "valid": texts.valid, "test": texts.test}
    passes = engine.demand(recipe.estimator, recipe.train.steps)[1]
    facts = {
        "rows": ", ".join(f"{len(v):,} {k}" for k, v in sets.items() if v is not None),
        "steps": f"{recipe.train.steps:,} of {passes} forward passes of {recipe.train.batch} rows",
        "method": ", ".join(word_of(x) for x in (recipe.space, recipe.noise, recipe.estimator, recipe.rule)),
    }
    title = f"{recipe.name}: {recipe.model.source}, {recipe.model.quantization}, {trained:,} trained"
    show.start(recipe.train.steps, title, facts)
    for which, counts in texts.counts.items():
        for what, number in counts.items():
            if number:
                show.warn(f"{number:,} {which} rows {what}")
    if len(log):
        show.say(f"resuming: replaying {len(log):,} logged steps, then going on")
    keep(bench, log.path.parent, show)
    for name in ("eps", "rho"):
        smooth = goal(recipe) == "loss"  # other goals are steps
        if smooth and hasattr(recipe.estimator, name) and (wrong := auto.numerics(bench, name)):
            show.warn(wrong)


class Looker:
    """Evaluation along the way: on validation rows, and before and after on test rows. What it found is noted."""

    def __init__(
        self,
        bench: setup.Bench,
        log: Log,
        show: Plain,
        took: machine.Took | None = None,
        follow: trackers.Trackers | None = None,
    ):
        self.bench, self.log, self.folder, self.show = bench, log, log.path.parent, show
        self.took, self.follow = took or machine.Took(), follow
        self.last = bench.texts.test if bench.texts.test is not None else bench.texts.valid
        self.rows = "test" if bench.texts.test is not None else "validation"

    def look(self, space: Any, examples: Any, **fields: Any) -> Score:
        b = self.bench
        with self.took("scoring"):
            score = evaluate.evaluate(space, b.task, b.base, examples, b.recipe.eval.calibrate)
        setup.note(self.folder, **fields, **asdict(score))
        if self.follow is not None:
            on_test = fields["event"] != "valid" and self.rows == "test"
            self.follow.score(fields["step"], "test" if on_test else "valid", score)
        return score

    def before(self) -> Score | None:
        """The score of the base alone: zero-shot, also when a run is resumed."""
        if self.last is None or not self.bench.recipe.eval.at_start:
            return None
        for line in setup.notes(self.folder):
            if line.get("event") == "before":
                return Score.of(line)
        score = self.look(evaluate.Bare(), self.last, event="before", step=0)
        self.samples(evaluate.Bare(), 0)
        self.show.score(0, score, self.rows)
        return score

    def samples(self, space: Any, step: int) -> None:
        """What the model answers to the first held-out rows, noted for people to read."""
        b = self.bench
        some = self.last.head(SAMPLES)
        with space.visit([lambda leaf: None]):
            replies = b.task.replies(b.base, some)
        if replies:
            prompts = [some.tokens[i * some.per][: some.rows[i * some.per][0] + 1] for i in range(len(some))]
            texts = b.base.tokenizer.batch_decode(prompts, skip_special_tokens=True)
            found = [{"text": t, "right": right, "answer": said} for t, (right, said) in zip(texts, replies)]
            setup.note(self.folder, event="samples", step=step, rows=self.rows, samples=found)

    def due(self, step: int) -> bool:
        """Of the last step, `after` tells what there is to know, unless the validation rows are to choose."""
        options, steps = self.bench.recipe.eval, self.bench.recipe.train.steps
        looked = step % options.every == 0 if step < steps else options.select == "best"
        return self.bench.texts.valid is not None and looked

    def missed(self, step: int, last: int) -> bool:
        """Whether a step that was taken before still lacks a look that `best` may need, or the last a look at all: a
        kill came between."""
        wanted = (self.bench.recipe.eval.select == "best" or step == last) and self.due(step)
        return wanted and step not in setup.looks(self.folder, self.log)

    def at(self, step: int) -> None:
        if self.due(step):
            seq = self.log[step - 1].seq
            score = self.look(self.bench.space, self.bench.texts.valid, event="valid", step=step, seq=seq)
            self.show.score(step, score, "validation")

    def curvature(self, step: int) -> None:
        b, options = self.bench, self.bench.recipe.eval.curvature
        if options is not None and (step % options.every == 0 or step == b.recipe.train.steps):
            found = curvature.trace(b.space, b.task, b.base, b.texts.train, options, b.recipe.seed, step)
            setup.note(self.folder, event="curvature", step=step, estimator=options.estimator, **asdict(found))
            self.show.say(f"step {step:,}: tr H {found.trace:.4g} +- {found.error:.2g}, loss {found.loss:.4f}")

    def after(self, step: int) -> Score | None:
        if self.last is None:
            return None
        score = self.look(self.bench.space, self.last, event="after", step=step)
        self.samples(self.bench.space, step)
        return score


def deliver(bench: setup.Bench, log: Log, folder: Path, show: Plain, steps: int) -> Path | None:
    """The exports that the recipe asks for, of the space as it is after so many steps."""
    from ..commands.export import folder as export_folder

    recipe, adapter = bench.recipe, None
    if "peft" in recipe.output.export:
        with show.phase("writing the adapter"):
            adapter = export_folder.peft(bench.run(log), log, recipe, folder / setup.ADAPTER, bench.base.path, steps)
    if "merged" in recipe.output.export:
        with show.phase("writing the merged model"):
            export_folder.merged(recipe, bench.space, folder / "merged", log=log, steps=steps)
    return adapter


def rounding(bench: setup.Bench, folder: Path, show: Plain) -> None:
    """How much of the intended update 16-bit weights took up, all steps so far, on a sample of each tensor."""
    applied, nearest, intended = getattr(bench.space, "kept", (0.0, 0.0, 0.0))
    if intended:
        found = {"applied": applied / intended, "nearest": nearest / intended}
        setup.note(folder, event="rounding", storage=bench.space.storage, **found)
        show.say(
            f"{bench.space.storage} weights took up {found['applied']:.1%} of the intended update (stochastic rounding; to "
            f"nearest: {found['nearest']:.1%})"
        )
