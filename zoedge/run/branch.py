"""A branch: a run whose first steps are another's. Its log holds them itself, so that it replays alone.

Slot i is the parent's slot i where that has an effective step, or the state right after one; every other slot is a NOTE,
because a direction is named by its slot. Then a HASH: the state that the branch goes on from, replayed from the parent.
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
from ..log.slots import HASH, NOTE, STEP, chain_value, encode_slot
from ..recipe.recipe import Recipe
from . import identity, replay

# what a record says itself (lr, decay), or what only measuring needs; all else must be the parent's, or its steps would
# not give its states
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
    """A log, raw or packed, and how many of its steps are taken."""

    log: Any
    steps: int

    def about(self) -> dict[str, Any]:
        """What the branch's header says of it."""
        return {"fingerprint": self.log.fingerprint, "step": self.steps}


def check_same_parent(header: Header, parent: Parent, folder: Path) -> None:
    """IdentityError: the run in `folder` is no branch of it."""
    if identity.parent_from_header(header) != parent.about():
        raise IdentityError(
            f"{folder} holds a run that did not begin as {parent.log.path}@{parent.steps}. Choose another name, or --run-dir."
        )


def check_parent(parent: Parent, header: Header, recipe: Recipe) -> None:
    """IdentityError: under this recipe the parent's steps would lead elsewhere. UsageError: nothing is left to train."""
    theirs, ours, where = parent.log.header, header, f"{parent.log.path}@{parent.steps}"
    old = identity.recipe_from_header(theirs, str(parent.log.path))
    if not 0 < parent.steps < recipe.train.steps:
        raise UsageError(
            f"--from {where}: train.steps counts the parent's steps too, and is {recipe.train.steps:,}. Raise it, or take "
            "at least one step and fewer than that."
        )
    found = list(identity.recipe_changes(old.resolved(), recipe.resolved()))
    wrong = [f"{path} {a} -> {b}" for path, a, b in found if not can_change(path)]
    for part, word, sections in (
        (recipe.estimator, "reads the past", ("estimator", "train.steps")),
        (recipe.rule, "has schedules of the run's length", ("train.steps",)),
    ):
        if part.bound:
            wrong += [
                f"{p} {a} -> {b} ({part.__class__.__name__} {word})" for p, a, b in found if p.startswith(sections)
            ]
    if recipe.estimator.bound and not isinstance(parent.log, Log):
        wrong.append("a packed log has no losses for the estimator to read")
    # `replayer` asks for the parent's self-test, and ours is another where weight_decay is
    asked = replace(theirs, recipe=ours.recipe, data=ours.data, selftest=ours.selftest)
    wrong += identity.identity_differences(asked, ours)
    if wrong:
        raise IdentityError(f"Cannot branch from {where}: its steps are not replayed under: {', '.join(wrong)}.")


def can_change(path: str) -> bool:
    return any(path == word or path.startswith(f"{word}.") for word in BRANCH_MAY_CHANGE)


def begin_branch(parent: Parent, header: Header, recipe: Recipe, path: Path) -> None:
    """The branch's log at `path`, whole or not at all. ReplayError: the parent is not what it says."""
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
    """The bytes of a log that begins with the parent's steps, and `state` after them."""
    raw = header.encode()
    out, link, known = [raw], raw[480:496], parent.log.state.hashes
    origin = hashlib.sha256(encode_canonical(parent.about())).digest()

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
