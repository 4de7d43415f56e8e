"""How good the model is on labelled rows: raw, with the label bias removed, and beside the majority class."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOKENS = 2048  # token rows of a batch


@dataclass(frozen=True)
class Score:
    """accuracy: argmax of the options' log-probabilities. calibrated: after the label bias is taken off.

    majority: what always answering the commonest label gives. count: rows.
    """

    accuracy: float
    calibrated: float
    majority: float
    loss: float
    count: int


class Bare:
    """In the place of a space: the base alone, without what the space starts from (virtual tokens)."""

    def visit(self, deltas: Any) -> AbstractContextManager[None]:
        return nullcontext()


def outputs(space: Any, task: Any, model: Any, examples: Any) -> Tensor:
    """Log-probabilities of the options [N, options] at the space's current value."""
    longest = max(map(len, examples.tokens)) * examples.per
    found: list[tuple[int, Tensor]] = []
    with space.visit([lambda leaf: None]):
        for chosen in examples.sorted_batches(max(1, TOKENS // longest)):
            scores = task.outputs(model, examples.collate(chosen), 1)[0]
            found += zip(chosen, torch.log_softmax(scores, dim=-1))
    return torch.stack([row for _, row in sorted(found, key=lambda pair: pair[0])])


def label_bias(space: Any, task: Any, model: Any, rows: int) -> Tensor:
    """The mean log-probability of each option [options] on the first training rows; labels are not looked at."""
    return outputs(space, task, model, task.train.head(rows)).mean(0)


def evaluate(space: Any, task: Any, model: Any, examples: Any, bias: Tensor) -> Score:
    scores, labels = outputs(space, task, model, examples), torch.tensor(examples.labels)
    common = max(Counter(examples.labels).values()) / len(labels)

    def share(x: Tensor) -> float:
        return (x.argmax(-1) == labels).double().mean().item()

    loss = -scores.gather(-1, labels[:, None]).mean().item()
    return Score(share(scores), share(scores - bias), common, loss, len(labels))
