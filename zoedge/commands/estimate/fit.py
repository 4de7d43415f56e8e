"""What a run will need, told before it begins: memory by part, disk and time, from shapes alone; no weight is read.

    facts_of_model(model) -> Facts        config.json, and the headers of the weights where they lie
    work_of(recipe, facts, texts) -> Work what the recipe and the longest batches ask of it
    parts(facts, work) -> {part: bytes}   a pure function: the parts of the fullest moment

The moments are: loading, the lower layers' cache, a step's blocks, its logits, its update, and a look at held-out rows.
docs/estimate.md has the formulas' reasons, and predicted against measured.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ...core import engine
from ...core.types import Leaf
from ...errors import DataError, UsageError, ZoedgeError
from ...log.log import SLOT_SIZES
from ...recipe.check import Recipe, check, word_of
from ...run.display import clock
from . import machine
from .machine import free, resident, size

COLUMNS, TOKENS, PIECE, BLOCK = (
    8192,
    2048,
    1 << 19,
    64,
)  # of models.base, tasks, spaces.full and bitsandbytes: tests compare
KEPT = 32 << 20  # glibc gives freed blocks back above 32 MiB; below, about the largest one stays with the process
WORKSPACE = 64 << 20  # cuBLAS's and the allocator's rounding
QUANTISING = 200 << 20  # bytes beyond source and result: found in three runs, of 135 M and 1.2 G weights
LOOKED = 4096  # steps among which the longest batch is looked for
MARGIN = 0.9  # the prediction is right to 10 %: what may fit is not refused
LAYERS = 1000  # building more would not end
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
KINDS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # of safetensors
PACKAGED = {  # config.json of a model that is yet to be fetched
    "smollm2-135m-instruct": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "tie_word_embeddings": True, "dtype": "float16",
    }
}  # fmt: skip


# -- facts


@dataclass(frozen=True)
class Facts:
    """Of a model, in elements. linears: (name, out, in) of what is quantised; tables: of tokens (a tied head once).

    others: norms, biases, positions. kind: the type of the source's files. inner, query, key: widths of a block's
    hidden layer, of q, and of k. gated: two products make the hidden layer. context: tokens of a sequence at most.
    """

    linears: tuple[tuple[str, int, int], ...]
    tables: int
    vocabulary: int
    others: int
    kind: str
    layers: int
    hidden: int
    inner: int
    query: int
    key: int
    gated: bool
    rotary: bool
    context: int
    empty: Any = None  # models.base.Base of the model without data: what attaching asks of it
    folder: Path | None = None  # where its files lie, if they are here

    @property
    def stored(self) -> int:
        """Bytes an element of the source's files."""
        return BYTES[self.kind]

    @property
    def elements(self) -> int:
        return sum(out * wide for _, out, wide in self.linears) + self.tables + self.others

    @property
    def widest(self) -> int:
        return max(out * wide for _, out, wide in self.linears)


def folder_of_model(source: str, revision: str | None) -> Path | None:
    """The folder with config.json of a model; of a hub id, that file alone is fetched. None: a packaged model not yet here.

    DataError: no such source.
    """
    from ...scoring.sources import resolve

    if source in resolve.MODELS:
        folder = resolve.cache("models") / source
        return folder if folder.is_dir() else None
    if resolve.HUB_ID.fullmatch(source) and not Path(os.path.expanduser(source)).exists():
        return resolve.hub("model", source, revision, ["config.json"])
    return resolve.resolve_model(source, revision)


