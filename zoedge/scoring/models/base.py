"""A base model that scores: loading without surprises, and the forward that computes only what a loss reads.

Knows nothing of zeroth-order optimisation. Adapters hook its Linear modules; `cut` is the first block they change, so
everything below it can be computed once an example (`keep`). Virtual tokens stand ahead of every sequence: as embeddings
(`prompt`), or as every block's keys and values (`past`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ...core.base import Projection
from ...errors import DataError, suggest_nearest
from .decode import generate_answers, generate_greedy
from .past import PastKeyValues
from .quantised import QUANTISED_BLOCK, LinearScales
from .trunk import TrunkCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..tasks._branches import OptionTree
    from ..tasks._examples import Batch, Examples
    from .families import FamilyFacts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

HEAD_COLUMNS = 8192  # of the head in one product: 16 x 64 rows x 50,272 float32 logits would be 206 MB


def compute_logits(head: nn.Linear, h: Tensor, index: Tensor | slice) -> Tensor:
    """float32 logits [..., C] of hidden states [..., H] by some rows [C] of the head, and of its bias if it has one."""
    bias = None if head.bias is None else head.bias[index].float()
    return nn.functional.linear(h.float(), head.weight[index].float(), bias)


@dataclass
class Base:
    """A frozen model, its tokenizer, and the facts of its family.

    cut: blocks below it see no trained tensor. kept: trunk outputs by data set, computed once. ahead: positions reserved
    for virtual tokens. While points are held, copy by copy, prompt: their embeddings [copies, n, E]; past: their keys
    and values [copies, blocks, 2, groups, m, D], before the prompt. project: how the forward takes logits; a space that
    moves the head puts its own there.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: FamilyFacts
    dtype: torch.dtype
    device: torch.device
    digest: bytes
    path: Path
    cut: int = 0
    kept: dict[int, TrunkCache] = field(default_factory=dict)
    ahead: int = 0
    prompt: Tensor | None = None
    past: Tensor | None = None
    project: Projection = compute_logits
    quantization: str | None = None  # of a model without data: what its weights will be quantised to

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.get_submodule(self.facts.BLOCKS))

    @property
    def context_length(self) -> int:
        """Tokens of a sequence at most."""
        return int(self.facts.longest(self.model.config)) - self.ahead

    def sites(self, layers: list[int] | str, targets: list[str] | str) -> dict[str, nn.Linear]:
        """The Linear modules of some blocks, by full name in the model's order. DataError says which there are."""
        blocks, chosen = self.blocks, select_layers(layers, len(self.blocks))
        known = [n.rpartition(".")[2] for n, m in blocks[0].named_modules() if isinstance(m, nn.Linear)]
        if not targets:
            raise DataError(f"space.targets: empty. {type(self.model).__name__} has: {' '.join(known)}, or write all.")
        for target in [] if targets == "all" else targets:
            if target not in known:
                raise DataError(
                    f"space.targets: no module named '{target}' in {type(self.model).__name__}. "
                    f"It has: {' '.join(known)} ({len(blocks)} layers){suggest_nearest(target, known)}"
                )
        self.cut_at(0 if self.ahead else min(chosen))
        return {
            f"{self.facts.BLOCKS}.{i}.{name}": m
            for i in chosen
            for name, m in blocks[i].named_modules()
            if isinstance(m, nn.Linear) and (targets == "all" or name.rpartition(".")[2] in targets)
        }

    def cut_at(self, block: int) -> None:
        """Nothing below this block is trained."""
        if self.cut != block:
            self.kept.clear()  # they end at another block
        self.cut = block

    # -- virtual tokens

    def reserve(self, tokens: int) -> None:
        """Keep positions for virtual tokens ahead of every sequence, which all blocks see.

        DataError: there is no room, or a model that fills masks.
        """
        if self.facts.HEAD != "CausalLM":
            raise DataError(
                f"{type(self.model).__name__} fills masks: virtual tokens are not supported there. Use LoRA."
            )
        if tokens >= self.context_length:
            raise DataError(
                f"space.tokens: {tokens} leave no room for text in a context of {self.context_length} tokens."
            )
        self.ahead += tokens
        self.cut_at(0)

    def real_tokens(self, count: int, text: str, seed: int) -> Tensor:
        """ids [count]: a text's, repeated to fill, or drawn from the vocabulary by a hash of the seed.

        DataError: the text has more tokens, or none.
        """
        if not text:
            drawn = (hashlib.sha256(f"{seed} {i}".encode()).digest()[:8] for i in range(count))
            size = min(len(self.tokenizer), self.model.config.vocab_size)
            return torch.tensor([int.from_bytes(word, "little") % size for word in drawn])
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if not 0 < len(ids) <= count:
            raise DataError(f"space.text: {len(ids)} tokens, where 1 to space.tokens ({count}) are wanted.")
        return torch.tensor((ids * count)[:count])

    @torch.inference_mode()
    def embeddings(self, ids: Tensor) -> Tensor:
        """float32 [T, E] of tokens [T], as the forward reads them."""
        return self.model.get_input_embeddings()(ids.to(self.device)).float()

    def keys_shape(self) -> tuple[int, int, int]:
        """(blocks, groups of heads, width of a head) of the keys and values that `keys_values` returns."""
        config = self.model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return len(self.blocks), groups, size

    @torch.inference_mode()
    def keys_values(self, ids: Tensor) -> Tensor:
        """float32 [blocks, 2, groups, T, D]: what every block's attention keeps of a sequence [T]."""
        cache = self.model.base_model(input_ids=ids[None].to(self.device), use_cache=True).past_key_values
        return torch.stack([torch.cat([layer.keys, layer.values]) for layer in cache.layers]).float()

    # -- what spaces take of the model itself

    def weights(self) -> dict[str, nn.Parameter]:
        """Every parameter of a 16 or 32-bit model, tied ones once, in its order. DataError: it is quantised."""
        if any(map(LinearScales.has, self.model.modules())):
            raise DataError("space: full moves 16 or 32-bit weights. Write model.quantization: none, or space: scales.")
        if any(p.is_meta for p in self.model.parameters()):
            raise DataError("space: full moves all weights, and model.max_memory leaves some on the disk. Use LoRA.")
        return dict(self.model.named_parameters())

    def scaled(self, sites: dict[str, nn.Linear]) -> dict[str, LinearScales]:
        """The quantisation scales of some Linear modules. DataError: they are not quantised."""
        if not all(map(LinearScales.has, sites.values())):
            raise DataError(
                "space: scales moves those of a quantised base. Write model.quantization: nf4, or space: full."
            )
        return {name: LinearScales(module) for name, module in sites.items()}

    def scale_blocks(self, sites: dict[str, nn.Linear]) -> dict[str, int]:
        """How many weights share a scale in each of some Linear modules. DataError: they are not quantised."""
        if self.quantization is None:
            return {name: scales.block for name, scales in self.scaled(sites).items()}
        return {name: m.in_features if self.quantization == "int8" else QUANTISED_BLOCK for name, m in sites.items()}

    def vectors(self, layers: list[int] | str) -> dict[str, nn.Parameter]:
        """Norms and biases of some blocks, and norms after the last block."""
        blocks = tuple(f"{self.facts.BLOCKS}.{i}." for i in select_layers(layers, len(self.blocks)))
        bias = self.facts.head(self.model).bias
        found = ((name, p) for name, p in self.model.named_parameters() if p.dim() == 1 and p is not bias)
        after = ((name, p) for name, p in found if ".embeddings." not in name)
        return {name: p for name, p in after if name.startswith(blocks) or not name.startswith(self.facts.BLOCKS)}

    # -- the forward

    @torch.inference_mode()
    def hidden(self, batch: Batch, copies: int) -> Tensor:
        """Final hidden states at the scored rows: [copies * S, R, H], copy by copy.

        batch: ids [S, T] padded on the right (so causal attention needs no mask), rows [S, R], the examples' names, and
        branches: None, or a tree (tasks._branches.Branches) of the same tokens in fewer rows.
        """
        kept, tree = self.kept.get(id(batch.examples)), batch.branches
        lengths = torch.tensor([len(batch.examples.tokens[i]) for i in batch.index])
        form = tree or batch
        if self.cut == 0:
            h = self.enter(form.ids, copies, tree)
        elif kept is None:
            h = self.trunk(form.ids, lengths, tree).repeat(copies, 1, 1)
        else:
            h = kept.read(batch.index, batch.ids.shape[1])
            h = (h if tree is None else h.flatten(0, 1)[tree.at.to(self.device)]).repeat(copies, 1, 1)
        rows = form.rows.to(self.device).repeat(copies, 1)
        if self.prompt is not None:
            rows = rows + self.prompt.shape[1]
        context = self.context(h, lengths, copies, tree)
        for block in self.blocks[self.cut : -1]:
            h = block(h, **context)
        if self.cut < len(self.blocks):
            h = self.facts.last(self.blocks[-1], h, rows, **context)
        h = self.facts.final(self.model, h)
        if tree is None:
            return h  # a tree's are [copies * G, K * R, H], K: options of an example at most
        return h.view(copies, -1, batch.rows.shape[1], h.shape[-1])[:, tree.pick.to(self.device)].flatten(0, 1)

    @torch.inference_mode()
    def trunk(self, ids: Tensor, lengths: Tensor, tree: OptionTree | None = None) -> Tensor:
        """The output of the blocks below `cut`: [S, T, H]. ids [S, T], of which the first `lengths` [S] are a text."""
        h = self.enter(ids, 1, tree)
        context = self.context(h, lengths, 1, tree)
        for block in self.blocks[: self.cut]:
            h = block(h, **context)
        return h

    def enter(self, ids: Tensor, copies: int, tree: OptionTree | None) -> Tensor:
        """What the first block reads: [copies * S, n + T, H], copy by copy, each after its own prompt."""
        prompt = None if self.prompt is None else self.prompt.repeat_interleave(len(ids), 0)
        places = self.places(ids.shape[1] + (0 if prompt is None else prompt.shape[1]), copies, tree)
        return self.facts.embed(self.model, ids.to(self.device).repeat(copies, 1), places, prompt)

    def places(self, length: int, copies: int, tree: OptionTree | None) -> Tensor:
        """Positions after what is past: [1, n + T], or in a tree [copies * S, n + T]. length: n + T."""
        first = 0 if self.past is None else self.past.shape[-2]
        here = torch.arange(first, first + length, device=self.device)[None]
        if tree is None:
            return here
        own = tree.places.to(self.device).repeat(copies, 1)
        ahead = length - own.shape[1]
        return torch.cat([here[:, :ahead].expand(len(own), -1), own + first + ahead], 1)

    def context(self, h: Tensor, lengths: Tensor, copies: int, tree: OptionTree | None) -> dict[str, Any]:
        """What every block takes beside the hidden states [copies * S, n + T, H]."""
        past = None if self.past is None else PastKeyValues(self.past, len(h) // len(self.past))
        places = self.places(h.shape[1], copies, tree)
        mask = self.mask(h.shape[1], lengths, copies, tree)
        return {"attention_mask": mask, **self.facts.context(self.model, h, places, past)}

    def mask(self, length: int, lengths: Tensor, copies: int, tree: OptionTree | None) -> Tensor | None:
        """True where a row may look: [1 or copies * S, 1, 1 or T, m + T]; None: at no later row. length: T.

        Attention both ways sees all but padding; rows see all that is past, and in a tree their own branch alone.
        """
        if self.facts.HEAD == "MaskedLM":
            return (torch.arange(length) < lengths.repeat(copies)[:, None]).to(self.device)[:, None, None]
        if tree is None and self.past is None:
            return None
        past = 0 if self.past is None else self.past.shape[-2]
        before = torch.ones(length, past + length, dtype=torch.bool, device=self.device).tril(past)
        if tree is None:
            return before[None, None]
        owner = tree.owner.to(self.device)
        owner = nn.functional.pad(owner, (past + length - owner.shape[1], 0), value=-1)[:, None]
        own = (owner < 0) | (owner == owner[..., past:].mT)
        return (own & before).repeat(copies, 1, 1)[:, None]

    @torch.inference_mode()
    def logits(self, h: Tensor, columns: Tensor) -> Tensor:
        """float32 logits [..., C] of hidden states [..., H] for some tokens [C] of the vocabulary."""
        return self.project(self.facts.head(self.model), h, columns.to(self.device))

    @torch.inference_mode()
    def log_likelihood(self, h: Tensor, targets: Tensor) -> Tensor:
        """log p(target) [...] over the whole vocabulary, in column chunks. h [..., H], targets [...]; float32."""
        head, targets = self.facts.head(self.model), targets.to(self.device)
        total: Tensor | None = None
        wanted = torch.empty(h.shape[:-1], device=self.device)
        for start in range(0, head.weight.shape[0], HEAD_COLUMNS):
            part = self.project(head, h, slice(start, start + HEAD_COLUMNS))
            inside = (targets >= start) & (targets < start + part.shape[-1])
            wanted[inside] = part[inside].gather(-1, (targets[inside] - start)[:, None])[:, 0]
            summed = part.logsumexp(-1)
            total = summed if total is None else torch.logaddexp(total, summed)
        assert total is not None
        return wanted - total

    def must_continue(self) -> None:
        """DataError: a model that fills masks."""
        if self.facts.HEAD != "CausalLM":
            raise DataError(f"{type(self.model).__name__} fills masks: it has no continuation.")

    @torch.inference_mode()
    def generate(self, prompt: str, tokens: int, special: bool = True) -> str:
        """The greedy continuation of a prompt, without the prompt. DataError: no room, or a model that fills masks.

        special: put the tokenizer's own tokens around the prompt; a chat template has written them already.
        """
        self.must_continue()
        ids = self.tokenizer(prompt, add_special_tokens=special, return_tensors="pt").input_ids.to(self.device)
        if ids.shape[1] + tokens > self.context_length:
            raise DataError(f"{ids.shape[1]} prompt tokens and {tokens} new ones do not fit {self.context_length}.")
        out = generate_greedy(
            self, ids, torch.ones_like(ids), 1, max_new_tokens=tokens, pad_token_id=self.model.config.eos_token_id
        )
        text: Any = self.tokenizer.decode(out[0], skip_special_tokens=True)  # of one sequence: a text
        return text

    def answers(self, prompts: list[list[int]], copies: int, tokens: int) -> list[list[str]]:
        """The first line of the greedy continuation of each prompt: [copies][prompts]."""
        return generate_answers(self, self.tokenizer, prompts, copies, tokens)

    def keep(self, examples: Examples, folder: Path) -> Iterator[int]:
        """Compute the trunk of a data set once, on disk in `folder`; yields how many sequences are done.

        The blocks of sequences are a function of the data alone, so the stored bits do not depend on the run's history.
        """
        if self.cut == 0 or id(examples) in self.kept:
            return
        trunk = TrunkCache(examples, self.model.config.hidden_size, self.dtype, self.device, folder)
        for chunk, ids in trunk.chunks():
            trunk.write(chunk, self.trunk(ids, torch.tensor([len(examples.tokens[i]) for i in chunk])))
            yield len(chunk)
        self.kept[id(examples)] = trunk


def select_layers(layers: list[int] | str, count: int) -> list[int]:
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
