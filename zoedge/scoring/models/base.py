"""This module has the base model, and its forward, which computes only what a loss reads.

Nothing here knows of zeroth-order optimisation. Spaces hook the model's Linear modules. `cut` is the first block that they
change, so that everything below it is computed once for each example (`cache_trunk`). Virtual tokens stand ahead of every
sequence, as embeddings (`prompt`) or as keys and values of every block (`past`).

A forward scores a batch at several points at once: the batch is repeated copy by copy, one copy for each point. In shapes,
S is the number of sequences of the batch, T their length, R the rows of a sequence that the loss reads, H the width of the
hidden states, E that of the embeddings, n the virtual tokens in `prompt` and m those in `past`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ...core.base import LowRankTerm, Projection
from ...errors import DataError, suggest_nearest
from .decode import continue_text, generate_answers
from .dual import differentiate, without_gradients
from .layers import select_layers
from .past import PastKeyValues, choose_token_ids
from .points import PointProducts, has_no_other_hooks, is_cheaper
from .quantised import QUANTISED_BLOCK, LinearScales, keep_weights, lower_products, read_weight
from .trunk import TrunkCache
from .trunk_blocks import partition_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..tasks._branches import OptionTree
    from ..tasks._examples import Batch, Examples
    from .families import FamilyFacts
    from .trunk_store import TrunkStore

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

HEAD_COLUMNS = 8192  # columns of logits that are computed at once: all 50,272 of OPT for 16 x 64 rows would be 206 MB


def compute_logits(head: nn.Linear, h: Tensor, index: Tensor | slice) -> Tensor:
    """Return logits [..., C], in float32, of hidden states h [..., H] by the rows `index` [C] of the head and of its bias."""
    bias = None if head.bias is None else head.bias[index].float()
    return nn.functional.linear(h.float(), head.weight[index].float(), bias)


@dataclass
class Base:
    """A frozen model, its tokenizer, and what a space and a run have set of its forward.

    Attributes:
        facts: the module of the model's family.
        dtype, device: the type of the forward, and where it runs.
        digest, path: the SHA-256 that identifies the checkpoint and its quantisation, and the folder that was loaded.
        inputs: what else decides the forward, as a log's header has it: the other files, the type, the quantisation.
        cut: no block below this one sees a trained tensor.
        kept: the output of the blocks below `cut`, by the id of the set of examples.
        ahead: the number of positions that are reserved for virtual tokens.
        prompt: the virtual tokens' embeddings while points are held, [copies, n, E].
        past: their keys and values while points are held, [copies, blocks, 2, groups, m, D]; they stand before the prompt.
        project: how the forward computes logits. A space that moves the head puts its own function here.
        quantization: of a model without data, what its weights would be quantised to; else None.
        terms: what spaces add to the output of modules, where it is a term of low rank and nothing else.
        trunk_dtype: the type of the products in the blocks below `cut`; None: `dtype`.
        store, around_trunk: where their output is kept between runs (None: it is not), and a context for its computation.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: FamilyFacts
    dtype: torch.dtype
    device: torch.device
    digest: bytes
    path: Path
    inputs: dict[str, Any] = field(default_factory=dict)
    cut: int = 0
    kept: dict[int, TrunkCache] = field(default_factory=dict)
    ahead: int = 0
    prompt: Tensor | None = None
    past: Tensor | None = None
    project: Projection = compute_logits
    quantization: str | None = None
    store: TrunkStore | None = None
    trunk_dtype: torch.dtype | None = None
    terms: dict[nn.Module, LowRankTerm] = field(default_factory=dict)
    around_trunk: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, in order."""
        return cast(nn.ModuleList, self.model.get_submodule(self.facts.BLOCKS))

    @property
    def context_length(self) -> int:
        """The number of tokens that a sequence may have, besides virtual tokens."""
        return int(self.facts.longest(self.model.config)) - self.ahead

    def find_linears(self, layers: list[int] | str, targets: list[str] | str) -> dict[str, nn.Linear]:
        """Return the chosen Linear modules by full name, in the model's order, and set `cut` to the lowest of their blocks.

        Args:
            layers: the blocks, as `select_layers` reads them.
            targets: the last parts of the modules' names, such as q_proj, or "all".

        Raises:
            DataError: there are no such blocks or modules. The message names those that there are.
        """
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
        self.set_cut(0 if self.ahead else min(chosen))
        return {
            f"{self.facts.BLOCKS}.{i}.{name}": m
            for i in chosen
            for name, m in blocks[i].named_modules()
            if isinstance(m, nn.Linear) and (targets == "all" or name.rpartition(".")[2] in targets)
        }

    def find_writers(self, layers: list[int] | str, targets: list[str] | str) -> dict[str, nn.Linear]:
        """Return the chosen Linear modules whose output is added to the hidden states, by full name, and set `cut`.

        Args:
            layers: the blocks, as `select_layers` reads them.
            targets: their names in a block or the last parts of these, or "auto" for all.

        Raises:
            DataError: there are no such blocks or modules. The message names those that there are.
        """
        last_names = {name: name.rpartition(".")[2] for name in self.facts.WRITES}
        known = list(dict.fromkeys(last_names.values() if len(set(last_names.values())) > 1 else last_names))
        wanted = list(last_names) if targets == "auto" else targets
        for target in wanted or [""]:
            if target not in (*last_names, *last_names.values()):
                raise DataError(
                    f"space.targets: '{target}' is none of what adds to the hidden states of {type(self.model).__name__}: "
                    f"{' '.join(known)}. Choose among these, or write auto."
                )
        chosen = select_layers(layers, len(self.blocks))
        self.set_cut(min(chosen))
        return {
            f"{self.facts.BLOCKS}.{i}.{name}": cast(nn.Linear, self.blocks[i].get_submodule(name))
            for i in chosen
            for name, last_name in last_names.items()
            if name in wanted or last_name in wanted
        }

    def set_cut(self, block: int) -> None:
        """Declare that nothing below this block is trained."""
        if self.cut != block:
            self.kept.clear()  # these outputs are of another block
        self.cut = block

    def lower_trunk(self, word: str | None) -> None:
        """Let the products of the blocks below `cut` be computed in this type, by its word, on a CPU; None: as all others."""
        if word in DTYPES and DTYPES[word] != self.dtype and self.device.type == "cpu":
            self.trunk_dtype = DTYPES[word]
            lower_products(self.blocks[: self.cut], self.trunk_dtype)

    # -- virtual tokens

    def reserve_positions(self, tokens: int) -> None:
        """Reserve positions ahead of every sequence for virtual tokens, which all blocks see, and cut at 0.

        DataError: no room would be left for text, or the model fills masks.
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
        self.set_cut(0)

    def choose_token_ids(self, count: int, text: str, seed: int) -> Tensor:
        """Return `count` token ids: those of a text, repeated to fill, or random ones where the text is empty.

        Random ids are a hash of the seed. DataError: the text has more tokens than `count`, or none.
        """
        return choose_token_ids(self.tokenizer, self.model.config.vocab_size, count, text, seed)

    @torch.inference_mode()
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, [..., E] in float32 for ids [...], as the forward reads them."""
        return self.model.get_input_embeddings()(ids.to(self.device)).float()

    def keys_shape(self) -> tuple[int, int, int]:
        """Return the number of blocks, the number of groups of heads, and the width of a head, as in `compute_keys_values`."""
        config = self.model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return len(self.blocks), groups, size

    @torch.inference_mode()
    def compute_keys_values(self, ids: Tensor) -> Tensor:
        """Return the keys and values of a sequence [T] in every block, [blocks, 2, groups, T, D] in float32."""
        cache = self.model.base_model(input_ids=ids[None].to(self.device), use_cache=True).past_key_values
        return torch.stack([torch.cat([layer.keys, layer.values]) for layer in cache.layers]).float()

    # -- what spaces take of the model itself

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Return every parameter by name, in the model's order, tied ones once.

        DataError: the model is quantised, or some of its weights are on the disk.
        """
        if any(map(LinearScales.has, self.model.modules())):
            raise DataError("space: full moves 16 or 32-bit weights. Write model.quantization: none, or space: scales.")
        if any(p.is_meta for p in self.model.parameters()):
            raise DataError("space: full moves all weights, and model.max_memory leaves some on the disk. Use LoRA.")
        return dict(self.model.named_parameters())

    def find_scales(self, sites: dict[str, nn.Linear]) -> dict[str, LinearScales]:
        """Return the quantisation scales of some Linear modules by name. DataError: they are not quantised."""
        if not all(map(LinearScales.has, sites.values())):
            raise DataError(
                "space: scales moves those of a quantised base. Write model.quantization: nf4, or space: full."
            )
        return {name: LinearScales(module) for name, module in sites.items()}

    def scale_blocks(self, sites: dict[str, nn.Linear]) -> dict[str, int]:
        """Return how many weights share a scale in each of some Linear modules. DataError: they are not quantised."""
        if self.quantization is None:
            return {name: scales.block for name, scales in self.find_scales(sites).items()}
        return {name: m.in_features if self.quantization == "int8" else QUANTISED_BLOCK for name, m in sites.items()}

    def find_vectors(self, layers: list[int] | str) -> dict[str, nn.Parameter]:
        """Return the norms and biases of some blocks and the norms after the last one, by name; none of head and embeddings."""
        chosen = tuple(f"{self.facts.BLOCKS}.{i}." for i in select_layers(layers, len(self.blocks)))
        head_bias = self.facts.head(self.model).bias
        vectors = {}
        for name, parameter in self.model.named_parameters():
            if parameter.dim() != 1 or parameter is head_bias or ".embeddings." in name:
                continue
            if name.startswith(chosen) or not name.startswith(self.facts.BLOCKS):
                vectors[name] = parameter
        return vectors

    # -- the forward

    def differentiate(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Make the forward compute derivatives along the tangents that a space holds (dual.py); gives what splits a loss."""
        return differentiate(self.model, self.blocks[: self.cut])

    @without_gradients
    def hidden_states(self, batch: Batch, copies: int) -> Tensor:
        """Return what the head reads at the scored rows, [copies * S, R, H], copy by copy.

        The batch is padded on the right, so that causal attention needs no mask. Options that share their beginning are a tree.
        """
        cache, tree = self.kept.get(id(batch.examples.whole or batch.examples)), batch.branches
        lengths = torch.tensor([len(batch.examples.tokens[i]) for i in batch.index])
        form = tree or batch
        rows = form.rows.to(self.device)
        if self.cut == 0:
            h = self.embed_inputs(form.ids, copies, tree)
        elif cache is None:
            h = self.trunk(form.ids, lengths, tree)
        else:
            h = cache.read(batch.index, batch.ids.shape[1])
            if tree is not None:
                h = h.flatten(0, 1)[tree.at.to(self.device)]
            elif (products := self.share_points(copies, rows.shape[1], h.shape[1])) is not None:
                context = self.facts.context(self.model, h, self.places(h.shape[1], 1, None))
                h = self.facts.last_of_points(self.blocks[-1], h, rows, products, **context)
                return self.facts.final(self.model, h)
        if self.cut > 0:
            h = h.repeat(copies, 1, 1)
        rows = rows.repeat(copies, 1)
        if self.prompt is not None:
            rows = rows + self.prompt.shape[1]
        context = self.context(h, lengths, copies, tree)
        for block in self.blocks[self.cut : -1]:
            h = block(h, **context)
        if self.cut < len(self.blocks):
            h = self.facts.last(self.blocks[-1], h, rows, **context)
        h = self.facts.final(self.model, h)
        if tree is None:
            return h
        # of a tree, h is [copies * G, K * R, H] for G examples with at most K options each
        by_option = h.view(copies, -1, batch.rows.shape[1], h.shape[-1])
        return by_option[:, tree.pick.to(self.device)].flatten(0, 1)

    def share_points(self, copies: int, rows: int, length: int) -> PointProducts | None:
        """Return what computes the last block of all points at once where `rows` are read; None: it cannot, or costs more."""
        shared = [self.blocks[-1].get_submodule(name) for name in self.facts.SHARED]
        sizes = rows, length, self.model.config.num_attention_heads, *self.keys_shape()[1:]
        possible = self.cut == len(self.blocks) - 1 and self.device.type == "cpu"
        if not (possible and has_no_other_hooks(shared, self.terms) and is_cheaper(*sizes)):
            return None
        return PointProducts(copies, self.terms, lambda module: read_weight(module, self.dtype))

    @torch.inference_mode()
    def trunk(self, ids: Tensor, lengths: Tensor, tree: OptionTree | None = None) -> Tensor:
        """Return the output of the blocks below `cut`, [S, T, H].

        Args:
            ids: the sequences [S, T], padded on the right.
            lengths: how many tokens each has without padding, [S].
            tree: the batch's, if ids are those of a tree.
        """
        h = self.embed_inputs(ids, 1, tree)
        context = self.context(h, lengths, 1, tree)
        for block in self.blocks[: self.cut]:
            h = block(h, **context)
        return h

    def embed_inputs(self, ids: Tensor, copies: int, tree: OptionTree | None) -> Tensor:
        """Return what the first block reads, [copies * S, n + T, H], copy by copy, each behind its own prompt."""
        prompt = None if self.prompt is None else self.prompt.repeat_interleave(len(ids), 0)
        length = ids.shape[1]
        if prompt is not None:
            length += prompt.shape[1]
        places = self.places(length, copies, tree)
        return self.facts.embed(self.model, ids.to(self.device).repeat(copies, 1), places, prompt)

    def places(self, length: int, copies: int, tree: OptionTree | None) -> Tensor:
        """Return the positions of the tokens behind `past`, [1, n + T], or of a tree [copies * S, n + T].

        length: n + T.
        """
        first = 0 if self.past is None else self.past.shape[-2]
        in_order = torch.arange(first, first + length, device=self.device)[None]
        if tree is None:
            return in_order
        in_tree = tree.places.to(self.device).repeat(copies, 1)
        prompt_length = length - in_tree.shape[1]
        of_prompt = in_order[:, :prompt_length].expand(len(in_tree), -1)
        return torch.cat([of_prompt, in_tree + first + prompt_length], 1)

    def context(self, h: Tensor, lengths: Tensor, copies: int, tree: OptionTree | None) -> dict[str, Any]:
        """Return the arguments by name that every block takes besides the hidden states h, [copies * S, n + T, H]."""
        past = None if self.past is None else PastKeyValues(self.past, len(h) // len(self.past))
        places = self.places(h.shape[1], copies, tree)
        mask = self.mask(h.shape[1], lengths, copies, tree)
        return {"attention_mask": mask, **self.facts.context(self.model, h, places, past)}

    def mask(self, length: int, lengths: Tensor, copies: int, tree: OptionTree | None) -> Tensor | None:
        """Return the attention mask, which is True where a row sees another, [1 or copies * S, 1, 1 or L, m + L].

        None: attention is plainly causal. With attention both ways, a row sees all but padding. Otherwise it sees `past`,
        and no later row, and in a tree only its own option and what all options share. length: L = n + T.
        """
        if self.facts.HEAD == "MaskedLM":
            return (torch.arange(length) < lengths.repeat(copies)[:, None]).to(self.device)[:, None, None]
        if tree is None and self.past is None:
            return None
        past = 0 if self.past is None else self.past.shape[-2]
        not_later = torch.ones(length, past + length, dtype=torch.bool, device=self.device).tril(past)
        if tree is None:
            return not_later[None, None]
        owner = tree.owner.to(self.device)
        virtual_tokens = past + length - owner.shape[1]
        owner = nn.functional.pad(owner, (virtual_tokens, 0), value=-1)[:, None]  # all options share them
        is_shared = owner < 0
        same_option = owner == owner[..., past:].mT
        return ((is_shared | same_option) & not_later).repeat(copies, 1, 1)[:, None]

    @without_gradients
    def logits(self, h: Tensor, columns: Tensor) -> Tensor:
        """Return logits [..., C], in float32, of hidden states h [..., H] for the tokens `columns` [C] of the vocabulary."""
        return self.project(self.facts.head(self.model), h, columns.to(self.device))

    def iterate_logits(self, h: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the logits of h [..., H], `columns` of the vocabulary at a time: the first token, logits [..., <= columns]."""
        head = self.facts.head(self.model)
        for start in range(0, head.weight.shape[0], columns):
            yield start, self.project(head, h, slice(start, start + columns))

    @without_gradients
    def log_likelihood(self, h: Tensor, targets: Tensor, columns: int | None = None) -> Tensor:
        """Return the log-probability of the target tokens [...] over the whole vocabulary, [...] in float32.

        h: hidden states [..., H]. columns: how many logits of each are held at a time; None: HEAD_COLUMNS.
        """
        targets = targets.to(self.device)
        normaliser: Tensor | None = None
        # of a target beyond the table nothing is written
        target_logits = torch.full(h.shape[:-1], torch.nan, device=self.device)
        for start, logits in self.iterate_logits(h, columns or HEAD_COLUMNS):
            inside = (targets >= start) & (targets < start + logits.shape[-1])
            places = (targets[inside] - start)[:, None]
            target_logits[inside] = logits[inside].gather(-1, places)[:, 0]
            summed = logits.logsumexp(-1)
            normaliser = summed if normaliser is None else torch.logaddexp(normaliser, summed)
        assert normaliser is not None
        return target_logits - normaliser

    def require_causal(self) -> None:
        """Raise DataError if the model fills masks, as it cannot continue a text."""
        if self.facts.HEAD != "CausalLM":
            raise DataError(f"{type(self.model).__name__} fills masks: it has no continuation.")

    def generate(self, prompt: str, tokens: int, special: bool = True, end: str = "") -> str:
        """Return the greedy continuation of a prompt, without the prompt.

        Args:
            tokens: how many new tokens there may be.
            special: put the tokenizer's special tokens around the prompt. A chat template has written them already.
            end: the text before which the continuation ends, as training ended an answer; "": only the model's own end.

        Raises:
            DataError: prompt and new tokens do not fit into the context, or the model fills masks.
        """
        self.require_causal()
        return continue_text(self, self.context_length, prompt, tokens, special, end)

    def generate_answers(self, prompts: list[list[int]], copies: int, tokens: int) -> list[list[str]]:
        """Return the first line of at most `tokens` greedy tokens after each tokenised prompt, [copies][prompts]."""
        return generate_answers(self, prompts, copies, tokens)

    def open_trunk(self, examples: Examples, folder: Path, planned: Collection[int] | None = None) -> TrunkCache | None:
        """Return the cache of what the blocks below `cut` make of a set's sequences, which forwards fill; None: `cut` is 0.

        folder: where its file is if it is not kept. planned: the numbers of the sequences that will be read; None: all.
        """
        if self.cut == 0:
            return None
        whole = examples.whole or examples
        if id(whole) not in self.kept:
            if self.device.type == "cpu":
                keep_weights(self.blocks[self.cut :], self.dtype)
            self.kept[id(whole)] = TrunkCache(
                whole, partition_sequences(list(map(len, whole.tokens)), planned), self, folder
            )
        return self.kept[id(whole)]

    def cache_trunk(self, examples: Examples, folder: Path) -> Iterator[int]:
        """Fill the cache of a whole set, and yield how many more sequences are done. StorageError: the disk is full."""
        if (cache := self.open_trunk(examples, folder)) is not None:
            yield from cache.fill()