def facts_of_model(model: Any) -> Facts:
    """The facts of a recipe's model section. DataError: no such source, no or an odd config.json, an unknown family."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    from ...scoring.models import base, loading

    device = loading.device_of(model)
    folder = folder_of_model(model.source, model.revision)
    if folder is None:
        table = dict(PACKAGED[model.source])
        config: Any = transformers.AutoConfig.for_model(table.pop("model_type"), **table)
    else:
        if any(p.suffix == ".safetensors" for p in folder.iterdir()):  # of a hub id, config.json may be here alone
            loading.check_files(folder)
        with loading.in_a_sentence(folder):
            config = transformers.AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    family = base.facts_of(config)
    if config.num_hidden_layers > LAYERS:
        raise DataError(f"model.source: config.json says {config.num_hidden_layers:,} layers.")
    with loading.in_a_sentence(folder or Path(model.source)), torch.device("meta"), no_init_weights():
        empty: Any = getattr(transformers, f"AutoModelFor{family.HEAD}").from_config(config)
        empty.tie_weights()
    here = base.Base(empty, None, family, loading.dtype_of(model, device), device, b"", folder or Path())
    return facts_of_base(here, stored_in(folder, config), folder)


def facts_of_base(base: Any, kind: str, folder: Path | None = None) -> Facts:
    """The facts of a model (models.base.Base) whose tensors may be without data."""
    from torch import nn

    model, config = base.model, base.model.config
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    linears = tuple(
        (name, m.out_features, m.in_features)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()
    )
    tables = embedding.numel() + (0 if head is embedding else head.numel())
    first = f"{base.facts.BLOCKS}.0."
    inside = {name.removeprefix(first): max(out, wide) for name, out, wide in linears if name.startswith(first)}
    outside = [size for name, size in inside.items() if not re.search("attn|attention.(self|query|dense)", name)]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Facts(
        linears=linears, tables=tables, vocabulary=len(embedding), kind=kind,
        others=sum(p.numel() for p in model.parameters()) - tables - sum(out * wide for _, out, wide in linears),
        layers=len(base.blocks), hidden=config.hidden_size, inner=max(outside), query=config.num_attention_heads * size,
        key=groups * size, gated=any("gate_proj" in name for name in inside), rotary=hasattr(config, "rope_parameters"),
        context=base.context_length, empty=base, folder=folder,
    )  # fmt: skip


def stored_in(folder: Path | None, config: Any) -> str:
    """The type of a model's files: the commonest in their headers, else what config.json says."""
    from ...scoring.models.loading import HEADER_LIMIT, header_of

    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder else ():
        with path.open("rb") as file:
            length = path.stat().st_size
            header, _ = header_of(file.read(min(length, HEADER_LIMIT + 8)), length)
        for name, tensor in header.items():
            if name != "__metadata__":
                sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    word = max(sizes, key=sizes.__getitem__) if sizes else str(getattr(config, "dtype", "")).removeprefix("torch.")
    word = KINDS.get(word, word)
    return word if word in BYTES else "float16"


# -- work


