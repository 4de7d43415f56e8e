"""`zoedge replay`: what was trained, rebuilt from the log alone."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, make_printable

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.run import Run
    from ..core.types import Space
    from ..log.packed import AnyLog


@dataclass
class Replayed:
    """What a log gives.

    Attributes:
        log: the log that was replayed.
        run: the replayed run, whose space holds the trained values.
        steps: how many steps were applied.
        state: the SHA-256 of the trained values in hexadecimal digits, as the log knows it.
        seconds: how long the steps took.
        base: where the base is, if not where the log's recipe says.
    """

    log: AnyLog
    run: Run
    steps: int
    state: str
    seconds: float
    base: Any = None

    @property
    def kind(self) -> str:
        """What `save` writes: adapter, model, or parameters (an optimiser's)."""
        from ..run import identity

        if identity.is_optimizer_log(self.log.header):
            return "parameters"
        return "adapter" if identity.recipe_from_header(self.log.header, "").space.adapter else "model"

    @property
    def fingerprint(self) -> str:
        """The log's last chain value, 32 hexadecimal digits."""
        return str(self.log.fingerprint)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name: an adapter's matrices in float32, or parameters in their own type."""
        return dict(self.attached_space().tensors())

    def attached_space(self) -> Space:
        """Return the space. One whose values are changes of a base's own (virtual tokens) is attached to it first.

        Only then is the base loaded.
        """
        from ..run import replay as run_replay

        if not self.run.space.complete:
            self.run.space = run_replay.attach_replayed(self.run, self.log, self.base)
        return self.run.space

    def save(self, folder: str | os.PathLike[str], tokenizer_from: Path | None = None) -> Path:
        """Write a PEFT adapter; the whole model, of a space that has none; of an optimiser, parameters.safetensors.

        tokenizer_from: a model's folder, whose tokenizer is written beside an adapter. UsageError: something else is there.
        """
        from ..run import identity
        from .export import merged, peft

        folder, space = Path(folder), self.attached_space()
        if self.kind == "parameters":
            from ..core.storage import write_durably

            if (path := folder / "parameters.safetensors").exists():
                raise UsageError(f"{path} is there already; name another folder.")
            folder.mkdir(parents=True, exist_ok=True)
            kept = {name: value.cpu().contiguous() for name, value in space.tensors()}
            write_durably(path, peft.add_metadata(peft.encode_tensors(kept)[0], log=self.fingerprint, state=self.state))
            return folder
        recipe = identity.recipe_from_header(self.log.header, str(self.log.path))
        if self.kind == "adapter":
            return peft.write_peft(self.run, self.log, recipe, folder, tokenizer_from, self.steps)
        merge = merged.write_merged(recipe, space, folder, base_folder=self.base, log=self.log, steps=self.steps)
        return merge.folder


def replay(
    log: str | os.PathLike[str] | AnyLog, at: int | str | None = None, *, base: Any = None, device: str = "cpu"
) -> Replayed:
    """Rebuild what was trained from the log alone: without model, data or forward passes.

    Args:
        log: a run's folder or name, a .zlog, a .zpack or a .zoe.
        at: after how many steps: a number, last or best; None: as the run's eval.select says (of a .zoe: the steps that it
            delivers).
        base: where the base is, for a space that starts from its weights; of an optimiser's log, the parameters' values at its
            start (by name, a module, or a .safetensors file).
        device: cpu or cuda.

    Raises:
        UsageError: there is no such log or step.
        IdentityError: this machine, or the base, would give other bits.
        DamagedError: the log.
        ReplayError: the state is not what the log says.
    """
    from ..core import digests, engine
    from ..recipe.sections import Model
    from ..run import folder as run_folder
    from ..run import replay as run_replay
    from ..run.folder import open_any_log
    from ..scoring.models.loading import resolve_device

    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device: '{make_printable(str(device))}' is not cpu or cuda.")
    resolve_device(Model.model_validate({"source": "", "device": device}))
    journal = open_any_log(os.fspath(log)) if isinstance(log, (str, os.PathLike)) else log
    steps = run_folder.resolve_step(journal, None if at is None else str(at))
    run, began = run_replay.build_replay_run(journal, device, base), time.monotonic()
    for _ in engine.play(run, steps):
        pass
    return Replayed(journal, run, steps, digests.digest(run.space).hex(), time.monotonic() - began, base)
