"""This module knows which logs were begun on this machine: a reward function that another machine's log names is not run."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from ..errors import StorageError, UsageError, make_printable
from ..log.header import Header
from ..recipe.recipe import Recipe
from ..scoring.sources.cache import cache_folder


def note_own_log(header: Header) -> None:
    """Note in the cache that a log with this header is of this machine's own."""
    with suppress(OSError, StorageError):  # without the note, --trust-code is asked for
        log_note(header).touch()


def log_note(header: Header) -> Path:
    """Return the path of the note on a log with this header, which names its recipe, base and data by their digests."""
    return cache_folder("own-logs") / hashlib.sha256(header.encode()).hexdigest()[:32]


def check_code(recipe: Recipe, header: Header, where: str, trusted: bool) -> None:
    """Raise UsageError if a log's recipe rewards by a Python function, and nobody on this machine has asked for that.

    Args:
        recipe: the one in the log.
        where: the log, for the message.
        trusted: whether the user says that the function may run.
    """
    objective = str(recipe.task.objective)
    if trusted or ":" not in objective or log_note(header).exists():
        return
    raise UsageError(
        f"{make_printable(where, 300)} rewards by {objective}, a Python file of the current folder, and was not begun on this "
        "machine, as far as its cache knows. Read the file first; if it may run, add --trust-code."
    )
