r"""A shared fine-tune (.zoe, version 1): one file from which anyone who has the base makes the same adapter. Little-endian.

    off  size  field
      0     8  magic 89 5A 46 54 0D 0A 1A 0A
      8   2+2  format major (1), minor (0)
     12     4  steps: after how many the state is delivered; at most the packed log's
     16    16  zero
     32    32  sha256 of the state after them
     64     .  a packed log (packed.py), verbatim: its header has the recipe and the digests of base, tokenizer and data
    -32    32  sha256 of all bytes before

There is no length in it to trust: what lies between is the packed log, whole, or the file is refused. The file names
the base as the recipe does, and is never believed about where that is: a name is looked up as any recipe's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import IdentityError, ReplayError, UsageError, make_printable
from ..log.log import Log
from ..log.packed import pack_log
from ..log.shared import _HEADER_STRUCT, MAGIC, MAJOR, MINOR, SharedLog
from ..run.folder import open_any_log

if TYPE_CHECKING:
    from .replay import Replayed


def share(run: str, at: str | None = None, base: str | None = None) -> tuple[bytes, Any, list[str]]:
    """(the bytes of a .zoe, its log, notes for who shares it) of a run, after as many steps as it delivers (or `at`).

    The log is replayed first. base: as in `zoedge.replay`. UsageError: a packed log, or an optimiser's.
    """
    from ..run import identity
    from . import replay

    log = open_any_log(run)
    if not isinstance(log, Log):
        raise UsageError(f"{run} is packed already. Share it as it is, or pack the run that it was made from.")
    recipe = identity.recipe_from_header(log.header, run)
    found = replay.replay(log, at, base=base)
    head = _HEADER_STRUCT.pack(MAGIC, MAJOR, MINOR, found.steps, bytes(16), bytes.fromhex(found.state))
    raw = head + pack_log(log)
    notes = [
        f"the recipe inside names a place on this machine: {key} {make_printable(value)}"
        for key, value in find_local_paths(recipe)
    ]
    if log.state.end is None:
        notes.append(f"the run is not finished: {len(log):,} of {recipe.train.steps:,} steps")
    return raw + hashlib.sha256(raw).digest(), log, notes


def find_local_paths(recipe: Any) -> Iterator[tuple[str, str]]:
    """Names of files in a recipe that tell of this machine."""
    for key, value in (
        ("model.source", recipe.model.source),
        *((f"data.{which}", getattr(recipe.data, which)) for which in ("train", "valid", "test")),
    ):
        if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
            yield key, value


class AppliedAdapter(NamedTuple):
    """folder: the adapter. of: what was replayed. base: the base's folder."""

    folder: Path
    of: Replayed
    base: Path


def apply(path: Path, folder: Path, base: str | None = None, device: str = "cpu") -> AppliedAdapter:
    """The adapter of a .zoe in `folder`: the base's identity first, then replay, then the state's digest.

    base: a folder or another source; None: as the recipe inside says. IdentityError: another base or tokenizer, or
    arithmetic that differs. ReplayError: another state. UsageError: no .zoe, or `folder` holds something else.
    """
    from ..run.trained import find_base_folder
    from . import replay
    from .export import folder as export_folder

    log = open_any_log(str(path))
    if not isinstance(log, SharedLog):
        raise UsageError(f"{path} is no shared fine-tune (.zoe): `zoedge pack RUN -o FILE.zoe` makes one.")
    export_folder.check_replaceable(Path(os.path.abspath(folder)))
    base_folder, differences = find_base_folder(log, base)
    if differences:
        raise IdentityError(
            f"{path} was not made from what is in {base_folder}: {', '.join(differences)}. Name its base with --base."
        )
    done = replay.replay(log, base=base, device=device)
    if bytes.fromhex(done.state) != log.delivered:
        raise ReplayError(
            f"{path}: after step {done.steps} the state is {done.state[:12]}.. and the file says {log.delivered.hex()[:12]}..: "
            "replay differs here. `zoedge verify --replay` names the first step, tensor and element."
        )
    return AppliedAdapter(done.save(folder, base_folder), done, base_folder)
