"""One sentence an error, and the exit code that a script can rely on. Anything else that is raised is a bug of ours."""

from __future__ import annotations

from collections.abc import Sequence

MAX_FAULTS_SHOWN = 20  # faults of a list that are printed


class ZoedgeError(Exception):
    """Its text is shown to the user as it stands: what was found, where, and what to do. Never a traceback."""

    exit_code = 2


class UsageError(ZoedgeError):
    """The command line or the recipe."""


class DataError(ZoedgeError):
    """The data, the model's files, or a run that will not fit."""

    exit_code = 3


class IdentityError(ZoedgeError):
    """The log belongs to another base, tokenizer, data or recipe."""

    exit_code = 4


class DamagedError(ZoedgeError):
    """A log (or an export) whose bytes are not what was written."""

    exit_code = 5


class LockedError(ZoedgeError):
    """Another process is using the run."""

    exit_code = 6


class DivergedError(ZoedgeError):
    """Training left the finite numbers."""

    exit_code = 7


class ReplayError(ZoedgeError):
    """Replay arrived at other bits than the log says."""

    exit_code = 8


class LostError(ZoedgeError):
    """Another worker of the run is gone, or cannot be reached."""

    exit_code = 74


class StorageError(ZoedgeError):
    """The disk refused a write or a sync. Never retried: the kernel may have dropped the page."""

    exit_code = 74


def is_out_of_memory(e: BaseException) -> bool:
    """Is it memory that ran out? By name, because torch need not be loaded; its CPU allocator has no class of its own."""
    named = isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError"
    return named or any(text in str(e) for text in ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED"))


def suggest_nearest(word: str, choices: object) -> str:
    """- did you mean 'x'? (or nothing), to be appended to a sentence."""
    from difflib import get_close_matches

    found = get_close_matches(word, [str(c) for c in choices], n=1, cutoff=0.6)  # type: ignore[attr-defined]
    return f" - did you mean '{found[0]}'?" if found else ""


def format_faults(faults: Sequence[str]) -> str:
    """The first faults, a line each, and how many more there are."""
    more = f"\n... and {len(faults) - MAX_FAULTS_SHOWN:,} more" if len(faults) > MAX_FAULTS_SHOWN else ""
    return "\n".join(faults[:MAX_FAULTS_SHOWN]) + more


def format_error(e: object) -> str:
    """A sentence, or several lines of it, as a terminal may be shown it: names of files may hold escape sequences too."""
    return "\n".join(make_printable(line, len(line)) for line in str(e).splitlines())


def make_printable(text: str, limit: int = 120) -> str:
    """User data made safe to print: control characters escaped, cut to `limit` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(text) <= limit else shown[:limit] + "..."
