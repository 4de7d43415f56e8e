"""`zoedge apply`: the adapter of a shared fine-tune, proven against its base before and its state after."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import IdentityError, ReplayError, UsageError
from ..log.shared import SharedLog
from ..run.folder import open_any_log
from ..run.trained import find_base_folder
from .export.folder import check_replaceable
from .replay import Replayed, replay


class AppliedAdapter(NamedTuple):
    """What was made of a shared fine-tune: the adapter's folder, what was replayed, and the base's folder."""

    folder: Path
    of: Replayed
    base: Path


def apply_shared(path: Path, folder: Path, base: str | None = None, device: str = "cpu") -> AppliedAdapter:
    """Write the adapter of a .zoe: the base's identity is proven first, then the log is replayed, then the state proven.

    Args:
        path: the .zoe.
        folder: where the adapter goes.
        base: a folder or another source of the base; None: as the recipe inside says.
        device: cpu or cuda, where the log is replayed.

    Raises:
        UsageError: `path` is no .zoe, or `folder` holds something else.
        IdentityError: the base or its tokenizer is another, or this machine's arithmetic differs.
        ReplayError: the log leads to another state than the file says.
    """
    log = open_any_log(str(path))
    if not isinstance(log, SharedLog):
        raise UsageError(f"{path} is no shared fine-tune (.zoe): `zoedge pack RUN -o FILE.zoe` makes one.")
    check_replaceable(Path(os.path.abspath(folder)))
    base_folder, differences = find_base_folder(log, base)
    if differences:
        raise IdentityError(
            f"{path} was not made from what is in {base_folder}: {', '.join(differences)}. Name its base with --base."
        )
    replayed = replay(log, base=base, device=device)
    if bytes.fromhex(replayed.state) != log.delivered:
        raise ReplayError(
            f"{path}: after step {replayed.steps} the state is {replayed.state[:12]}.. and the file says "
            f"{log.delivered.hex()[:12]}..: replay differs here. `zoedge verify --replay` names the first step, tensor and "
            "element."
        )
    return AppliedAdapter(replayed.save(folder, base_folder), replayed, base_folder)
