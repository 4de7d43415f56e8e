"""This module does the work of every worker but the first: it takes a share of the steps of worker 0's run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..core import engine
from ..core.storage import write_durably
from ..log.log import Log
from ..recipe.recipe import Recipe
from . import auto, identity, replay, setup
from . import folder as run_folder
from .display import Quiet
from .setup import cache_trunk
from .signals import handle_signals
from .trust import check_code
from .workers import Workers


def follow_leader(recipe: Recipe | None, folder: Path, workers: Workers, trust_code: bool = False) -> None:
    """Take a share of worker 0's steps until its run ends. Worker 0 sends its log, which is replayed here.

    Args:
        recipe: what is trained; None: as the log says.
        folder: where the log is put.
        workers: the processes of this launch.
        trust_code: whether a reward function that only the log names may run.

    Raises:
        IdentityError: the base, the data or the arithmetic here is another.
    """
    path = folder / run_folder.LOG_FILE

    def received() -> bool:
        log_bytes = workers.share(None)  # nothing: the run was finished already
        if log_bytes:
            write_durably(path, log_bytes)
        return bool(log_bytes)

    with handle_signals(folder, Quiet(), workers) as stop:
        if recipe is None:
            if not received():
                return
            with Log.open(path) as log:
                recipe = identity.recipe_from_header(log.header, "worker 0's log")
                check_code(recipe, log.header, "worker 0's log", trust_code)
        measuring = setup.Measuring.build(recipe)
        measuring.task.load_reward()
        if not path.exists() and not received():
            return
        with Log.resume(path) as log:
            replay.take_logged_start(measuring.space, log.header)
            texts = replace(measuring.texts, valid=None, test=None)  # worker 0 scores, reports and delivers
            measuring = replace(measuring, recipe=auto.fill_from_log(recipe, log.header), texts=texts)
            identity.check_same_run(log.header, measuring.header(), folder)
            cache_trunk(measuring, folder, Quiet())
            for _ in stop.between(engine.play(measuring.run(log, workers), measuring.recipe.train.steps)):
                pass
