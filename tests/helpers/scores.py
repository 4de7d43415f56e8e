"""What a forward is compared with: random examples, random weights, and the model as transformers runs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoedge.core.types import Leaf
from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.spaces._basis import Basis
from zoedge.methods.spaces.aligned import BASIS_KEY, AlignedSpace
from zoedge.methods.spaces.lora import Lora, LoraSpace
from zoedge.recipe.sections import Model
from zoedge.run import setup
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.loading import load_base
from zoedge.scoring.tasks._examples import Batch, Examples

FAMILIES = ("llama", "llama_untied_half", "opt", "opt_350m", "mistral", "qwen2", "qwen3", "gemma", "gpt_neox", "pythia")


QUANTISED = ("nf4", "fp4", "int8")
VOCABULARY = 349


# Largest |difference| of logits of size 1.3-2.8, float32. Measured 0.0 to 1.7e-6 over three instruction sets; a wrong
# mask, position or scale is 1e-2 or more.
CLOSE = 1e-5


Get = Callable[..., Base]


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def load(folder: Path, quantization: str = "nf4", **options: Any) -> Base:
    """Return the base in `folder`. options: other keys of the recipe's table model."""
    return load_base(Model(source=str(folder), quantization=quantization, **options))


def random_examples(lengths: list[int], per: int = 1, seed: int = 0, vocabulary: int = VOCABULARY) -> Examples:
    """Return sequences of random tokens, `per` to an example; the last place, the middle and the first are scored."""
    random = torch.Generator().manual_seed(seed)
    examples = Examples(per)
    for i, length in enumerate(lengths):
        examples.tokens.append(torch.randint(3, vocabulary, (length,), generator=random).tolist())
        examples.rows.append([length - 1, length // 2, 0] if length > 2 else [length - 1])
        examples.targets.append([7, 11])
        if i % per == 0:
            examples.labels.append(i % 2)
            examples.names.append(f"here:{i}")
    return examples


def random_sentences(count: int = 16, vocabulary: int = VOCABULARY) -> Examples:
    """Return sequences of 5 to 59 random tokens; the last place alone is scored, for two options."""
    random, examples = torch.Generator().manual_seed(0), Examples(1)
    for i in range(count):
        length = int(torch.randint(5, 60, (1,), generator=random))
        examples.tokens.append(torch.randint(3, vocabulary, (length,), generator=random).tolist())
        examples.rows.append([length - 1])
        examples.targets.append([5, 6])
        examples.labels.append(i % 2)
        examples.names.append(f"here:{i}")
    return examples


def plain_logits(model: Any, batch: Batch, first: list[int] | None = None) -> torch.Tensor:
    """Return what transformers' (or PEFT's) model gives at the batch's rows: [S, R, V].

    The forward is a full one with an attention mask. first: tokens before every sequence. What stands before the
    sequences, these or a prompt of PEFT's own, is left out of the result.
    """
    ahead = torch.tensor(first or []).long().expand(len(batch.ids), -1)
    mask = torch.zeros_like(batch.ids)
    for row, i in zip(mask, batch.index):
        row[: len(batch.examples.tokens[i])] = 1
    ids, mask = torch.cat([ahead, batch.ids], 1), torch.cat([torch.ones_like(ahead), mask], 1)
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=mask).logits[:, -batch.ids.shape[1] :]
    return full.gather(1, batch.rows[..., None].expand(-1, -1, full.shape[-1]))


def deltas(count: int, size: float = 0.05) -> list[Callable[[Leaf], torch.Tensor | None]]:
    """Return `count` points of the space, each a function from a leaf to what is added to it."""

    def draw(seed: int, leaf: Leaf) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed * 1000 + leaf.offset)
        return torch.randn(leaf.value.shape, generator=random) * size

    return [partial(draw, seed) for seed in range(count)]


def give_basis(space: Any, seed: int = 8) -> Any:
    """Give a space that trains between fixed matrices random ones, and return it; others stay as they are."""
    if not isinstance(space, AlignedSpace):
        return space
    random, options = torch.Generator().manual_seed(seed), space.options
    a = {name: torch.randn(options.k, wide, generator=random) / 8 for name, (_, wide) in space.shapes.items()}
    b = torch.randn(next(iter(space.shapes.values()))[0], options.rank, generator=random)
    space.take_start({**space.describe(), BASIS_KEY: Basis.of(a, b).describe()})
    return space


def attach(base: Base, layers: Any = "all", targets: Any = "all", **options: Any) -> LoraSpace:
    """Return a LoRA space whose master is random everywhere: B = 0 would hide half of it."""
    space = Lora(rank=4, alpha=8.0, layers=layers, targets=targets, **options).attach(base, 5, Rademacher())
    noise = torch.randn(space.value.shape, generator=torch.Generator().manual_seed(6))
    space.value += noise.to(space.value.device) * 0.05
    return space


def score_six(bench: setup.Measuring, base: Base) -> torch.Tensor:
    """Return the losses of the first six training examples at one point."""
    return bench.task.score(base, bench.texts.train.collate(range(6)), 1)


def bnb_linears(model: Any) -> dict[str, Any]:
    found = {n: m for n, m in model.named_modules() if type(m).__module__.startswith("bitsandbytes")}
    assert len(found) >= 12
    return found
