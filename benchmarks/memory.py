"""Peak resident memory of training against plain inference on the same quantised base, a process each.

    python benchmarks/memory.py [--model smollm2-135m-instruct] [--batch 16] [--tokens 64] [--repeat 3]

plain: transformers' own forward without a graph over the same sequences, the head at the scored position alone
(`logits_to_keep=1`), once over the batch and once over two copies of it, which is what a two-point step computes.
train: five steps of the loop with LoRA on all Linear modules of all layers, and of the last four.
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
    text = f"""
version: 1
name: memory
model: {{source: {args.model}, threads: 2}}
data: {{train: "{data}", max_length: {args.tokens}, on_overflow: truncate}}
space: {{name: lora, layers: {layers}}}
train: {{steps: 5, batch: {args.batch}, rows: {2 * args.batch * args.tokens}}}
output: {{dir: "{folder}", export: []}}
"""
    path = Path(folder) / f"{layers.replace(' ', '')}.yaml"
    path.write_text(text)
    return read(str(path))


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
            with torch.inference_mode():
                for _ in range(5):
                    base.model(input_ids=ids, logits_to_keep=1, use_cache=False)
        else:
            bench = runs.Bench.build(made)
            sum(bench.base.keep(bench.texts.train, Path(folder)))
            with runs.begin(bench, Path(folder)) as log:
                for _ in engine.play(bench.run(log), 5):
                    pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    kinds = ["plain:1", "plain:2", "train:all", "train:last 4"]
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    given = ["--model", args.model, "--batch", str(args.batch), "--tokens", str(args.tokens)]
    for _ in range(args.repeat):
        for kind in kinds:  # interleaved: a noisy neighbour meets them all
            command = [sys.executable, __file__, *given, "--child", kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[kind].append(float(done.stdout.split()[-1]))
    middle = {kind: statistics.median(values) for kind, values in found.items()}
    print(f"{args.model}, nf4, batch {args.batch} x {args.tokens} tokens, median of {args.repeat} (MiB)")
    for kind in kinds:
        one, two = middle[kind] / middle["plain:1"], middle[kind] / middle["plain:2"]
        spread = f"{min(found[kind]):.0f}..{max(found[kind]):.0f}"
        print(f"  {kind:14} {middle[kind]:8.0f}   {spread:14} / plain batch {one:.3f}   / plain two copies {two:.3f}")
    if args.json:
        args.json.write_text(json.dumps({"batch": args.batch, "tokens": args.tokens, "MiB": found}, indent=1))


if __name__ == "__main__":
    main()
