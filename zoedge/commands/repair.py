"""`zoedge repair`: mend the log of a run."""

from __future__ import annotations

from ..log.repair import repair
from ..run.folder import find_log


def repair_run(run: str) -> list[str]:
    """Mend a run's damaged log, or cut it where its damage begins, and return what was done, in sentences.

    Raises:
        UsageError: there is no such run, or nothing is damaged.
        DamagedError: the header cannot be read.
    """
    return repair(find_log(run))
