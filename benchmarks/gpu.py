"""A training step on a GPU at the sizes of LLaMA-7B, OPT-6.7B and OPT-13B: time and peak memory, on random weights.

    python benchmarks/gpu.py                                        nf4 and LoRA at 16 x 64 tokens, the three shapes
    python benchmarks/gpu.py --shape llama-7b --space qv full --task classify lm
    python benchmarks/gpu.py --shape tiny --device cpu              the same lines on a CPU, in seconds

Random weights are quantised on the card matrix by matrix: a 16-bit model is never held. floor, step and mezo are those of
step.py, with bf16 as compute type; of `full` (a bf16 base), step draws into registers (noise/_fused.py) and `step drawn`
has that kernel switched off. Memory is what torch had allocated at its peak (reserved: with its pool; the CUDA context,
some 0.3 to 0.5 GB more, is not counted), in GB of 10^9 bytes; all items of a row share the base's weights.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import step
from _measure import HERE, apart, arguments, interleaved, machine, peak, ratio, rest_peak, save, spread, table

import zoedge  # noqa: F401 - takes the libraries below offline before they are imported

# bytes a weight, doubly quantised: a code of 4 bits, 8 bits a block of 64 weights, 32 bits a 256 of those
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
LLAMA = {"vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False}
OPT = {"vocab_size": 50272, "max_position_embeddings": 2048}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("llama", dict(vocab_size=300, hidden_size=64, intermediate_size=192, layers=2, heads=4)),
    "llama-7b": ("llama", dict(hidden_size=4096, intermediate_size=11008, layers=32, heads=32, **LLAMA)),
    "llama-13b": ("llama", dict(hidden_size=5120, intermediate_size=13824, layers=40, heads=40, **LLAMA)),
    "opt-6.7b": ("opt", dict(hidden_size=4096, ffn_dim=16384, layers=32, heads=32, word_embed_proj_dim=4096, **OPT)),
    "opt-13b": ("opt", dict(hidden_size=5120, ffn_dim=20480, layers=40, heads=40, word_embed_proj_dim=5120, **OPT)),
}
LIMITS = {"llama-7b": 5.0, "opt-6.7b": 5.0, "llama-13b": 8.0, "opt-13b": 8.0}  # GB of a LoRA step at 16 x 64


# -- a base, made


def configuration(shape: str) -> Any:
    from transformers import AutoConfig

    family, sizes = SHAPES[shape]
    names = {"layers": "num_hidden_layers", "heads": "num_attention_heads"}
    return AutoConfig.for_model(family, **{names.get(key, key): value for key, value in sizes.items()})


def made(shape: str, kind: str, device: Any, dtype: Any) -> Any:
    """A models.base.Base of random weights: nf4 or bf16, as zoedge would have loaded it."""
    import torch
    from accelerate import init_empty_weights
    from torch import nn
    from transformers import AutoModelForCausalLM

    from zoedge.scoring.models.base import Base
    from zoedge.scoring.models.families import load_family
    from zoedge.scoring.models.loading import make_deterministic

    config = configuration(shape)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    torch.manual_seed(0)
    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        if kind == "nf4" and isinstance(module, nn.Linear) and module is not head:
            model.set_submodule(path, quantised(module, device, dtype))
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and p.device.type == "meta":
                module._parameters[name] = nn.Parameter(filled(name, p.shape, device, dtype), requires_grad=False)
        for name, b in module._buffers.items():
            module._buffers[name] = None if b is None else b.to(device)
    if config.tie_word_embeddings:
        head.weight = model.get_input_embeddings().weight
    model.requires_grad_(False)
    make_deterministic(model, dtype)
    return Base(model, tokenizer(), load_family(config), dtype, device, bytes(32), Path("."))


def filled(name: str, shape: Any, device: Any, dtype: Any) -> Any:
    import torch

    blank = torch.empty(shape, device=device, dtype=dtype)
    return blank.normal_(0.0, 0.02) if len(shape) > 1 else blank.fill_(float(name == "weight"))  # norms 1, biases 0


def quantised(module: Any, device: Any, dtype: Any) -> Any:
    """A Linear4bit of a Linear's shape, its random weights quantised as zoedge does."""
    import bitsandbytes as bnb

    found = bnb.nn.Linear4bit(
        module.in_features, module.out_features, module.bias is not None, dtype, compress_statistics=True,
        quant_type="nf4", device="meta",
    )  # fmt: skip
    weight = filled("weight", module.weight.shape, device, dtype)
    found.weight = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4").to(device)
    return found


