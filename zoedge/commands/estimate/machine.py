"""What this machine has and does: free memory and its limits, a process's peak, rates of products, a step run for real."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import UsageError, ZoedgeError, plain

UNITS = {"": 1, "b": 1}  # kb and k are 1000, kib 1024
for power, letter in enumerate("kmgt", 1):
    UNITS |= {letter: 1000**power, f"{letter}b": 1000**power, f"{letter}ib": 1024**power}
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def amount(text: str, option: str) -> int:
    """Bytes of a text such as 8GB, 7.5GiB or 900MB. UsageError: something else, or nothing."""
    found = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})\s*", text)
    count = int(float(found[1]) * UNITS.get(found[2].lower(), 0)) if found else 0
    if not count:
        raise UsageError(f"{option}: '{plain(text)}' is not an amount of memory, such as 8GB, 7.5GiB or 900MB.")
    return count


def size(count: float) -> str:
    """Bytes for people: 9.8 GB, 81 MB."""
    for unit, name, digits in ((1e9, "GB", 1), (1e6, "MB", 0), (1e3, "kB", 0)):
        if count >= unit:
            return f"{count / unit:.{digits}f} {name}"
    return f"{count:.0f} bytes"


def resident() -> int:
    """Bytes that this process holds in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Bytes of memory that this process has held at most, since it began or since `rest_peak`."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+([0-9]+) kB", status.read_text())):
        return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def rest_peak() -> None:
    """The peak begins anew at what is resident now (Linux alone)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def limits() -> Iterator[tuple[int, str]]:
    """(bytes that this process may still take, what says so): of the machine, its control groups, and ZOEDGE_MEMORY.

    Below 0: it holds more than that already.
    """
    import psutil

    memory = psutil.virtual_memory()
    yield memory.available, f"this machine ({size(memory.total)})"
    for most, used in groups():
        yield most - used, f"this control group ({size(most)})"
    if text := os.environ.get("ZOEDGE_MEMORY"):
        most = amount(text, "ZOEDGE_MEMORY")
        yield most - resident(), f"ZOEDGE_MEMORY ({size(most)})"


def groups() -> Iterator[tuple[int, int]]:
    """(limit, use) of the control groups over this process that have a limit; pages of files give way."""
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else ():
        _, names, path = line.split(":", 2)
        if names and "memory" not in names.split(","):
            continue
        root = CGROUPS / "memory" if names else CGROUPS
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


def free(cuda: bool) -> tuple[int, str]:
    """(bytes for a whole run, where): on a CPU what is free and what this process holds already; the least of the limits."""
    if not cuda:
        left, where = min(limits())
        return left + resident(), where
    import torch

    left, whole = torch.cuda.mem_get_info()
    if text := os.environ.get("ZOEDGE_MEMORY"):
        left = min(left, amount(text, "ZOEDGE_MEMORY"))
    return left, f"{torch.cuda.get_device_name(0)} ({size(whole)})"


def most(base: Any) -> int:
    """Bytes that a run over a base (models.base.Base) has held at most, where the base lies."""
    if base.device.type == "cpu":
        return peak()
    import torch

    return int(torch.cuda.max_memory_reserved())


class Took:
    """seconds: by part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - began

    def each(self, part: str, items: Iterator[Any]) -> Iterator[Any]:
        """The items, their making timed: not what is done with them."""
        while True:
            with self(part):
                item = next(items, None)
            if item is None:
                return
            yield item


# -- a step for real


def measured(recipe: Any) -> dict[str, dict[str, int]]:
    """{moment: {before, peak}} bytes of a fresh process that loads the base and takes the longest batch's step.

    ZoedgeError: what the run itself would say. It leaves nothing behind but the quantised weights in the cache.
    """
    command = [sys.executable, "-m", "zoedge.commands.estimate.machine"]
    done = subprocess.run(
        command, input=json.dumps(recipe.resolved()), capture_output=True, text=True, errors="replace", check=False
    )
    try:
        found: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        error = ZoedgeError(f"--measure: the process that took the step ended ({done.returncode}): {plain(last, 300)}")
        error.exit_code = 3
        raise error from None
    return found


