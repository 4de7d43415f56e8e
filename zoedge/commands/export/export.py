"""This module writes the trained model of a run for other programs. It reads only the log and the base's files: no rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import IdentityError, UsageError, make_printable
from ...run.folder import open_any_log
from ...run.identity import recipe_from_header
from ...run.trained import find_base_folder, load_trained
from ...scoring.models.loading import load_config
from ..replay import replay
from . import gguf, merged, peft
from .check import check_gguf, check_logits

DEFAULT_NAMES = {"peft": "adapter", "merged": "merged", "gguf-lora": "adapter.gguf"}
MERGED_TYPES = ("fp16", "fp32", "bf16")


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        path: the folder; of gguf-lora, the file.
        merge: of a merged model, how much of the update survived rounding.
        difference: the largest difference that a fresh process found, of logits or (gguf-lora) of weights; None: no check was
            asked for.
    """

    path: Path
    merge: merged.MergeResult | None
    difference: float | None


def export_run(
    run: str,
    kind: str,
    out: Path | None = None,
    *,
    dtype: str | None = None,
    force: bool = False,
    check: bool = False,
    at: str | None = None,
) -> Export:
    """Write what a run trained as a PEFT adapter, a merged model, or llama.cpp's adapter file.

    Args:
        run: the run's folder or name, or its log.
        kind: peft, merged or gguf-lora.
        out: the folder, of gguf-lora the file; None: beside the log.
        dtype: of a merged model: fp16, fp32 or bf16; None: fp16, or as all weights are trained.
        force: write a merged model although most of the update is lost in rounding.
        check: load the export in a fresh process and compare it with the trained model here.
        at: after how many steps: a number, last or best; None: as the run's eval.select says.

    Raises:
        UsageError: no such run, step, kind or type; something else stands at `out`; the space has no such export.
        IdentityError: the base that the recipe names is not the log's.
        DataError: too much of the update would be lost, or the export does not load.
        ReplayError: the check finds another model in the export than the trained one.
    """
    if kind not in DEFAULT_NAMES:
        raise UsageError(f"--to is peft, merged or gguf-lora, not '{make_printable(kind)}'.")
    if dtype not in (None, *MERGED_TYPES):
        raise UsageError(f"--dtype is fp16, fp32 or bf16, not '{make_printable(str(dtype))}'.")
    log = open_any_log(run)
    recipe = recipe_from_header(log.header, run)
    base_folder, differences = find_base_folder(log)
    if differences:
        raise IdentityError(f"{run} does not belong to what is here now: {', '.join(differences)}.")
    replayed = replay(log, at)
    space = replayed.attached_space()
    path, merge = out or log.path.parent / DEFAULT_NAMES[kind], None
    if kind == "peft":
        peft.write_peft(replayed.run, log, recipe, path, base_folder, replayed.steps)
    elif kind == "gguf-lora":
        gguf.write_gguf(space, log, recipe, load_config(base_folder)[0], path, replayed.steps)
    else:
        merge = merged.write_merged(recipe, space, path, dtype, force, log=log, steps=replayed.steps)
    if not check:
        return Export(path, merge, None)
    trained, *_ = load_trained(run, at)
    if kind == "gguf-lora":
        return Export(path, merge, check_gguf(path, trained))
    return Export(path, merge, check_logits(kind, path, trained, merge.dtype if merge else "fp32"))
