"""What a finished run has to show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..log.log import Log
from ..recipe.recipe import Recipe
from . import folder as run_folder
from . import identity
from .evaluate import Score


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


def find_better_step(folder: Path, at: int, log: Log) -> int | None:
    """The step of the lowest validation loss, if it is before `at` and two later looks or more found a higher one."""
    losses = run_folder.validation_losses(folder, log)
    best = min(losses, key=losses.__getitem__, default=at)
    return best if best < at and sum(step > best and losses[step] > losses[best] for step in losses) >= 2 else None


def load_outcome(recipe: Recipe, folder: Path, path: Path) -> Outcome | None:
    """The outcome of a run that this very recipe has finished in `folder`. IdentityError: another recipe has begun one."""
    with Log.open(path) as log:
        identity.check_same_recipe(log.header, recipe, folder)
        lines = {str(line.get("event")): line for line in run_folder.read_metrics(folder)}
        if log.state.end is None or "finished" not in lines:
            return None
        if lines["finished"].get("select", "last") != recipe.eval.select:
            return None  # nothing is trained again: another step is delivered
        try:
            scores = [Score.of(lines[event]) if event in lines else None for event in ("before", "after")]
            last = lines["finished"]
            adapter, at = Path(last["adapter"]) if last["adapter"] else None, int(last.get("at", len(log)))
            chosen = (at, find_better_step(folder, at, log))
            return Outcome(
                folder, log.fingerprint, log.size, len(log), *scores, float(last["seconds"]), adapter, *chosen
            )
        except (KeyError, TypeError, ValueError):  # somebody has written in metrics.jsonl: it is looked at anew
            return None
