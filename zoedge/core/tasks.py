"""What the engine asks of a task in a run. scoring/tasks/_training.py has the class that answers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Outputs(NamedTuple):
    """What a task with options says of a batch of B examples.

    logits: of each of C options, [points][B][C], up to a constant for each example. labels: the right options, [B].
    """

    logits: list[list[list[float]]]
    labels: list[int]


class Batch(Protocol):
    """The examples of one step."""

    @property
    def check(self) -> int:
        """The crc32 of its token ids, lengths and labels."""

    @property
    def tokens(self) -> int:
        """The padded token rows of one copy of it in a forward."""

    def __len__(self) -> int: ...
    def slice_examples(self, first: int, end: int) -> Batch:
        """Return the examples first .. end - 1, each with the loss that it has in the whole batch."""


class TrainingTask(Protocol):
    """A task over the training rows of a run. What evaluation asks besides is AbstractTraining's own."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, a pure function of (seed, step): there is no cursor and no state of an epoch."""

    @property
    def option_count(self) -> int:
        """The number of options that every example has; 0: the task has none, and is no `OptionTask`."""

    def score(self, model: Any, batch: Any, copies: int) -> Any:
        """Return the losses [copies, examples] in float64: cross-entropy or 1 - F1 alike."""


class OptionTask(TrainingTask, Protocol):
    """A task whose examples have the same options: its `option_count` is not 0."""

    def outputs(self, model: Any, batch: Any, copies: int) -> Any:
        """Return the options' logits [copies, examples, options] in float64."""

    def right_options(self, batch: Any) -> list[int]:
        """Return the number of each example's right option."""
