"""What every task's run shares: batches by (seed, step), and the log-probability of the tokens that are scored."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._examples import Batch, Examples
from ._objective import is_function, load_function

FORWARD_TOKENS = 2048  # token rows of a forward when a whole set is measured


@dataclass
class AbstractTraining(ABC):
    """The task of a run: train examples in batches, and losses of any examples. seed and step decide a batch."""

    options: Any
    train: Examples
    seed: int
    size: int

    def __post_init__(self) -> None:
        objective = self.options.objective
        if is_function(objective):
            load_function(objective)  # what cannot be imported is said before a run is begun

    def batch(self, step: int) -> Batch:
        return self.train.collate(self.train.plan(self.size, self.seed, step))

    @abstractmethod
    def score(self, model: Any, batch: Batch, copies: int) -> Tensor:
        """[copies, B] losses, float64 on the host."""

    @abstractmethod
    def judge(self, model: Any, examples: Examples, calibrate: int) -> dict[str, Any]:
        """The fields of a Score on some examples. calibrate: training rows for what needs some without their labels."""

    def replies(self, model: Any, examples: Examples) -> list[tuple[str, str]]:
        """(what is right, what the model answers) of each example, for people to read; none of a task without answers."""
        return []


def sum_log_likelihoods(model: Any, batch: Batch, copies: int) -> tuple[Tensor, Tensor]:
    """(summed log p of each sequence's scored tokens [copies, S], how many they are [S]), float64 on the host."""
    h = model.hidden(batch, copies)
    wanted = batch.targets.repeat(copies, 1)
    found = model.log_likelihood(h, wanted.clamp(min=0)).cpu().double()
    sums = torch.where(wanted >= 0, found, 0.0).sum(-1)
    return sums.view(copies, -1), (batch.targets >= 0).sum(-1)


def token_losses(model: Any, batch: Batch, copies: int) -> Tensor:
    """Losses [copies, B] whose mean is the cross-entropy of a token of the batch (as MeZO's), one sequence an example."""
    sums, _ = sum_log_likelihoods(model, batch, copies)
    whole = batch.whole or batch
    return -sums * (len(whole) / (whole.targets >= 0).sum())


def evaluation_batches(examples: Examples, more: int = 0) -> Iterator[list[int]]:
    """All examples once, in batches of about TOKENS tokens; `more`: tokens that each sequence will grow by."""
    longest = max(map(examples.fills, range(len(examples)))) + more
    yield from examples.sorted_batches(max(1, FORWARD_TOKENS // longest))


def pack_batches(sizes: list[int]) -> Iterator[list[int]]:
    """Numbers of examples of `sizes` token rows, like sizes together, in batches of TOKENS padded rows or of one."""
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    while order:
        count = max(1, min(len(order), FORWARD_TOKENS // sizes[order[-1]]))
        yield order[-count:]
        del order[-count:]


def mean_loss(model: Any, examples: Examples) -> float:
    """Cross-entropy of a scored token over a whole set."""
    sums: list[float] = []
    count = 0
    for chosen in evaluation_batches(examples):
        found, counts = sum_log_likelihoods(model, examples.collate(chosen), 1)
        sums += found[0].tolist()
        count += int(counts.sum())
    return -math.fsum(sums) / count