def child(recipe: Any) -> dict[str, dict[str, int]]:
    """What `measured` says, of this process."""
    import torch

    from ...core import engine
    from ...run import setup
    from ...scoring.models import loading
    from ...scoring.sources import resolve
    from .fit import longest

    cuda = loading.device_of(recipe.model).type == "cuda"
    found: dict[str, dict[str, int]] = {}

    def moment(name: str, act: Callable[[], Any]) -> Any:
        rest_peak()
        before = torch.cuda.memory_reserved() if cuda else resident()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        result = act()
        most = torch.cuda.max_memory_reserved() if cuda else peak()
        found[name] = {"before": before, "peak": max(before, most)}  # Linux counts a process's pages in batches
        return result

    import bitsandbytes  # noqa: F401 - so that it is not counted as the base's
    import transformers  # noqa: F401

    loading.auto_class(resolve.resolve_model(recipe.model.source, recipe.model.revision))
    moment("loading", lambda: loading.prepare(recipe.model))
    bench = moment("base", lambda: setup.Bench.build(recipe))
    with tempfile.TemporaryDirectory() as folder:
        if bench.base.cut:
            keep = bench.base.keep(bench.texts.train, Path(folder))  # the longest sequences come first
            moment("lower layers", lambda: next(keep))
            for _ in keep:
                pass
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        run, at = bench.run(Unwritten()), longest(recipe, bench.texts.train)  # type: ignore[arg-type]

        def step() -> None:
            for seq in range(2):
                run.log.next_seq = seq  # type: ignore[misc]
                engine.advance(run, engine.measure(run, at)._replace(flags=0))

        moment("step", step)
        for examples in (bench.texts.valid, bench.texts.test):
            if examples is not None and len(examples):
                few = examples.head(len(examples))
                moment("look", lambda: look(bench, few))
    return found


def look(bench: Any, examples: Any) -> None:
    """The longest batch of held-out rows, scored."""
    from ...scoring.tasks._training import batches

    longest = list(batches(examples))[-1]
    bench.task.score(bench.base, examples.collate(longest), 1)


class Unwritten:
    """A log of no steps: what estimators and rules may ask of one."""

    writable, next_seq = True, 0

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())


# -- time


def once(act: Callable[[], Any], device: Any, budget: float = 0.1) -> float:
    """Seconds of a call, the least of those that a tenth of a second holds: others may use the machine meanwhile."""
    import torch

    found, end = [], time.perf_counter() + budget
    act()
    while not found or time.perf_counter() < end:
        began = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)


def product(out: int, wide: int, rows: int, base: Any) -> float:
    """Seconds of a multiplication in [rows, wide] x [wide, out], here, in a base's compute type, with the threads as set."""
    import torch

    x, w = (torch.ones(n, wide, dtype=base.dtype, device=base.device) for n in (rows, out))
    return once(lambda: torch.nn.functional.linear(x, w), base.device) / (rows * wide * out)


def dequantised(scheme: str, base: Any) -> float:
    """Seconds of an element of a quantised matrix to be made ready for its product; 0 for `none`."""
    import torch

    w = torch.ones(512, 2048, dtype=base.dtype, device=base.device)
    if scheme == "none":
        return 0.0
    if scheme == "int8":
        codes, scale = w.to(torch.int8), w[:, :1].float()
        return once(lambda: (codes.float() * (scale / 127.0)).to(base.dtype), base.device) / w.numel()
    import bitsandbytes as bnb

    data, quant = bnb.functional.quantize_4bit(w, quant_type=scheme)
    return once(lambda: bnb.functional.dequantize_4bit(data, quant), base.device) / w.numel()


def advanced(recipe: Any, base: Any) -> float:
    """Seconds of a trained element in a step: its directions are drawn, its points written, it is moved."""
    import torch

    from ...core.types import Direction, Key, Leaf, Record

    leaf = Leaf("", 0, torch.zeros(1 << 18, device=base.device), (), 1 << 18)
    slots = recipe.rule.slots(leaf, 2)

    def act() -> None:
        noise = tuple(z for i in range(recipe.rule.draws) if (z := recipe.noise.draw(Key(0, 0, i), leaf)) is not None)
        if noise:
            z = recipe.rule.direction(slots, *noise)
            torch.add(leaf.value, z * 1e-3), torch.add(leaf.value, z * -1e-3)
            recipe.rule.update(dict(slots), [Direction(z, noise)], Record(0, 0, 1e-3, (1.0,), ()))

    return once(act, base.device) / len(leaf.value)


if __name__ == "__main__":
    from ...recipe.check import check

    try:
        print(json.dumps(child(check(json.load(sys.stdin), {}, "the recipe"))))
    except ZoedgeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
