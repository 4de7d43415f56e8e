"""A training step against plain inference and against MeZO's own step: time, and peak memory.

    python benchmarks/step.py                                            a subset that holds every target
    python benchmarks/step.py --base nf4 --space qv all last --batch 16 --tokens 64 --queries 1 8
    python benchmarks/step.py --full-grid                                hours

step: `engine.play`'s, the log made durable each time. floor: one forward of transformers' own model over the same two
copies of the batch, on the same base, with only the logits that the loss reads. mezo: MeZO's published step on the same
base, LoRA matrices (or weights), batch and threads, one sequence an option; mezo once: one sequence an example, as
zoedge; mezo fp32: on the base in float32. All sequences are of `tokens` random tokens, where nothing is gained by less
padding; 0: film reviews, in zoedge's own batches of like lengths, and for MeZO in batches at random, as published. q
queries are compared with q floors.

space: qv (LoRA on q_proj and v_proj), all (on every Linear), last (of the last third of the layers, with the trunk
cache; quarter: of the last quarter), full (all weights; bf16, fp32), scales (nf4, int8).
Times come from one process a base, in turn; every peak from a process of its own, from when the base is loaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from _measure import apart, arguments, interleaved, machine, peak, ratio, rest_peak, save, spread, table

BASES = {
    "nf4": {"quantization": "nf4"}, "int8": {"quantization": "int8"},
    "bf16": {"quantization": "none", "compute_dtype": "bf16"},
    "fp32": {"quantization": "none", "compute_dtype": "fp32"},
}  # fmt: skip
LORA = "qv", "all", "last", "quarter"
SPACES = *LORA, "full", "scales"
GRID = {
    "base": list(BASES), "space": list(SPACES), "task": ["classify", "lm"], "batch": [1, 4, 16], "tokens": [32, 64, 128],
    "queries": [1, 4, 8],
}  # fmt: skip
CLASSES = " terrible", " great"


class Cell(NamedTuple):
    base: str
    space: str
    task: str
    batch: int
    tokens: int

    @property
    def exists(self) -> bool:
        quantised = self.base in ("nf4", "int8")
        if self.task == "lm" and not self.tokens:
            return False  # MeZO's loss is written for texts of one length there
        return {"full": not quantised, "scales": quantised}.get(self.space, True)

    def __str__(self) -> str:
        return f"{self.base} {self.space} {self.task} {self.size}"

    @property
    def size(self) -> str:
        return f"{self.batch} x {self.tokens or 'reviews'}"


DEFAULT = {
    Cell("nf4", "qv", "classify", 16, 0): [1], Cell("nf4", "all", "classify", 16, 0): [1],
    Cell("nf4", "last", "classify", 16, 0): [1], Cell("nf4", "all", "classify", 16, 64): [1],
    Cell("nf4", "qv", "classify", 4, 32): [1, 8], Cell("nf4", "all", "classify", 4, 32): [1, 8],
    Cell("nf4", "qv", "lm", 16, 64): [1], Cell("nf4", "scales", "classify", 4, 32): [1],
    Cell("bf16", "full", "classify", 2, 32): [1], Cell("bf16", "full", "classify", 16, 64): [1],
}  # fmt: skip
REMEMBERED = [
    Cell("nf4", "all", "classify", 16, 64), Cell("bf16", "full", "classify", 16, 64)
]  # fmt: skip


# -- a cell, made


def recipe(args: argparse.Namespace, cell: Cell, queries: int = 1, folder: str = ".") -> Any:
    from zoedge.recipe.check import check

    part = args.layers // {"last": 3, "quarter": 4}.get(cell.space, 1)
    lora = {"name": "lora", "layers": f"last {part}"}
    if cell.space == "qv":
        lora["targets"] = args.qv
    table = {
        "version": 1, "name": "benchmark", "model": {"source": args.model, **BASES[cell.base]},
        "data": {"train": "made here"}, "task": cell.task, "noise": "rademacher",
        "space": lora if cell.space in LORA else {"name": cell.space},
        "estimator": {"name": "two_sided", "eps": 3e-3, "queries": queries}, "rule": {"name": "sgd", "lr": 1e-7},
        "train": {"steps": 100_000, "batch": cell.batch}, "output": {"dir": folder, "export": []},
    }  # fmt: skip
    return check(table, {}, "benchmark")


def examples(base: Any, cell: Cell) -> Any:
    """Four batches of random tokens, the same in every run; or 16 of film reviews: two windows that zoedge sorts in."""
    import torch

    from zoedge.scoring.tasks._examples import Examples

    if not cell.tokens:
        from zoedge.recipe.reading import read_recipe
        from zoedge.scoring import texts

        return texts.load_datasets(
            read_recipe("two-sided", []), base.tokenizer, 128, base.model.config.vocab_size
        ).train.head(16 * cell.batch)
    made, seeded = Examples(1), torch.Generator().manual_seed(0)
    words = [base.tokenizer(word, add_special_tokens=False).input_ids[-1] for word in CLASSES]
    for i in range(4 * cell.batch):
        ids = torch.randint(3, base.model.config.vocab_size, (cell.tokens + 1,), generator=seeded).tolist()
        if cell.task == "lm":
            made.add(ids, list(range(1, len(ids))), 0, f"{i}")
        else:
            made.add([*ids[:-1], words[0]], [cell.tokens], i % 2, f"{i}")
            made.targets[-1] = words
    return made


@contextmanager
def prepared(args: argparse.Namespace, cell: Cell, base: Any, folder: Path) -> Iterator[Any]:
    """A run's parts over `base`, which is as it was afterwards: its hooks are of this space alone."""
    from zoedge.run import replay, setup
    from zoedge.scoring import texts

    hooks = [some for m in base.model.modules() for some in (m._forward_hooks, m._forward_pre_hooks)]
    before, project = [dict(some) for some in hooks], base.project
    forwards = {m: vars(m).get("forward") for m in base.model.modules()}
    made = recipe(args, cell)
    space = made.space.attach(base, made.seed, replay.initial_noise(made.noise))
    some = examples(base, cell)
    sum(base.cache_trunk(some, folder))
    try:
        task = made.task.make_training(some, made.seed, cell.batch)
        yield setup.Measuring(made, base, space, texts.Datasets(some, None, None, {}), task)
    finally:
        for now, then in zip(hooks, before):
            now.clear()
            now.update(then)
        for module, forward in forwards.items():
            vars(module).pop("forward", None) if forward is None else vars(module).update(forward=forward)
        base.project = project
        base.kept.clear()
        base.set_cut(0)


