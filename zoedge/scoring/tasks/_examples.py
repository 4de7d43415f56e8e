"""Tokenised examples and batches: one sequence or several an example, and where the loss reads."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..rows.row import seeded_permutation
from ._branches import OptionTree, count_token_rows

SHUFFLE_WINDOW = 8


@dataclass(eq=False)
class Examples:
    """per: sequences an example. tokens: ids of each sequence. rows: positions in it whose next token is scored.

    targets: the tokens wanted there (where per is 1: every option's token, the same in all sequences). labels: the
    right option of each example. names: where each example stands. notes: what an objective or a metric needs of each
    beside its tokens (as JSON). choices: every candidate of each, where training reads the right one alone.
    """

    per: int
    tokens: list[list[int]] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    targets: list[list[int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    choices: list[Examples] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, ids: list[int], scored: list[int], label: int, name: str) -> None:
        """An example of one sequence. scored: the places of the tokens (never the first) that the loss is of."""
        self.tokens.append(ids[: scored[-1]])  # nothing reads what follows the token before the last one scored
        self.rows.append([i - 1 for i in scored])
        self.targets.append([ids[i] for i in scored])
        self.labels.append(label)
        self.names.append(name)

    def digest(self) -> bytes:
        """SHA-256 over the tokenised examples in order: what is trained on, whatever file it came from."""
        whole = hashlib.sha256(struct.pack("<II", self.per, len(self)))
        for part in (*self.tokens, *self.rows, *self.targets, self.labels):
            whole.update(struct.pack(f"<I{len(part)}I", len(part), *part))
        for note in self.notes:
            text = json.dumps({k: v for k, v in note.items() if k != "where"}, sort_keys=True, default=str).encode()
            whole.update(struct.pack("<I", len(text)) + text)
        for some in self.choices:
            whole.update(some.digest())
        return whole.digest()

    def collate(self, chosen: Sequence[int], sizes: list[int] | None = None) -> Batch:
        """A batch of examples, padded on the right to its longest sequence.

        sizes: how many sequences in a row are options after one prompt; those of an example, if not told.
        """
        index = [i * self.per + j for i in chosen for j in range(self.per)]
        longest = max(len(self.tokens[i]) for i in index)
        width = max(len(self.rows[i]) for i in index)
        ids = torch.zeros(len(index), longest, dtype=torch.long)
        rows = torch.zeros(len(index), width, dtype=torch.long)
        wanted = max(len(self.targets[i]) for i in index)
        targets = torch.full((len(index), wanted), -1, dtype=torch.long)
        for s, i in enumerate(index):
            ids[s, : len(self.tokens[i])] = torch.tensor(self.tokens[i])
            rows[s, : len(self.rows[i])] = torch.tensor(self.rows[i])
            targets[s, : len(self.targets[i])] = torch.tensor(self.targets[i])
        labels = torch.tensor([self.labels[i] for i in chosen])
        lengths = torch.tensor([len(self.tokens[i]) for i in index])
        check = 0
        for tensor in (ids, lengths, rows, targets, labels):
            check = zlib.crc32(tensor.numpy().tobytes(), check)
        sizes = sizes or [self.per] * len(chosen)
        several = max(sizes) > 1
        branches = OptionTree.of([self.tokens[i] for i in index], sizes, ids, rows) if several else None
        return Batch(self, index, ids, rows, targets, labels, check, branches)

    @lru_cache(maxsize=4)  # noqa: B019
    def head(self, count: int) -> Examples:
        """The first `count` examples."""
        n = min(count, len(self))
        tokens, rows, targets = (x[: n * self.per] for x in (self.tokens, self.rows, self.targets))
        return Examples(
            self.per, tokens, rows, targets, self.labels[:n], self.names[:n], self.notes[:n], self.choices[:n]
        )

    def plan(self, size: int, seed: int, step: int) -> list[int]:
        """The examples of a step: a pure function of (seed, step); each at most once an epoch (or a batch)."""
        per_epoch = max(1, len(self) // size)
        return self._epoch(size, seed, step // per_epoch)[step % per_epoch]

    @lru_cache(maxsize=2)  # noqa: B019
    def _epoch(self, size: int, seed: int, epoch: int) -> list[list[int]]:
        """An epoch's batches: random windows of WINDOW batches, cut by length (a third less padding), then mixed.

        What does not fill a batch is left out before the cut: after it, the longest would be, epoch by epoch.
        """
        order = seeded_permutation(len(self), seed, epoch)
        order *= -(-size // len(order))
        del order[len(order) // size * size :]
        batches = []
        for i in range(0, len(order), size * SHUFFLE_WINDOW):
            window = sorted(order[i : i + size * SHUFFLE_WINDOW], key=self._length)
            batches += [window[j : j + size] for j in range(0, len(window), size)]
        return [batches[i] for i in seeded_permutation(len(batches), seed, ~epoch)]

    def fills(self, i: int) -> int:
        """Token rows of an example."""
        return count_token_rows(self.tokens[i * self.per : (i + 1) * self.per])

    def _length(self, i: int) -> int:
        return max(map(len, self.tokens[i * self.per : (i + 1) * self.per]))

    def sorted_batches(self, size: int, count: int | None = None) -> list[list[int]]:
        """All examples (or the first `count`) once, like lengths together, `size` a batch."""
        order = sorted(range(len(self) if count is None else count), key=self._length)
        return [order[i : i + size] for i in range(0, len(order), size)]


@dataclass(eq=False)
class Batch:
    """ids [S, T], rows [S, R], targets [S, R or options] (-1: absent), labels [B]; S = B * sequences an example."""

    examples: Examples
    index: list[int]
    ids: Tensor
    rows: Tensor
    targets: Tensor
    labels: Tensor
    check: int
    branches: OptionTree | None = None  # the same in fewer rows, where options share what they begin with
    flat: Batch | None = None  # every candidate of the examples, where they are what a step scores
    whole: Batch | None = None  # what this is a part of

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, first: int, end: int) -> Batch:
        """Examples first .. end - 1, padded as in the whole: of equal shape, kernels mostly give equal bits."""
        per = self.examples.per
        some = slice(first * per, end * per)
        index, ids, rows = self.index[some], self.ids[some], self.rows[some]
        sequences = [self.examples.tokens[i] for i in index]
        branches = OptionTree.of(sequences, [per] * (len(index) // per), ids, rows) if self.branches else None
        targets, labels = self.targets[some], self.labels[first:end]
        return Batch(self.examples, index, ids, rows, targets, labels, self.check, branches, whole=self.whole or self)

    @property
    def tokens(self) -> int:
        batch = self.flat or self
        return (batch.branches or batch).ids.numel()

    @property
    def notes(self) -> list[dict[str, Any]]:
        """Those of the batch's examples."""
        return [self.examples.notes[i // self.examples.per] for i in self.index[:: self.examples.per]]
