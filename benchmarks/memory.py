"""What fits: the peak memory and the CPU time of a step, zoedge beside first-order LoRA on the same 4-bit base.

    python benchmarks/memory.py [--depth 1 8 all] [--tokens 64 512 2048] [--batch 1 16] [--most 8192] [--smoke]

All train LoRA of rank 8 on every Linear of the last `depth` blocks, in float32 over the nf4 base, and classify random tokens
of one length by two options at the last one. zoedge: two-sided steps, both points in one forward. plain: PEFT's own LoRA,
torch's backward, AdamW. checkpointed: the same, every block's activations computed again in the backward pass. micro: the
same, one row at a time. block: the strictest way that we know (as MeBP, arXiv 2510.03425): one row at a time, every block's
input on the disk in bf16, one block at a time computed again and differentiated. Each takes two steps on rows that it has
not seen, in a process of its own: what zoedge computes once a row (the lower blocks) is in its figures. The peak is of the
resident set, from when the base is loaded, weights included. glibc is told to give freed memory over 256 KiB back at once:
else most of what first order seems to need on long texts is freed memory (1 x 512 on all blocks, checkpointed: 1,109 instead
of 636 MiB). Cells of more than `most` tokens a batch are left out, because on two cores they take an hour; over 12 GiB a cell
ends. Time is CPU time of one thread.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from _measure import apart, arguments, machine, peak, rest_peak, save, table

KINDS = "zoedge", "plain", "checkpointed", "micro", "block"
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
LIMIT = 12 << 30  # bytes of data that a process may have
STEPS, EPS, LR = 2, 3e-3, 1e-4


class Cell(NamedTuple):
    """A size: the trained blocks ("all", or how many of the last), the tokens of a row, the rows of a batch."""

    depth: str
    tokens: int
    batch: int

    def __str__(self) -> str:
        return f"{self.depth} blocks, {self.batch} x {self.tokens}"


def make_recipe(args: Any, cell: Cell, folder: Path) -> Any:
    """Return the recipe of zoedge's steps."""
    from zoedge.recipe.check import check

    layers = "all" if cell.depth == "all" else f"last {cell.depth}"
    return check(
        {
            "version": 1,
            "name": "benchmark",
            "model": {"source": args.model, "compute_dtype": "fp32"},
            "data": {"train": "made here"},
            "task": "classify",
            "space": {"name": "lora", "layers": layers},
            "estimator": {"name": "two_sided", "eps": EPS},
            "rule": {"name": "sgd", "lr": LR},
            "train": {"steps": STEPS, "batch": cell.batch},
            "output": {"dir": str(folder), "export": []},
        },
        {},
        "benchmark",
    )


def make_examples(base: Any, cell: Cell) -> Any:
    """Return the rows of all steps: random tokens, each row met once."""
    import torch

    from zoedge.scoring.tasks._examples import Examples

    made, seeded = Examples(1), torch.Generator().manual_seed(0)
    words = [base.tokenizer(word, add_special_tokens=False).input_ids[-1] for word in (" terrible", " great")]
    for i in range(STEPS * cell.batch):
        ids = torch.randint(3, base.model.config.vocab_size, (cell.tokens,), generator=seeded).tolist()
        made.add([*ids, words[0]], [cell.tokens], i % 2, f"{i}")
        made.targets[-1] = words
    return made


def run_zoedge(args: Any, cell: Cell, base: Any, folder: Path) -> None:
    """Take the steps by the loop that every run goes through, its log included."""
    from zoedge.core import engine
    from zoedge.run import replay, setup
    from zoedge.scoring import texts

    recipe = make_recipe(args, cell, folder)
    space = recipe.space.attach(base, recipe.seed, replay.initial_noise(recipe.noise))
    rows = make_examples(base, cell)
    sum(base.cache_trunk(rows, folder))
    task = recipe.task.make_training(rows, recipe.seed, cell.batch)
    measuring = setup.Measuring(recipe, base, space, texts.Datasets(rows, None, None, {}), task)
    with setup.begin_run(measuring, folder) as log:
        for _ in engine.play(measuring.run(log), STEPS):
            pass


def add_adapters(base: Any, depth: str) -> Any:
    """Return PEFT's model around the base: LoRA of rank 8 on every Linear of the last blocks."""
    from peft import LoraConfig, get_peft_model

    count = len(base.blocks)
    layers = None if depth == "all" else list(range(count - int(depth), count))
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    base.model.requires_grad_(False)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=names, layers_to_transform=layers, task_type="CAUSAL_LM")
    return get_peft_model(base.model, config)


