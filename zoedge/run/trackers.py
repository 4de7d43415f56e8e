"""This module tells experiment trackers (`log.trackers: [wandb]`) of a run. None of them can end or change it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, make_printable

if TYPE_CHECKING:
    from ..core.types import Record
    from ..recipe.recipe import Recipe
    from .evaluate import Score

LOGGING_INTERVAL = 10  # steps whose means are logged: a step may take 15 ms, and a tracker flushes at each call
TRACKERS_FOLDER = "trackers"  # in the run's, for those that write files
PACKAGE_MODULES = {"tensorboard": ("tensorboard", "tensorboardX")}  # modules of a word, if not named as the word
PIP_NAMES = {"comet_ml": "comet-ml"}


def check_packages(words: Sequence[str]) -> None:
    """Raise UsageError unless the package of each tracker is installed. This is asked before anything is loaded."""
    missing = [word for word in words if not any(map(find_spec, PACKAGE_MODULES.get(word, (word,))))]
    if missing:
        raise UsageError(
            f"log.trackers: {', '.join(missing)}: no such package here. Install it: pip install "
            f"{' '.join(PIP_NAMES.get(word, word) for word in missing)}; or leave it out."
        )


def flatten_values(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return a recipe's values by dotted names; lists become texts, as trackers take no lists."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            values |= flatten_values(value, f"{above}{key}.")
        else:
            values[above + key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return values


class Trackers:
    """The trackers of a run, open until `close`. A tracker that raises is reported in a note and not used any more."""

    def __init__(self, recipe: Recipe, folder: Path, warn: Callable[[str], None]):
        self.warn, self.steps = warn, recipe.train.steps
        self.open: dict[str, Any] = {}
        self.sums = [0.0, 0.0, 0]  # loss, |gamma|, records since the last call
        if not (words := recipe.log.trackers):
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        from ..scoring.sources import resolve as sources  # noqa: F401 - offline first

        config = flatten_values(recipe.resolved())
        for word in dict.fromkeys(words):
            tracker_class = LOGGER_TYPE_TO_CLASS[word]
            where = {"logging_dir": str(folder / TRACKERS_FOLDER)} if tracker_class.requires_logging_directory else {}

            def start(tracker_class: Any = tracker_class, where: Any = where) -> Any:
                tracker = tracker_class(recipe.name, **where)
                tracker.start()
                tracker.store_init_configuration(config)
                return tracker

            if (tracker := self._guarded(word, start)) is not None:
                self.open[word] = tracker

    def step(self, record: Record) -> None:
        """Log the means of loss and |gamma| over LOGGING_INTERVAL steps, and the lr."""
        if not self.open:
            return
        losses = [x for x in record.losses if math.isfinite(x)]
        if losses:
            self.sums[0] += sum(losses) / len(losses)
            self.sums[1] += sum(map(abs, record.g)) / len(record.g)
            self.sums[2] += 1
        done = record.step + 1
        if (done % LOGGING_INTERVAL == 0 or done == self.steps) and self.sums[2]:
            loss, gamma, count = self.sums
            self.sums = [0.0, 0.0, 0]
            self._log({"train/loss": loss / count, "train/gamma": gamma / count, "train/lr": record.lr}, done)

    def score(self, step: int, rows: str, score: Score) -> None:
        """Log a score under the name of its rows, such as valid/accuracy and test/loss."""
        values = {f"{rows}/{k}": v for k, v in asdict(score).items() if v is not None and k != "count"}
        self._log(values, step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        for word, tracker in list(self.open.items()):
            self._guarded(word, partial(tracker.log, values, step=step))

    def _guarded(self, word: str, act: Callable[[], Any]) -> Any:
        """Call a tracker, and drop it with a note if it raises."""
        try:
            return act()
        except Exception as e:
            self.open.pop(word, None)
            self.warn(
                f"the tracker {word} has failed and is left out from here on: {type(e).__name__}: {make_printable(str(e))}"
            )
            return None

    def close(self) -> None:
        """End every tracker; one that raises is passed over."""
        for tracker in self.open.values():
            with suppress(Exception):
                tracker.finish()
        self.open = {}
