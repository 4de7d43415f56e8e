"""This module scores a model on labelled rows: it measures what the task says, at the space's current value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..core.types import Leaf

if TYPE_CHECKING:
    from ..scoring.models.base import Base
    from ..scoring.tasks._examples import Examples
    from ..scoring.tasks._training import AbstractTraining


@dataclass(frozen=True)
class Score:
    """A score. What a task does not measure is None; shares are between 0 and 1.

    Attributes:
        loss: the mean cross-entropy.
        count: of rows.
        accuracy: the share of rows whose likeliest option is right.
        calibrated: the same after the label bias is taken off.
        majority: the share of rows with the commonest label.
        f1, exact_match: of generated texts, as SQuAD measures them.
        reward: the mean of the user's function.
    """

    loss: float
    count: int
    accuracy: float | None = None
    calibrated: float | None = None
    majority: float | None = None
    f1: float | None = None
    exact_match: float | None = None
    reward: float | None = None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Score:
        """Read a score from a line of metrics.jsonl, which has more fields, and may be of an older version."""
        return cls(**{k: v for k, v in fields.items() if k in cls.__dataclass_fields__})

    def columns(self) -> dict[str, str]:
        """Return what was measured as a table shows it: text by name."""
        shares = {
            "accuracy" if self.calibrated is None else "raw": self.accuracy,
            "calibrated": self.calibrated,
            "F1": self.f1,
            "exact match": self.exact_match,
        }
        texts = {name: format_percent(x) for name, x in shares.items() if x is not None}
        numbers = {"reward": self.reward, "loss": self.loss}
        return texts | {name: f"{x:.4f}" for name, x in numbers.items() if x is not None}

    def sentence(self) -> str:
        """Return what was measured on one line."""
        named = [f"{name} {text}" for name, text in self.columns().items()]
        if self.calibrated is not None:
            named[:2] = [
                f"accuracy {format_percent(self.accuracy or 0.0)} raw",
                f"{format_percent(self.calibrated)} calibrated",
            ]
        if self.majority is not None:
            named.insert(1 if self.calibrated is None else 2, f"{format_percent(self.majority)} by the commonest label")
        return ", ".join(named)


def format_percent(x: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * x:.1f} %"


def format_scores(scores: Mapping[str, Score | None], rows: str) -> list[str]:
    """Return the lines of a table of scores on the same rows, with what always answering the commonest label gives."""
    known = {name: score for name, score in scores.items() if score is not None}
    last = next(reversed(known.values()))
    lines = [f"{'':22}" + "".join(f"{name:>12}" for name in last.columns())]
    lines += [f"{name:22}" + "".join(f"{text:>12}" for text in s.columns().values()) for name, s in known.items()]
    common = "" if last.majority is None else f"; always the commonest label: {format_percent(last.majority)}"
    return [*lines, f"on {last.count:,} {rows}{common}"]


class Visitable(Protocol):
    """What evaluation asks of a space: to hold a point while the model is asked."""

    def visit(self, deltas: Sequence[Callable[[Leaf], Any]]) -> AbstractContextManager[None]: ...


class EmptySpace:
    """Stands in the place of a space for the base alone, without what the space starts from (virtual tokens)."""

    @contextmanager
    def visit(self, deltas: Any) -> Iterator[None]:
        """Do nothing: the base is asked as it is."""
        yield


def evaluate(space: Visitable, task: AbstractTraining, model: Base, examples: Examples, calibrate: int) -> Score:
    """Return the task's score at the space's current value.

    Args:
        calibrate: how many training rows, without their labels, measure the label bias.
    """
    with space.visit([lambda leaf: None]):
        return Score(**task.evaluate(model, examples, calibrate))
