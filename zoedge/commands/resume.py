"""`zoedge resume`: what to go on with is inside the run's log."""

from __future__ import annotations

from pathlib import Path

from ..log.log import Log
from ..recipe.recipe import Recipe
from ..run.folder import find_log
from ..run.identity import recipe_from_header


def find_run(run: str) -> tuple[Recipe, Path]:
    """Return the recipe inside a run's log, and the run's folder: `finetune` goes on with them.

    Args:
        run: the run's folder or name, or its log.

    Raises:
        UsageError: there is no such run, or it is an optimiser's.
        DamagedError: the log is damaged.
    """
    path = find_log(run)
    with Log.open(path) as log:
        return recipe_from_header(log.header, str(path)), path.parent
