"""What training will see: rows as they are tokenised, which tokens are scored, how long they are, what becomes of the rest.

By training's own path, `runs.texts` and `task.batch`, with the tokenizer, the configuration and the data; no weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..recipe.recipe import Recipe, part_name
from ..scoring import texts

HISTOGRAM_BINS = 12  # of the histogram of lengths


class TokenSpan(NamedTuple):
    """Some tokens that make whole characters (mostly one). kind: context | special | scored."""

    ids: tuple[int, ...]
    text: str
    kind: str


@dataclass
class PreviewSequence:
    """A sequence that the model reads, and after it the last scored token, which it only has to foretell.

    options: where one token is chosen among several, their texts in the options' order; the last piece is the right one.
    """

    pieces: list[TokenSpan]
    options: list[str] = field(default_factory=list)

    @property
    def scored(self) -> list[int]:
        return [i for piece in self.pieces if piece.kind == "scored" for i in piece.ids]


@dataclass
class PreviewRow:
    """An example of step 0's batch (or a later one's). right: which of several sequences has the label."""

    where: str
    label: str
    right: int
    sequences: list[PreviewSequence]


@dataclass
class Preview:
    """lengths: tokens that a forward reads of each training sequence. counts: by set, what was dropped or cut.

    limit: tokens of a sequence at most. double: rows that begin with one special token twice. unscored: rows without a
    scored token. unknown: tokens that the tokenizer did not know. labels: training rows by label. sizes: rows by set.
    """

    name: str
    task: str
    limit: int
    sizes: dict[str, int]
    counts: dict[str, dict[str, int]]
    lengths: list[int]
    scored: int
    double: int
    unscored: int
    unknown: int
    labels: dict[str, int]
    rows: list[PreviewRow]

    def quantiles(self) -> dict[str, int]:
        some = sorted(self.lengths)
        at = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {name: some[round(share * (len(some) - 1))] for name, share in at.items()}

    def histogram(self) -> list[tuple[int, int, int]]:
        """(first length, last length, sequences) of bins of equal width."""
        low, high = min(self.lengths), max(self.lengths)
        width = max(1, -(-(high - low + 1) // HISTOGRAM_BINS))
        counts = Counter((n - low) // width for n in self.lengths)
        return [
            (low + i * width, min(high, low + (i + 1) * width - 1), counts[i]) for i in range((high - low) // width + 1)
        ]


def build_preview(recipe: Recipe, count: int) -> Preview:
    """The first `count` rows in the order of training, and the training set in numbers. DataError: as training would."""
    from ..scoring.models.checkpoint import check_files
    from ..scoring.models.families import check_head
    from ..scoring.models.loading import load_config, load_tokenizer
    from ..scoring.sources.resolve import resolve_model

    folder = resolve_model(recipe.model.source, recipe.model.revision)
    check_files(folder)
    tokenizer = load_tokenizer(folder)
    config, facts = load_config(folder)
    check_head(part_name(recipe.task), recipe.task.head, facts)
    limit = min(recipe.data.max_length, int(facts.longest(config)) - recipe.space.virtual_tokens)
    found = texts.load_datasets(recipe.data, recipe.task, recipe.seed, tokenizer, limit)
    train = found.train
    task = recipe.task.over(train, recipe.seed, recipe.train.batch)
    rows: list[PreviewRow] = []
    for step in range(-(-count // recipe.train.batch)):
        rows += decode_rows(task.batch(step), recipe.task, tokenizer)
    labels = Counter(recipe.task.labels[i] for i in train.labels) if recipe.task.labels else {}
    special, unknown = set(tokenizer.all_special_ids), tokenizer.unk_token_id
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):  # as GPT-2's: it stands for no unknown word
        unknown = None
    sets = {"train": train, "valid": found.valid, "test": found.test}
    return Preview(
        recipe.name,
        part_name(recipe.task),
        limit,
        {k: len(v) for k, v in sets.items() if v is not None},
        found.counts,
        [len(ids) for ids in train.tokens],
        sum(map(len, train.rows)),
        sum(ids[0] in special and ids[:2] == [ids[0]] * 2 for ids in train.tokens[:: train.per]),
        sum(not some for some in train.rows[:: train.per]),
        sum(ids.count(unknown) for ids in train.tokens),
        dict(labels),
        rows[:count],
    )


def decode_rows(batch: Any, task: Any, tokenizer: Any) -> Iterable[PreviewRow]:
    """A batch's examples as people read them, from its tensors alone."""
    per = batch.examples.per
    named = bool(task.labels)
    masked = task.head == "MaskedLM"
    for b in range(len(batch)):
        label = int(batch.labels[b])
        sequences = []
        for s in range(b * per, (b + 1) * per):
            length = len(batch.examples.tokens[batch.index[s]])
            ids, targets = batch.ids[s, :length].tolist(), [t for t in batch.targets[s].tolist() if t >= 0]
            rows = batch.rows[s, : len(batch.examples.rows[batch.index[s]])].tolist()
            options = []
            if named and per == 1:  # one place, and a token an option there
                options, targets = [decode_text(tokenizer, [t]) for t in targets], [targets[label]]
            places = rows if masked else [row + 1 for row in rows]
            for place, target in zip(places, targets):
                ids[place : place + 1] = [target]
            sequences.append(PreviewSequence(split_into_spans(ids, set(places), tokenizer), options))
        where = batch.examples.names[batch.index[b * per] // per]
        yield PreviewRow(where, task.labels[label] if named else "", label if named and per > 1 else 0, sequences)


def decode_text(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def split_into_spans(ids: list[int], scored: set[int], tokenizer: Any) -> list[TokenSpan]:
    """Tokens with their texts, by what each adds to the text so far: a token alone may lack its space, or be half a
    character, and is then shown with those that complete it."""
    special, found = set(tokenizer.all_special_ids), list[TokenSpan]()
    text, first = "", 0
    for i, token in enumerate(ids):
        kind = "scored" if i in scored else "special" if token in special else "context"
        whole = decode_text(tokenizer, ids[: i + 1])
        last = i + 1 == len(ids) or ((i + 1) in scored) != (i in scored)
        if whole.endswith("\ufffd") and not last:
            continue
        found.append(TokenSpan(tuple(ids[first : i + 1]), whole[len(text) :], kind))
        text, first = whole, i + 1
    return found
