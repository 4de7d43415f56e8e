"""docs/benchmarks.md from the JSON that step, parts, race, scale and gpu have left: `python benchmarks/report.py`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gpu
import memory
import parts
import race
import scale
import step
from _measure import HERE

SECTIONS: dict[str, tuple[str, Any, str]] = {  # title, module, what of the JSON its `text` shows
    "step": ("A training step", step, "cells"), "parts": ("Its parts", parts, "rows"),
    "race": ("What an accuracy costs", race, "sets"), "scale": ("More devices, and less memory", scale, "cells"),
    "memory": ("The same memory, first order beside it", memory, "cells"), "gpu": ("On a GPU", gpu, "rows"),
}  # fmt: skip
HEAD = """# Benchmarks

Made by `make bench`, `make race`, `make memory`, `make scale` and `make bench-gpu` from what they measured. A ratio is
taken inside each round of interleaved repetitions; the table has the median, the least and the largest. max/min is of one
item's own repetitions, so it is how noisy the machine was: where it is above 1.1, times say little, and ratios more. A
target that is missed stays in the table; what forbids it is in lab-notes.md."""
UNTESTED = """## On a GPU

Untested: no GPU was available. Nothing on this page has been measured on CUDA, and no test of the mark `gpu` has run.
`make gpu` runs those tests, `make bench-gpu` measures and writes this page anew.

`space: full` has a kernel (Triton, noise/_fused.py) that multiplies by W + c z with z made in registers, so that no
perturbed matrix is stored. Triton's interpreter gives the bits of drawing at every type, size, place and key of
tests/methods/test_fused.py, and the kernel compiles for compute capabilities 8.0 and 9.0; no card has run it. On CUDA
it is compared with drawing before its first use, and left out with a warning if it fails or differs; `ZOEDGE_FUSED=0`
leaves it out."""
PAPER = """### Computed, not measured

What an nf4 LoRA step (rank 8; q and v, or every Linear) at 16 x 64 tokens holds, two points in one forward, by the
shapes alone, in GB of 10^9 bytes. A weight takes 4.127 bits: a code of 4, a scale of 8 bits a block of 64, and 32 bits a
256 scales. The CUDA context, some 0.3 to 0.5 GB, comes on top; so does what the allocator's pool keeps.

{table}

13B holds in 8 GB with tables of tokens in 16 bits on the card, since the loss reads a few columns of the head or 8,192 at
a time: all logits in float32 would be 2,048 x 50,272 x 4 bytes = 0.41 GB, and MeZO's log-softmax of them as much again.
The head is read from its 16-bit rows in the same chunks. What is left for the allocator is 0.07 to 0.47 GB. Tables that
need not be on the card would free 0.33 GB (LLaMA-13B's embedding) or, for classification, 0.66 GB (its head too): they are
read by rows already, and no other code sees them; what is missing is a setting that leaves them in the host's memory,
and a look-up that sends ids there and rows back.

### Launch-bound sizes

There are no CUDA graphs here, by decision: a captured step that has never been replayed on a card would be untested code
in the one loop that every run goes through. A design for whoever has a card:
- What is captured: `Base.hidden_states` and the logits for one (rows S, length T, copies, cut). Lengths stand in buckets
  already, so a run sees few shapes; capture the second time that a shape comes, and keep at most eight.
- What the graph reads must lie still: ids, rows and the points' buffer are written into tensors that are kept (LoRA's
  `Master._buffer` is one; its bmm reads views of it). `full`'s kernel takes seq and the factors as numbers: they
  would have to come from a tensor.
- What may not be captured: `.tolist()` of the losses, the trunk cache's read from disk, and masks made from lists of
  lengths on the host: they move ahead of the graph, as its inputs.
- Where it pays, by arithmetic: a nf4 LLaMA-7B forward is some 1,500 launches (32 x 7 Linear modules of three or four
  kernels, norms, rotations, attention, LoRA's terms), 7.5 ms if one takes 5 us. 2,048 rows x 6.5 G weights x 2 operations
  are 27 TFLOP, a tenth of a second and more on any one card; 128 rows (2 x 32 tokens, two points) are 1.7 TFLOP, of
  the launches' own order. So the target at 16 x 64 does not need graphs, and small batches would gain.
- The owner would be a field of `train`, off where the losses of a shape, captured and not, differ in a bit at the first use."""


def about(machine: dict[str, Any]) -> str:
    """A sentence on the machine, and how busy it was: loads are averages of 1, 5 and 15 minutes."""
    load, after = (" ".join(map(str, machine.get(key, ()))) for key in ("load", "load after"))
    card = f"{machine['gpu']}, " if "gpu" in machine else ""
    return (
        f"{machine['date']}, {card}{machine['cpu']}, {machine['cores']} cores ({machine['threads']} threads), "
        f"{machine['memory, GiB']} GiB, torch {machine['torch']}\n({machine['flags']}). Load before: {load}; after: {after}."
    )


def page(found: dict[str, dict[str, Any]]) -> str:
    whole = [HEAD]
    for name, data in found.items():
        title, module, key = SECTIONS[name]
        words = str(module.__doc__).split("\n\n", 2)[-1].strip()  # without its first line and its commands
        model = data.get("model") or data["settings"]["model"]
        whole += [f"## {title}", f"{model}, {about(data['machine'])}", words, module.text(data[key])]
    whole += [] if "gpu" in found else [UNTESTED]
    whole += [PAPER.format(table=gpu.computed())]
    return "\n\n".join(whole) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--found", type=Path, default=HERE / "found", help="the folder of the JSON")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    args = parser.parse_args()
    paths = {name: args.found / f"{name}.json" for name in SECTIONS}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
    args.out.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
