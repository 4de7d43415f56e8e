"""Peak resident memory of training against plain inference on the same base, a process each.

    python benchmarks/memory.py [--model smollm2-135m-instruct] [--batch 16] [--tokens 64] [--repeat 3]
        [--steps 5] [--threads 2] [--space lora|full|scales] [--dtype fp32|bf16]

plain: transformers' own forward without a graph over the same sequences, the head at the scored position alone
(`logits_to_keep=1`), once over the batch and once over two copies of it, which is what a two-point step computes.
train: some steps of the loop: LoRA on all Linear modules of all layers, and of the last four; or the whole of another
space (full: an unquantised base), whose points come one after the other, so that one copy is what it compares with.
Of these the peak is that of the steps: loading a 16-bit file as float32 holds more, once, than they do (Linux alone).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent


def recipe(args: argparse.Namespace, layers: str, folder: str) -> object:
    from zoedge.recipe import read

    data = Path(folder) / "rows.jsonl"
    if not data.exists():
        words = "a quiet film that finds its way slowly and stays with you long after the lights go up".split()
        with data.open("w") as file:
            for i in range(4 * args.batch):
                text = " ".join(words[(i + j) % len(words)] for j in range(args.tokens - 2))
                file.write(json.dumps({"text": text, "label": ("negative", "positive")[i % 2]}) + "\n")
    space = f"{{name: lora, layers: {layers}}}" if args.space == "lora" else args.space
    quantization = "none" if args.space == "full" else "nf4"
    text = f"""
version: 1
name: memory
model: {{source: {args.model}, threads: {args.threads}, compute_dtype: {args.dtype}, quantization: {quantization}}}
data: {{train: "{data}", max_length: {args.tokens}, on_overflow: truncate}}
space: {space}
train: {{steps: {args.steps}, batch: {args.batch}, rows: {2 * args.batch * args.tokens}}}
output: {{dir: "{folder}", export: []}}
"""
    path = Path(folder) / f"{layers.replace(' ', '')}.yaml"
    path.write_text(text)
    return read(str(path))


def begin(args: argparse.Namespace) -> None:
    if args.space != "lora":
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now


def peak(args: argparse.Namespace) -> float:
    """MiB."""
    if args.space == "lora":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def child(args: argparse.Namespace) -> None:
    """One measurement; prints the peak in MiB."""
    from zoedge import engine, runs

    with TemporaryDirectory() as folder:
        kind, _, what = args.child.partition(":")
        made = recipe(args, "all" if kind == "plain" else what, folder)
        if kind == "plain":
            import torch

            from zoedge.models.loading import load

            base = load(made.model)
            examples = runs.texts(made, base.tokenizer, made.data.max_length).train
            ids = examples.collate(range(args.batch)).ids.repeat(int(what), 1)
            begin(args)
            with torch.inference_mode():
                for _ in range(args.steps):
                    base.model(input_ids=ids, logits_to_keep=1, use_cache=False)
        else:
            bench = runs.Bench.build(made)
            sum(bench.base.keep(bench.texts.train, Path(folder)))
            begin(args)
            with runs.begin(bench, Path(folder)) as log:
                for _ in engine.play(bench.run(log), args.steps):
                    pass
    print(peak(args))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--space", choices=("lora", "full", "scales"), default="lora")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    kinds = ["plain:1", "plain:2", "train:all", "train:last 4"] if args.space == "lora" else ["plain:1", "train:all"]
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    names = ("model", "batch", "tokens", "steps", "threads", "space", "dtype")
    given = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    for _ in range(args.repeat):
        for kind in kinds:  # interleaved: a noisy neighbour meets them all
            command = [sys.executable, __file__, *given, "--child", kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[kind].append(float(done.stdout.split()[-1]))
    middle = {kind: statistics.median(values) for kind, values in found.items()}
    base = args.dtype if args.space == "full" else f"nf4 {args.dtype}"
    print(
        f"{args.model}, {base}, {args.space}, batch {args.batch} x {args.tokens} tokens, median of {args.repeat} (MiB)"
    )
    for kind in kinds:
        one, more = middle[kind] / middle["plain:1"], middle[kind] - middle["plain:1"]
        two = f"   / plain two copies {middle[kind] / middle['plain:2']:.3f}" if "plain:2" in middle else ""
        spread = f"{min(found[kind]):.0f}..{max(found[kind]):.0f}"
        print(f"  {kind:14} {middle[kind]:8.0f}   {spread:14} / plain batch {one:.3f} ({more:+.0f}){two}")
    if args.json:
        args.json.write_text(json.dumps({"batch": args.batch, "tokens": args.tokens, "MiB": found}, indent=1))


if __name__ == "__main__":
    main()
