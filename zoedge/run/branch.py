"""A branch is a run whose first steps are those of another run, its parent. Its log holds them, so that it replays alone.

A direction is named by its slot. So slot i of the branch is the parent's slot i where that holds an effective step, or the
state right after one; every other slot is a NOTE. Then a HASH follows: the state that the branch goes on from.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..core import digests, engine
from ..core.canonical import encode_canonical
from ..core.storage import publish_file
from ..core.types import Record
from ..errors import IdentityError, LockedError, StorageError, UsageError
from ..log.header import Header
from ..log.log import Log
from ..log.packed import AnyLog
from ..log.slots import HASH, NOTE, STEP, chain_value, encode_slot
from ..recipe.recipe import Recipe
from . import identity, replay

# A branch may change what every record says itself (lr, decay) and what only measuring needs. All else must be as in the
# parent, or the parent's steps would lead to other states.
BRANCH_MAY_CHANGE = (
    "model",
    "data",
    "task",
    "estimator",
    "train",
    "log.sync_every",
    "rule.lr",
    "rule.schedule",
    "rule.weight_decay",
)


class Parent(NamedTuple):
    """A parent run's log, and how many of its steps the branch begins with."""

    log: AnyLog
    steps: int

    def about(self) -> dict[str, Any]:
        """Return what the header of the branch says of its parent."""
        return {"fingerprint": self.log.fingerprint, "step": self.steps}


def check_same_parent(header: Header, parent: Parent, folder: Path) -> None:
    """Raise IdentityError unless the run in `folder` is a branch of this parent."""
    if identity.parent_from_header(header) != parent.about():
        raise IdentityError(
            f"{folder} holds a run that did not begin as {parent.log.path}@{parent.steps}. Choose another name, or --run-dir."
        )


def check_parent(parent: Parent, header: Header, recipe: Recipe) -> None:
    """Raise IdentityError if the parent's steps would lead elsewhere under this recipe; UsageError if no step is left."""
    theirs, ours, where = parent.log.header, header, f"{parent.log.path}@{parent.steps}"
    old = identity.recipe_from_header(theirs, str(parent.log.path))
    if not 0 < parent.steps < recipe.train.steps:
        raise UsageError(
            f"--from {where}: train.steps counts the parent's steps too, and is {recipe.train.steps:,}. Raise it, or take "
            "at least one step and fewer than that."
        )
    changes = list(identity.recipe_changes(old.resolved(), recipe.resolved()))
    wrong = [f"{path} {a} -> {b}" for path, a, b in changes if not can_change(path)]
    for part, word, sections in (
        (recipe.estimator, "reads the past", ("estimator", "train.steps")),
        (recipe.rule, "has schedules of the run's length", ("train.steps",)),
    ):
        if part.bound:
            wrong += [
                f"{p} {a} -> {b} ({part.__class__.__name__} {word})" for p, a, b in changes if p.startswith(sections)
            ]
    if recipe.estimator.bound and not isinstance(parent.log, Log):
        wrong.append("a packed log has no losses for the estimator to read")
    # build_replay_run has proven the parent's self-test; ours is another where weight_decay is another
    asked = replace(theirs, recipe=ours.recipe, data=ours.data, selftest=ours.selftest)
    wrong += identity.identity_differences(asked, ours)
    if wrong:
        raise IdentityError(f"Cannot branch from {where}: its steps are not replayed under: {', '.join(wrong)}.")


def can_change(path: str) -> bool:
    """Return whether a branch may change this key of the recipe."""
    return any(path == word or path.startswith(f"{word}.") for word in BRANCH_MAY_CHANGE)


def begin_branch(parent: Parent, header: Header, recipe: Recipe, path: Path) -> None:
    """Write the log of the branch to `path`, whole or not at all. ReplayError: the parent does not replay to its states."""
    check_parent(parent, header, recipe)
    elsewhere = identity.recipe_from_header(parent.log.header, str(parent.log.path)).model.source != recipe.model.source
    run = replay.build_replay_run(parent.log, base=recipe.model.source if elsewhere else None)
    for _ in engine.play(run, parent.steps):
        pass
    own = header.identity() + encode_canonical(parent.about())
    whole = replace(
        header,
        block=encode_canonical({**header.about, "parent": parent.about()}),
        directions=max(header.directions, parent.log.header.directions),
        run_id=hashlib.sha256(own).digest()[:16],
    )
    try:
        os.close(publish_file(path, encode_branch(parent, whole, digests.digest(run.space)), replace=False))
    except FileExistsError:
        raise LockedError(f"{path}: another zoedge process has begun this run.") from None
    except OSError as e:
        raise StorageError(f"{path}: cannot create the log: {e.strerror}.") from e


def encode_branch(parent: Parent, header: Header, state: bytes) -> bytes:
    """Return the bytes of a log that has the parent's steps, and after them the digest `state`."""
    raw = header.encode()
    out, link, known = [raw], raw[480:496], parent.log.state.hashes
    origin = identity.note_digest(parent.about())

    def put(kind: int, step: int, record: Record | None = None, digest: bytes = b"") -> None:
        nonlocal link
        body = encode_slot(header.slot_size, kind, len(out) - 1, step, record, digest)
        link = chain_value(link, body)
        out.append(body + link)

    for step in range(parent.steps):
        record = parent.log[step]
        if len(out) - 1 < record.seq and step in known:
            put(HASH, step, digest=known[step])
        while len(out) - 1 < record.seq:
            put(NOTE, step, digest=origin)
        put(STEP, step, record)
    put(HASH, parent.steps, digest=state)
    return b"".join(out)