class Forward(NamedTuple):
    """One forward. length: of a sequence; tokens: rows in all; read: rows the loss reads; columns: of the head at a time."""

    length: int
    tokens: int
    read: int
    columns: int

    def copied(self, copies: int, ahead: int) -> Forward:
        """So many copies, with virtual tokens ahead of each sequence."""
        more = ahead * (self.tokens // max(1, self.length))
        return Forward(self.length + ahead, copies * (self.tokens + more), copies * self.read, self.columns)


@dataclass(frozen=True)
class Work:
    """What a recipe asks of a model. compute: bytes an element, same: of the
    source's own type; elements: trained; slots: of the rule, an element.

    points: in one forward; queries: directions that a step holds; passes: forwards of the batch. step, look: the longest
    forwards of a step and of held-out rows; trunk: of the lower layers' cache. whole: blocks that a step computes at all
    tokens. touched: share of the tables, mapped from their file, in memory. cached: the quantised weights are
    there. typical: token rows of a mean batch.
    """

    cuda: bool
    quantization: str
    double: bool
    compute: int
    same: bool
    full: bool
    elements: int
    slots: int
    points: int
    queries: int
    passes: int
    step: Forward
    look: Forward | None
    trunk: Forward | None
    whole: int
    touched: float
    cached: bool
    overhead: int
    typical: int
    trunk_disk: int


def work_of(recipe: Recipe, facts: Facts, texts: Any = None, overhead: int = 0) -> Work:
    """What a recipe asks for. texts: runs.Texts, or None where they are not tokenised: then the longest there may be.

    overhead: bytes that the process holds without the run. DataError: layers or targets that the model has not.
    """
    base = facts.empty
    described, ahead = description(recipe.space, facts, recipe.model.quantization)
    queries, passes = engine.demand(recipe.estimator, recipe.train.steps)
    step, look, typical = lengths(recipe, facts, texts)
    points = max(1, min(width_of(recipe.space), recipe.train.rows // max(1, step.tokens), passes))
    limit = min(recipe.data.max_length, facts.context)
    trunk, disk = None, 0
    if base.cut:
        sequences = [ids for some in sets_of(texts) for ids in some.tokens]
        most = max(map(len, sequences), default=limit)
        trunk = Forward(most, max(most, TOKENS // most * most), 0, 0)
        disk = sum(map(len, sequences)) * facts.hidden * base.dtype.itemsize
    return Work(
        cuda=base.device.type == "cuda", quantization=recipe.model.quantization, double=recipe.model.double_quant,
        compute=base.dtype.itemsize, same=str(base.dtype) == f"torch.{facts.kind}",
        full=word_of(recipe.space) == "full", elements=recipe.space.elements(described),
        slots=slots_of(recipe.rule), points=points, queries=queries * recipe.rule.draws, passes=passes,
        step=step.copied(points, ahead), look=look and look.copied(1, ahead), trunk=trunk,
        whole=facts.layers - base.cut - 1, touched=1.0, cached=is_cached(recipe),
        overhead=overhead, typical=typical, trunk_disk=disk,
    )  # fmt: skip


def sets_of(texts: Any) -> list[Any]:
    return [s for s in (texts.train, texts.valid, texts.test) if s is not None] if texts else []


def lengths(recipe: Recipe, facts: Facts, texts: Any) -> tuple[Forward, Forward | None, int]:
    """(the longest batch, the longest look, each in one copy; token rows of a mean batch). texts None: all of max_length."""
    limit, size = min(recipe.data.max_length, facts.context), recipe.train.batch
    whole = not hasattr(recipe.task, "options")  # the loss reads the whole vocabulary
    most = min(COLUMNS, facts.vocabulary)
    if texts is None:
        step = Forward(limit, size * limit, size * limit if whole else size, most if whole else 1)
        return step, None, size * limit
    train = texts.train
    columns = most if whole or train.per > 1 else 1
    sizes = sizes_of(train, size, recipe.seed, min(recipe.train.steps, LOOKED))
    batch = recipe.task.over(train, recipe.seed, size).batch(longest(recipe, train))
    flat = batch.flat or batch
    step = Forward((flat.branches or flat).ids.shape[1], batch.tokens, flat.rows.numel(), columns)
    looks = []
    for some in sets_of(texts)[1:]:
        wide = max(fills_of(some))
        count = min(len(some), max(1, TOKENS // wide))
        looks.append(Forward(wide, count * wide, count * some.per * max(map(len, some.rows)), columns))
    return step, max(looks, key=lambda f: f.tokens, default=None), sum(sizes) // len(sizes)


def longest(recipe: Recipe, train: Any) -> int:
    """The step of the longest batch (of token rows), among the first LOOKED."""
    sizes = sizes_of(train, recipe.train.batch, recipe.seed, min(recipe.train.steps, LOOKED))
    return max(range(len(sizes)), key=sizes.__getitem__)


@lru_cache(maxsize=64)
def sizes_of(train: Any, size: int, seed: int, steps: int) -> list[int]:
    """Token rows of the batches, at most: which examples are in one is a function of seed and step alone."""
    rows = fills_of(train)
    plans = (train.plan(size, seed, step) for step in range(steps))
    return [len(plan) * max(rows[i] for i in plan) for plan in plans]


@lru_cache(maxsize=8)
def fills_of(examples: Any) -> list[int]:
    """Token rows of each example."""
    return [examples.fills(i) for i in range(len(examples))]


def description(space: Any, facts: Facts, quantization: str) -> tuple[Any, int]:
    """(what a space says of itself over this model, virtual tokens ahead of a sequence); the model's cut is set."""
    base, word = facts.empty, word_of(space)
    if word == "several":
        found, cuts = {}, []
        for name, one in space.of.items():
            found[name] = description(one, facts, quantization)
            cuts.append(base.cut)
        base.cut_at(min(cuts))
        return {name: one for name, (one, _) in found.items()}, sum(ahead for _, ahead in found.values())
    base.cut_at(0)
    if word == "full":
        kind = str(base.dtype).removeprefix("torch.")
        return {"storage": kind, "shapes": [[name, *p.shape] for name, p in base.model.named_parameters()]}, 0
    if word == "prompt":
        return {"width": base.model.get_input_embeddings().weight.shape[1]}, space.tokens
    if word == "prefix":
        size = facts.query // base.model.config.num_attention_heads
        return {"blocks": facts.layers, "groups": facts.key // size, "size": size}, 0
    sites = base.sites(space.layers, "all" if word == "scales" else space.targets)
    shapes = [[name, m.out_features, m.in_features] for name, m in sites.items()]
    if word == "lora":
        return {"shapes": shapes}, 0
    scales = [[*shape, shape[2] if quantization == "int8" else BLOCK] for shape in shapes]
    vectors = base.vectors(space.layers) if space.vectors else {}
    return {"scales": scales, "vectors": [[name, p.numel()] for name, p in vectors.items()]}, 0


def width_of(space: Any) -> int:
    """Points that a space holds in one forward."""
    if word_of(space) == "several":
        return min(map(width_of, space.of.values()))
    return int(sys.modules[type(space).__module__].Held.width)


def slots_of(rule: Any) -> int:
    """float32 values that a rule keeps an element: asked of the rule itself, for eight."""
    import torch

    held = rule.slots(Leaf("", 0, torch.zeros(8), (), 8), 2)
    return sum(x.numel() for x in held.values() if isinstance(x, torch.Tensor)) // 8


def is_cached(recipe: Recipe) -> bool:
    """Do the model's quantised weights lie in the cache? By their source's name: digests of weights take seconds."""
    from ...scoring.sources.resolve import cache

    model = recipe.model
    for note in cache("quantised").glob(f"*-{model.quantization}/zoedge.json"):
        try:
            source = json.loads(note.read_bytes())["source"]
            scheme = json.loads((note.parent / "config.json").read_bytes())["quantization_config"]
            double = scheme.get("bnb_4bit_use_double_quant", False)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        if source == model.source and (model.quantization == "int8" or double == model.double_quant):
            return True
    return model.quantization == "none"


# -- memory


def quantised(n: int, rows: int, scheme: str, double: bool) -> int:
    """Bytes of n quantised weights in so many rows: codes, scales and their tables, as bitsandbytes holds them."""
    if scheme == "int8":
        return n + 4 * rows
    blocks = -(-n // BLOCK)
    scales = blocks + 4 * -(-blocks // 256) + 4 * 256 + 4 if double else 4 * blocks
    return -(-n // 2) + scales + 4 * 16


def weights(facts: Facts, work: Work) -> tuple[int, int]:
    """(bytes of the matrices, norms and biases; bytes of the tables of tokens)."""
    small = facts.others * work.compute
    if work.quantization == "none":
        return sum(out * wide for _, out, wide in facts.linears) * work.compute + small, facts.tables * work.compute
    codes = sum(quantised(out * wide, out, work.quantization, work.double) for _, out, wide in facts.linears)
    return codes + small, facts.tables * facts.stored


def state(facts: Facts, work: Work) -> int:
    """Bytes of what is trained while a forward runs: float32 master, slots, directions, and the points in compute type."""
    if work.full:  # the master is the model; a matrix's points, and a piece's direction
        widest = max(facts.widest, 1)
        return 2 * widest * work.compute + 4 * work.slots * work.elements + 4 * 4 * PIECE
    return work.elements * (4 * (1 + work.slots + work.queries) + work.points * work.compute)


def blocks(facts: Facts, work: Work, f: Forward, whole: bool) -> int:
    """Bytes of hidden states at the fullest moment of a block. whole: of one that computes at all tokens.

    The states that enter a block, the residual and the normed ones are alive while the hidden layer is; a quantised
    matrix is dequantised for its product. The last block computes keys and values at all tokens, the rest where the
    loss reads.
    """
    c = work.compute
    h, i, q, k = (f.tokens * wide * c for wide in (facts.hidden, facts.inner, facts.query, facts.key))
    wide = 0 if work.quantization == "none" else facts.widest * (8 if work.quantization == "int8" else c)
    norm = 3 * h if c == 4 else 2 * h + 12 * f.tokens * facts.hidden
    keys = 2 * h + (4 if facts.rotary else 2) * k + wide
    if not whole:
        return max(norm, keys)
    inner = 3 * h + max(3 * i, 2 * i + wide) if facts.gated else max(3 * h + i + wide, 2 * h + 2 * i)
    heads = 2 * h + 2 * k + (4 if facts.rotary else 2) * q
    return max(norm, inner, heads, 3 * h + i + h + wide)


def logits(facts: Facts, f: Forward) -> int:
    """Bytes of float32 logits of a chunk of columns, of their exponentials, and of that part of the head."""
    return 4 * (2 * f.read * f.columns + f.columns * facts.hidden) if f.columns > 1 else 0


def moments(facts: Facts, work: Work) -> dict[str, dict[str, int]]:
    """The parts at each moment of a run that can be the fullest."""
    matrices, tables = weights(facts, work)
    mapped = not work.cuda and (work.quantization != "none" or work.same)
    tables = int(tables * (work.touched if mapped else 1.0))
    held = {"weights": matrices, "embeddings": tables}
    trained = held | {"trained": state(facts, work)}
    found = {"loading": held | {"loader": loader(facts, work)}}
    if work.trunk:
        found["lower layers"] = trained | {"activations": blocks(facts, work, work.trunk, True)}
    for name, f, whole in (("step", work.step, work.whole > 0), ("look", work.look, work.whole > 0)):
        if f is not None:
            final = 2 * f.read * facts.hidden * 4
            found[name] = trained | {"activations": blocks(facts, work, f, whole)}
            if f.columns > 1:
                found[f"{name}'s logits"] = trained | {"activations": final, "logits": logits(facts, f)}
    if not work.full:  # coefficients times directions, and their sum
        found["update"] = held | {"trained": work.elements * 4 * (3 + work.queries + 2 * work.slots)}
    for some in found.values():
        some["overhead"] = work.overhead + slack(work, some)
    return found


def slack(work: Work, some: dict[str, int]) -> int:
    """What the allocator keeps of what was freed: on a GPU its rounding, on a CPU about glibc's largest block."""
    moving = sum(some.get(part, 0) for part in ("activations", "logits", "trained"))
    if work.cuda:
        return WORKSPACE + moving // 16
    return min(KEPT, moving // 2)


def loader(facts: Facts, work: Work) -> int:
    """What loading takes beyond what stays: the source's mapped file, and of quantising what it moves."""
    source = facts.elements * facts.stored
    if work.quantization == "none":
        return 0 if work.same else source
    if work.cuda:
        return facts.widest * facts.stored * 2
    return 0 if work.cached else source - facts.tables * facts.stored + min(QUANTISING, source)  # tables stay mapped


def parts(facts: Facts, work: Work) -> dict[str, int]:
    """Bytes by part at the fullest moment; they sum to the peak."""
    return max(moments(facts, work).values(), key=lambda some: sum(some.values()))


# -- will it fit?


@dataclass(frozen=True)
class Case:
    """A recipe over a model and its data: all that another setting's memory is computed from."""

    recipe: Recipe
    facts: Facts
    texts: Any
    overhead: int

    @cached_property
    def work(self) -> Work:
        return work_of(self.recipe, self.facts, self.texts, self.overhead)

    @cached_property
    def parts(self) -> dict[str, int]:
        return parts(self.facts, self.work)

    @property
    def needs(self) -> int:
        return sum(self.parts.values())

    @property
    def totals(self) -> dict[str, int]:
        """Bytes at each moment."""
        return {name: sum(some.values()) for name, some in moments(self.facts, self.work).items()}

    @property
    def moment(self) -> str:
        """The fullest one."""
        return max(found := self.totals, key=found.__getitem__)

    def where(self, key: str, value: Any) -> Case | None:
        """The same with another value of a key; None: the recipe refuses it."""
        from ...scoring.models.base import DTYPES

        table = self.recipe.resolved()
        section, _, name = key.partition(".")
        table[section] = {"name": value} if name == "name" else table[section] | {name: value}
        try:
            other = replace(self, recipe=check(table, {}, "recipe"))
        except UsageError:
            return None
        if key == "model.compute_dtype":
            other = replace(other, facts=replace(self.facts, empty=replace(self.facts.empty, dtype=DTYPES[value])))
        return other


class Lever(NamedTuple):
    """A change of one key. saved: bytes."""

    key: str
    old: Any
    new: Any
    case: Case
    saved: int

    def told(self, most: int) -> str:
        return f"{self.key} {self.old} -> {self.new} (-{size(self.saved)}{', fits' if self.case.needs <= most else ''})"


def case_of(recipe: Recipe) -> Case:
    """A recipe, its model's facts and its rows, and what a process holds that has imported all and loaded nothing.

    DataError: whatever is wrong with the source or the rows. Where the tokenizer is not here, rows are taken as the longest
    that there may be.
    """
    from ...scoring.models.base import suits

    facts = facts_of_model(recipe.model)
    suits(word_of(recipe.task), getattr(recipe.task, "head", "CausalLM"), facts.empty.facts)
    texts = tokenised(recipe, facts)
    return Case(recipe, facts, texts, held_already(facts))


def held_already(facts: Facts) -> int:
    """Bytes that a process holds that has imported all and loaded nothing; on a GPU that is not there."""
    if facts.empty.device.type == "cuda":
        return 0
    import accelerate  # noqa: F401 - transformers imports it to load
    import torch

    from ...scoring.models.base import release
    from ...scoring.models.quantised import Scaled

    Scaled.has(torch.nn.Identity())  # imports bitsandbytes
    torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))  # the library of products is loaded once
    release()
    return resident()


def predicted(case: Case, texts: Any) -> dict[str, int]:
    """Parts of a run that passed the gate as `case`, now that its rows are tokenised (runs.Texts)."""
    work = work_of(case.recipe, case.facts, texts, case.overhead)
    return parts(case.facts, replace(work, cached=case.work.cached))  # what loading made did not lie there


def halves(value: int, least: int = 1) -> list[int]:
    """value / 2, value / 4, ... down to the least."""
    found = []
    while value > least:
        value = max(least, value // 2)
        found.append(value)
    return found


def choices(case: Case) -> Iterator[tuple[str, Any, list[Any]]]:
    """(key, value, smaller ones) of what decides memory, in the order in which they cost least of a run's result."""
    recipe = case.recipe
    tokens = max(1, lengths(recipe, case.facts, case.texts)[0].tokens)
    yield "train.rows", recipe.train.rows, halves(recipe.train.rows, min(tokens, recipe.train.rows))
    if (queries := getattr(recipe.estimator, "queries", 1)) > 1:
        yield "estimator.queries", queries, halves(queries)
    yield "train.batch", recipe.train.batch, halves(recipe.train.batch)
    if word_of(recipe.space) != "full" and recipe.model.quantization in ("none", "int8"):
        yield "model.quantization", recipe.model.quantization, ["nf4"]
    if recipe.model.quantization == "none" and case.facts.empty.dtype.itemsize == 4:
        yield "model.compute_dtype", recipe.model.compute_dtype, ["bf16"]
    if (rank := getattr(recipe.space, "rank", 1)) > 1:
        yield "space.rank", rank, halves(rank)
    if slots_of(recipe.rule):
        yield "rule.name", word_of(recipe.rule), ["sgd"]


def levers(case: Case, most: int) -> list[Lever]:
    """What each key alone can save: its first value with which the run fits, else its smallest. The best first."""
    found, needs = [], case.needs
    for key, old, values in choices(case):
        last = None
        for value in values:
            other = case.where(key, value)
            if other is None:
                continue
            last = Lever(key, old, value, other, needs - other.needs)
            if other.needs <= most:
                break
        if last is not None and last.saved > 0:
            found.append(last)
    return sorted(found, key=lambda one: (one.case.needs > most, -one.saved))


def fitted(case: Case, most: int) -> tuple[Case, list[Lever]]:
    """(the recipe with the fewest, mildest changes that fits into so many bytes, or as near as it comes; the changes)."""
    made: list[Lever] = []
    for key, old, values in choices(case):
        if case.needs <= most or key not in ("train.rows", "estimator.queries", "train.batch"):
            break
        for value in values:
            if (other := case.where(key, value)) is None:
                continue
            if (saved := case.needs - other.needs) > 0:
                made = [one for one in made if one.key != key] + [Lever(key, old, value, other, saved)]
                case = other
            if case.needs <= most:
                break
    return case, made


def told(some: dict[str, int]) -> str:
    """weights 3.9 | logits 4.1 | ..., in GB, or all in MB below one."""
    unit, digits, name = (1e9, 1, "GB") if sum(some.values()) >= 1e9 else (1e6, 0, "MB")
    return " | ".join(f"{part} {count / unit:.{digits}f}" for part, count in some.items() if count) + f" {name}"


def refusal(case: Case, most: int, where: str) -> str:
    """Message 7: what is needed, what there is, the parts, and the one key that saves most."""
    found = levers(case, most)
    best = f" Biggest lever: {found[0].told(most)}." if found else ""
    return f"Will not fit: needs {size(case.needs)}, {size(most)} free on {where}: {told(case.parts)}.{best}"


def gate(recipe: Recipe) -> Case | None:
    """What a run will ask for. DataError, before anything is fetched or loaded, if that cannot fit into the free memory.

    It is refused when MARGIN of what is predicted is more than is free. What the longest batch is asks for the tokenizer,
    which is only needed where the shortest possible one would fit and the longest possible would not. None: something
    else is wrong, for which the run itself has a sentence.
    """
    try:
        facts = facts_of_model(recipe.model)
        case = Case(recipe, facts, None, held_already(facts))
        least = replace(case.work, step=Forward(1, 1, 1, 1), look=None, trunk=None, points=1, touched=0.0)
    except ZoedgeError:
        return None
    most, where = free(case.work.cuda)
    if case.needs <= most:
        return case
    if MARGIN * sum(parts(facts, least).values()) <= most:
        try:
            found = replace(case, texts=tokenised(recipe, facts))
        except ZoedgeError:
            return case
        if found.texts is None or MARGIN * found.needs <= most:
            return case
        case = found
    raise DataError(refusal(case, most, where) + " Nothing was downloaded or changed.")


def tokenised(recipe: Recipe, facts: Facts) -> Any:
    """The recipe's rows (runs.Texts), if the tokenizer is here; None: it is not."""
    from ...run.setup import texts
    from ...scoring.models.loading import load_tokenizer

    if facts.folder is None or not (facts.folder / "tokenizer.json").is_file():
        return None
    ahead = description(recipe.space, facts, recipe.model.quantization)[1]
    return texts(recipe, load_tokenizer(facts.folder), min(recipe.data.max_length, facts.context - ahead))


# -- disk and time


def disk(case: Case) -> dict[str, int]:
    """Bytes that a run fetches or makes once, and what it leaves, on the disk."""
    facts, work, recipe = case.facts, case.work, case.recipe
    k, steps = engine.capacity(recipe.estimator, recipe.train.steps), recipe.train.steps
    slot = next((n for n in SLOT_SIZES if 40 + 12 * k <= n), SLOT_SIZES[-1])
    found = {"source": facts.elements * facts.stored, "quantised cache": 0, "lower layers": work.trunk_disk}
    if recipe.model.quantization != "none":
        found["quantised cache"] = sum(weights(facts, work))
    found["log"] = slot * (steps + steps // recipe.log.hash_every)
    if "peft" in recipe.output.export:
        found["adapter"] = 4 * work.elements
    if "merged" in recipe.output.export:
        found["merged"] = facts.elements * (work.compute if work.full else 2)
    return {what: count for what, count in found.items() if count}


def seconds(case: Case) -> dict[str, float]:
    """Seconds of a mean step, and of the run by part, from a fraction of a second of products of this model's shapes here.

    An estimate: what else the machine does, attention, norms and activations are not in it.
    """
    import torch

    facts, work, recipe, base = case.facts, case.work, case.recipe, case.facts.empty
    block = sum(out * wide for name, out, wide in facts.linears if name.startswith(f"{base.facts.BLOCKS}.0."))
    keys = 2 * facts.hidden * facts.key
    forwards = -(-work.passes // work.points)
    tokens = work.typical * work.passes // forwards  # of a forward
    read = max(1, tokens * work.step.read // work.step.tokens)
    head = facts.hidden * facts.vocabulary if work.step.columns > 1 else 0

    def forward(tokens: int, read: int, each: float) -> float:
        products = tokens * (work.whole * block + keys) + read * (block - keys + head)
        return each * products + ready * (work.whole + 1) * block

    was = torch.get_num_threads()
    if recipe.model.threads:
        torch.set_num_threads(recipe.model.threads)
    ready = machine.dequantised(work.quantization, base)
    quick = machine.product(facts.inner, facts.hidden, TOKENS // 4, base)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    each = machine.product(facts.inner, facts.hidden, max(1, min(tokens, TOKENS // 4)), base)
    moved = machine.advanced(recipe, base) * work.queries * work.elements
    torch.set_num_threads(was)
    step = forwards * forward(tokens, read, each) + moved
    found = {"step": step, "steps": step * recipe.train.steps}
    rows = [sum(fills_of(some)) for some in sets_of(case.texts)]
    if work.trunk:
        found["lower layers"] = sum(rows) * block * (facts.layers - work.whole - 1) * quick
    if rows[1:]:
        looks = rows[1] * (recipe.train.steps // recipe.eval.every) + 2 * rows[-1]
        found["scoring"] = looks * forward(TOKENS, TOKENS * read // tokens, quick) / TOKENS
    return found


# -- for people


def report(case: Case, found: dict[str, Any]) -> list[str]:
    """The lines of `zoedge estimate`. found: what its --json prints."""
    recipe, needs, fits = case.recipe, found["needs"], found["fits"]
    source = f"{recipe.model.source}, {recipe.model.quantization}, {found['trained']:,} trained, on {found['device']}"
    long = f"{found['rows']:,} token rows in the largest forward of a step, sequences of {found['longest']:,}"
    if case.texts is None:
        long += ", taken from data.max_length: the tokenizer is not here yet"
    lines = [f"{recipe.name}: {source}", f"{'':9}{long}", ""]
    if fits:
        lines.append(f"memory   fits: needs {size(needs)}, {size(found['free'])} free on {found['where']}")
    else:
        lines.append(refusal(case, found["free"], found["where"]))
    lines += [f"{'':9}{part:12}{size(count):>9}" for part, count in found["predicted"].items() if count]
    lines.append(f"{'':9}at its fullest moment, {found['moment']}; how near such figures came: docs/estimate.md")
    if not fits and found["change"]:
        lines.append(f"{'':9}fits with: {' '.join(found['change'])}")
    elif not fits:
        lines.append(f"{'':9}no train.rows, estimator.queries and train.batch make it fit")
    lines += [f"{'':9}or {lever}" for lever in found.get("levers", ())[1:3]]
    if "measured" in found:
        lines += ["", *compared(found)]
    lines.append("")
    lines.append("disk     " + ", ".join(f"{what} {size(count)}" for what, count in found["disk"].items()))
    took = found["seconds"]
    whole = clock(sum(value for what, value in took.items() if what != "step"))
    rest = ", ".join(f"{what} {clock(value)}" for what, value in took.items() if what != "step")
    lines.append(
        f"time     about {took['step']:.3g} s a step, {whole} in all ({rest}): an estimate from products timed here"
    )
    return lines


def compared(found: dict[str, Any]) -> list[str]:
    """Predicted against measured, by moment."""
    predicted, real = found["moments"], found["measured"]
    pairs = {
        "loading": (("loading",), ("loading", "base")), "lower layers": (("lower layers",), ("lower layers",)),
        "step": (("step", "step's logits", "update"), ("step",)), "look": (("look", "look's logits"), ("look",)),
    }  # fmt: skip
    lines = [f"{'':9}{'':14}{'predicted':>12}{'measured':>12}{'error':>9}"]
    rows = {
        name: (max(predicted.get(k, 0) for k in ours), max(real.get(k, {}).get("peak", 0) for k in theirs))
        for name, (ours, theirs) in pairs.items()
    }
    rows["peak"] = (max(p for p, _ in rows.values()), max(m for _, m in rows.values()))
    for name, (p, m) in rows.items():
        if p and m:
            lines.append(f"{'':9}{name:14}{size(p):>12}{size(m):>12}{100 * (p / m - 1):>+8.1f} %")
    return ["measured in a process of its own", *lines]
