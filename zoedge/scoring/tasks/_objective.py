"""This module has objectives that have no gradient: accuracy, SQuAD's F1 and exact match, or a Python function of the user's.

A user's function is `function(examples, outputs) -> list of numbers`. It is given the rows as dictionaries and the text
that the model answered to each, and returns a reward for each. The loss of an example is 1 - its reward.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from ...errors import DataError, make_printable
from ._reward_file import guard_call, load_function

FUNCTION_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
REWARD_LIMIT = 1e30  # a loss is stored in float32, and a step divides differences of losses by a small radius
ARTICLE_PATTERN = re.compile(r"\b(a|an|the)\b")


def accuracy(output: str, golds: Sequence[str]) -> float:
    """Return 1.0 if the output is one of the right texts, else 0.0."""
    return float(output in golds)


def normalise_answer(text: str) -> str:
    """Return the text as SQuAD's evaluation compares it: lower case, no ASCII punctuation, no articles, single spaces."""
    without_punctuation = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(ARTICLE_PATTERN.sub(" ", without_punctuation).split())


def exact_match(output: str, golds: Sequence[str]) -> float:
    """Return 1.0 if the output equals one of the right texts after `normalise_answer`, else 0.0."""
    return float(normalise_answer(output) in map(normalise_answer, golds))


def f1(output: str, golds: Sequence[str]) -> float:
    """Return the highest `token_f1` of the output with one of the right texts, after `normalise_answer`."""
    return max(token_f1(normalise_answer(output).split(), normalise_answer(gold).split()) for gold in golds)


def token_f1(a: list[str], b: list[str]) -> float:
    """Return the harmonic mean of precision and recall of the words that two texts share; 0 where they share none."""
    common = (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b)) if common else 0.0


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "exact_match": exact_match,
}


def is_function(objective: str) -> bool:
    """Return whether the objective names a function of the user's, as module:function."""
    return ":" in objective


def check_objective(objective: str, metrics: Sequence[str]) -> None:
    """Raise ValueError unless the objective is loss, one of the task's metrics, or module:function."""
    if objective not in ("loss", *metrics) and not FUNCTION_PATTERN.fullmatch(objective):
        raise ValueError(
            f"objective: '{make_printable(objective)}' is not loss, {', '.join(metrics)} or module:function"
        )


def compute_rewards(objective: str, notes: Sequence[dict[str, Any]], outputs: Sequence[str]) -> list[float]:
    """Return the reward of each example.

    Args:
        objective: a name in METRICS, or a user's module:function.
        notes: of each example. A metric reads `answers`, the right texts; a function is given `row`, the row's fields,
            and a message reads `where`.
        outputs: the text that the model answered to each example.

    Raises:
        DataError: the function raises anything, or does not return one finite number of moderate size for each output.
    """
    if not is_function(objective):
        return [METRICS[objective](output, note["answers"]) for note, output in zip(notes, outputs)]
    function = load_function(objective)
    with guard_call(f"{objective} raised"):
        rewards = list(function([note["row"] for note in notes], list(outputs)))
    if len(rewards) != len(outputs):
        raise DataError(f"task.objective: {objective} gave {len(rewards)} rewards for {len(outputs)} outputs.")
    numbers = []
    for note, reward in zip(notes, rewards):
        with guard_call(f"{objective} gave a {type(reward).__name__} for {note['where']}, which cannot be read"):
            number, shown = read_number(reward), make_printable(repr(reward))
        if not abs(number) <= REWARD_LIMIT:
            what = "not a finite number" if not math.isfinite(number) else f"beyond {REWARD_LIMIT:g}"
            raise DataError(f"task.objective: {objective} gave {shown} for {note['where']}: {what}.")
        numbers.append(number)
    return numbers


def read_number(value: object) -> float:
    """Return a number of the user's as a float; nan if it is none, and infinity if it is beyond every float."""
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf
