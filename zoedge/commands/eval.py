"""`zoedge eval`: what a run's task measures on labelled rows, before and after training."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..core import engine
from ..errors import DataError
from ..run.evaluate import EmptySpace, Score, Visitable, add_drift, evaluate, make_meter
from ..run.folder import open_any_log, resolve_step
from ..run.identity import check_same_base, held_out_differences, recipe_from_header
from ..run.setup import Measuring, close_store, open_trunk
from ..run.start import WithTerm, compare_start
from ..run.trust import check_code
from ..scoring.rows.sets import in_content_order, load_rows
from ..scoring.texts import encode_rows


def evaluate_run(
    run: str, data: str | None = None, limit: int | None = None, at: str | None = None, trust_code: bool = False
) -> tuple[dict[str, Score], list[str]]:
    """Score the base alone and the trained model on the same rows.

    Args:
        run: the run's folder or name, or its log.
        data: a file or packaged text; None: the run's test rows, else its validation rows.
        limit: at most so many rows; None: all.
        at: after how many steps: a number, last or best; None: as the run's eval.select says.
        trust_code: whether a reward function may run although another machine began the log.

    Returns:
        The score by name: "zero-shot"; of a task with options of one token, the closed-form start; and "after N steps".
        Sentences on what of the run's own rows is not what it began with.

    Raises:
        DataError: the run has no rows to score, or there is something wrong with them.
        IdentityError: base, tokenizer or arithmetic here are not those of the log.
    """
    log = open_any_log(run)
    steps = resolve_step(log, at)
    recipe = recipe_from_header(log.header, run)
    check_code(recipe, log.header, run, trust_code)
    measuring = Measuring.build(recipe, log.header)
    here = measuring.header()
    check_same_base(log.header, here, run)
    changes = [] if data else held_out_differences(log.header, here)
    examples = measuring.texts.test or measuring.texts.valid
    if data:
        rows, _ = load_rows(data, "data", recipe.data)
        ordered = in_content_order(rows, recipe.task.fields())
        base = measuring.base
        examples, _ = encode_rows(
            recipe.task, ordered, base.tokenizer, measuring.limit, recipe.data, base.model.config.vocab_size
        )
    if examples is None:
        raise DataError(f"{run} has no test rows: name some with --data FILE.")
    examples = examples.head(limit) if limit else examples

    folder = Path(tempfile.gettempdir())
    open_trunk(measuring, folder)
    measuring.base.open_trunk(examples, folder)
    meter = make_meter(measuring.base, folder, [examples])

    def score(space: Visitable) -> Score:
        score = evaluate(space, measuring.task, measuring.base, examples, recipe.eval.calibrate)
        return score if meter is None else add_drift(score, space, meter, examples)

    scores = {"zero-shot": score(EmptySpace())}
    if recipe.space.wants_start and not recipe.space.starts_at_base:
        scores["the start"] = score(measuring.space)
    elif recipe.eval.closed_form and (fitted := compare_start(measuring)) is not None:
        scores["closed form"] = score(WithTerm(measuring.base, fitted))
    for _ in engine.play(measuring.run(log), steps):
        pass
    scores[f"after {steps:,} steps"] = score(measuring.space)
    close_store(measuring.base)
    return scores, [f"{what} is not what the run began with: it was changed since" for what in changes]
