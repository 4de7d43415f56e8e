"""Choose among fixed options after a prompt: loss = CE(softmax(mean log p of each option's tokens), label).

MeZO's classification (arXiv 2305.17333, App. E; train_as_classification). Where every option is one token, an example is
one sequence and only the option columns of the head are computed; the softmax over them is the same.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, nearest, plain
from ._examples import Batch, Examples
from ._rows import Row, many, text_of


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
            names = [name for _, name, spec, conversion in string.Formatter().parse(self.prompt) if name is not None]
        except ValueError as e:
            raise ValueError(f"prompt: {e}") from None
        if not names or not all(n.isidentifier() for n in names):
            raise ValueError("prompt: write fields as {text}; at least one")

    def fields(self) -> list[str]:
        return [name for _, name, _, _ in string.Formatter().parse(self.prompt) if name is not None]

    def render(self, row: Row) -> str:
        return self.prompt.format(**{name: text_of(row, name, "") for name in self.fields()}).strip(" ")

    def encode(self, rows: list[Row], tokenizer: Any, limit: int, overflow: str) -> tuple[Examples, dict[str, int]]:
        """Tokenised rows, and counts of what was truncated or dropped. DataError: labels, lengths, empty options."""
        names, words = list(self.options), list(self.options.values())
        faults: list[DataError] = []
        prompts, labels, kept = [], [], []
        for row in rows:
            try:
                label = text_of(row, self.label, "")
                if label not in self.options:
                    raise DataError(
                        f'{row.where}: label "{plain(label)}" is not one of task.options ({", ".join(names)})'
                        f"{nearest(label, names)}"
                    )
                prompts.append(self.render(row))
                labels.append(names.index(label))
                kept.append(row.where)
            except DataError as e:
                faults.append(e)
        many(faults)
        heads = tokenizer(prompts).input_ids
        fulls = [tokenizer([p + w for p in prompts]).input_ids for w in words]
        single = all(full[i][:-1] == head for full in fulls for i, head in enumerate(heads))
        single = single and all(len({ids[-1] for ids in full}) == 1 for full in fulls)
        examples, counts = Examples(1 if single else len(words)), {"truncated": 0, "dropped": 0}
        too_long: list[int] = []
        for i, head in enumerate(heads):
            if single:
                sequences = [(head, 1, [full[i][-1] for full in fulls])]
            else:  # the option is what the verbalised text adds in length (MeZO); its last token needs no forward
                sizes = [len(full[i]) - len(head) for full in fulls]
                if min(sizes) < 1:
                    raise DataError(f"task.options: '{words[sizes.index(min(sizes))]}' adds no token after the prompt.")
                sequences = [(full[i][:-1], n, full[i][-n:]) for full, n in zip(fulls, sizes)]
            longest = max(len(ids) for ids, _, _ in sequences)
            if longest > limit:
                too_long.append(longest)
                if overflow == "drop":
                    counts["dropped"] += 1
                    continue
                counts["truncated"] += 1
                special = 1 if head and head[0] in tokenizer.all_special_ids else 0
                sequences = [(ids[:special] + ids[len(ids) - limit + special :], n, t) for ids, n, t in sequences]
            for ids, n, targets in sequences:
                examples.tokens.append(ids)
                examples.rows.append(list(range(len(ids) - n, len(ids))))
                examples.targets.append(targets)
            examples.labels.append(labels[i])
            examples.names.append(kept[i])
        if too_long and overflow == "error":
            share = 100 * len(too_long) / len(heads)
            raise DataError(
                f"{len(too_long):,} of {len(heads):,} samples ({share:.1f} %) are longer than {limit} tokens (longest "
                f"{max(too_long)}). Raise data.max_length, or set data.on_overflow: truncate (from the left) | drop."
            )
        if not len(examples):
            raise DataError(f"No sample is left: all {len(heads):,} are longer than {limit} tokens.")
        return examples, counts

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
            scores = model.logits(h[:, 0], batch.targets[0])
        else:
            wanted = batch.targets.repeat(copies, 1)
            found = model.log_likelihood(h, wanted.clamp(min=0)).cpu().double()
            present = wanted >= 0
            scores = (found * present).sum(-1) / present.sum(-1)
        return scores.double().cpu().view(copies, len(batch), -1)

    def score(self, model: Any, batch: Batch, copies: int) -> Tensor:
        """Cross-entropy over the options: [copies, B], float64."""
        log_p = torch.log_softmax(self.outputs(model, batch, copies), dim=-1)
        return -log_p.gather(-1, batch.labels.expand(copies, -1)[..., None])[..., 0]
