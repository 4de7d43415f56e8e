"""This module has tokenised examples, each of one token sequence or one for each option, and batches of them."""

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

SHUFFLE_WINDOW = 8  # batches whose examples are sorted by length together


@dataclass(eq=False)
class Examples:
    """A tokenised set of rows. Its sequences are stored one after another, those of one example side by side.

    Attributes:
        sequences_each: the number of sequences of each example.
        tokens: the token ids of each sequence.
        rows: the positions of each sequence where the prediction of the next token is scored.
        targets: the tokens that are right there, for each sequence. In classification with one-token options,
            sequences_each is 1 and every sequence has the same targets, which are the tokens of all options.
        labels: the number of each example's right option.
        names: where each example's row stands, as file:line.
        notes: what an objective or a metric needs of each example besides its tokens, as JSON; empty where nothing is needed.
        choices: all candidates of each example as a set of their own, where training reads only the right one; else empty.
        whole: the set whose first examples these are; None: they are a set of their own. What is kept of the whole set's
            sequences, by their numbers, is theirs too.
    """

    sequences_each: int
    tokens: list[list[int]] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    targets: list[list[int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    choices: list[Examples] = field(default_factory=list)
    whole: Examples | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, ids: list[int], scored: list[int], label: int, name: str) -> None:
        """Append an example of one sequence.

        scored: the positions of the tokens whose prediction the loss measures, in ascending order. Position 0 is never
        one of them, as nothing predicts it.
        """
        self.tokens.append(ids[: scored[-1]])  # the last scored token is a target only: no forward reads it
        self.rows.append([i - 1 for i in scored])
        self.targets.append([ids[i] for i in scored])
        self.labels.append(label)
        self.names.append(name)

    def digest(self) -> bytes:
        """Return the SHA-256 of the tokenised examples in their order. It identifies the data, whatever file it came from."""
        sha = hashlib.sha256(struct.pack("<II", self.sequences_each, len(self)))
        for numbers in (*self.tokens, *self.rows, *self.targets, self.labels):
            sha.update(struct.pack(f"<I{len(numbers)}I", len(numbers), *numbers))
        for note in self.notes:
            content = {key: value for key, value in note.items() if key != "where"}  # the same row in another file
            text = json.dumps(content, sort_keys=True, default=str).encode()
            sha.update(struct.pack("<I", len(text)) + text)
        for candidates in self.choices:
            sha.update(candidates.digest())
        return sha.digest()

    def collate(self, chosen: Sequence[int], sizes: list[int] | None = None) -> Batch:
        """Return the batch of some examples, padded on the right to the longest sequence among them.

        Args:
            chosen: the numbers of the examples.
            sizes: how many sequences after one another are options of the same prompt; None: those of each example.
        """
        index = [example * self.sequences_each + j for example in chosen for j in range(self.sequences_each)]
        ids = pad_right([self.tokens[i] for i in index], 0)
        rows = pad_right([self.rows[i] for i in index], 0)
        targets = pad_right([self.targets[i] for i in index], -1)
        labels = torch.tensor([self.labels[i] for i in chosen])
        lengths = torch.tensor([len(self.tokens[i]) for i in index])
        check = 0
        for tensor in (ids, lengths, rows, targets, labels):
            check = zlib.crc32(tensor.numpy().tobytes(), check)
        sizes = sizes or [self.sequences_each] * len(chosen)
        branches = None
        if max(sizes) > 1:
            branches = OptionTree.of([self.tokens[i] for i in index], sizes, ids, rows)
        return Batch(self, index, ids, rows, targets, labels, check, branches)

    @lru_cache(maxsize=4)  # noqa: B019
    def head(self, count: int) -> Examples:
        """Return the first `count` examples, or all where there are fewer."""
        n = min(count, len(self))
        tokens, rows, targets = (lists[: n * self.sequences_each] for lists in (self.tokens, self.rows, self.targets))
        return Examples(
            self.sequences_each,
            tokens,
            rows,
            targets,
            self.labels[:n],
            self.names[:n],
            self.notes[:n],
            self.choices[:n],
            self.whole or self,
        )

    def right_options(self) -> Examples:
        """Return a set of the right option's sequence of each example, alone."""
        right = [i * self.sequences_each + label for i, label in enumerate(self.labels)]
        tokens, rows, targets = ([some[i] for i in right] for some in (self.tokens, self.rows, self.targets))
        return Examples(1, tokens, rows, targets, self.labels, self.names, self.notes)

    def plan(self, size: int, seed: int, step: int) -> list[int]:
        """Return the numbers of the examples of a step's batch, a pure function of (size, seed, step).

        No example comes twice in an epoch, unless the set is smaller than one batch.
        """
        batches_per_epoch = max(1, len(self) // size)
        epoch, place = divmod(step, batches_per_epoch)
        return self._epoch(size, seed, epoch)[place]

    @lru_cache(maxsize=2)  # noqa: B019
    def _epoch(self, size: int, seed: int, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch in random order.

        Random windows of SHUFFLE_WINDOW batches are each sorted by length and cut into batches, which saves a third of
        the padding. The examples that fill no batch are left out before the sorting: after it, they would always be the
        longest ones.
        """
        order = seeded_permutation(len(self), seed, epoch)
        order *= -(-size // len(order))  # a set smaller than a batch is repeated to fill it
        whole = len(order) // size * size
        batches = []
        for start in range(0, whole, size * SHUFFLE_WINDOW):
            end = min(start + size * SHUFFLE_WINDOW, whole)
            window = sorted(order[start:end], key=self._length)
            batches += [window[j : j + size] for j in range(0, len(window), size)]
        return [batches[i] for i in seeded_permutation(len(batches), seed, ~epoch)]

    def count_token_rows(self, i: int) -> int:
        """Return how many token rows example i takes in a forward."""
        return count_token_rows(self._sequences(i))

    def _length(self, i: int) -> int:
        return max(map(len, self._sequences(i)))

    def _sequences(self, i: int) -> list[list[int]]:
        return self.tokens[i * self.sequences_each : (i + 1) * self.sequences_each]

    def sorted_batches(self, size: int, count: int | None = None) -> list[list[int]]:
        """Return the numbers of all examples, or of the first `count`, sorted by length, `size` to a batch."""
        order = sorted(range(len(self) if count is None else count), key=self._length)
        return [order[i : i + size] for i in range(0, len(order), size)]


def pad_right(sequences: list[list[int]], filler: int) -> Tensor:
    """Return sequences as one int64 tensor [S, longest], in which the filler stands after each one's end."""
    padded = torch.full((len(sequences), max(map(len, sequences))), filler, dtype=torch.long)
    for line, sequence in zip(padded, sequences):
        line[: len(sequence)] = torch.tensor(sequence)
    return padded


@dataclass(eq=False)
class Batch:
    """Some examples as padded tensors. It has B examples and S = B * examples.sequences_each sequences.

    Attributes:
        examples: the set that they are from.
        index: the number of each sequence in that set, [S].
        ids: tokens, [S, T].
        rows: the positions that the loss reads, [S, R].
        targets: the tokens that are right there, or one-token options, [S, R or options]; -1: none.
        labels: the numbers of the right options, [B].
        check: the crc32 of all of these.
        branches: the same tokens in fewer rows, where options share their beginning.
        flat: the batch of all candidates of the examples, where a step scores those.
        whole: the batch that this one is a part of.
    """

    examples: Examples
    index: list[int]
    ids: Tensor
    rows: Tensor
    targets: Tensor
    labels: Tensor
    check: int
    branches: OptionTree | None = None
    flat: Batch | None = None
    whole: Batch | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def slice_examples(self, first: int, end: int) -> Batch:
        """Return the examples first .. end - 1 as a batch, padded as in this one.

        With equal shapes most kernels give equal bits, so that a batch scored in parts has the losses of the whole.
        """
        per = self.examples.sequences_each
        sequences = slice(first * per, end * per)
        index, ids, rows = self.index[sequences], self.ids[sequences], self.rows[sequences]
        branches = None
        if self.branches is not None:
            sizes = [per] * (len(index) // per)
            branches = OptionTree.of([self.examples.tokens[i] for i in index], sizes, ids, rows)
        return Batch(
            self.examples,
            index,
            ids,
            rows,
            self.targets[sequences],
            self.labels[first:end],
            self.check,
            branches,
            whole=self.whole or self,
        )

    @property
    def tokens(self) -> int:
        """The number of token rows of one copy of the batch in a forward, padding included."""
        scored = self.flat or self
        return (scored.branches or scored).ids.numel()

    @property
    def notes(self) -> list[dict[str, Any]]:
        """The notes of the batch's examples."""
        per = self.examples.sequences_each
        return [self.examples.notes[i // per] for i in self.index[::per]]
