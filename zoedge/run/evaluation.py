"""This module evaluates in the course of a run: on validation rows during it, on test rows before and after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..log.log import Log
from . import curvature, evaluate, folder, setup, trackers
from .display import Plain
from .evaluate import ClosedForm, Score, Visitable

if TYPE_CHECKING:
    from ..scoring.drift import DriftMeter
    from ..scoring.tasks._examples import Examples


class Stopwatch:
    """Adds up the seconds that the parts of a run take, by the name of the part. A part within a part counts as itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0  # of the part that is going on: the seconds of the parts within it

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began, outside, self._inner = time.monotonic(), self._inner, 0.0
        try:
            yield
        finally:
            passed = time.monotonic() - began
            self.seconds[part] = self.seconds.get(part, 0.0) + passed - self._inner
            self._inner = outside + passed

    def each(self, part: str, items: Iterator[Any]) -> Iterator[Any]:
        """Yield the items, and time how long each takes to make, but not what is done with it."""
        while True:
            with self(part):
                item = next(items, None)
            if item is None:
                return
            yield item


SAMPLE_COUNT = 6  # the held-out rows whose answers are noted before and after a run


class Evaluator:
    """Evaluates a run, and writes each score to metrics.jsonl, the display and the trackers.

    Attributes:
        last: the rows that are scored before and after the run: the test rows, else the validation rows, else None.
        rows: what these rows are called.
        meter: what measures the drift; None: nothing is scored, or the model fills masks. The space must stand at its start
            when the evaluator is made.
    """

    def __init__(
        self,
        measuring: setup.Measuring,
        log: Log,
        show: Plain,
        took: Stopwatch | None = None,
        follow: trackers.Trackers | None = None,
    ):
        self.measuring, self.log, self.folder, self.show = measuring, log, log.path.parent, show
        self.took, self.follow = took or Stopwatch(), follow
        self.last = measuring.texts.test if measuring.texts.test is not None else measuring.texts.valid
        self.rows = "test" if measuring.texts.test is not None else "validation"
        sets = (measuring.texts.valid, measuring.texts.test)
        self.digests = {id(x): x.digest().hex()[:32] for x in sets if x is not None}
        self.meter: DriftMeter | None = None
        if self.last is not None:
            with self.took("drift"):
                self.meter = evaluate.make_meter(measuring.base, self.folder, sets)

    def look(self, space: Visitable, examples: Examples, **fields: Any) -> Score:
        """Score some examples, and write the score with some fields to metrics.jsonl."""
        self.log.secure()  # a look is never ahead of what is durable
        b = self.measuring
        with self.took("scoring"):
            score = evaluate.evaluate(space, b.task, b.base, examples, b.recipe.eval.calibrate)
        if self.meter is not None:
            with self.took("drift"):  # a look leaves the ordinary text out: it takes three times as long as the drift
                score = evaluate.add_drift(score, space, self.meter, examples, fields["event"] != "valid")
        noted = fields | {"rows_sha256": self.digests[id(examples)]} | asdict(score)
        if fields["event"] == "valid":
            folder.append_look(self.folder, self.log, **noted)
        else:
            folder.append_metric(self.folder, **noted)
        if self.follow is not None and fields["event"] != "closed_form":  # it is no step of the run
            on_test = fields["event"] != "valid" and self.rows == "test"
            self.follow.score(fields["step"], "test" if on_test else "valid", score)
        return score

    def begin(self, fresh: bool) -> tuple[Score | None, ClosedForm | None]:
        """Measure what stands beside a run, where the space stands at its start, and return what `before` and `closed_form` do.

        fresh: the log has no step yet.
        """
        scores = self.before(), self.closed_form()
        if self.missed(0, -1):
            self.at(0)
        if fresh:
            self.curvature(0)
        return scores

    def before(self) -> Score | None:
        """Return the zero-shot score of the base alone, which a resumed run reads from metrics.jsonl."""
        if self.last is None or not self.measuring.recipe.eval.at_start:
            return None
        for line in folder.lines_of_rows(folder.read_metrics(self.folder), self.digests[id(self.last)]):
            if line.get("event") == "before":
                return Score.of(line)
        score = self.look(evaluate.EmptySpace(), self.last, event="before", step=0)
        self.samples(evaluate.EmptySpace(), 0)
        self.show.score(0, score, self.rows)
        return score

    def closed_form(self) -> ClosedForm | None:
        """Return the score of the closed-form start on the rows that `before` scored.

        Of a run that begins with it, it is the space's own score at step 0, where the space must stand. A resumed run reads
        it from metrics.jsonl. None: there are no rows, the task has no such start, or eval.closed_form is false.
        """
        from . import start  # here: it imports torch

        b = self.measuring
        if self.last is None or not b.recipe.eval.closed_form:
            return None
        lines = folder.read_metrics(self.folder)
        for line in folder.lines_of_rows(lines, self.digests[id(self.last)]):
            if line.get("event") == "closed_form":
                with suppress(KeyError, TypeError, ValueError):
                    return ClosedForm.of(line)
        begins = b.recipe.space.wants_start and not b.recipe.space.starts_at_base
        if begins:
            # none of a branch, which has its parent's start
            passes = next((line.get("passes", 0) for line in lines if line.get("event") == "start"), 0)
            space: Visitable = b.space
        else:
            with self.took("start"):
                fitted = start.compare_start(b)
            if fitted is None:
                return None
            space, passes = start.WithTerm(b.base, fitted), fitted.passes
        score = self.look(space, self.last, event="closed_form", step=0, passes=passes, begins=begins)
        self.show.say(f"closed-form start ({passes:,} passes of a row): {score.sentence()}")
        return ClosedForm(score, passes, begins)

    def samples(self, space: Visitable, step: int) -> None:
        """Note for people what the model answers to the first held-out rows."""
        b = self.measuring
        assert self.last is not None
        examples = self.last.head(SAMPLE_COUNT)
        with space.visit([lambda leaf: None]):
            replies = b.task.sample_answers(b.base, examples)
        if replies:
            firsts = range(0, len(examples.tokens), examples.sequences_each)  # the first sequence of each example
            prompts = [examples.tokens[i][: examples.rows[i][0] + 1] for i in firsts]
            texts = b.base.tokenizer.batch_decode(prompts, skip_special_tokens=True)
            samples = [{"text": t, "right": right, "answer": said} for t, (right, said) in zip(texts, replies)]
            folder.append_metric(self.folder, event="samples", step=step, rows=self.rows, samples=samples)

    def due(self, step: int) -> bool:
        """Return whether the step is to be evaluated on validation rows.

        The start and the last step are only if validation chooses the step that is delivered.
        """
        options, steps = self.measuring.recipe.eval, self.measuring.recipe.train.steps
        looked = step % options.every == 0 if 0 < step < steps else options.select == "best"
        return self.measuring.texts.valid is not None and looked

    def missed(self, step: int, last: int) -> bool:
        """Return whether a kill prevented an evaluation that is still needed of a step that is already logged."""
        wanted = (self.measuring.recipe.eval.select == "best" or step == last) and self.due(step)
        return wanted and not self._is_noted(self._looks().get(step))

    def missed_any(self, until: int, last: int) -> bool:
        """Return whether `missed` would be true of any step from 1 to `until`."""
        options, looks = self.measuring.recipe.eval, self._looks()
        steps = {*range(options.every, until + 1, options.every), until} if options.select == "best" else {until}
        return any(
            self.due(s) and not self._is_noted(looks.get(s)) for s in steps if options.select == "best" or s == last
        )

    def _looks(self) -> dict[int, folder.Look]:
        """Return the looks that were taken at the present validation rows, by step."""
        valid = self.measuring.texts.valid
        rows = self.digests[id(valid)] if valid is not None else None
        return folder.validation_looks(self.folder, self.log, rows)

    def _is_noted(self, look: folder.Look | None) -> bool:
        """Return whether a look has all that chooses the delivered step."""
        return look is not None and (self.measuring.recipe.eval.drift is None or look.drift is not None)

    def at(self, step: int) -> None:
        """Evaluate the validation rows after `step` steps, if that is due."""
        valid = self.measuring.texts.valid
        if valid is not None and self.due(step):
            seq = {"seq": self.log[step - 1].seq} if step else {}
            score = self.look(self.measuring.space, valid, event="valid", step=step, **seq)
            self.show.score(step, score, "validation")

    def curvature(self, step: int) -> None:
        """Estimate the trace of the Hessian after `step` steps, if the recipe asks for it there."""
        b, options = self.measuring, self.measuring.recipe.eval.curvature
        if options is not None and (step % options.every == 0 or step == b.recipe.train.steps):
            self.log.secure()
            trace = curvature.estimate_trace(b.space, b.task, b.base, b.texts.train, options, b.recipe.seed, step)
            folder.append_metric(
                self.folder, event="curvature", step=step, estimator=options.estimator, **asdict(trace)
            )
            self.show.say(f"step {step:,}: tr H {trace.trace:.4g} +- {trace.error:.2g}, loss {trace.loss:.4f}")

    def after(self, step: int) -> Score | None:
        """Return the score of the trained model on the rows that `before` scored; None: there are no such rows."""
        if self.last is None:
            return None
        score = self.look(self.measuring.space, self.last, event="after", step=step)
        self.samples(self.measuring.space, step)
        return score
