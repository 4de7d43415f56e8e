"""How good the model is on labelled rows: what its task measures, where the space stands now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """loss: the mean cross-entropy. count: rows. What a task does not measure is None.

    accuracy: of the likeliest option. calibrated: after the label bias is taken off. majority: what always answering the
    commonest label gives. f1, exact_match: of generated texts, as SQuAD's. reward: the user's function's.
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
        """From a line of metrics.jsonl, which has more, and may be older."""
        return cls(**{k: v for k, v in fields.items() if k in cls.__dataclass_fields__})

    def columns(self) -> dict[str, str]:
        """What applies, as a table shows it: name -> text."""
        shares = {
            "accuracy" if self.calibrated is None else "raw": self.accuracy,
            "calibrated": self.calibrated,
            "F1": self.f1,
            "exact match": self.exact_match,
        }
        found = {name: format_percent(x) for name, x in shares.items() if x is not None}
        numbers = {"reward": self.reward, "loss": self.loss}
        return found | {name: f"{x:.4f}" for name, x in numbers.items() if x is not None}

    def sentence(self) -> str:
        """What applies, on one line."""
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
    return f"{100 * x:.1f} %"


def format_scores(scores: Mapping[str, Score | None], rows: str) -> list[str]:
    """Scores of the same rows under one another, by what they are of, and what the commonest label gives."""
    some = {name: score for name, score in scores.items() if score is not None}
    last = next(reversed(some.values()))
    lines = [f"{'':22}" + "".join(f"{name:>12}" for name in last.columns())]
    lines += [f"{name:22}" + "".join(f"{text:>12}" for text in s.columns().values()) for name, s in some.items()]
    common = "" if last.majority is None else f"; always the commonest label: {format_percent(last.majority)}"
    return [*lines, f"on {last.count:,} {rows}{common}"]


class EmptySpace:
    """In the place of a space: the base alone, without what the space starts from (virtual tokens)."""

    @contextmanager
    def visit(self, deltas: Any) -> Iterator[None]:
        yield


def evaluate(space: Any, task: Any, model: Any, examples: Any, calibrate: int) -> Score:
    """The task's score at the space's current value. calibrate: training rows, without their labels, for the bias."""
    with space.visit([lambda leaf: None]):
        return Score(**task.judge(model, examples, calibrate))
