"""This module has the errors that zoedge raises: each is one sentence for the user, and one exit code for scripts.

Any other exception is a bug of ours.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

# what libraries say where memory or the number of threads is limited (ulimit -v, -u, a container)
MEMORY_TEXTS = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't start new thread",
    "Cannot allocate memory",
    "cannot allocate memory",
    "failed to map segment",
    "bad_alloc",
    "not enough memory",
)

MAX_FAULTS_SHOWN = 20  # faults of a list that are printed


class ZoedgeError(Exception):
    """An error whose text is shown to the user as it stands: what is wrong, where, and what to do. No traceback is."""

    exit_code = 2


class UsageError(ZoedgeError):
    """The command line or the recipe is wrong."""


class DataError(ZoedgeError):
    """The data or the files of the model are wrong, or the run does not fit into memory."""

    exit_code = 3


class IdentityError(ZoedgeError):
    """The log belongs to another base, tokenizer, data or recipe."""

    exit_code = 4


class DamagedError(ZoedgeError):
    """The bytes of a log or an export are not what was written."""

    exit_code = 5


class LockedError(ZoedgeError):
    """Another process is using the run."""

    exit_code = 6


class DivergedError(ZoedgeError):
    """The loss stays far over its best, or is not finite."""

    exit_code = 7


class ReplayError(ZoedgeError):
    """Replay arrived at other bits than the log says."""

    exit_code = 8


class LostError(ZoedgeError):
    """Another worker of the run is gone, or cannot be reached."""

    exit_code = 74


class StorageError(ZoedgeError):
    """The disk refused a write or a sync. It is never tried again: the kernel may have dropped the page."""

    exit_code = 74


def is_out_of_memory(e: BaseException) -> bool:
    """Return whether an error means that memory ran out.

    Names are compared, because torch may not be loaded, and its CPU allocator has no class of error.
    """
    named = isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError"
    if isinstance(e, OSError):
        return e.errno == errno.ENOMEM
    return named or any(text in str(e) for text in MEMORY_TEXTS)


def suggest_nearest(word: str, choices: object) -> str:
    """Return " - did you mean 'x'?" to append to a sentence, or nothing if no choice is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, [str(c) for c in choices], n=1, cutoff=0.6)  # type: ignore[attr-defined]
    return f" - did you mean '{near[0]}'?" if near else ""


def format_faults(faults: Sequence[str]) -> str:
    """Return the first faults, one on each line, and how many more there are."""
    more = f"\n... and {len(faults) - MAX_FAULTS_SHOWN:,} more" if len(faults) > MAX_FAULTS_SHOWN else ""
    return "\n".join(faults[:MAX_FAULTS_SHOWN]) + more


def format_error(e: object) -> str:
    """Return an error's text as a terminal may be shown it: even the name of a file may hold escape sequences."""
    return "\n".join(make_printable(line, len(line)) for line in str(e).splitlines())


def make_printable(text: str, limit: int = 120) -> str:
    """Make user data safe to print: control characters are escaped, and it is cut to `limit` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(text) <= limit else shown[:limit] + "..."
