"""The commands as functions: `zoedge.finetune` and `zoedge.replay`. The command line calls these."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, make_printable
from ..log.log import Log
from ..run import folder as run_folder
from ..run import setup

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe
    from ..run.branch import Parent
    from ..run.display import Plain
    from ..run.outcome import Outcome
    from ..run.workers import Workers


def finetune(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *overrides: str | Mapping[str, Any],
    run_dir: str | os.PathLike[str] | None = None,
    resume: str = "auto",
    display: str | Plain = "quiet",
    parent: Parent | None = None,
) -> Outcome | None:
    """Train as a recipe says, or go on where the run's log ends; returns when it is finished.

    Of several processes that a launcher has started, the first returns the outcome, the others None.

    recipe: a file, the name of a shipped recipe, or a recipe's table. overrides: "rule.lr=1e-3", or {"rule.lr": 1e-3}.
    run_dir: the run's folder instead of output.dir/name. resume: auto, or never (refuse an existing run). display: quiet,
    plain, json, auto (the live panel on a terminal), or a display of one's own. parent: whose first steps come first.

    Every error is a ZoedgeError, whose text is the command line's sentence: UsageError (recipe), DataError (data, model),
    IdentityError (the folder's run is another), DamagedError, LockedError, DivergedError, StorageError; train.Stopped
    after Ctrl-C or SIGTERM: nothing is lost, and the same call goes on.
    """
    from ..run.display import make_display as display_of
    from ..run.folder import run_folder
    from ..run.train import train
    from ..run.workers import is_follower, is_launched

    if resume not in ("auto", "never"):
        raise UsageError(f"resume: '{make_printable(str(resume))}' is not auto or never.")
    if isinstance(display, str) and display not in ("quiet", "plain", "json", "auto"):
        raise UsageError(f"display: '{make_printable(display)}' is not quiet, plain, json or auto.")
    checked = load_recipe(recipe, overrides)
    if is_follower():
        follow(checked)
        return None
    show = display_of(display) if isinstance(display, str) else display
    folder = Path(run_dir) if run_dir else run_folder(checked)
    try:
        return train(
            checked, folder, show, resume == "auto", parent, connect_workers(checked) if is_launched() else None
        )
    finally:
        show.close()


def connect_workers(recipe: Recipe | None) -> Workers:
    """The processes of this launch, which share the steps of a run. LostError: they do not find each other."""
    import torch

    from ..run.workers import Workers

    cuda = torch.cuda.is_available() and (recipe is None or recipe.model.device != "cpu")
    return Workers(recipe.train.timeout if recipe else None, cuda)


def follow(recipe: Recipe | None = None) -> None:
    """Take a share of the steps of worker 0's run, until it ends. recipe: None, as worker 0's log says."""
    from tempfile import TemporaryDirectory

    from ..run import follow as run_follow

    with TemporaryDirectory(prefix="zoedge-") as folder:
        run_follow.follow_leader(recipe, Path(folder), connect_workers(recipe))


def load_recipe(recipe: Any, overrides: tuple[Any, ...] = ()) -> Recipe:
    """A checked recipe of whatever stands for one. UsageError: every mistake at once."""
    from ..recipe.reading import build_recipe, read_recipe
    from ..recipe.recipe import Recipe

    texts = [text for some in overrides for text in format_override(some)]
    if isinstance(recipe, Recipe) and not texts:
        return recipe
    table = recipe.resolved() if isinstance(recipe, Recipe) else recipe
    if isinstance(table, (str, os.PathLike)):
        return read_recipe(os.fspath(table), texts)
    if not isinstance(table, Mapping):
        raise UsageError(
            f"recipe: {make_printable(repr(recipe))} is not a file, a shipped recipe's name, or a recipe's table."
        )
    return build_recipe(json.loads(dump_json(dict(table))), {}, "the recipe", texts)


def format_override(some: Any) -> list[str]:
    """key=value texts of one override. JSON is YAML, so a value is read back as what it was."""
    if isinstance(some, str):
        return [some]
    if isinstance(some, Mapping):
        return [f"{key}={dump_json(value)}" for key, value in some.items()]
    raise UsageError(f"'{make_printable(repr(some))}' is not key=value, such as 'rule.lr=1e-3' or {{'rule.lr': 1e-3}}.")


def dump_json(value: Any) -> str:
    """UsageError: not a thing that YAML could have held. Paths are texts."""
    try:
        return json.dumps(value, default=os.fspath, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise UsageError(f"The recipe holds what no recipe can: {make_printable(str(e))}.") from None


def write_exports(bench: setup.Bench, log: Log, folder: Path, show: Plain, steps: int) -> Path | None:
    """The exports that the recipe asks for, of the space as it is after so many steps."""
    from .export import merged, peft

    recipe, adapter = bench.recipe, None
    if "peft" in recipe.output.export:
        with show.phase("writing the adapter"):
            adapter = peft.write_peft(
                bench.run(log), log, recipe, folder / run_folder.ADAPTER_FOLDER, bench.base.path, steps
            )
    if "merged" in recipe.output.export:
        with show.phase("writing the merged model"):
            merged.write_merged(recipe, bench.space, folder / "merged", log=log, steps=steps)
    return adapter


def report_rounding(bench: setup.Bench, folder: Path, show: Plain) -> None:
    """How much of the intended update 16-bit weights took up, all steps so far, on a sample of each tensor."""
    applied, nearest, intended = getattr(bench.space, "kept", (0.0, 0.0, 0.0))
    if intended:
        found = {"applied": applied / intended, "nearest": nearest / intended}
        run_folder.append_metric(folder, event="rounding", storage=bench.space.storage, **found)
        show.say(
            f"{bench.space.storage} weights took up {found['applied']:.1%} of the intended update (stochastic rounding; to "
            f"nearest: {found['nearest']:.1%})"
        )