class Step:
    """A call is a step of the real loop. shares: of each call, what was not the task's scoring."""

    def __init__(self, bench: Any, args: argparse.Namespace, cell: Cell, queries: int, folder: Path, stack: ExitStack):
        from dataclasses import replace

        from zoedge.core import engine
        from zoedge.run import setup

        folder.mkdir()
        bench = replace(bench, recipe=recipe(args, cell, queries, str(folder)))
        run = bench.run(stack.enter_context(setup.begin_run(bench, folder)))
        self.task, self.shares, self.scoring = run.task, [], 0.0
        run.task = self
        self.steps = engine.play(run, run.steps)

    def __call__(self) -> Any:
        self.scoring, began = 0.0, time.perf_counter()
        record = next(self.steps)
        self.shares.append(1 - self.scoring / (time.perf_counter() - began))
        return record

    def batch(self, step: int) -> Any:
        return self.task.batch(step)

    def score(self, *args: Any) -> Any:
        began = time.perf_counter()
        found = self.task.score(*args)
        self.scoring += time.perf_counter() - began
        return found


def mezo(bench: Any, base: Any, once: bool = False) -> Callable[[], float]:
    """MeZO's step on copies of what `bench` trains, over `base`, which may be the same model in another type.

    Rows stand in an order by a hash of their content, so that some in a row are a batch at random.
    """
    import _plain

    size, some = bench.recipe.train.batch, bench.texts.train
    batches = [some.collate(range(i, i + size)) for i in range(0, len(some) // size * size, size)]
    losses = itertools.cycle([_plain.loss_of(base.model, batch, once) for batch in batches])

    def step(parameters: Any) -> float:
        return _plain.mezo(parameters, next(losses), 3e-3, 1e-7, 0)

    if not hasattr(bench.space, "scale"):
        return partial(step, [p.data for p in base.model.parameters()])
    matrices = {name: value.to(base.dtype, copy=True) for name, value in bench.space.tensors()}

    def call() -> float:
        with _plain.adapted(base.model, matrices, bench.space.scale):  # not there in the other items' forwards
            return step(list(matrices.values()))

    return call


# -- what is measured


def times(args: argparse.Namespace, name: str, cells: dict[Cell, list[int]]) -> list[dict[str, Any]]:
    """Seconds of every item of the cells of one base, in one process."""
    import torch
    from _plain import floor

    from zoedge.scoring.models.loading import load_base

    torch.set_num_threads(args.threads)
    base, full = load_base(recipe(args, next(iter(cells))).model), None
    if name in ("nf4", "int8") and any(cell.space in ("qv", "all") for cell in cells):
        full = load_base(recipe(args, Cell("fp32", "all", "classify", 1, 1)).model)
    found = []
    for cell, queries in cells.items():
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            bench = stack.enter_context(prepared(args, cell, base, folder))
            at = itertools.count()
            steps = {f"step {q}": Step(bench, args, cell, q, folder / str(q), stack) for q in queries}
            items: dict[str, Any] = {"floor": lambda: floor(base, bench.task.batch(next(at)), 2), **steps}
            if cell.space != "scales":
                items["mezo"] = mezo(bench, base)
            if cell.space == "full" and cell.task == "classify":
                items["mezo once"] = mezo(bench, base, once=True)
            if full and cell.space in ("qv", "all"):
                items["mezo fp32"] = mezo(bench, full)
            row = {**cell._asdict(), "trained": bench.header().elements}
            row["seconds"] = interleaved(items, args.repeat, 1 if cell.tokens else 2)
            row["largest"] = getattr(bench.space, "largest", 0) * base.dtype.itemsize / 2**20
            row["others"] = {k: step.shares[-args.repeat :] for k, step in steps.items()}
        found.append(row)
        print("  " + line(row), flush=True)
    return found


def held(args: argparse.Namespace, cell: Cell, kind: str) -> float:
    """MiB at the peak of some calls of one item, in this process alone."""
    import torch
    from _plain import floor

    from zoedge.scoring.models.loading import load_base, release_memory

    torch.set_num_threads(args.threads)
    base = load_base(recipe(args, cell).model)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        if kind.startswith("plain"):
            batch = examples(base, cell).collate(range(cell.batch))
            call: Callable[[], Any] = partial(floor, base, batch, int(kind.split()[1]))
        else:
            bench = stack.enter_context(prepared(args, cell, base, folder))
            call = mezo(bench, base) if kind == "mezo" else Step(bench, args, cell, 1, folder / "1", stack)
        release_memory()
        rest_peak()
        for _ in range(3):
            call()
    return peak()


def kinds(cell: Cell) -> list[str]:
    """Whose memory is compared. full and scales hold one point at a time: so does what they are compared with."""
    plain = "plain 2" if cell.space in LORA else "plain 1"
    return [plain, "step", *(["mezo"] if cell.space != "scales" else [])]


# -- what it means


def cell_of(row: dict[str, Any]) -> Cell:
    return Cell(*(row[key] for key in Cell._fields))


def ratios(row: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """(median, least, largest) of what is compared, by name."""
    seconds, found = row["seconds"], {}
    for name, values in seconds.items():
        if name.startswith("step"):
            q = int(name.split()[1])
            more = "" if q == 1 else f", {q} queries"
            found[f"step / floor{more}"] = ratio(values, [q * x for x in seconds["floor"]])
            if q > 1 and "step 1" in seconds:
                found[f"{q} queries / {q} steps"] = ratio(values, [q * x for x in seconds["step 1"]])
            others = row["others"][name]
            found[f"not forwards{more}"] = statistics.median(others), min(others), max(others)
        if name.startswith("mezo") and "step 1" in seconds:
            found[f"{name} / step"] = ratio(values, seconds["step 1"])
    if memory := row.get("memory"):
        plain = next(kind for kind in memory if kind.startswith("plain"))
        found["memory: step / plain"] = ratio(memory["step"], memory[plain])
        if "mezo" in memory:
            found["memory: mezo / step"] = ratio(memory["mezo"], memory["step"])
    return found


def target(row: dict[str, Any], name: str) -> tuple[str, float] | None:
    """("<=" or ">=", bound) of a ratio of a cell, if there is one."""
    cell, shape = cell_of(row), (row["batch"], row["tokens"])
    lora = cell.space in ("qv", "all")
    if name == "step / floor" and lora and cell.task == "classify" and shape in ((16, 64), (4, 32)):
        return "<=", 1.1 if shape == (16, 64) else 1.2
    if name == "mezo / step" and cell.base == "nf4" and cell.batch == 16:
        if cell.task == "lm" and lora:
            return ">=", 2.5
        if cell.task == "classify" and cell.space in ("qv", "all", "last"):
            return ">=", 6.0 if lora else 12.0
    if name == "mezo fp32 / step" and cell.base == "nf4" and cell.batch == 16 and cell.task == "classify" and lora:
        return ">=", 15.0
    if name == "mezo once / step" and cell[:2] == ("bf16", "full") and shape in ((2, 32), (16, 64)):
        return ">=", 6.0 if shape == (2, 32) else 2.7
    if name == "8 queries / 8 steps":
        return "<=", 0.7
    if name == "not forwards":
        return "<=", 0.03
    if name == "memory: step / plain" and cell.space != "scales":
        plain = statistics.median(next(v for k, v in row["memory"].items() if k.startswith("plain")))
        return "<=", 1.1 if cell.space in LORA else 1 + row["largest"] / plain
    return None


def line(row: dict[str, Any]) -> str:
    cell = cell_of(row)
    return f"{cell}: " + ", ".join(f"{k} {1000 * statistics.median(v):.1f} ms" for k, v in row["seconds"].items())


def text(rows: list[dict[str, Any]]) -> str:
    """The tables: medians, how far an item's own repetitions lay apart, and ratios beside their targets."""
    first, second = [], []
    for row in rows:
        cell = [str(row[key]) for key in ("base", "space", "task")] + [cell_of(row).size]
        for name, values in row["seconds"].items():
            first.append([*cell, name, f"{1000 * statistics.median(values):.1f} ms", f"{spread(values):.2f}"])
        for name, values in row.get("memory", {}).items():
            first.append([*cell, f"memory: {name}", f"{statistics.median(values):.0f} MiB", f"{spread(values):.2f}"])
        for name, (middle, least, most) in ratios(row).items():
            wanted = target(row, name)
            want = f"{wanted[0]} {wanted[1]:.4g}" if wanted else ""
            met = "" if not wanted else "yes" if (middle <= wanted[1]) == (wanted[0] == "<=") else "no"
            second.append([*cell, name, f"{middle:.3g}", f"{least:.3g} .. {most:.3g}", want, met])
    words = ["base", "space", "task", "batch"]
    return "\n\n".join(
        [
            table([*words, "what", "median", "max/min"], first),
            table([*words, "ratio", "median", "range", "target", "met"], second),
        ]
    )


def chosen(args: argparse.Namespace) -> tuple[dict[Cell, list[int]], list[Cell]]:
    """(cells and their queries; cells whose memory is measured)."""
    given = {key: getattr(args, key) for key in GRID}
    if args.full_grid:
        given = GRID
    elif not any(given.values()):
        return DEFAULT, REMEMBERED
    few = {"base": ["nf4"], "space": ["all"], "task": ["classify"], "batch": [16], "tokens": [64], "queries": [1]}
    lists = {key: given[key] or few[key] for key in GRID}
    queries = sorted({1, *lists.pop("queries")})
    cells = [cell for cell in itertools.starmap(Cell, itertools.product(*lists.values())) if cell.exists]
    return dict.fromkeys(cells, queries), cells


def main() -> None:
    parser = arguments(__doc__, "step.json")
    for name, values in GRID.items():
        kind: Any = type(values[0])
        parser.add_argument(f"--{name}", nargs="+", type=kind, choices=values if kind is str else None)
    parser.add_argument("--full-grid", action="store_true", help="everything: hours")
    parser.add_argument("--memory", type=int, default=2, metavar="N", help="repetitions of each peak; 0: none")
    args = parser.parse_args()
    cells, remembered = chosen(args)
    shape(args)
    rows: list[dict[str, Any]] = []
    found = {
        "machine": machine() | {"threads": args.threads},
        "model": args.model,
        "repeat": args.repeat,
        "cells": rows,
    }
    for name in dict.fromkeys(cell.base for cell in cells):
        rows += apart(times, args, name, {cell: q for cell, q in cells.items() if cell.base == name})
        save(args.json, found)
    for cell in remembered if args.memory else ():
        memory: dict[str, list[float]] = {kind: [] for kind in kinds(cell)}
        for i, kind in itertools.product(range(args.memory), memory):
            if kind != "mezo" or i == 0:  # no target is of it, and it takes the longest
                memory[kind].append(apart(held, args, cell, kind))
        next(row for row in rows if cell_of(row) == cell)["memory"] = memory
        print(f"  {cell}: " + ", ".join(f"{k} {statistics.median(v):.0f} MiB" for k, v in memory.items()), flush=True)
        save(args.json, found)
    found["machine"]["load after"] = machine()["load"]
    save(args.json, found)
    print(f"\n{found['machine']}\n\n{text(rows)}")


def shape(args: argparse.Namespace) -> None:
    """What a recipe needs to know of the model: layers, and the names of q and v."""
    from zoedge.scoring.sources.resolve import resolve_model

    config = json.loads((resolve_model(args.model, None) / "config.json").read_bytes())
    args.layers, args.qv = config["num_hidden_layers"], ["q_proj", "v_proj"]


if __name__ == "__main__":
    main()
