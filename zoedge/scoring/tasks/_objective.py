"""This module has objectives that have no gradient: accuracy, SQuAD's F1 and exact match, or a Python function of the user's.

A user's function is `function(examples, outputs) -> list of numbers`. It is given the rows as dictionaries and the text
that the model answered to each, and returns a reward for each. The loss of an example is 1 - its reward.
"""

from __future__ import annotations

import importlib
import math
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

from ...errors import DataError, make_printable

FUNCTION_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
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
        DataError: the function raises an error, or does not return one finite number for each output.
    """
    if not is_function(objective):
        return [METRICS[objective](output, note["answers"]) for note, output in zip(notes, outputs)]
    function = load_function(objective)
    try:
        rewards = list(function([note["row"] for note in notes], list(outputs)))
    except Exception as e:
        raise DataError(
            f"task.objective: {objective} raised {type(e).__name__}: {make_printable(str(e)).rstrip('.')}."
        ) from e
    if len(rewards) != len(outputs):
        raise DataError(f"task.objective: {objective} gave {len(rewards)} rewards for {len(outputs)} outputs.")
    for note, reward in zip(notes, rewards):
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise DataError(
                f"task.objective: {objective} gave {make_printable(repr(reward))} for {note['where']}: not a finite number."
            )
    return [float(reward) for reward in rewards]


@lru_cache
def load_function(objective: str) -> Callable[[list[Any], list[str]], Any]:
    """Return the user's function, which must be defined in a Python file below the current folder.

    Nothing else is imported, so that a log from a stranger that names os:system, say, runs nothing. DataError: there is no
    such file or function, or the file cannot be imported.
    """
    name, _, attribute = objective.partition(":")
    current_folder = Path.cwd().resolve()
    sys.path.insert(0, str(current_folder))
    try:
        file = current_folder.joinpath(*name.split(".")).with_suffix(".py")
        if not file.is_file():
            raise DataError(
                f"task.objective: there is no {name.replace('.', '/')}.py in {current_folder}, where {name} is looked for."
            )
        module = importlib.import_module(name)
        if Path(module.__file__ or "").resolve() != file:
            raise DataError(f"task.objective: the name {name} is taken by another module. Call the file otherwise.")
        function = getattr(module, attribute, None)
    except DataError:
        raise
    except Exception as e:
        raise DataError(
            f"task.objective: {name} cannot be imported from here: {type(e).__name__}: {make_printable(str(e)).rstrip('.')}."
        ) from e
    finally:
        sys.path.remove(str(current_folder))
    if not callable(function):
        raise DataError(f"task.objective: the module {name} has no function '{attribute}'.")
    return function
