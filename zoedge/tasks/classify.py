"""Choose among fixed options after a prompt: loss = CE(softmax(mean log p of each option's tokens), label).

MeZO's classification (arXiv 2305.17333, App. E; train_as_classification). Where every option is one token, an example
is one sequence and only the option columns of the head are computed; the softmax over them is the same.
"""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, nearest, plain
from ._examples import Batch, Examples
from ._rows import Row, as_text, file_of, many, natural, require, text_of


@dataclass(frozen=True)
class Classify:
    """prompt: a template over the row's fields. options: label -> the words that follow. label: the label's field."""

    prompt: str = "{text} It was"
    options: dict[str, str] = field(default_factory=lambda: {"negative": " terrible", "positive": " great"})
    label: str = "label"

    def __post_init__(self) -> None:
        if len(self.options) < 2 or len(set(self.options.values())) < len(self.options):
            raise ValueError("options: at least two, all different")
        try:
            parsed = [found[1:] for found in string.Formatter().parse(self.prompt) if found[1] is not None]
        except ValueError as e:
            raise ValueError(f"prompt: {str(e).lower()}. Write fields as {{text}}, and a brace itself twice") from None
        if not parsed or not all(name and name.isidentifier() and not (spec or how) for name, spec, how in parsed):
            raise ValueError("prompt: write fields as {text}; at least one")

    def fields(self) -> list[str]:
        """The row's fields that the prompt is made of."""
        return list(dict.fromkeys(found[1] for found in string.Formatter().parse(self.prompt) if found[1] is not None))

    def render(self, row: Row) -> str:
        return self.prompt.format(**{name: text_of(row, name) for name in self.fields()}).strip(" ")

    def encode(self, rows: list[Row], tokenizer: Any, limit: int, overflow: str) -> tuple[Examples, dict[str, int]]:
        """Tokenised rows, and counts of what was truncated or dropped. DataError: labels, lengths, empty options."""
        require(rows, self.fields(), self.label)
        words = list(self.options.values())
        prompts, labels = self.rendered(rows)
        heads, starts = tokenise(tokenizer, prompts)
        fulls = [tokenise(tokenizer, [p + w for p in prompts])[0] for w in words]
        single = all(full[i][:-1] == head for full in fulls for i, head in enumerate(heads))
        single = single and all(len({ids[-1] for ids in full}) == 1 for full in fulls)
        examples = Examples(1 if single else len(words))
        lengths: list[int] = []
        for row, label, head, start, *full in zip(rows, labels, heads, starts, *fulls):
            if single:
                sequences = [(head, 1, [ids[-1] for ids in full])]
            else:  # the option is what the verbalised text adds in length (MeZO); its last token needs no forward
                sizes = [len(ids) - len(head) for ids in full]
                if min(sizes) < 1:
                    word = plain(words[sizes.index(min(sizes))])
                    raise DataError(f"task.options: '{word}' adds no token after the prompt of {row.where}.")
                sequences = [(ids[:-1], n, ids[-n:]) for ids, n in zip(full, sizes)]
            lengths.append(max(len(ids) for ids, _, _ in sequences))
            if (cut := lengths[-1] - limit) > 0:
                if overflow != "truncate":
                    continue
                if len(head) - cut <= start:
                    raise DataError(f"{row.where}: the options alone fill {limit} tokens. Raise data.max_length.")
                # from the prompt's start, the same tokens for every option; what the tokenizer puts first stays
                sequences = [(ids[:start] + ids[start + cut :], n, targets) for ids, n, targets in sequences]
            for ids, n, targets in sequences:
                examples.tokens.append(ids)
                examples.rows.append(list(range(len(ids) - n, len(ids))))
                examples.targets.append(targets)
            examples.labels.append(label)
            examples.names.append(row.where)
        return examples, overflowed(rows, lengths, limit, overflow)

    def rendered(self, rows: list[Row]) -> tuple[list[str], list[int]]:
        """(prompts, labels). DataError lists every row whose fields or label are not as wanted."""
        names = list(self.options)
        seen = Counter(as_text(row.fields.get(self.label)) for row in rows)
        if not seen.keys() & self.options.keys():
            raise DataError(
                f"{file_of(rows)}: no row's label is one of task.options ({', '.join(map(plain, names))}). There is: "
                f"{', '.join(f'{plain(word)} ({n:,} rows)' for word, n in seen.most_common(8))}. Name them in task.options: "
                f"{{{', '.join(f'{plain(word)}: ...' for word in sorted(seen)[:2])}}}."
            )
        faults: list[DataError] = []
        prompts, labels = [], []
        for row in rows:
            try:
                label = text_of(row, self.label)
                if label not in self.options:
                    there = ", ".join(map(plain, names)) + f"){nearest(label, names) or '.'}"
                    raise DataError(f'{row.where}: label "{plain(label)}" is not one of task.options ({there}')
                prompts.append(self.render(row))
                labels.append(names.index(label))
            except DataError as e:
                faults.append(e)
        many(faults)
        return prompts, labels

    def over(self, train: Examples, seed: int, size: int) -> Classification:
        return Classification(self, train, seed, size)


