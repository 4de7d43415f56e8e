"""How everything here is measured: interleaved repetitions, ratios inside one run, and how noisy the machine was."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LEAST = 0.1  # seconds of a repetition: what is shorter is called several times


def interleaved(items: dict[str, Callable[[], Any]], repeat: int, least: int = 1) -> dict[str, list[float]]:
    """Seconds of a call of each item, A B C A B C ...: a noisy neighbour meets them all. The first round is not counted.

    least: calls a repetition, whose mean counts.
    """
    found: dict[str, list[float]] = {name: [] for name in items}
    calls = dict.fromkeys(items, least)
    for i in range(-1, repeat):
        for name, call in items.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                call()
            seconds = (time.perf_counter() - began) / calls[name]
            if i < 0:
                calls[name] = max(least, math.ceil(LEAST / seconds))
            else:
                found[name].append(seconds)
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """(median, least, largest) of the ratios, each inside one round."""
    found = [a / b for a, b in zip(above, below)]
    return statistics.median(found), min(found), max(found)


def spread(values: Sequence[float]) -> float:
    """Largest over least of the repetitions of one item: 1.0 on a machine of one's own."""
    return max(values) / min(values)


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) in a fresh process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def rest_peak() -> None:
    """The peak starts at what is resident now: loading may hold more, once, than what is measured (Linux alone)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def peak() -> float:
    """MiB of resident memory at most, since `rest_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # bytes on macOS


def machine() -> dict[str, Any]:
    """What the figures depend on, and how busy it is now."""
    import psutil
    import torch

    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in about.splitlines() if ":" in line)
    words = {key.strip(): value.strip() for key, value in lines.items()}
    flags = [f for f in words.get("flags", "").split() if f.startswith(("avx2", "avx512f", "avx512_", "amx"))]
    return {
        "date": time.strftime("%Y-%m-%d"), "cpu": words.get("model name", platform.processor()),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "memory, GiB": round(psutil.virtual_memory().total / 2**30, 1), "flags": " ".join(flags),
        "torch": torch.__version__, "load": [round(x, 2) for x in os.getloadavg()],
    }  # fmt: skip


def arguments(about: str | None, json_name: str) -> argparse.ArgumentParser:
    """What every script takes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a source, as in a recipe")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, default=HERE / "found" / json_name, help="where the figures go")
    return parser


def save(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown that is also legible as plain text."""
    wide = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [head, ["-" * w for w in wide], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, wide)) + " |" for line in lines)
