"""This module says which training rows a run reads, before it reads them: all of it follows from the recipe and the set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.oracle import count_evaluations
from ..recipe.recipe import Recipe

if TYPE_CHECKING:
    from ..scoring.tasks._examples import Examples

MAX_START_ROWS = 2048  # training rows that a start is fitted to at most; 1,900 still gain on six labels
COMPARED_SHARE, COMPARED_ROWS = 0.05, 128  # what a run without a start spends on knowing it
SEARCH_STEPS = 64  # the steps whose batches a search of lr may read in a shorter run: 40 of a trial and 16 to judge it


def count_compared_rows(recipe: Recipe) -> int:
    """Return how many training rows a closed-form start beside a run without one is fitted to at most."""
    passes = count_evaluations(recipe.estimator, recipe.train.steps)[1] * recipe.train.steps * recipe.train.batch
    return min(MAX_START_ROWS, max(COMPARED_ROWS, int(COMPARED_SHARE * passes)))


def list_visited_rows(recipe: Recipe, examples: Examples) -> list[int] | None:
    """Return the numbers of the training examples that a run reads, ascending; None: half of them or more.

    They are those of its steps and of a search of lr, of a closed-form start, of the label bias and of the curvature.
    """
    from ..scoring.rows.row import seeded_permutation  # here: a look-up of zoedge.finetune needs no rows

    count, options = len(examples), recipe.eval
    visited = set(range(min(count, max(options.calibrate, options.curvature.rows if options.curvature else 0))))
    if recipe.space.wants_start or options.closed_form:
        rows = MAX_START_ROWS if recipe.space.wants_start else count_compared_rows(recipe)
        visited.update(seeded_permutation(count, 0, 0)[:rows])
    for step in range(max(recipe.train.steps, SEARCH_STEPS)):
        if 2 * len(visited) >= count:
            return None
        visited.update(examples.plan(recipe.train.batch, recipe.seed, step))
    return None if 2 * len(visited) >= count else sorted(visited)


def list_visited_sequences(recipe: Recipe, examples: Examples) -> list[int] | None:
    """Return the numbers of the sequences of these examples; None: half of them or more."""
    rows, each = list_visited_rows(recipe, examples), examples.sequences_each
    return None if rows is None else [row * each + j for row in rows for j in range(each)]
