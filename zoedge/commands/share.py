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
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DamagedError, IdentityError, ReplayError, StorageError, UsageError, plain
from ..log.log import Log, open_file
from ..log.packed import MAGIC as PACKED
from ..log.packed import Packed, pack

if TYPE_CHECKING:
    from .finetune import Replayed

MAGIC = b"\x89ZFT\r\n\x1a\n"
MAJOR, MINOR = 1, 0
_HEAD = struct.Struct("<8sHHI16s32s")


class Shared(Packed):
    """A .zoe, open for reading: its packed log, and what it delivers. delivers: steps; delivered: the state's SHA-256."""

    def __init__(self, path: Path, raw: bytes):
        """DamagedError unless `raw` is a whole .zoe."""

        def require(ok: Any, what: str) -> None:
            if not ok:
                raise DamagedError(f"{path}: not a readable shared fine-tune: {what}.")

        require(len(raw) >= 64 + 96 + 32, f"{len(raw)} bytes are too few")
        magic, major, minor, steps, zero, state = _HEAD.unpack_from(raw)
        require(magic == MAGIC, "the first 8 bytes are not its magic (was the file changed in transfer?)")
        require(major == MAJOR, f"format {major}.{minor} is not one that this version reads ({MAJOR}.x)")
        require(hashlib.sha256(raw[:-32]).digest() == raw[-32:], "its digest does not match")
        require(not any(zero), "reserved bytes are not zero")
        super().__init__(path, raw[64:-32])
        require(steps <= len(self), f"it delivers step {steps} of {len(self)}")
        require(self.state.hashes.get(steps, state[:24]) == state[:24], f"its log knows another state of step {steps}")
        self.delivers, self.delivered = steps, state


def opened(run: str) -> Any:
    """The log of a run: raw, packed or shared. UsageError: there is none. DamagedError: it is not what was written."""
    from ..run.setup import log_of

    path = log_of(run)
    with os.fdopen(open_file(path), "rb") as file:  # a pipe would make us wait
        try:
            magic = file.read(len(MAGIC))
        except OSError as e:
            raise StorageError(f"{path}: cannot read the log: {e.strerror}.") from e
    return {PACKED: Packed, MAGIC: Shared}.get(magic, Log).open(path)


def share(run: str, at: str | None = None, base: str | None = None) -> tuple[bytes, Any, list[str]]:
    """(the bytes of a .zoe, its log, notes for who shares it) of a run, after as many steps as it delivers (or `at`).

    The log is replayed first. base: as in `zoedge.replay`. UsageError: a packed log, or an optimiser's.
    """
    from ..run import setup
    from . import finetune

    log = opened(run)
    if not isinstance(log, Log):
        raise UsageError(f"{run} is packed already. Share it as it is, or pack the run that it was made from.")
    recipe = setup.recipe_of(log.header, run)
    found = finetune.replay(log, at, base=base)
    head = _HEAD.pack(MAGIC, MAJOR, MINOR, found.steps, bytes(16), bytes.fromhex(found.state))
    raw = head + pack(log)
    notes = [f"the recipe inside names a place on this machine: {key} {plain(value)}" for key, value in places(recipe)]
    if log.state.end is None:
        notes.append(f"the run is not finished: {len(log):,} of {recipe.train.steps:,} steps")
    return raw + hashlib.sha256(raw).digest(), log, notes


def places(recipe: Any) -> Iterator[tuple[str, str]]:
    """Names of files in a recipe that tell of this machine."""
    for key, value in (
        ("model.source", recipe.model.source),
        *((f"data.{which}", getattr(recipe.data, which)) for which in ("train", "valid", "test")),
    ):
        if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
            yield key, value


class Applied(NamedTuple):
    """folder: the adapter. of: what was replayed. base: the base's folder."""

    folder: Path
    of: Replayed
    base: Path


def apply(path: Path, folder: Path, base: str | None = None, device: str = "cpu") -> Applied:
    """The adapter of a .zoe in `folder`: the base's identity first, then replay, then the state's digest.

    base: a folder or another source; None: as the recipe inside says. IdentityError: another base or tokenizer, or
    arithmetic that differs. ReplayError: another state. UsageError: no .zoe, or `folder` holds something else.
    """
    from ..run import setup
    from ..scoring.models import loading
    from ..scoring.sources.resolve import resolve_model
    from . import finetune
    from .export import folder as export_folder

    log = opened(str(path))
    if not isinstance(log, Shared):
        raise UsageError(f"{path} is no shared fine-tune (.zoe): `zoedge pack RUN -o FILE.zoe` makes one.")
    export_folder.replaceable(Path(os.path.abspath(folder)))
    spec = setup.recipe_of(log.header, str(path)).model
    if base:
        spec = spec.model_copy(update={"source": base, "revision": None})
    there = resolve_model(spec.source, spec.revision)
    loading.check_files(there)
    here = replace(log.header, base=loading.identity(there, spec))
    if not (found := setup.differences(log.header, here)):
        tokenizer = loading.load_tokenizer(there)
        found = setup.differences(log.header, replace(here, tokenizer=loading.tokenizer_digest(tokenizer)))
    if found:
        raise IdentityError(
            f"{path} was not made from what is in {there}: {', '.join(found)}. Name its base with --base."
        )
    done = finetune.replay(log, base=base, device=device)
    if bytes.fromhex(done.state) != log.delivered:
        raise ReplayError(
            f"{path}: after step {done.steps} the state is {done.state[:12]}.. and the file says {log.delivered.hex()[:12]}..: "
            "replay differs here. `zoedge verify --replay` names the first step, tensor and element."
        )
    return Applied(done.save(folder, there), done, there)
