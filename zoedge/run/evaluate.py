"""This module scores a model on labelled rows: it measures what the task says, at the space's current value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..core.types import Leaf

if TYPE_CHECKING:
    from ..scoring.drift import DriftMeter
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
        drift: how far the model is from its base on the rows' unscored tokens, KL(base || tuned) in nats a token.
        text: the cross-entropy of the packaged ordinary text, in nats a token.
        base_text: the same of the base.
    """

    loss: float
    count: int
    accuracy: float | None = None
    calibrated: float | None = None
    majority: float | None = None
    f1: float | None = None
    exact_match: float | None = None
    reward: float | None = None
    drift: float | None = None
    text: float | None = None
    base_text: float | None = None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Score:
        """Read a score from a line of metrics.jsonl, which has more fields, and may be of an older version."""
        known = {k: v for k, v in fields.items() if k in cls.__dataclass_fields__}
        if known.get("loss", 0.0) is None:  # JSON has no NaN
            known["loss"] = math.nan
        return cls(**known)

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
        texts |= {name: f"{x:.4f}" for name, x in numbers.items() if x is not None}
        others = {"drift": self.drift, "text": self.text}
        return texts | {name: f"{x:.3f}" for name, x in others.items() if x is not None}

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


class ClosedForm(NamedTuple):
    """The score of the closed-form start, which stands beside what the steps reach.

    Attributes:
        passes: the forward passes of a row that fitting it took.
        begins: whether the run begins with it.
    """

    score: Score
    passes: int
    begins: bool

    @classmethod
    def of(cls, fields: dict[str, Any]) -> ClosedForm:
        """Read it from a line of metrics.jsonl. KeyError, TypeError or ValueError: it is no such line."""
        return cls(Score.of(fields), int(fields["passes"]), bool(fields["begins"]))


def format_percent(x: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * x:.1f} %"


def format_scores(scores: Mapping[str, Score | None], rows: str) -> list[str]:
    """Return the lines of a table of scores on the same rows, with what always answering the commonest label gives."""
    known = {name: score for name, score in scores.items() if score is not None}
    last = next(reversed(known.values()))
    width = max(20, *(len(name) + 2 for name in known))  # with five columns: 80 in all
    lines = [" " * width + "".join(f"{name:>12}" for name in last.columns())]
    for name, score in known.items():
        columns = score.columns()
        lines.append(f"{name:{width}}" + "".join(f"{columns.get(column, ''):>12}" for column in last.columns()))
    common = "" if last.majority is None else f"; always the commonest label: {format_percent(last.majority)}"
    lines.append(f"on {last.count:,} {rows}{common}")
    if last.base_text is not None:
        lines.append(
            "drift: KL from the base on the rows' unscored tokens, nats a token; text: nats a token of an ordinary text "
            f"(base {last.base_text:.3f})"
        )
    return lines


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


def make_meter(model: Base, folder: Path, sets: Sequence[Examples | None]) -> DriftMeter | None:
    """Return what measures the drift on some sets later. The space must stand at its start.

    folder: where temporary files are. None: the model fills masks, and predicts no next token, or has no word of the text.
    """
    from ..scoring.drift import DriftMeter, encode_ordinary_text

    if model.facts.HEAD != "CausalLM" or not encode_ordinary_text(model):
        return None
    meter = DriftMeter(model, folder)
    for examples in sets:
        if examples is not None:
            meter.add(examples)
    return meter


def add_drift(score: Score, space: Visitable, meter: DriftMeter, examples: Examples, text: bool = True) -> Score:
    """Return a score of some examples with the drift on them, and what the ordinary text has if `text`."""
    if isinstance(space, EmptySpace):  # the base does not differ from itself
        return replace(score, drift=0.0, text=meter.base_text, base_text=meter.base_text)
    with space.visit([lambda leaf: None]):
        score = replace(score, drift=meter.measure(examples))
        return replace(score, text=meter.measure_text(), base_text=meter.base_text) if text else score