@dataclass
class Classification:
    """The task of a run: train examples in batches, and scores of any examples. seed and step decide a batch."""

    options: Classify
    train: Examples
    seed: int
    size: int

    def batch(self, step: int) -> Batch:
        return self.train.collate(self.train.plan(self.size, self.seed, step))

    def outputs(self, model: Any, batch: Batch, copies: int) -> Tensor:
        """Log-probabilities of the options, up to a constant an example: [copies, B, options], float64 on the host."""
        h = model.hidden(batch, copies)
        if batch.examples.per == 1:
            scores: Tensor = model.logits(h[:, 0], batch.targets[0])
        else:
            wanted = batch.targets.repeat(copies, 1)
            found = model.log_likelihood(h, wanted.clamp(min=0)).cpu().double()
            present = wanted >= 0
            scores = (found * present).sum(-1) / present.sum(-1)
        return scores.double().cpu().view(copies, len(batch), -1)

    def score(self, model: Any, batch: Batch, copies: int) -> Tensor:
        """Cross-entropy over the options: [copies, B], float64."""
        log_p = torch.log_softmax(self.outputs(model, batch, copies), dim=-1)
        right: Tensor = log_p.gather(-1, batch.labels.expand(copies, -1)[..., None])[..., 0]
        return -right


def tokenise(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], list[int]]:
    """(ids, how many the tokenizer puts first) of each text, without what some tokenizers append: that is no option."""
    found = tokenizer(texts, return_special_tokens_mask=True)
    sequences, starts = [], []
    for ids, special in zip(found.input_ids, found.special_tokens_mask):
        end = len(ids)
        while end and special[end - 1]:
            end -= 1
        sequences.append(ids[:end])
        starts.append(next((i for i, mark in enumerate(special) if not mark), end))
    return sequences, starts


def overflowed(
    rows: list[Row], lengths: list[int], limit: int, overflow: str, cut: str = "the prompt, from the left"
) -> dict[str, int]:
    """How many rows are longer than `limit` tokens, truncated or dropped. DataError: some (error), or all (drop).

    cut: what truncating takes away.
    """
    long = [row.where for row, length in zip(rows, lengths) if length > limit]
    if long and overflow == "error":
        raise DataError(
            f"{len(long):,} of {len(rows):,} samples ({100 * len(long) / len(rows):.1f} %) are longer than "
            f"{limit:,} tokens (p99 = {sorted(lengths)[int(0.99 * (len(rows) - 1))]:,}, longest {max(lengths):,}, "
            f"first {min(long, key=natural)}). Raise data.max_length, as far as the model's context goes, or set "
            f"data.on_overflow: truncate ({cut}) | drop."
        )
    if overflow == "drop" and len(long) == len(rows):
        raise DataError(f"No sample is left: all {len(rows):,} are longer than {limit:,} tokens.")
    truncated = overflow == "truncate"
    return {"truncated": len(long) if truncated else 0, "dropped": 0 if truncated else len(long)}
