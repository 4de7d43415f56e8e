"""A run from beginning to end: load, look, play, look again, export. The loop itself is `engine.play`."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import branch, curvature, engine, evaluate, report, runs
from .display import Plain
from .errors import UsageError, ZoedgeError
from .evaluate import Score
from .log import Log, canonical
from .recipe import Recipe, word_of
from .types import SKIPPED, Record

SAMPLES = 6  # held-out rows whose answers are noted before and after
STILL = 20  # steps in a row without a difference, and it is said
PROBE_SEQ = 2**32 - 1  # of the numerics self-test's direction: no step of a run reaches it


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
                self.waits = False
            if self.seen:
                raise Interrupt
            if record is None:
                return
            yield record


@contextmanager
def signals(folder: Path, show: Plain) -> Iterator[Signals]:
    """While open, a signal ends in Stopped, which says how to go on."""
    here = Signals()
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup, `&`
    old = {number: signal.signal(number, here) for number in numbers}
    try:
        yield here
    except Interrupt:
        show.close()
        path = folder / runs.LOG
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
    recipe: Recipe, folder: Path, show: Plain, resume: bool = True, parent: branch.Parent | None = None
) -> Outcome:
    """Begin the run in `folder`, as a branch of `parent` if there is one, or go on with it; returns when it is finished.

    IdentityError: the folder holds a run of something else, or the parent is another. Stopped: a signal; `zoedge resume`
    goes on.
    """
    path = folder / runs.LOG
    if recipe.output.report:
        report.needed("output.report")
    if path.exists() and not resume:
        raise UsageError(f"{folder} holds a run already. Go on with `zoedge resume {folder}`, or choose another name.")
    if path.exists() and parent is not None:
        with Log.open(path) as log:
            branch.same(log.header, parent, folder)
    if path.exists() and (outcome := done_before(recipe, folder, path)):
        show.say(f"{folder}: this run is finished already. For another, change the recipe's name or seed.")
        return outcome
    runs.claim(folder)
    began = time.monotonic()
    with signals(folder, show) as stop:
        with show.phase(f"loading {recipe.model.source} ({recipe.model.quantization})"):
            bench = runs.Bench.build(recipe)
        log = Log.resume(path) if path.exists() else runs.begin(bench, folder, parent)
        with log:
            runs.same(log.header, bench.header(), folder)
            resumed = len(log)
            introduce(bench, log, show)
            looker = Looker(bench, log, show)
            before = looker.before()
            if not resumed:
                looker.curvature(0)
            still, rewinds = 0, log.state.rewinds
            for record in stop.between(engine.play(bench.run(log), recipe.train.steps)):
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
                    looker.at(record.step + 1)
                    looker.curvature(record.step + 1)
                elif looker.missed(record.step + 1, resumed):
                    looker.at(record.step + 1)
            log.finish(engine.digest(bench.space))
        show.close()
        rounding(bench, folder, show)
        at = runs.step_of(log, recipe.eval.select)
        if at < len(log):
            with show.phase(f"replaying to step {at:,}, of the lowest validation loss"):
                runs.move(bench.space, runs.replayer(log).space)  # to where it began; on this device, as when resuming
                for _ in engine.play(bench.run(log), at):
                    pass
        adapter = deliver(bench, log, folder, show, at)
        after = looker.after(at)
    seconds, chosen = time.monotonic() - began, (at, better(folder, at, log))
    runs.note(
        folder, event="finished", seconds=seconds, adapter=adapter and str(adapter), at=at, select=recipe.eval.select
    )
    if recipe.output.report:
        with show.phase("writing the report"):
            report.write([path], folder / report.NAME)
    return Outcome(folder, log.fingerprint, path.stat().st_size, len(log), before, after, seconds, adapter, *chosen)


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
    losses = runs.looks(folder, log)
    best = min(losses, key=losses.__getitem__, default=at)
    return best if best < at and sum(step > best and losses[step] > losses[best] for step in losses) >= 2 else None


def done_before(recipe: Recipe, folder: Path, path: Path) -> Outcome | None:
    """The outcome of a run that this very recipe has finished in `folder`. IdentityError: another recipe has begun one."""
    with Log.open(path) as log:
        runs.same_recipe(log.header, recipe, folder)
        lines = {str(line.get("event")): line for line in runs.notes(folder)}
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


def introduce(bench: runs.Bench, log: Log, show: Plain) -> None:
    """Say what is about to happen, and record where."""
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
    environment = runs.environment(bench.base)
    again = bool(log.state.sessions)
    if log.session(hashlib.sha256(canonical(environment)).digest()):
        runs.note(log.path.parent, event="session", at=time.time(), step=len(log), **environment)
        runs.note(log.path.parent, event="rows", **{k: len(v) for k, v in sets.items() if v is not None})
        if again:
            show.warn(
                "the environment is another than before (recorded); the log stays exact, the losses may differ in bits"
            )
    if len(log):
        show.say(f"resuming: replaying {len(log):,} logged steps, then going on")
    here = log.path.parent
    kept = [(k, v) for k, v in sets.items() if v is not None]
    for which, examples in kept:
        size = len(examples.tokens)
        show.track(bench.base.keep(examples, here), size, f"lower layers, once ({which})")
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    for name in ("eps", "rho"):
        if hasattr(recipe.estimator, name) and goal(recipe) == "loss":  # other goals are steps: not smooth at any scale
            numerics(bench, log, show, name)


def numerics(bench: runs.Bench, log: Log, show: Plain, name: str) -> None:
    """gamma of one direction of the first batch at the radius and at half of it: alike, unless rounding drowns the signal."""
    radius, found, run = getattr(bench.recipe.estimator, name), [], bench.run(log)
    oracle = engine.Scorer(run, bench.task.batch(0), 0, run.steps, PROBE_SEQ)
    for eps in (radius, radius / 2):
        up, down = oracle.losses([((eps, 0),), ((-eps, 0),)])
        found.append((up - down) / (2 * eps))
    whole, half = found
    if not 0.5 <= (half / whole if whole else 0.0) <= 2.0:
        show.warn(
            f"numerics: gamma is {whole:.4g} at {name} and {half:.4g} at {name}/2 on one batch: the loss is not smooth at "
            f"this scale. Raise estimator.{name}, or set model.compute_dtype: fp32."
        )


class Looker:
    """Evaluation along the way: on validation rows, and before and after on test rows. What it found is noted."""

    def __init__(self, bench: runs.Bench, log: Log, show: Plain):
        self.bench, self.log, self.folder, self.show = bench, log, log.path.parent, show
        self.last = bench.texts.test if bench.texts.test is not None else bench.texts.valid
        self.rows = "test" if bench.texts.test is not None else "validation"

    def look(self, space: Any, examples: Any, **fields: Any) -> Score:
        b = self.bench
        score = evaluate.evaluate(space, b.task, b.base, examples, b.recipe.eval.calibrate)
        runs.note(self.folder, **fields, **asdict(score))
        return score

    def before(self) -> Score | None:
        """The score of the base alone: zero-shot, also when a run is resumed."""
        if self.last is None or not self.bench.recipe.eval.at_start:
            return None
        for line in runs.notes(self.folder):
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
            runs.note(self.folder, event="samples", step=step, rows=self.rows, samples=found)

    def due(self, step: int) -> bool:
        """Of the last step, `after` tells what there is to know, unless the validation rows are to choose."""
        options, steps = self.bench.recipe.eval, self.bench.recipe.train.steps
        looked = step % options.every == 0 if step < steps else options.select == "best"
        return self.bench.texts.valid is not None and looked

    def missed(self, step: int, last: int) -> bool:
        """Whether a step that was taken before still lacks a look that `best` may need, or the last a look at all: a
        kill came between."""
        wanted = (self.bench.recipe.eval.select == "best" or step == last) and self.due(step)
        return wanted and step not in runs.looks(self.folder, self.log)

    def at(self, step: int) -> None:
        if self.due(step):
            seq = self.log[step - 1].seq
            score = self.look(self.bench.space, self.bench.texts.valid, event="valid", step=step, seq=seq)
            self.show.score(step, score, "validation")

    def curvature(self, step: int) -> None:
        b, options = self.bench, self.bench.recipe.eval.curvature
        if options is not None and (step % options.every == 0 or step == b.recipe.train.steps):
            found = curvature.trace(b.space, b.task, b.base, b.texts.train, options, b.recipe.seed, step)
            runs.note(self.folder, event="curvature", step=step, estimator=options.estimator, **asdict(found))
            self.show.say(f"step {step:,}: tr H {found.trace:.4g} +- {found.error:.2g}, loss {found.loss:.4f}")

    def after(self, step: int) -> Score | None:
        if self.last is None:
            return None
        score = self.look(self.bench.space, self.last, event="after", step=step)
        self.samples(self.bench.space, step)
        return score


def deliver(bench: runs.Bench, log: Log, folder: Path, show: Plain, steps: int) -> Path | None:
    """The exports that the recipe asks for, of the space as it is after so many steps."""
    from . import export

    recipe, adapter = bench.recipe, None
    if "peft" in recipe.output.export:
        with show.phase("writing the adapter"):
            adapter = export.peft(bench.run(log), log, recipe, folder / runs.ADAPTER, bench.base.path, steps)
    if "merged" in recipe.output.export:
        with show.phase("writing the merged model"):
            export.merged(recipe, bench.space, folder / "merged", log=log, steps=steps)
    return adapter


def rounding(bench: runs.Bench, folder: Path, show: Plain) -> None:
    """How much of the intended update 16-bit weights took up, all steps so far, on a sample of each tensor."""
    applied, nearest, intended = getattr(bench.space, "kept", (0.0, 0.0, 0.0))
    if intended:
        found = {"applied": applied / intended, "nearest": nearest / intended}
        runs.note(folder, event="rounding", storage=bench.space.storage, **found)
        show.say(
            f"{bench.space.storage} weights took up {found['applied']:.1%} of the intended update (stochastic rounding; to "
            f"nearest: {found['nearest']:.1%})"
        )
