r"""`zoedge pack`: a fine-tune as one small file (.zoe, version 1), of which anyone who has the base makes the same adapter.

Its integers are little-endian.

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

from ..errors import UsageError, make_printable
from ..log.log import Log
from ..log.packed import pack_log
from ..log.shared import _HEADER_STRUCT, MAGIC, MAJOR, MINOR
from ..recipe.recipe import Recipe
from ..run.folder import open_any_log
from ..run.identity import recipe_from_header
from .replay import replay


def pack_run(run: str, at: str | None = None, base: str | None = None) -> tuple[bytes, Log, list[str]]:
    """Replay a run's log and return it as one file to share.

    Args:
        run: the run's folder or name, or its .zlog.
        at: after how many steps: a number, last or best; None: as the run's eval.select says.
        base: where the base is, for a space that starts from its weights; None: as the recipe says.

    Returns:
        The bytes of a .zoe, the log, and notes for whoever shares it, a sentence each.

    Raises:
        UsageError: the log is packed already, or is an optimiser's.
    """
    log = open_any_log(run)
    if not isinstance(log, Log):
        raise UsageError(f"{run} is packed already. Share it as it is, or pack the run that it was made from.")
    recipe = recipe_from_header(log.header, run)
    replayed = replay(log, at, base=base)
    head = _HEADER_STRUCT.pack(MAGIC, MAJOR, MINOR, replayed.steps, bytes(16), bytes.fromhex(replayed.state))
    raw = head + pack_log(log)
    notes = [
        f"the recipe inside names a place on this machine: {key} {make_printable(value)}"
        for key, value in find_local_paths(recipe)
    ]
    if log.state.end is None:
        notes.append(f"the run is not finished: {len(log):,} of {recipe.train.steps:,} steps")
    return raw + hashlib.sha256(raw).digest(), log, notes


def find_local_paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the keys of a recipe that name files of this machine, with what they say."""
    for key, value in (
        ("model.source", recipe.model.source),
        ("data.train", recipe.data.train),
        ("data.valid", recipe.data.valid),
        ("data.test", recipe.data.test),
    ):
        if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
            yield key, value
