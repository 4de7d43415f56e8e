"""What this machine has and does: free memory and its limits, a process's peak, rates of products, a step run for real."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import UsageError, make_printable

BYTE_UNITS = {"": 1, "b": 1}  # kb and k are 1000, kib 1024
for power, letter in enumerate("kmgt", 1):
    BYTE_UNITS |= {letter: 1000**power, f"{letter}b": 1000**power, f"{letter}ib": 1024**power}

CGROUP_ROOT, CGROUP_MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def parse_bytes(text: str, option: str) -> int:
    """Bytes of a text such as 8GB, 7.5GiB or 900MB. UsageError: something else, or nothing."""
    found = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})\s*", text)
    count = int(float(found[1]) * BYTE_UNITS.get(found[2].lower(), 0)) if found else 0
    if not count:
        raise UsageError(
            f"{option}: '{make_printable(text)}' is not an amount of memory, such as 8GB, 7.5GiB or 900MB."
        )
    return count


def format_bytes(count: float) -> str:
    """Bytes for people: 9.8 GB, 81 MB."""
    for unit, name, digits in ((1e9, "GB", 1), (1e6, "MB", 0), (1e3, "kB", 0)):
        if count >= unit:
            return f"{count / unit:.{digits}f} {name}"
    return f"{count:.0f} bytes"


def read_resident_memory() -> int:
    """Bytes that this process holds in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def read_peak_memory() -> int:
    """Bytes of memory that this process has held at most, since it began or since `rest_peak`."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+([0-9]+) kB", status.read_text())):
        return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak_memory() -> None:
    """The peak begins anew at what is resident now (Linux alone)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def read_available_memory() -> Iterator[tuple[int, str]]:
    """(bytes that this process may still take, what says so): of the machine, its control groups, and ZOEDGE_MEMORY.

    Below 0: it holds more than that already.
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
    """(limit, use) of the control groups over this process that have a limit; pages of files give way."""
    for line in CGROUP_MEMBERSHIP.read_text().splitlines() if CGROUP_MEMBERSHIP.exists() else ():
        _, names, path = line.split(":", 2)
        if names and "memory" not in names.split(","):
            continue
        root = CGROUP_ROOT / "memory" if names else CGROUP_ROOT
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if names else ("memory.max", "memory.current")
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            if not folder.is_relative_to(root):
                break
            try:
                most, used = ((folder / name).read_text().strip() for name in files)
                stat = (folder / "memory.stat").read_text()
            except OSError:  # not this process's to see, or none
                continue
            if most.isdigit() and int(most) < 1 << 60:
                cold = re.search(r"^(?:total_)?inactive_file ([0-9]+)$", stat, re.MULTILINE)
                yield int(most), int(used) - (int(cold[1]) if cold else 0)


def read_memory_budget(cuda: bool) -> tuple[int, str]:
    """(bytes for a whole run, where): on a CPU what is free and what this process holds already; the least of the limits."""
    if not cuda:
        left, where = min(read_available_memory())
        return left + read_resident_memory(), where
    import torch

    left, whole = torch.cuda.mem_get_info()
    if text := os.environ.get("ZOEDGE_MEMORY"):
        left = min(left, parse_bytes(text, "ZOEDGE_MEMORY"))
    return left, f"{torch.cuda.get_device_name(0)} ({format_bytes(whole)})"


def read_run_peak(base: Any) -> int:
    """Bytes that a run over a base (models.base.Base) has held at most, where the base lies."""
    if base.device.type == "cpu":
        return read_peak_memory()
    import torch

    return int(torch.cuda.max_memory_reserved())
