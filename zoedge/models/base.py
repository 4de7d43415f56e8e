"""A base model that scores: loading without surprises, and the forward that computes only what a loss reads.

Knows nothing of zeroth-order optimisation. Adapters hook its Linear modules; `cut` is the first block they change, so
everything below it can be computed once an example (`keep`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, nearest
from ..load import module, words
from .scaled import Scaled
from .trunk import Trunk

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = 8192  # of the head in one product: 16 x 64 rows x 50,272 float32 logits would be 206 MB


def stored(table: nn.Module, index: Tensor | slice) -> Tensor:
    """Rows [N, H] of a table of tokens as they are stored."""
    return table.weight[index]  # type: ignore[index]


@dataclass
class Base:
    """A frozen model, its tokenizer, and the facts of its family.

    cut: blocks below it see no trained tensor. kept: trunk outputs by data set, computed once. rows: how the forward
    reads rows of the head; a space that moves them puts its own there.
    """

    model: Any
    tokenizer: Any
    facts: Any
    dtype: torch.dtype
    device: torch.device
    digest: bytes
    path: Path
    cut: int = 0
    kept: dict[int, Trunk] = field(default_factory=dict)
    rows: Callable[[nn.Module, Tensor | slice], Tensor] = stored

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.get_submodule(self.facts.BLOCKS)

    @property
    def context_length(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def sites(self, layers: list[int] | str, targets: list[str] | str) -> dict[str, nn.Linear]:
        """The Linear modules of some blocks, by full name in the model's order. DataError says which there are."""
        blocks, chosen = self.blocks, chosen_layers(layers, len(self.blocks))
        known = [n.rpartition(".")[2] for n, m in blocks[0].named_modules() if isinstance(m, nn.Linear)]
        if not targets:
            raise DataError(f"space.targets: empty. {type(self.model).__name__} has: {' '.join(known)}, or write all.")
        for target in [] if targets == "all" else targets:
            if target not in known:
                raise DataError(
                    f"space.targets: no module named '{target}' in {type(self.model).__name__}. "
                    f"It has: {' '.join(known)} ({len(blocks)} layers){nearest(target, known)}"
                )
        self.begin(min(chosen))
        return {
            f"{self.facts.BLOCKS}.{i}.{name}": m
            for i in chosen
            for name, m in blocks[i].named_modules()
            if isinstance(m, nn.Linear) and (targets == "all" or name.rpartition(".")[2] in targets)
        }

    def begin(self, block: int) -> None:
        """Nothing below this block is trained."""
        if self.cut != block:
            self.kept.clear()  # they end at another block
        self.cut = block

    def weights(self) -> dict[str, nn.Parameter]:
        """Every parameter of a 16 or 32-bit model, tied ones once, in its order. DataError: it is quantised."""
        if any(map(Scaled.has, self.model.modules())):
            raise DataError("space: full moves 16 or 32-bit weights. Write model.quantization: none, or space: scales.")
        return dict(self.model.named_parameters())

    def scaled(self, sites: dict[str, nn.Linear]) -> dict[str, Scaled]:
        """The quantisation scales of some Linear modules. DataError: they are not quantised."""
        if not all(map(Scaled.has, sites.values())):
            raise DataError(
                "space: scales moves those of a quantised base. Write model.quantization: nf4, or space: full."
            )
        return {name: Scaled(module) for name, module in sites.items()}

    def vectors(self, layers: list[int] | str) -> dict[str, nn.Parameter]:
        """Norms and biases of some blocks, and those after the last block."""
        blocks = tuple(f"{self.facts.BLOCKS}.{i}." for i in chosen_layers(layers, len(self.blocks)))
        found = ((name, p) for name, p in self.model.named_parameters() if p.dim() == 1)
        return {name: p for name, p in found if name.startswith(blocks) or not name.startswith(self.facts.BLOCKS)}

    # -- the forward

    @torch.inference_mode()
    def hidden(self, batch: Any, copies: int) -> Tensor:
        """Final hidden states at the scored rows: [copies * S, R, H], copy by copy.

        batch: ids [S, T] padded on the right (so causal attention needs no mask), rows [S, R], and the examples' names.
        """
        kept = self.kept.get(id(batch.examples))
        h = kept.read(batch.index, batch.ids.shape[1]) if kept else self.trunk(batch.ids)
        h, rows = h.repeat(copies, 1, 1), batch.rows.to(self.device).repeat(copies, 1)
        context = self.facts.context(self.model, h)
        for block in self.blocks[self.cut : -1]:
            h = block(h, attention_mask=None, **context)
        if self.cut < len(self.blocks):
            h = self.facts.last(self.blocks[-1], h, rows, **context)
        return self.facts.final(self.model, h)

    @torch.inference_mode()
    def trunk(self, ids: Tensor) -> Tensor:
        """The output of the blocks below `cut`: [S, T, H]."""
        h = self.facts.embed(self.model, ids.to(self.device))
        context = self.facts.context(self.model, h)
        for block in self.blocks[: self.cut]:
            h = block(h, attention_mask=None, **context)
        return h

    @torch.inference_mode()
    def logits(self, h: Tensor, columns: Tensor) -> Tensor:
        """float32 logits [..., C] of hidden states [..., H] for some tokens [C] of the vocabulary."""
        head = self.facts.head(self.model)
        weight = self.rows(head, columns.to(self.device)).float()
        return nn.functional.linear(h.float(), weight)

    @torch.inference_mode()
    def log_likelihood(self, h: Tensor, targets: Tensor) -> Tensor:
        """log p(target) [...] over the whole vocabulary, in column chunks. h [..., H], targets [...]; float32."""
        head, targets = self.facts.head(self.model), targets.to(self.device)
        total: Tensor | None = None
        wanted = torch.empty(h.shape[:-1], device=self.device)
        for start in range(0, head.weight.shape[0], COLUMNS):
            part = nn.functional.linear(h.float(), self.rows(head, slice(start, start + COLUMNS)).float())
            inside = (targets >= start) & (targets < start + part.shape[-1])
            wanted[inside] = part[inside].gather(-1, (targets[inside] - start)[:, None])[:, 0]
            summed = part.logsumexp(-1)
            total = summed if total is None else torch.logaddexp(total, summed)
        assert total is not None
        return wanted - total

    @torch.inference_mode()
    def generate(self, prompt: str, tokens: int) -> str:
        """The greedy continuation of a prompt, without the prompt."""
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids.to(self.device)
        if ids.shape[1] + tokens > self.context_length:
            raise DataError(f"{ids.shape[1]} prompt tokens and {tokens} new ones do not fit {self.context_length}.")
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            pad_token_id=self.model.config.eos_token_id,
        )  # fmt: skip
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    def keep(self, examples: Any, folder: Path) -> Iterator[int]:
        """Compute the trunk of a data set once, on disk in `folder`; yields how many sequences are done.

        The blocks of sequences are a function of the data alone, so the stored bits do not depend on the run's history.
        """
        if self.cut == 0 or id(examples) in self.kept:
            return
        trunk = Trunk(examples, self.model.config.hidden_size, self.dtype, self.device, folder)
        for chunk, ids in trunk.chunks():
            trunk.write(chunk, self.trunk(ids))
            yield len(chunk)
        self.kept[id(examples)] = trunk


def chosen_layers(layers: list[int] | str, count: int) -> list[int]:
    """all | 'last k' | [4, 5] as sorted block numbers below `count`."""
    if layers == "all":
        return list(range(count))
    if isinstance(layers, str):
        word, _, number = layers.partition(" ")
        if word != "last" or not number.isdigit() or not 1 <= int(number) <= count:
            raise DataError(f"space.layers: '{layers}' is not all, 'last 1' .. 'last {count}', or a list of numbers.")
        return list(range(count - int(number), count))
    if not layers or min(layers) < 0 or max(layers) >= count or len(set(layers)) != len(layers):
        raise DataError(f"space.layers: {layers} must be different numbers in 0..{count - 1}.")
    return sorted(layers)


def facts_of(config: Any) -> Any:
    """The module of facts of a model's family; an unknown family gets a sentence."""
    family = config.model_type
    if family not in words("models.families"):
        known = ", ".join(words("models.families"))
        raise DataError(f"Model family '{family}' is not supported yet. zoedge knows: {known}.")
    return module("models.families", family)


def release() -> None:
    """Give freed memory back to the system: after loading, glibc keeps hundreds of megabytes."""
    import ctypes
    from contextlib import suppress

    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