def run_first_order(args: Any, cell: Cell, base: Any, folder: Path, kind: str) -> None:
    """Take the steps by backpropagation and AdamW."""
    import torch

    model = add_adapters(base, cell.depth)
    if kind in ("checkpointed", "micro"):
        base.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        # transformers lets gradients reach the embeddings then, so that frozen lower blocks would be differentiated too
        base.model.disable_input_require_grads()
    base.model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    rows = make_examples(base, cell)
    ids = torch.tensor([tokens[: cell.tokens] for tokens in rows.tokens])
    labels, head = torch.tensor(rows.labels), base.facts.head(base.model).weight[rows.targets[0]].float()
    size = 1 if kind in ("micro", "block") else cell.batch

    def loss_of(h: Any, some: Any) -> Any:
        logits = torch.nn.functional.linear(h.float(), head)
        return torch.nn.functional.cross_entropy(logits, some) * (len(some) / cell.batch)

    for step in range(STEPS):
        first = step * cell.batch
        for i in range(first, first + cell.batch, size):
            if kind == "block":
                backward_by_blocks(base, cell, ids[i : i + 1], lambda h, i=i: loss_of(h, labels[i : i + 1]), folder)
            else:
                h = base.model.base_model(input_ids=ids[i : i + size], use_cache=False).last_hidden_state[:, -1]
                loss_of(h, labels[i : i + size]).backward()
        optimizer.step()
        optimizer.zero_grad()


def backward_by_blocks(base: Any, cell: Cell, ids: Any, loss: Callable[[Any], Any], folder: Path) -> None:
    """Add the gradients of one row [1, T] to the adapters', a block at a time from the last to the first trained one."""
    import torch

    cut = 0 if cell.depth == "all" else len(base.blocks) - int(cell.depth)
    path = folder / "states.pt"
    with torch.no_grad():
        h = base.embed_inputs(ids, 1, None)
        context = base.context(h, torch.tensor([ids.shape[1]]), 1, None)
        for i, block in enumerate(base.blocks):
            if i >= cut:
                torch.save(h.bfloat16(), path.with_stem(f"states-{i}"))
            h = block(h, **context)
    h.requires_grad_()
    loss(base.facts.final(base.model, h[:, -1])).backward()
    slope = h.grad
    for i in reversed(range(cut, len(base.blocks))):
        h = torch.load(path.with_stem(f"states-{i}")).float().requires_grad_()
        base.blocks[i](h, **context).backward(slope)
        slope = h.grad


def measure(args: Any, cell: Cell, kind: str) -> dict[str, float] | None:
    """Return the peak in MiB and the CPU seconds of a step, in this process alone. None: it needs more than LIMIT."""
    import torch

    from zoedge.scoring.models.loading import load_base, release_memory

    torch.set_num_threads(1)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 1 << 18)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = load_base(make_recipe(args, cell, folder).model)
        release_memory()
        rest_peak()
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        began = time.process_time()
        try:
            if kind == "zoedge":
                run_zoedge(args, cell, base, folder)
            else:
                run_first_order(args, cell, base, folder, kind)
        except (MemoryError, RuntimeError) as e:
            if "allocate" not in str(e):
                raise
            return None
        return {"MiB": peak(), "seconds": (time.process_time() - began) / STEPS}


def text(cells: list[dict[str, Any]]) -> str:
    """Return two tables, of peaks and of CPU seconds, and how many times zoedge's the least first-order figure is."""
    made = []
    for key, title, form in (("MiB", "peak, MiB", ".0f"), ("seconds", "CPU seconds a step", ".1f")):
        lines = []
        for cell in cells:
            kinds = cell["kinds"]
            values = [kinds[kind][key] if kinds.get(kind) else None for kind in KINDS]
            least = min((value for value in values[1:] if value is not None), default=None)
            over = f"{least / values[0]:.2f}" if least is not None and values[0] else ""
            size = str(Cell(*(cell[name] for name in Cell._fields)))
            lines.append([size, *("-" if value is None else f"{value:{form}}" for value in values), over])
        made.append(table([title, *KINDS, "least / zoedge"], lines))
    return "\n\n".join(made)


def main() -> None:
    parser = arguments(__doc__, "memory.json")
    parser.add_argument("--depth", nargs="+", default=["1", "8", "all"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 512, 2048])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--most", type=int, default=8192, help="tokens of a batch, at most")
    parser.add_argument("--smoke", action="store_true", help="one small cell: does it run?")
    args = parser.parse_args()
    if args.smoke:
        args.depth, args.tokens, args.batch = ["1"], [16], [1]
    sizes = itertools.product(args.depth, args.tokens, args.batch)
    wanted = sorted((Cell(*size) for size in sizes), key=lambda cell: cell.tokens * cell.batch)
    settings = {"model": args.model, "steps": STEPS}
    found: dict[str, Any] = {"machine": machine() | {"threads": 1}, "settings": settings, "cells": []}
    if args.json.exists():  # a killed benchmark goes on
        found = json.loads(args.json.read_text(encoding="utf-8"))
    known = {Cell(*(cell[name] for name in Cell._fields)): cell for cell in found["cells"]}
    for cell in wanted:
        if cell.tokens * cell.batch > args.most:
            continue
        row = known.setdefault(cell, {**cell._asdict(), "kinds": {}})
        for kind in KINDS:
            if kind not in row["kinds"]:
                row["kinds"][kind] = apart(measure, args, cell, kind)
                found["cells"] = [known[size] for size in sorted(known, key=lambda c: (c.depth, c.tokens, c.batch))]
                save(args.json, found)
                print(f"{cell}, {kind}: {row['kinds'][kind]}", flush=True)
    found["machine"]["load after"] = machine()["load"]
    save(args.json, found)
    print(f"\n{found['machine']}\n\n{text(found['cells'])}")


if __name__ == "__main__":
    main()
