"""`zoedge resume`: what to go on with is inside the run's log."""

from __future__ import annotations

from pathlib import Path

from ..log.log import Log
from ..recipe.recipe import Recipe
from ..run.folder import find_log
from ..run.identity import recipe_from_header
from ..run.trust import check_code


def find_run(run: str, trust_code: bool = False) -> tuple[Recipe, Path]:
    """Return the recipe inside a run's log, and the run's folder: `finetune` goes on with them.

    Args:
        run: the run's folder or name, or its log.
        trust_code: whether a reward function may run although another machine began the log.

    Raises:
        UsageError: there is no such run, it is an optimiser's, or its reward function may not run.
        DamagedError: the log is damaged.
    """
    path = find_log(run)
    with Log.open(path) as log:
        recipe = recipe_from_header(log.header, str(path))
        check_code(recipe, log.header, str(path), trust_code)
        return recipe, path.parent