def tokenizer() -> Any:
    """Knows the two options, and nothing else."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(("<unk>", "<s>", "</s>", *(w.strip() for w in step.CLASSES)))}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


# -- what is measured


@contextmanager
def switched_off() -> Iterator[None]:
    before = os.environ.get("ZOEDGE_FUSED")
    os.environ["ZOEDGE_FUSED"] = "0"
    try:
        yield
    finally:
        os.environ.pop("ZOEDGE_FUSED") if before is None else os.environ.update(ZOEDGE_FUSED=before)


def measured(args: argparse.Namespace, shape: str, kind: str, space: str) -> list[dict[str, Any]]:
    """Seconds and GB at the peak of every item of the tasks of one base and space, in this process alone."""
    import torch
    from _plain import floor

    device = torch.device(args.device)
    base = made(shape, kind, device, torch.bfloat16)
    args.layers, args.qv = base.model.config.num_hidden_layers, ["q_proj", "v_proj"]
    rows = []
    for task in args.task:
        cell = step.Cell(kind, space, task, args.batch, args.tokens)
        with ExitStack() as stack:
            folder, at = Path(stack.enter_context(TemporaryDirectory())), itertools.count()
            bench = stack.enter_context(step.prepared(args, cell, base, folder))
            trained = step.Step(bench, args, cell, 1, folder / "1", stack)
            items: dict[str, Callable[[], Any]] = {
                "floor": lambda: floor(base, bench.task.batch(next(at)), 2).float().sum().item(),  # waits for the card
                "step": trained,
                "mezo": step.mezo(bench, base),
            }
            if space == "full":
                items["mezo once"] = step.mezo(bench, base, once=True)
                items["step drawn"] = partial(drawn, trained)
            row = {"shape": shape, **cell._asdict(), "trained": bench.header().elements, "weights": occupied(device)}
            row["memory"] = {name: at_peak(call, device) for name, call in items.items()}  # first: nothing is kept yet
            row["seconds"] = interleaved(items, args.repeat)
        rows.append(row)
        print("  " + line(row), flush=True)
    return rows


def drawn(call: Callable[[], Any]) -> Any:
    with switched_off():
        return call()


def occupied(device: Any) -> float:
    """GB that are held now."""
    import psutil
    import torch

    return (torch.cuda.memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss) / 1e9


def at_peak(call: Callable[[], Any], device: Any) -> list[float]:
    """GB at the peak of two calls: [allocated, reserved]; on a CPU what was resident, twice."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        rest_peak()
    for _ in range(2):
        call()
    if device.type == "cuda":
        return [torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9]
    return [peak() * 2**20 / 1e9] * 2


# -- what it means


def line(row: dict[str, Any]) -> str:
    parts = (
        f"{k} {1000 * statistics.median(v):.1f} ms {row['memory'][k][0]:.2f} GB" for k, v in row["seconds"].items()
    )
    return f"{row['shape']} {row['base']} {row['space']} {row['task']}: " + ", ".join(parts)


def target(row: dict[str, Any], what: str) -> float | None:
    """The most that a ratio, or the GB of a step, may be."""
    if row["space"] not in step.LORA or (row["batch"], row["tokens"]) != (16, 64):
        return None
    return {"step / floor": 1.1, "memory: step": LIMITS.get(row["shape"])}.get(what)


