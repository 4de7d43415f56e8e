"""This module has the lock of a log's file: one process writes a run, and the next one is told which process that is."""

from __future__ import annotations

import fcntl
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

from ..core import storage
from ..core.storage import open_file
from ..errors import LockedError, StorageError


def take_lock(path: Path, fd: int) -> None:
    """Lock the open file of the log at `path`. LockedError: another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError(
            f"{path}: another zoedge process{name_holder(path)} is writing this run. Wait for it, or stop it."
        ) from None


def note_holder(path: Path) -> None:
    """Write beside the log which process has it. The lock itself is the kernel's: the file is for a message alone."""
    with suppress(OSError):
        fd = storage.Disk().open(path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(fd, "w") as file:
            file.write(f"{os.getpid()} {platform.node()} {read_boot_id()}\n")


def remove_note(path: Path) -> None:
    """Remove what `note_holder` wrote."""
    with suppress(OSError):
        path.with_suffix(".lock").unlink()


def name_holder(path: Path) -> str:
    """Return, for a message, which process the file beside the log names; '' if it cannot be told."""
    with suppress(OSError, ValueError, StorageError), os.fdopen(open_file(path.with_suffix(".lock")), "rb") as file:
        owner = re.fullmatch(r"([0-9]{1,9}) ([\w.-]{1,255})(?: ([\w-]{1,64}))?\n", file.read(400).decode())
        # after a reboot of this machine, the pid in an old lock file is meaningless
        if owner and not (owner[2] == platform.node() and owner[3] and owner[3] != read_boot_id()):
            return f" (pid {owner[1]} on {owner[2]})"
    return ""


def read_boot_id() -> str:
    """Return an id of this machine's present start; '-' where it has none. After a reboot a pid is another process's."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "-"
