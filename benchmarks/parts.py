"""Replay, noise, loading and the log, each by itself.

    python benchmarks/parts.py [replay] [noise] [load] [log]

replay: steps/s of `engine.play` from a log on disk, its state hashes compared, for LoRA of 1 M and 10 M elements (SGD,
Rademacher) and for all weights of the model. noise: elements/s on one thread, and over torch.normal's. load: seconds and
peak memory, a process each, from the published weights (quantising them) and from the cache. log: durable steps/s, and
over writing and syncing as many bytes by hand.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _measure import apart, arguments, interleaved, machine, peak, ratio, rest_peak, save, spread, table

SITES = {"LoRA 1 M": 32, "LoRA 10 M": 320}  # matrices of 2048 x 2048, rank 8
STEPS = {"LoRA 1 M": 300, "LoRA 10 M": 30, "full bf16": 1, "full fp32": 1}
SHAPE = 2048, 2048  # of the elements that are drawn
APPENDED = 100

Row = dict[str, Any]


def row(what: str, unit: str, values: list[float], over: str = "", ratios: Any = None, target: Any = None) -> Row:
    """values: one a repetition. over: what `ratios` (median, least, largest) is to. target: (of value or ratio, bound)."""
    return {"what": what, "unit": unit, "values": values, "over": over, "ratio": ratios, "target": target}


def header(elements: int, sync_every: int = 1) -> Any:
    from zoedge.log.header import DIGEST_FIELDS, Header

    return Header(
        block=b"{}", directions=2, noise=1, rule=1, seed=0, elements=elements, hash_every=100, sync_every=sync_every,
        **{name: bytes(32) for name in DIGEST_FIELDS},
    )  # fmt: skip


def record(log: Any) -> Any:
    from zoedge.core.exact import bits16
    from zoedge.core.types import Record

    return Record(len(log), log.next_seq, bits16(1e-7), (bits16(0.7),), (0.5, 0.5))


# -- replay


def replay(args: argparse.Namespace, folder: Path) -> list[Row]:
    from zoedge.methods.noise.rademacher import Rademacher
    from zoedge.methods.spaces.lora import Lora
    from zoedge.recipe.check import check
    from zoedge.run import replay as run_replay
    from zoedge.scoring.models.loading import load_base

    spaces = {}
    for name, sites in SITES.items():
        shapes = [[f"model.layers.{i}", *SHAPE] for i in range(sites)]
        spaces[name] = Lora().blank({"shapes": shapes}, 0, Rademacher())
    for kind in ("bf16", "fp32"):
        model = {"source": args.model, "quantization": "none", "compute_dtype": kind}
        made = check({"version": 1, "model": model, "data": {"train": "none"}, "space": "full"}, {}, "benchmark")
        spaces[f"full {kind}"] = made.space.attach(load_base(made.model), 0, Rademacher())
    items = {}
    for name, space in spaces.items():
        path = folder / name.replace(" ", "")
        again = space.value.clone() if hasattr(space, "value") else None
        written(path, space, STEPS[name])
        items[name] = partial(replayed, path, space, again, run_replay.rounding_bits())
    found = interleaved(items, args.repeat)
    rate = {name: [STEPS[name] / s for s in values] for name, values in found.items()}
    target = {"LoRA 1 M": ("value", ">=", 1000)}
    return [row(f"replay {k}", "steps/s", v, target=target.get(k)) for k, v in rate.items()]


def running(log: Any, space: Any, bits: Any = None) -> Any:
    from zoedge.core import run as core_run
    from zoedge.methods.noise.rademacher import Rademacher
    from zoedge.methods.rules.sgd import Sgd

    return core_run.Run(0, 1000, log, space, Rademacher(), Sgd(lr=1e-7), bits=bits)


def written(path: Path, space: Any, steps: int) -> None:
    """A log of some steps with the hashes that replay compares; `space` ends where they lead, or stays (full)."""
    from zoedge.core import digests, engine
    from zoedge.log.log import Log

    with Log.create(path, header(sum(len(leaf.value) for leaf in space.leaves()))) as log:
        run = running(log, space)
        for step in range(steps):
            made = log.append(record(log))
            if hasattr(space, "value"):
                engine.advance(run, made)
                log.seal(step + 1, partial(digests.digest, space))


def replayed(path: Path, space: Any, start: Any, bits: Any) -> None:
    from zoedge.core import engine
    from zoedge.log.log import Log

    if start is not None:
        space.value.copy_(start)
    log = Log.open(path)
    for _ in engine.play(running(log, space, bits), len(log)):
        pass


# -- noise


def noise(args: argparse.Namespace, folder: Path) -> list[Row]:
    import math

    import torch

    from zoedge.core.parts import list_words, load_part
    from zoedge.core.types import Key, Leaf, Part

    torch.set_num_threads(1)
    size, seq = math.prod(SHAPE), count()
    leaf = Leaf("w", 0, torch.zeros(size), (Part("w", 0, SHAPE),), size)
    items: dict[str, Callable[[], Any]] = {
        "torch.normal": lambda: torch.normal(0.0, 1.0, size=SHAPE),
        "torch.randn": lambda: torch.randn(SHAPE),
    }
    kinds = {word: load_part("noise", word)() for word in list_words("methods.noise")}
    items |= {word: lambda made=made: made.draw(Key(0, next(seq), 0), leaf) for word, made in kinds.items()}
    found = interleaved(items, args.repeat)
    torch.set_num_threads(args.threads)
    plain = found["torch.normal"]
    return [
        row(
            f"noise {name}", "M elements/s", [size / s / 1e6 for s in values], "torch.normal", ratio(plain, values),
            ("ratio", ">=", 4) if name == "rademacher" else None,
        )
        for name, values in found.items()
    ]  # fmt: skip


# -- load


def load(args: argparse.Namespace, folder: Path) -> list[Row]:
    kinds = [f"{base} from {place}" for base in ("nf4", "int8") for place in ("source", "cache")]
    for kind in kinds[1::2]:
        apart(loaded, args, kind)  # so that it is in the cache
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(args.repeat):
        for kind in kinds:
            found[kind].append(apart(loaded, args, kind))
    rows = [row(f"load {kind}", "s", [s for s, _ in values]) for kind, values in found.items()]
    return rows + [row(f"load {kind}: peak", "MiB", [m for _, m in values]) for kind, values in found.items()]


def loaded(args: argparse.Namespace, kind: str) -> tuple[float, float]:
    """(seconds, MiB at the peak) of loading; what is imported is not counted in the seconds."""
    import importlib

    import torch

    from zoedge.recipe.sections import Model
    from zoedge.scoring.models import loading
    from zoedge.scoring.sources.resolve import resolve_model

    for name in ("bitsandbytes", "transformers.models.auto.modeling_auto"):  # after zoedge, which goes offline
        importlib.import_module(name)
    torch.set_num_threads(args.threads)
    base, _, place = kind.split()
    spec = Model(source=args.model, quantization=base)
    rest_peak()
    began = time.perf_counter()
    if place == "cache":
        loading.load_base(spec)
    else:
        made = loading.from_pretrained(
            resolve_model(args.model, None), torch.device("cpu"), "auto", loading.bitsandbytes_config(spec)
        )
        loading.make_deterministic(made, torch.float32)
    return time.perf_counter() - began, peak()


# -- log


def log(args: argparse.Namespace, folder: Path) -> list[Row]:
    from zoedge.core.storage import disk
    from zoedge.log.log import Log

    number = count()

    def appended(sync_every: int) -> None:
        with Log.create(folder / f"log{next(number)}", header(1, sync_every)) as log:
            for _ in range(APPENDED):
                log.append(record(log))

    def by_hand() -> None:
        fd = os.open(folder / f"log{next(number)}", os.O_WRONLY | os.O_CREAT)
        for _ in range(APPENDED):
            os.write(fd, bytes(64))
            disk.datasync(fd)
        os.close(fd)

    items = {"every step": partial(appended, 1), "every 64 steps": partial(appended, 64), "by hand": by_hand}
    found = interleaved(items, args.repeat)
    plain = found["by hand"]
    return [
        row(f"log synced {k}", "steps/s", [APPENDED / s for s in v], "by hand", ratio(plain, v))
        for k, v in found.items()
    ]


PARTS = {"replay": replay, "noise": noise, "load": load, "log": log}


def text(rows: list[Row]) -> str:
    lines = []
    for r in rows:
        middle = statistics.median(r["values"])
        shown, target, met = "", "", ""
        if r["ratio"]:
            shown = "{:.3g} ({:.3g} .. {:.3g})".format(*r["ratio"]) + f" x {r['over']}"
        if r["target"]:
            of, sign, bound = r["target"]
            value = r["ratio"][0] if of == "ratio" else middle
            target, met = f"{sign} {bound}", "yes" if (value >= bound) == (sign == ">=") else "no"
        lines.append([r["what"], f"{middle:,.4g} {r['unit']}", f"{spread(r['values']):.2f}", shown, target, met])
    return table(["what", "median", "max/min", "against", "target", "met"], lines)


def main() -> None:
    parser = arguments(__doc__, "parts.json")
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    args = parser.parse_args()
    if wrong := set(args.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(wrong)}: there is {' '.join(PARTS)}")
    import torch

    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    found = {"machine": machine() | {"threads": args.threads}, "model": args.model, "repeat": args.repeat, "rows": rows}
    for name in args.parts or PARTS:
        with TemporaryDirectory(dir=".") as folder:  # not in /tmp, which may be memory: syncing would cost nothing
            rows += PARTS[name](args, Path(folder))
        save(args.json, found)
    found["machine"]["load after"] = machine()["load"]
    save(args.json, found)
    print(f"{found['machine']}\n\n{text(rows)}")


if __name__ == "__main__":
    main()
