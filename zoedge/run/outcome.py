"""This module has the outcome of a run: what `finetune` returns of a run that has just finished, or finished before."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import DamagedError, ZoedgeError
from ..log.log import Log
from ..recipe.recipe import Recipe
from ..recipe.sections import Eval
from . import folder as run_folder
from . import identity
from .evaluate import ClosedForm, Score


@dataclass
class Outcome:
    """What a finished run returns.

    Attributes:
        folder: the run's folder.
        fingerprint: the log's, 32 hexadecimal digits.
        size: bytes of the log.
        steps: of the log.
        before: the base's score on the test rows (else the validation rows); None: there are no such rows.
        closed_form: the closed-form start on the same rows; None: the task has none, or it is not asked for.
        after: the trained model's score on the same rows.
        seconds: that the run took, without earlier sessions.
        adapter: the folder of the exported adapter, if one was asked for.
        at: the step that is delivered and scored.
        better: an earlier step whose validation loss was clearly lower, if there is one.
        chosen: why that step is delivered, where it is not the last one, or drifted beyond eval.drift; else "".
    """

    folder: Path
    fingerprint: str
    size: int
    steps: int
    before: Score | None
    closed_form: ClosedForm | None
    after: Score | None
    seconds: float
    adapter: Path | None
    at: int
    better: int | None
    chosen: str


def find_better_step(folder: Path, at: int, log: Log, limit: float | None) -> int | None:
    """Return the best step, if it lies before `at` and two later evaluations or more had a higher loss.

    limit: eval.drift, as `choose_best` reads it.
    """
    looks = run_folder.validation_looks(folder, log)
    best = run_folder.choose_best(looks, limit) if looks else at
    return (
        best if best < at and sum(step > best and looks[step].loss > looks[best].loss for step in looks) >= 2 else None
    )


def explain_delivery(folder: Path, at: int, log: Log, options: Eval) -> str:
    """Return `Outcome.chosen` of a run that delivers the step `at`. options: the recipe's section eval."""
    looks, limit = run_folder.validation_looks(folder, log), options.drift
    exceeds = limit is not None and at in looks and not looks[at].is_within(limit)
    return run_folder.explain_choice(looks, at, limit) if at < len(log) or exceeds else ""


def digest_row_files(recipe: Recipe) -> dict[str, str]:
    """Return the SHA-256 of the local files of rows that a recipe names, by its key; a folder's files count as its sets."""
    from ..scoring.sources.file_digests import file_sha256
    from ..scoring.sources.places import locate
    from ..scoring.sources.resolve import find_split_file

    digests = {}
    for which, source in (("train", recipe.data.train), ("valid", recipe.data.valid), ("test", recipe.data.test)):
        with suppress(ZoedgeError, OSError):
            named = find_split_file(recipe.data.train, which) if source is None or which == "train" else source
            named = source if which == "train" and named is None else named
            if isinstance(named, str) and (path := Path(locate(named)).expanduser()).is_file():
                digests[which] = file_sha256(path)
    return digests


def load_outcome(recipe: Recipe, folder: Path, path: Path) -> Outcome | None:
    """Return the outcome of a run that this recipe has finished in `folder`; None: there is none.

    Raises:
        IdentityError: another recipe has begun the run there.
    """
    with Log.open(path) as log:
        identity.check_same_recipe(log.header, recipe, folder)
        files = digest_row_files(recipe)
        lines = {str(line.get("event")): line for line in run_folder.read_metrics(folder)}
        if log.state.end is None or "finished" not in lines:
            return None
        if log.header.about["recipe"]["data"] != recipe.resolved()["data"]:
            return None  # other rows are asked for: they are read, and refused if they are not those of the log
        if (lines["finished"].get("select", "last"), lines["finished"].get("drift")) != (
            recipe.eval.select,
            recipe.eval.drift,
        ):
            return None  # nothing is trained again: another step is delivered
        if any(digest != lines["finished"].get("files", {}).get(key, digest) for key, digest in files.items()):
            return None  # a file of rows has changed: the rows are read, and refused if they are not those of the log
        try:
            last = lines["finished"]
            at = int(last.get("at", len(log)))
            return Outcome(
                folder=folder,
                fingerprint=log.fingerprint,
                size=log.size,
                steps=len(log),
                before=Score.of(lines["before"]) if "before" in lines else None,
                closed_form=ClosedForm.of(lines["closed_form"]) if "closed_form" in lines else None,
                after=Score.of(lines["after"]) if "after" in lines else None,
                seconds=float(last["seconds"]),
                adapter=folder / run_folder.ADAPTER_FOLDER
                if last["adapter"]
                else None,  # the folder may have been copied
                at=at,
                better=find_better_step(folder, at, log, recipe.eval.drift),
                chosen=explain_delivery(folder, at, log, recipe.eval),
            )
        except (
            KeyError,
            TypeError,
            ValueError,
            DamagedError,
        ):  # somebody has edited metrics.jsonl: the run is evaluated again
            return None