def text(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        cell = [row["shape"], row["base"], row["space"], row["task"], f"{row['batch']} x {row['tokens']}"]

        def add(what: str, shown: str, noise: str, value: float, row: Any = row, cell: Any = cell) -> None:
            limit = target(row, what)
            met = "" if limit is None else "yes" if value <= limit else "no"
            lines.append([*cell, what, shown, noise, "" if limit is None else f"<= {limit:g}", met])

        for name, values in row["seconds"].items():
            add(name, f"{1000 * (middle := statistics.median(values)):.1f} ms", f"{spread(values):.2f}", middle)
        for name in row["seconds"]:
            if name != "step":
                above, below = ("step", name) if name == "floor" else (name, "step")
                middle, least, most = ratio(row["seconds"][above], row["seconds"][below])
                add(f"{above} / {below}", f"{middle:.3g}", f"{least:.3g} .. {most:.3g}", middle)
        add("memory: weights", f"{row['weights']:.2f} GB", "", row["weights"])
        for name, (allocated, reserved) in row["memory"].items():
            add(f"memory: {name}", f"{allocated:.2f} GB", f"reserved {reserved:.2f}", allocated)
    words = ["shape", "base", "space", "task", "batch", "what", "median", "max/min or range", "target", "met"]
    return table(words, lines)


# -- on paper


def sums(shape: str, space: str = "qv", task: str = "classify", rows: int = 2048, rank: int = 8) -> dict[str, float]:
    """Bytes of an nf4 LoRA step by what takes them, from the shape alone. rows: tokens of all points in a forward.

    matrices, tables, vectors: what the weights take. dequantised: the largest matrix in 16 bits, while it is multiplied.
    activations: where most are alive at once, in the feed-forward part: the residual, its norm's output, and the wide
    tensors. adapter: during a forward: the master and a direction in float32, both points in 16 bits.
    logits: of one chunk of columns (a language model's loss), its logsumexp's copy and the head's rows, in float32.
    """
    family, sizes = SHAPES[shape]
    h, layers, vocabulary = (sizes[key] for key in ("hidden_size", "layers", "vocab_size"))
    wide = sizes.get("intermediate_size") or sizes["ffn_dim"]
    llama = family == "llama"
    feed, tensors = (3, 3) if llama else (2, 2)  # gate, up, down: their product too; fc1, fc2
    matrices = layers * (4 * h * h + feed * h * wide)
    places = 0 if llama else (sizes["max_position_embeddings"] + 2) * h
    vectors = (2 * layers + 1) * h if llama else layers * (9 * h + wide) + 2 * h
    sites = layers * (4 * h if space == "qv" else 8 * h + feed * (h + wide))  # in + out of what is adapted
    chunk = min(8192, vocabulary)
    return {
        "matrices": matrices * NF4,
        "tables": 2.0 * (vocabulary * h * (2 if llama else 1) + places),
        "vectors": 2.0 * vectors,
        "dequantised": 2.0 * h * wide,
        "activations": 2.0 * rows * (2 * h + tensors * wide),
        "adapter": rank * sites * (2 * 4.0 + 2 * 2),
        "logits": 0.0 if task == "classify" else 4.0 * (2 * rows * chunk + chunk * h + rows * h),
    }


def together(found: dict[str, float]) -> float:
    """Bytes of `sums` that are held at once: the blocks are done when logits are taken."""
    return sum(found.values()) - min(found["dequantised"] + found["activations"], found["logits"])


def computed() -> str:
    """The sums as a table, beside the targets: arithmetic, not a measurement."""
    lines = []
    for shape, space, task in itertools.product(LIMITS, ("qv", "all"), ("classify", "lm")):
        found = sums(shape, space, task)
        whole, limit = together(found) / 1e9, LIMITS[shape]
        cells = [f"{value / 1e9:.2f}" for value in found.values()]
        lines.append([shape, space, task, *cells, f"{whole:.2f}", f"<= {limit:g}", "yes" if whole <= limit else "no"])
    return table(["shape", "LoRA", "task", *sums("tiny"), "at once, GB", "target", "would hold"], lines)


def main() -> None:
    parser = arguments(__doc__, "gpu.json")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["llama-7b", "opt-6.7b", "opt-13b"])
    parser.add_argument("--space", nargs="+", choices=("qv", "all", "full"), default=["qv", "all"])
    parser.add_argument("--task", nargs="+", choices=step.GRID["task"], default=["classify"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.set_defaults(json=None)
    args = parser.parse_args()
    import torch

    if args.json is None:  # a CPU's figures are no benchmark: docs/benchmarks.md is made from that folder
        args.json = HERE / "found" / "gpu.json" if args.device == "cuda" else Path(os.devnull)

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is visible to torch. Try the logic with: --shape tiny --device cpu")
    about = machine() | {"threads": args.threads, "gpu": graphics(args.device)}
    rows: list[dict[str, Any]] = []
    found = {"machine": about, "model": "random weights", "repeat": args.repeat, "rows": rows}
    for shape, space in itertools.product(args.shape, args.space):
        rows += apart(measured, args, shape, "bf16" if space == "full" else "nf4", space)
        save(args.json, found)
    about["load after"] = machine()["load"]
    save(args.json, found)
    print(f"\n{about}\n\n{text(rows)}")


def graphics(device: str) -> str:
    import importlib.util

    import torch

    if device == "cpu":
        return "no GPU"
    _, whole = torch.cuda.mem_get_info()
    triton = "with Triton" if importlib.util.find_spec("triton") else "without Triton"
    return f"{torch.cuda.get_device_name(0)}, {whole / 1e9:.1f} GB, CUDA {torch.version.cuda}, {triton}"


if __name__ == "__main__":
    main()
