"""More devices: workers on one machine, one that is far away on paper, and a model that does not fit.

    python benchmarks/scale.py [--repeat 3] [--smoke]

workers: seconds a step of processes with one thread each, started in turn; LoRA on all layers in nf4, film reviews, one
query and eight; payload: bytes that all workers together send a step. gather: one exchange of as many numbers over the
loopback. offload: the same model in fp32, of which max_memory holds a part; weights read from the disk a step of 8 rows,
against two sequential forwards a query, and seconds against the model in memory. on paper: what the measured parts come to
for more workers here, and on a home link (50 ms, 10 Mbit/s); 1 % of a step is taken not to divide.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _measure import arguments, machine, ratio, save, table

BATCH, QUERIES, STEPS = 32, (1, 8), 3
COUNTS = 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024
HELD = "250MB"  # of 538 MB in fp32: embeddings, and the upper blocks that fit beside them
PACKET = 66  # bytes of Ethernet, IP and TCP around a message


def settings(args: argparse.Namespace, queries: int, *more: str) -> list[str]:
    size = 8 if args.smoke else args.batch
    return [
        f"model.source={args.model}", f"data.limit={4 * size}", "data.valid=null", "data.test=null", "space.layers=all",
        f"train.batch={size}", "train.threads=1", f"estimator.queries={queries}", *more,
    ]  # fmt: skip


def worker(args: argparse.Namespace) -> None:
    """One of several: seconds of each step and each exchange, as JSON on the last line of worker 0."""
    import torch

    torch.set_num_threads(1)
    from zoedge.core import engine
    from zoedge.recipe.reading import read_recipe
    from zoedge.run import setup
    from zoedge.run.workers import Workers

    bench = setup.Measuring.build(read_recipe("two-sided", settings(args, args.worker)))
    workers = Workers() if os.environ["WORLD_SIZE"] != "1" else None
    seconds, sent = [], []
    with TemporaryDirectory() as folder, setup.begin_run(bench, Path(folder)) as log:
        began = time.perf_counter()
        for _ in engine.play(bench.run(log, workers), STEPS + 1):
            seconds.append(time.perf_counter() - began)
            sent.append(workers.sent if workers else 0)
            began = time.perf_counter()
    gathers = []
    for _ in range(200 if workers else 0):
        began = time.perf_counter()
        workers._gather([0.0] * (1 + args.worker))
        gathers.append(time.perf_counter() - began)
    found = {
        "seconds": seconds[1:],
        "sent": (sent[-1] - sent[0]) / STEPS,
        "gather": statistics.median(gathers or [0.0]),
    }
    if os.environ["RANK"] == "0":
        print(json.dumps(found))


def launched(args: argparse.Namespace, count: int, queries: int) -> dict[str, Any]:
    """What worker 0 of so many measured."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1]), "WORLD_SIZE": str(count)}
    command = [sys.executable, __file__, "--worker", str(queries), "--batch", str(args.batch), "--model", args.model]
    started = []
    for rank in range(count):
        env = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
        env["OMP_NUM_THREADS"] = "1"
        started.append(
            subprocess.Popen([*command, *["--smoke"] * args.smoke], env=env, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"{count} workers: exit codes {[process.returncode for process in started]}")
    found: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    return found


def workers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians of the steps of each launch; one and two workers take turns."""
    rows = []
    for queries in QUERIES:
        row: dict[str, Any] = {"queries": queries, "seconds": {"1": [], "2": []}}
        for _ in range(args.repeat):
            for count in (1, 2):
                found = launched(args, count, queries)
                row["seconds"][str(count)].append(statistics.median(found["seconds"]))
                if count > 1:
                    row["payload"], row["gather"] = count * found["sent"], found["gather"]
        rows.append(row)
        print(f"  {row}", flush=True)
    return rows


def offload(args: argparse.Namespace) -> list[dict[str, Any]]:
    """MB of weights that are put into modules a step, and seconds, with the model in memory and with a part of it."""
    import torch
    from accelerate import hooks

    from zoedge.core import engine
    from zoedge.recipe.reading import read_recipe
    from zoedge.run import setup

    torch.set_num_threads(1)
    real, moved = hooks.set_module_tensor_to_device, []

    def counted(module: Any, name: str, device: Any, value: Any = None, **more: Any) -> Any:
        if value is not None:
            moved.append(value.nbytes)
        return real(module, name, device, value=value, **more)

    hooks.set_module_tensor_to_device = counted
    rows = []
    limits = {"memory": [], "disk": [f"model.max_memory={{cpu: {args.held}}}"]}
    for queries in QUERIES:
        row: dict[str, Any] = {"queries": queries, "seconds": {name: [] for name in limits}, "held": args.held}
        some = [x for x in settings(args, queries, "model.quantization=none") if "threads" not in x]
        some += ["train.batch=8", "model.compute_dtype=fp32"]
        with TemporaryDirectory() as folder:
            steps = {}
            for name, more in limits.items():
                bench = setup.Measuring.build(read_recipe("two-sided", [*some, *more]))
                Path(folder, name).mkdir()
                steps[name] = engine.play(bench.run(setup.begin_run(bench, Path(folder, name))), STEPS + args.repeat)
                next(steps[name])
            row["blocks"] = sum(any(p.is_meta for p in block.parameters()) for block in bench.base.blocks)
            for _ in range(args.repeat):
                for name, play in steps.items():
                    moved.clear()
                    began = time.perf_counter()
                    next(play)
                    row["seconds"][name].append(time.perf_counter() - began)
                    row["moved" if name == "disk" else "none"] = sum(moved)
            with torch.inference_mode():
                moved.clear()
                bench.base.model(input_ids=torch.zeros(1, 2, dtype=torch.long))
                row["once"] = sum(moved)
        rows.append(row)
        print(f"  {row}", flush=True)
    return rows


def step_time(row: dict[str, Any], count: int, latency: float, rate: float, rest: float) -> float:
    """Seconds of a step of so many workers, from the measured parts; nan: more workers than points x rows.

    The forward divides among them (workers.split), the rest does not; gloo's ring passes every worker's message
    through all others: count - 1 hops of a message each.
    """
    from zoedge.run.workers import split_work

    points = 2 * row["queries"]
    groups, parts = split_work(points, count)
    if parts > row["batch"]:
        return math.nan
    share = math.ceil(points / groups) * math.ceil(row["batch"] / parts) / (points * row["batch"])
    numbers = 1 + math.ceil(points / groups) * (1 if parts == 1 else math.ceil(row["batch"] / parts))
    whole = statistics.median(row["seconds"]["1"])
    return (whole - rest) * share + rest + (count - 1) * (latency + (8 * numbers + PACKET) / rate)


def text(found: dict[str, Any]) -> str:
    lines = []
    for row in found["workers"]:
        one, two = (statistics.median(row["seconds"][n]) for n in "12")
        low, mid, high = sorted(ratio(row["seconds"]["1"], row["seconds"]["2"]))
        lines.append([
            f"{row['batch']} rows, {row['queries']} queries", f"{one:.2f} s", f"{two:.2f} s", f"{mid:.2f}",
            f"{low:.2f} .. {high:.2f}", f"{row['payload']:.0f}", f"{1e3 * row['gather']:.2f} ms",
        ])  # fmt: skip
    whole = [table(["step", "1 worker", "2 workers", "speed-up", "range", "payload, bytes", "gather"], lines)]
    lines = []
    for row in found["offload"]:
        sequential = row["once"] * 2 * row["queries"]
        slower = ratio(row["seconds"]["disk"], row["seconds"]["memory"])
        lines.append([
            f"{row['queries']} queries", f"{row['held']}: {row['blocks']} blocks on the disk", f"{row['moved'] / 1e6:.0f} MB",
            f"{sequential / 1e6:.0f} MB", f"{slower[0]:.2f} ({slower[1]:.2f} .. {slower[2]:.2f})",
        ])  # fmt: skip
    whole.append(table(["offload", "held", "read a step", "by sequential forwards", "time over in memory"], lines))
    lines = []
    links = {"this machine": lambda row: (row["gather"], math.inf), "home": lambda row: (0.05, 10e6 / 8)}
    for row in found["workers"]:
        rest = 0.01 * statistics.median(row["seconds"]["1"])  # docs/benchmarks.md: what is no forward, at this size
        for name, link in links.items():
            base = statistics.median(row["seconds"]["1"])
            speeds = [base / step_time(row, n, *link(row), rest) for n in COUNTS]
            lines.append([f"{row['queries']} queries, {name}", *("-" if math.isnan(s) else f"{s:.3g}" for s in speeds)])
    whole.append(table(["on paper: speed-up with", *map(str, COUNTS)], lines))
    return "\n\n".join(whole)


def main() -> None:
    parser = arguments(__doc__, "scale.json")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--held", default=HELD, help="of the weights, for offload")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="few rows: does it run?")
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    found: dict[str, Any] = {"machine": machine() | {"threads": 1}, "model": args.model}
    found["cells"] = {"workers": workers(args), "offload": offload(args)}
    for row in found["cells"]["workers"]:
        row["batch"] = 8 if args.smoke else args.batch
    found["machine"]["load after"] = machine()["load"]
    save(args.json, found)
    print(text(found["cells"]))


if __name__ == "__main__":
    main()
