"""This module has what the runs of all tasks share: the batch of each step, and log-probabilities of scored tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._examples import Batch, Examples
from ._objective import is_function
from ._reward_file import load_function

if TYPE_CHECKING:
    from ..models.base import Base

FORWARD_TOKENS = 2048  # token rows of a forward when a whole set is measured


@dataclass
class AbstractTraining(ABC):
    """The task of a run, which gives the engine batches of the training set and the losses of any batch.

    options: the recipe's task.
    train: the training set.
    seed: the run's seed, which with the step's number decides a batch.
    size: the number of examples in a batch.
    """

    options: Any
    train: Examples
    seed: int
    size: int

    def load_reward(self) -> None:
        """Import the function that the objective names, if it names one. Only what computes rewards may ask for it.

        DataError: it cannot be imported, which is better known before the run begins.
        """
        if is_function(self.options.objective):
            load_function(self.options.objective)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, a pure function of (seed, step)."""
        return self.train.collate(self.train.plan(self.size, self.seed, step))

    @property
    def option_count(self) -> int:
        """The number of options that every example has; 0: the task has none."""
        return 0

    @abstractmethod
    def score(self, model: Base, batch: Batch, copies: int) -> Tensor:
        """Return the loss of each of the batch's B examples at each point held: [copies, B], float64 on the CPU.

        copies: the number of points that the model holds; its forward scores the batch once for each of them.
        """

    @abstractmethod
    def evaluate(self, model: Base, examples: Examples, calibrate: int) -> dict[str, Any]:
        """Return the metrics of the model on some examples by name, `loss` and `count` among them.

        calibrate: how many training examples a metric may read, without their labels.
        """

    def sample_answers(self, model: Base, examples: Examples) -> list[tuple[str, str]]:
        """Return the right answer and the model's answer to each example, as texts; empty for a task without answers."""
        return []


def sum_log_likelihoods(model: Base, batch: Batch, copies: int) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each sequence's scored tokens, summed, and the number of these tokens.

    The sums are [copies, S] in float64 on the CPU, the numbers [S].
    """
    h = model.hidden_states(batch, copies)
    targets = batch.targets.repeat(copies, 1)
    log_p = model.log_likelihood(h, targets.clamp(min=0)).cpu().double()
    sums = torch.where(targets >= 0, log_p, 0.0).sum(-1)
    return sums.view(copies, -1), (batch.targets >= 0).sum(-1)


def token_losses(model: Base, batch: Batch, copies: int) -> Tensor:
    """Return losses [copies, B], in float64, of a batch with one sequence for each example.

    Their mean over a whole batch is the cross-entropy of its tokens, as in MeZO, so that a long answer counts for more.
    """
    sums, _ = sum_log_likelihoods(model, batch, copies)
    whole = batch.whole or batch
    return -sums * (len(whole) / (whole.targets >= 0).sum())


def evaluation_batches(examples: Examples, more: int = 0) -> Iterator[list[int]]:
    """Yield the numbers of all examples once, in batches of about FORWARD_TOKENS token rows.

    more: how many tokens each sequence will grow by.
    """
    longest = max(map(examples.count_token_rows, range(len(examples)))) + more
    yield from examples.sorted_batches(max(1, FORWARD_TOKENS // longest))


def pack_batches(sizes: list[int]) -> Iterator[list[int]]:
    """Yield the numbers of all examples once, in batches of at most FORWARD_TOKENS padded token rows, or of one example.

    sizes: the token rows of each example. Examples of like size come together, the largest first.
    """
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    while order:
        count = max(1, min(len(order), FORWARD_TOKENS // sizes[order[-1]]))
        yield order[-count:]
        del order[-count:]


def mean_loss(model: Base, examples: Examples) -> float:
    """Return the cross-entropy of the scored tokens, averaged over all tokens of the set."""
    sums: list[float] = []
    count = 0
    for chosen in evaluation_batches(examples):
        batch_sums, counts = sum_log_likelihoods(model, examples.collate(chosen), 1)
        sums += batch_sums[0].tolist()
        count += int(counts.sum())
    return -math.fsum(sums) / count
