"""`zoedge preview` shows what training will see: tokenised rows, which tokens are scored, how long rows are, what is cut.

It goes the same way as training (`load_datasets`, then the task's batches), with the tokenizer, the model's config.json
and the data, and without weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..core.types import AbstractTask
from ..recipe.recipe import Recipe, part_name
from ..scoring import texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..scoring.tasks._examples import Batch

HISTOGRAM_BINS = 12


class TokenSpan(NamedTuple):
    """Some tokens, mostly one, that together make whole characters."""

    ids: tuple[int, ...]
    text: str
    kind: str  # context | special | scored


@dataclass
class PreviewSequence:
    """A sequence that the model reads, followed by the last scored token, which the model only has to predict.

    Where a token is chosen among several, the last piece is the right one.
    """

    pieces: list[TokenSpan]
    options: list[str] = field(default_factory=list)  # where one of several tokens is chosen: their texts, in order

    @property
    def scored(self) -> list[int]:
        """The ids of the scored tokens."""
        return [i for piece in self.pieces if piece.kind == "scored" for i in piece.ids]


@dataclass
class PreviewRow:
    """An example of the first batches of training."""

    where: str  # file and line
    label: str
    right: int  # the index of the sequence that has the label
    sequences: list[PreviewSequence]


@dataclass
class Preview:
    """The first rows of training, and the training set in numbers."""

    name: str
    task: str
    limit: int  # tokens of a sequence at most
    sizes: dict[str, int]  # rows of each set
    counts: dict[str, dict[str, int]]  # what was dropped or cut in each set
    lengths: list[int]  # tokens that a forward pass reads of each training sequence
    scored: int  # tokens
    double: int  # rows that begin with the same special token twice
    unscored: int  # rows without a scored token
    unknown: int  # tokens that the tokenizer did not know
    labels: dict[str, int]  # training rows with each label
    rows: list[PreviewRow]

    def quantiles(self) -> dict[str, int]:
        """Return quantiles of the lengths, by name."""
        lengths = sorted(self.lengths)
        shares = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {name: lengths[round(share * (len(lengths) - 1))] for name, share in shares.items()}

    def histogram(self) -> list[tuple[int, int, int]]:
        """Return (first length, last length, number of sequences) for bins of equal width."""
        low, high = min(self.lengths), max(self.lengths)
        width = max(1, -(-(high - low + 1) // HISTOGRAM_BINS))
        counts = Counter((n - low) // width for n in self.lengths)
        return [
            (low + i * width, min(high, low + (i + 1) * width - 1), counts[i]) for i in range((high - low) // width + 1)
        ]


def build_preview(recipe: Recipe, count: int) -> Preview:
    """Return the first `count` rows in the order of training, and the training set in numbers. DataError: as in training."""
    from ..scoring.models.checkpoint import check_files
    from ..scoring.models.families import check_head
    from ..scoring.models.loading import load_config, load_tokenizer
    from ..scoring.sources.resolve import resolve_model
    from ..scoring.tasks._encode import leading_tokens

    folder = resolve_model(recipe.model.source, recipe.model.revision)
    check_files(folder)
    tokenizer = load_tokenizer(folder)
    config, facts = load_config(folder)
    check_head(part_name(recipe.task), recipe.task.head, facts)
    limit = min(recipe.data.max_length, int(facts.longest(config)) - recipe.space.virtual_tokens)
    datasets = texts.load_datasets(recipe.data, recipe.task, recipe.seed, tokenizer, limit, config.vocab_size)
    train = datasets.train
    task = recipe.task.make_training(train, recipe.seed, recipe.train.batch)
    rows: list[PreviewRow] = []
    for step in range(-(-count // recipe.train.batch)):
        rows += decode_rows(task.batch(step), recipe.task, tokenizer)
    labels = Counter(recipe.task.labels[i] for i in train.labels) if recipe.task.labels else {}
    unknown = tokenizer.unk_token_id
    openers = {tokenizer.bos_token_id, *leading_tokens(tokenizer)}  # what a text begins with
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):  # as in GPT-2, where it marks no unknown word
        unknown = None
    sets = {"train": train, "valid": datasets.valid, "test": datasets.test}
    return Preview(
        name=recipe.name,
        task=part_name(recipe.task),
        limit=limit,
        sizes={which: len(examples) for which, examples in sets.items() if examples is not None},
        counts=datasets.counts,
        lengths=[len(ids) for ids in train.tokens],
        scored=sum(map(len, train.rows)),
        double=sum(ids[0] in openers and ids[:2] == [ids[0]] * 2 for ids in train.tokens[:: train.sequences_each]),
        unscored=sum(not places for places in train.rows[:: train.sequences_each]),
        unknown=sum(ids.count(unknown) for ids in train.tokens),
        labels=dict(labels),
        rows=rows[:count],
    )


def decode_rows(batch: Batch, task: AbstractTask, tokenizer: PreTrainedTokenizerBase) -> Iterable[PreviewRow]:
    """Yield a batch's examples as people read them, from the batch's tensors alone."""
    per = batch.examples.sequences_each
    has_labels = bool(task.labels)
    fills_mask = task.head == "MaskedLM"
    for b in range(len(batch)):
        label = int(batch.labels[b])
        sequences = []
        for s in range(b * per, (b + 1) * per):
            length = len(batch.examples.tokens[batch.index[s]])
            ids, targets = batch.ids[s, :length].tolist(), [t for t in batch.targets[s].tolist() if t >= 0]
            rows = batch.rows[s, : len(batch.examples.rows[batch.index[s]])].tolist()
            options: list[str] = []
            if has_labels and per == 1:  # one place, where each option is a token
                options, targets = [decode_text(tokenizer, [t]) for t in targets], [targets[label]]
            places = rows if fills_mask else [row + 1 for row in rows]
            for place, target in zip(places, targets):
                ids[place : place + 1] = [target]
            sequences.append(PreviewSequence(split_into_spans(ids, set(places), tokenizer), options))
        where = batch.examples.names[batch.index[b * per] // per]
        text = task.labels[label] if has_labels else ""
        yield PreviewRow(where, text, label if has_labels and per > 1 else 0, sequences)


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of some tokens, special tokens included, exactly as they spell it."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def split_into_spans(ids: list[int], scored: set[int], tokenizer: PreTrainedTokenizerBase) -> list[TokenSpan]:
    """Return tokens with the text that each adds to the text before it, in order.

    A token that is decoded alone may lose its space, or be half a character: such a token is shown together with those that
    complete it.
    """
    special, spans = set(tokenizer.all_special_ids), list[TokenSpan]()
    text, first = "", 0
    for i, token in enumerate(ids):
        kind = "scored" if i in scored else "special" if token in special else "context"
        whole = decode_text(tokenizer, ids[: i + 1])
        last = i + 1 == len(ids) or ((i + 1) in scored) != (i in scored)
        if whole.endswith("\ufffd") and not last:
            continue
        spans.append(TokenSpan(tuple(ids[first : i + 1]), whole[len(text) :], kind))
        text, first = whole, i + 1
    return spans
