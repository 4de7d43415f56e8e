"""The commands as functions: `zoedge.finetune` and `zoedge.replay`. The command line calls these."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, plain

if TYPE_CHECKING:
    from torch import Tensor

    from ..recipe.check import Recipe
    from ..run.branch import Parent
    from ..run.display import Plain
    from ..run.train import Outcome
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
    from ..run.display import display as display_of
    from ..run.setup import folder_of
    from ..run.train import train
    from ..run.workers import follows, launched

    if resume not in ("auto", "never"):
        raise UsageError(f"resume: '{plain(str(resume))}' is not auto or never.")
    if isinstance(display, str) and display not in ("quiet", "plain", "json", "auto"):
        raise UsageError(f"display: '{plain(display)}' is not quiet, plain, json or auto.")
    checked = recipe_from(recipe, overrides)
    if follows():
        follow(checked)
        return None
    show = display_of(display) if isinstance(display, str) else display
    folder = Path(run_dir) if run_dir else folder_of(checked)
    try:
        return train(checked, folder, show, resume == "auto", parent, team(checked) if launched() else None)
    finally:
        show.close()


def team(recipe: Recipe | None) -> Workers:
    """The processes of this launch, which share the steps of a run. LostError: they do not find each other."""
    import torch

    from ..run.workers import Workers

    cuda = torch.cuda.is_available() and (recipe is None or recipe.model.device != "cpu")
    return Workers(recipe.train.timeout if recipe else None, cuda)


def follow(recipe: Recipe | None = None) -> None:
    """Take a share of the steps of worker 0's run, until it ends. recipe: None, as worker 0's log says."""
    from tempfile import TemporaryDirectory

    from ..run import train

    with TemporaryDirectory(prefix="zoedge-") as folder:
        train.follow(recipe, Path(folder), team(recipe))


def recipe_from(recipe: Any, overrides: tuple[Any, ...] = ()) -> Recipe:
    """A checked recipe of whatever stands for one. UsageError: every mistake at once."""
    from ..recipe.check import Recipe, made, read

    texts = [text for some in overrides for text in assignments(some)]
    if isinstance(recipe, Recipe) and not texts:
        return recipe
    table = recipe.resolved() if isinstance(recipe, Recipe) else recipe
    if isinstance(table, (str, os.PathLike)):
        return read(os.fspath(table), texts)
    if not isinstance(table, Mapping):
        raise UsageError(f"recipe: {plain(repr(recipe))} is not a file, a shipped recipe's name, or a recipe's table.")
    return made(json.loads(as_json(dict(table))), {}, "the recipe", texts)


def assignments(some: Any) -> list[str]:
    """key=value texts of one override. JSON is YAML, so a value is read back as what it was."""
    if isinstance(some, str):
        return [some]
    if isinstance(some, Mapping):
        return [f"{key}={as_json(value)}" for key, value in some.items()]
    raise UsageError(f"'{plain(repr(some))}' is not key=value, such as 'rule.lr=1e-3' or {{'rule.lr': 1e-3}}.")


def as_json(value: Any) -> str:
    """UsageError: not a thing that YAML could have held. Paths are texts."""
    try:
        return json.dumps(value, default=os.fspath, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise UsageError(f"The recipe holds what no recipe can: {plain(str(e))}.") from None


@dataclass
class Replayed:
    """What a log gives. steps: how many were applied. state: SHA-256 of the trained values, as the log knows it.

    fingerprint: of the log, 32 hexadecimal digits. seconds: that the steps took.
    """

    log: Any
    run: Any
    steps: int
    state: str
    seconds: float
    base: Any = None

    @property
    def kind(self) -> str:
        """What `save` writes: adapter, model, or parameters (an optimiser's)."""
        from ..run import setup

        if setup.of_optimizer(self.log.header):
            return "parameters"
        return "adapter" if getattr(setup.recipe_of(self.log.header, "").space, "adapter", True) else "model"

    @property
    def fingerprint(self) -> str:
        return str(self.log.fingerprint)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name: an adapter's matrices in float32, or parameters in their own type."""
        return dict(self.whole().tensors())

    def whole(self) -> Any:
        """The space; of one that is a change of a base's values (virtual tokens), over that base, loaded now."""
        from ..run import setup

        if not getattr(self.run.space, "complete", True):
            self.run.space = setup.over_base(self.run, self.log, self.base)
        return self.run.space

    def save(self, folder: str | os.PathLike[str], tokenizer_from: Path | None = None) -> Path:
        """Write a PEFT adapter; the whole model, of a space that has none; of an optimiser, parameters.safetensors.

        tokenizer_from: a model's folder, whose tokenizer is written beside an adapter. UsageError: something else is there.
        """
        from ..run import setup
        from .export import folder as export_folder

        folder, space = Path(folder), self.whole()
        if self.kind == "parameters":
            from ..core.storage import write_durably

            if (path := folder / "parameters.safetensors").exists():
                raise UsageError(f"{path} is there already; name another folder.")
            folder.mkdir(parents=True, exist_ok=True)
            kept = {name: value.cpu().contiguous() for name, value in space.tensors()}
            write_durably(
                path, export_folder.labelled(export_folder.serialised(kept)[0], log=self.fingerprint, state=self.state)
            )
            return folder
        recipe = setup.recipe_of(self.log.header, str(self.log.path))
        if self.kind == "adapter":
            return export_folder.peft(self.run, self.log, recipe, folder, tokenizer_from, self.steps)
        made = export_folder.merged(recipe, space, folder, base_folder=self.base, log=self.log, steps=self.steps)
        return made.folder


def replay(
    log: str | os.PathLike[str] | Any, at: int | str | None = None, *, base: Any = None, device: str = "cpu"
) -> Replayed:
    """What was trained, from the log alone: no model, no data, no forward pass.

    log: a run's folder or name, a .zlog, a .zpack or a .zoe. at: after how many steps: a number, last or best; None: as
    the run's eval.select says (of a .zoe: the steps that it delivers). base: where the base is, for a space that starts
    from its weights; of an optimiser's log, the parameters' values at its start (by name, a module, or a .safetensors
    file). device: cpu or cuda.

    UsageError: no such log or step. IdentityError: this machine, or the base, would give other bits. DamagedError: the
    log. ReplayError: the state is not what the log says.
    """
    from ..core import engine
    from ..recipe.check import Model
    from ..run import setup
    from ..scoring.models.loading import device_of
    from .share import opened

    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device: '{plain(str(device))}' is not cpu or cuda.")
    device_of(Model.model_validate({"source": "", "device": device}))
    journal = opened(os.fspath(log)) if isinstance(log, (str, os.PathLike)) else log
    steps = setup.step_of(journal, None if at is None else str(at))
    made, began = setup.replayer(journal, device, base), time.monotonic()
    for _ in engine.play(made, steps):
        pass
    return Replayed(journal, made, steps, engine.digest(made.space).hex(), time.monotonic() - began, base)
