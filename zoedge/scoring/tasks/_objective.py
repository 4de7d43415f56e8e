"""Goals without a gradient: accuracy, SQuAD's F1 and exact match, or any Python function of the user's.

A user's function is `function(examples, outputs) -> list of numbers`: the rows as tables, what the model answered, and a
reward each. The loss of an example is 1 - its reward.
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
    return float(output in golds)


def normalise_answer(text: str) -> str:
    """As SQuAD's own evaluation compares texts: lower case, no ASCII punctuation, no articles, single spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(ARTICLE_PATTERN.sub(" ", bare).split())


def exact_match(output: str, golds: Sequence[str]) -> float:
    return float(normalise_answer(output) in map(normalise_answer, golds))


def f1(output: str, golds: Sequence[str]) -> float:
    """The best F1 of the words that output and a gold answer share; 0 where they share none."""
    return max(token_f1(normalise_answer(output).split(), normalise_answer(gold).split()) for gold in golds)


def token_f1(a: list[str], b: list[str]) -> float:
    common = (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b)) if common else 0.0


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "exact_match": exact_match,
}


def is_function(objective: str) -> bool:
    return ":" in objective


def check_objective(objective: str, metrics: Sequence[str]) -> None:
    """ValueError unless the objective is loss, one of the task's metrics, or module:function."""
    if objective not in ("loss", *metrics) and not FUNCTION_PATTERN.fullmatch(objective):
        raise ValueError(
            f"objective: '{make_printable(objective)}' is not loss, {', '.join(metrics)} or module:function"
        )


def compute_rewards(objective: str, notes: Sequence[dict[str, Any]], outputs: Sequence[str]) -> list[float]:
    """A reward an example. notes: {answers: the right texts} of each, and {row: its fields} for a function of the user's."""
    if not is_function(objective):
        return [METRICS[objective](output, note["answers"]) for note, output in zip(notes, outputs)]
    called = load_function(objective)
    try:
        found = list(called([note["row"] for note in notes], list(outputs)))
    except Exception as e:
        raise DataError(
            f"task.objective: {objective} raised {type(e).__name__}: {make_printable(str(e)).rstrip('.')}."
        ) from e
    if len(found) != len(outputs):
        raise DataError(f"task.objective: {objective} gave {len(found)} rewards for {len(outputs)} outputs.")
    for note, reward in zip(notes, found):
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise DataError(
                f"task.objective: {objective} gave {make_printable(repr(reward))} for {note['where']}: not a finite number."
            )
    return [float(reward) for reward in found]


@lru_cache
def load_function(objective: str) -> Callable[[list[Any], list[str]], Any]:
    """The user's function, of a file in the current folder: a log that names os:system, say, runs nothing by it."""
    name, _, attribute = objective.partition(":")
    here = Path.cwd().resolve()
    sys.path.insert(0, str(here))
    try:
        file = here.joinpath(*name.split(".")).with_suffix(".py")
        if not file.is_file():
            raise DataError(
                f"task.objective: there is no {name.replace('.', '/')}.py in {here}, where {name} is looked for."
            )
        module = importlib.import_module(name)
        if Path(module.__file__ or "").resolve() != file:
            raise DataError(f"task.objective: the name {name} is taken by another module. Call the file otherwise.")
        found = getattr(module, attribute, None)
    except DataError:
        raise
    except Exception as e:
        raise DataError(
            f"task.objective: {name} cannot be imported from here: {type(e).__name__}: {make_printable(str(e)).rstrip('.')}."
        ) from e
    finally:
        sys.path.remove(str(here))
    if not callable(found):
        raise DataError(f"task.objective: the module {name} has no function '{attribute}'.")
    return found
