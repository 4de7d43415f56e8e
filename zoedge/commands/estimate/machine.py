"""This module asks the machine about memory: what is free, which limits hold, and what this process has used at most."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError, make_printable

if TYPE_CHECKING:
    from ...scoring.models.base import Base

BYTE_UNITS = {"": 1, "b": 1}  # kb and k are 1000, kib 1024
for power, letter in enumerate("kmgt", 1):
    BYTE_UNITS |= {letter: 1000**power, f"{letter}b": 1000**power, f"{letter}ib": 1024**power}

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")


def parse_bytes(text: str, option: str) -> int:
    """Return the bytes that a text such as 8GB, 7.5GiB or 900MB names. UsageError: it names no amount, or 0.

    option: where the text was given, for the message.
    """
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})\s*", text)
    count = int(float(match[1]) * BYTE_UNITS.get(match[2].lower(), 0)) if match else 0
    if not count:
        raise UsageError(
            f"{option}: '{make_printable(text)}' is not an amount of memory, such as 8GB, 7.5GiB or 900MB."
        )
    return count


def format_bytes(count: float) -> str:
    """Return bytes as people write them: 9.8 GB, 81 MB."""
    for unit, name, digits in ((1e9, "GB", 1), (1e6, "MB", 0), (1e3, "kB", 0)):
        if count >= unit:
            return f"{count / unit:.{digits}f} {name}"
    return f"{count:.0f} bytes"


def read_resident_memory() -> int:
    """Return the bytes of memory that this process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def read_peak_memory() -> int:
    """Return the most bytes that this process has held since it began, or since `reset_peak_memory`."""
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s+([0-9]+) kB", status.read_text())):
        return int(match[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak_memory() -> None:
    """Let the peak begin anew at what this process holds now. Only Linux can do this; elsewhere nothing happens."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def read_available_memory() -> Iterator[tuple[int, str]]:
    """Yield (bytes that this process may still take, which limit that is): the machine's, its control groups', ZOEDGE_MEMORY's.

    A negative number means that the process already holds more than the limit.
    """
    import psutil

    memory = psutil.virtual_memory()
    yield memory.available, f"this machine ({format_bytes(memory.total)})"
    for most, used in read_cgroup_limits():
        yield most - used, f"this control group ({format_bytes(most)})"
    if text := os.environ.get("ZOEDGE_MEMORY"):
        most = parse_bytes(text, "ZOEDGE_MEMORY")
        yield most - read_resident_memory(), f"ZOEDGE_MEMORY ({format_bytes(most)})"


def read_cgroup_limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, use) in bytes of every control group above this process that has a limit.

    Pages of files that have not been used lately do not count as used: the kernel gives them up when memory is needed.
    """
    for line in CGROUP_MEMBERSHIP.read_text().splitlines() if CGROUP_MEMBERSHIP.exists() else ():
        _, names, path = line.split(":", 2)
        if names and "memory" not in names.split(","):
            continue
        root = CGROUP_ROOT / "memory" if names else CGROUP_ROOT
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if names else ("memory.max", "memory.current")
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            try:
                most, used = ((folder / name).read_text().strip() for name in files)
                stat = (folder / "memory.stat").read_text()
            except OSError:  # there is no such file, or this process may not read it
                continue
            if most.isdigit() and int(most) < 1 << 60:
                cold = re.search(r"^(?:total_)?inactive_file ([0-9]+)$", stat, re.MULTILINE)
                yield int(most), int(used) - (int(cold[1]) if cold else 0)


def read_memory_budget(cuda: bool) -> tuple[int, str]:
    """Return (bytes that a whole run may take, which limit that is).

    On a CPU the budget is what is free plus what this process holds already; on a GPU, what the device has free.
    """
    if not cuda:
        left, where = min(read_available_memory())
        return left + read_resident_memory(), where
    import torch

    left, whole = torch.cuda.mem_get_info()
    if text := os.environ.get("ZOEDGE_MEMORY"):
        left = min(left, parse_bytes(text, "ZOEDGE_MEMORY"))
    return left, f"{torch.cuda.get_device_name(0)} ({format_bytes(whole)})"


def read_run_peak(base: Base) -> int:
    """Return the most bytes that a run over this base has held, on the device where the base lies."""
    if base.device.type == "cpu":
        return read_peak_memory()
    import torch

    return int(torch.cuda.max_memory_reserved())
