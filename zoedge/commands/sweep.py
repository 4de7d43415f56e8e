"""`zoedge sweep` trains one recipe with many values: a grid of them, or points drawn at random, one run after another.

A point is a run in a folder of its own, which is named by the point's values. `zoedge finetune` trains it in a process of
its own, so that it gives the log that it would give alone. A sweep can be resumed: finished runs are not run again.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..core.canonical import encode_canonical
from ..core.child import forward_signals, shell_exit_code
from ..core.storage import write_durably
from ..errors import DataError, DivergedError, UsageError, ZoedgeError, format_faults, make_printable
from ..log.log import Log
from ..recipe import check, reading, sentences, strict_yaml
from ..recipe import overrides as recipe_overrides
from ..recipe import recipe as recipe_module
from ..recipe.recipe import Recipe
from ..recipe.strict_yaml import Position
from ..run import auto, identity
from ..run import folder as run_folder
from ..run.evaluate import Score

PAIRED_KEY = "_"  # the key of values that go together, as in axolotl: it has a list of tables
RESERVED_KEYS = ("name", "version", "output.dir")  # a sweep sets these itself
MAX_POINTS = 1000  # of a grid
MAX_NAME_LENGTH = 60  # characters of a folder's name
# exit codes that concern one point alone (it diverged, or did not fit into memory): the others are still run
TOLERATED_EXITS = (DivergedError.exit_code, DataError.exit_code, -signal.SIGKILL)


PlacedValues = dict[str, tuple[Any, Position]]  # dotted key -> (value, its line and column in the sweep's file)


@dataclass(frozen=True)
class SweepPoint:
    """A run of a sweep."""

    name: str  # of its folder
    values: dict[str, Any]  # by dotted key
    recipe: Recipe


@dataclass(frozen=True)
class Axis:
    """The choices for one key, or for some keys that go together: a list of values, or a range of one key.

    values: each a table of keys; empty for a range, which has `low` < `high`.
    """

    values: list[PlacedValues]
    key: str = ""
    place: Position = (0, 0)  # the key's line and column in the sweep's file
    low: float = 0.0
    high: float = 0.0
    log: bool = False  # drawn with equal chance for equal ratios

    def draw(self, u: float) -> PlacedValues:
        """Return the values at u in 0 .. 1. A value of a range has 4 digits, because it is part of the folder's name."""
        if self.values:
            return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + u * (self.high - self.low)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return {self.key: (min(self.high, math.floor(value + (0.0 if self.log else u))), self.place)}
        return {self.key: (min(self.high, max(self.low, float(f"{value:.4g}"))), self.place)}


class Stopped(ZoedgeError):
    """The sweep was stopped by Ctrl-C or SIGTERM; nothing is lost."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.exit_code = 128 + number


class RunFailed(ZoedgeError):
    """A run ended with an error that the other runs would meet, too."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.exit_code = shell_exit_code(code)


# -- what to run


def read_axes(path: Path) -> list[Axis]:
    """Return the axes of a sweep's file, in its order. UsageError: all mistakes in it, each with file:line:column."""
    table, marks = strict_yaml.read_yaml(strict_yaml.read_text_file(path), str(path))
    if not isinstance(table, dict) or not table:
        raise UsageError(
            f"{path}: a sweep is a table of recipe keys and lists of values, such as 'rule.lr: [1e-3, 1e-4]'."
        )
    axes: list[Axis] = []
    wrong: list[str] = []

    def find_place(*place: str | int) -> Position:
        """Return the line and column of an entry, or of the nearest entry around it whose place is known."""
        return next(marks[place[:i]] for i in range(len(place), -1, -1) if place[:i] in marks)

    for key, value in table.items():
        try:
            axes.append(make_axis(key, value, find_place))
        except ValueError as e:
            line, column = find_place(key)
            wrong.append(f"{path}:{line}:{column}: {e}")
    if wrong:
        raise UsageError(format_faults(wrong))
    check_keys_differ(path, axes)
    return axes


def make_axis(key: str, value: object, find_place: Callable[..., Position]) -> Axis:
    """Return the axis of one entry of a sweep's file. ValueError: it is none, with a sentence that says why.

    find_place: returns the line and column of a key, or of a key and the indices below it.
    """
    name, place = make_printable(key), find_place(key)
    if key in RESERVED_KEYS:
        raise ValueError(f"{name}: a sweep names its runs and folders itself; --dir says where they go.")
    if key == PAIRED_KEY:
        if not isinstance(value, list) or not value or not all(isinstance(v, dict) and v for v in value):
            example = "[{rule.lr: 1e-3, seed: 1}]"
            raise ValueError(f"{PAIRED_KEY}: a list of tables of keys that go together, such as {example}.")
        return Axis([{k: (x, find_place(key, i, k)) for k, x in v.items()} for i, v in enumerate(value)])
    if isinstance(value, list):
        if not value:
            raise ValueError(f"{name}: an empty list. Write values, such as [1e-3, 1e-4], or remove it.")
        return Axis([{key: (v, find_place(key, i))} for i, v in enumerate(value)], key, place)
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        text, example = sentences.format_value(value), "{low: 1e-4, high: 1e-2, log: true}"
        raise ValueError(f"{name}: {text} is no list of values, and no range such as {example}.")
    low, high, log = value["low"], value["high"], value.get("log", False)
    if not all(type(x) in (int, float) and math.isfinite(x) for x in (low, high)) or not low < high:
        raise ValueError(f"{name}: low and high are two numbers, the lower first.")
    if not isinstance(log, bool) or (log and low <= 0):
        raise ValueError(f"{name}: log is true or false, and where it is true, low is above 0.")
    return Axis([], key, place, low, high, log)


def check_keys_differ(path: Path, axes: Sequence[Axis]) -> None:
    """Raise UsageError where a key stands both in the paired tables and alone."""
    places: dict[str, Position] = {}
    for axis in axes:
        keys = dict.fromkeys(key for values in axis.values for key in values) if axis.values else [axis.key]
        for key in keys:
            if key in places:
                line, column = places[key]
                raise UsageError(
                    f"{path}:{line}:{column}: {make_printable(key)} stands twice, under {PAIRED_KEY} and alone."
                )
            places[key] = axis.place if axis.key else next(values[key][1] for values in axis.values if key in values)


def build_points(
    name: str, path: Path, overrides: list[str] | None, folder: Path | None, draws: int, seed: int
) -> list[SweepPoint]:
    """Return a sweep's points, each with its checked recipe.

    Args:
        name: the recipe's file or shipped name.
        path: the sweep's file.
        folder: of the runs; None: below output.dir, named as the sweep's file.
        draws: how many points to draw at random; 0: all points of the grid.
        seed: what they are drawn by.

    Raises:
        UsageError: the recipe's own messages, each with the place of the wrong value in the sweep's file.
    """
    base = reading.read_table(name, overrides)
    base_recipe = check.check(*base)
    axes = read_axes(path)
    if draws:
        chosen = [[axis.draw(u) for axis, u in zip(axes, draw_uniform(seed, i, len(axes)))] for i in range(draws)]
    else:
        chosen = list_grid(path, axes)
    parent = folder or Path(base_recipe.output.dir) / clean_name(path.stem)
    points: dict[str, SweepPoint] = {}
    wrong: dict[str, None] = {}
    for parts in chosen:
        values = {key: pair for part in parts for key, pair in part.items()}
        try:
            point = build_point(base[0], values, path, parent)
            points.setdefault(point.name, point)
        except UsageError as e:
            wrong |= dict.fromkeys(str(e).splitlines())
    if wrong:
        raise UsageError(format_faults(list(wrong)))
    return list(points.values())


def list_grid(path: Path, axes: Sequence[Axis]) -> list[list[PlacedValues]]:
    """Return every combination of the axes' values. UsageError: an axis is a range, or there are too many."""
    for axis in axes:
        if not axis.values:
            line, column = axis.place
            raise UsageError(
                f"{path}:{line}:{column}: {make_printable(axis.key)}: a range has no list of values to make a grid of. "
                "Add --random N, or write a list of values."
            )
    if (count := math.prod(len(axis.values) for axis in axes)) > MAX_POINTS:
        raise UsageError(f"{path}: a grid of {count:,} points, where {MAX_POINTS:,} is the most. Add --random N.")
    return [list(parts) for parts in product(*(axis.values for axis in axes))]


def build_point(base: dict[str, Any], placed: PlacedValues, path: Path, parent: Path) -> SweepPoint:
    """Return the point with these values: the base's table with them set, checked.

    Args:
        placed: the values by dotted key, with their places in the sweep's file `path`.
        parent: the folder of the sweep's runs.

    Raises:
        UsageError: a key or a value is wrong, with its place in that file.
    """
    values = {key: value for key, (value, _) in placed.items()}
    table, marks = deepcopy(base), {(): next(iter(placed.values()))[1]}
    for key, (value, place) in placed.items():
        at = f"{path}:{place[0]}:{place[1]}: "
        words = tuple(key.split("."))
        if not all(words) or len(words) > strict_yaml.MAX_DEPTH:
            raise UsageError(f"{at}'{make_printable(key)}' is no recipe key, such as rule.lr.")
        recipe_overrides.set_value(table, marks, words, value, at, place)
    name = name_point(values)
    table |= {"name": name}
    recipe_overrides.set_value(table, marks, ("output", "dir"), str(parent))
    return SweepPoint(name, values, check.check(table, marks, str(path)))


def draw_uniform(seed: int, index: int, count: int) -> Iterator[float]:
    """Return an iterator over `count` numbers in 0 .. 1 that depend on (seed, index) alone.

    So a longer sweep begins with the points of a shorter one.
    """
    stream = random.Random(f"zoedge sweep {seed} {index}")
    return (stream.random() for _ in range(count))


def clean_name(text: str) -> str:
    """Return a text as the name of a folder, with `-` for every other character than letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")[:MAX_NAME_LENGTH] or "sweep"


def name_point(values: dict[str, Any]) -> str:
    """Return the name of a folder that tells these values from others, such as lr-0.001_eps-0.01.

    A digest is added where the values alone make no unique or no valid name.
    """
    words = [key.rpartition(".")[2] for key in values]
    texts = [
        str(value).lower() if isinstance(value, bool) else f"{value}".replace("e+", "e") for value in values.values()
    ]
    text = "_".join(f"{word}-{value}" for word, value in zip(words, texts))
    simple = all(isinstance(value, (bool, int, float, str)) for value in values.values())
    if simple and len(set(words)) == len(words) and len(text) <= MAX_NAME_LENGTH and clean_name(text) == text:
        return text
    digest = hashlib.sha256(encode_canonical(values)).hexdigest()[:8]
    return f"{clean_name(text)[: MAX_NAME_LENGTH - 9]}-{digest}"


# -- running


def run_points(points: Sequence[SweepPoint], how: list[str], say: Callable[[str], None], again: str) -> None:
    """Train every point that is not finished yet. A point that diverges or does not fit is noted, and the others are run.

    Args:
        how: options of `zoedge finetune`.
        say: prints a line.
        again: the command that goes on, for messages.

    Raises:
        Stopped: a signal came, and the point that was being trained has ended after a whole step.
        RunFailed: a point ended with another error.
        IdentityError: the folder of a point has a run of another recipe.
    """
    for point in points:
        check_same_recipe(point)
    with forward_signals() as children:
        for i, point in enumerate(points, 1):
            folder = run_folder.run_folder(point.recipe)
            head = f"[{i}/{len(points)}] {point.name}"
            if is_finished(folder):
                say(f"{head}: finished before")
                continue
            if read_exit_codes(folder.parent).get(point.name) == DivergedError.exit_code:
                say(f"{head}: diverged before")
                continue
            say(f"{head}{': goes on' if os.path.lexists(folder / run_folder.LOG_FILE) else ''}")
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(folder / run_folder.RECIPE_FILE, recipe_module.dump_recipe(point.recipe).encode())
            began = time.monotonic()
            code = children.run_zoedge(
                ["finetune", str(folder / run_folder.RECIPE_FILE), "--run-dir", str(folder), *how]
            )
            if children.signal:
                raise Stopped(f"Stopped; nothing is lost. Go on with: {again}", children.signal)
            run_folder.append_metric(
                folder.parent, event="point", name=point.name, exit=code, seconds=time.monotonic() - began
            )
            if code in TOLERATED_EXITS:
                say(f"{head}: {describe_exit(code)}; the sweep goes on")
            elif code:
                raise RunFailed(
                    f"{point.name}: its run ended with exit code {code}. Mend that, and go on with: {again}", code
                )


def check_same_recipe(point: SweepPoint) -> None:
    """Raise IdentityError if the run in the point's folder was begun with another recipe: the base recipe has changed."""
    folder = run_folder.run_folder(point.recipe)
    if os.path.lexists(folder / run_folder.LOG_FILE):
        with Log.open(folder / run_folder.LOG_FILE) as log:
            identity.check_same_recipe(log.header, auto.fill_from_log(point.recipe, log.header), folder)


def describe_exit(code: int) -> str:
    """Return how a run with this exit code ended, in a few words."""
    return {DivergedError.exit_code: "diverged", DataError.exit_code: "did not fit, or its data is wrong"}.get(
        code, "killed"
    )


def is_finished(folder: Path) -> bool:
    """Return whether the run in a folder is trained to its end, scored and exported."""
    if not os.path.lexists(folder / run_folder.LOG_FILE):
        return False
    with Log.open(folder / run_folder.LOG_FILE) as log:
        return log.state.end is not None and any(
            line.get("event") == "finished" for line in run_folder.read_metrics(folder)
        )


def read_exit_codes(folder: Path) -> dict[str, int]:
    """Return {name of a point: exit code of its last run} as it was noted in the sweep's folder."""
    lines = [
        line
        for line in run_folder.read_metrics(folder)
        if line.get("event") == "point" and isinstance(line.get("exit"), int)
    ]
    return {str(line.get("name")): line["exit"] for line in lines}


# -- results


@dataclass
class SweepResult:
    """What came of a point."""

    point: SweepPoint
    state: str  # finished, stopped, not begun, or how it failed
    steps: int = 0
    seconds: float = 0.0
    valid: Score | None = None  # of the validation rows, at the step that is delivered
    test: Score | None = None  # of the test rows, if there are any

    @property
    def scores(self) -> dict[str, Score]:
        """The scores that there are, by the set of rows."""
        return {which: score for which, score in (("valid", self.valid), ("test", self.test)) if score is not None}


def collect_results(points: Sequence[SweepPoint]) -> list[SweepResult]:
    """Return the results of all points: finished ones first, by their validation loss, then the others."""
    from .report.facts import read_facts

    results = []
    for point in points:
        folder = run_folder.run_folder(point.recipe)
        code = read_exit_codes(folder.parent).get(point.name, 0)
        if not os.path.lexists(folder / run_folder.LOG_FILE):
            results.append(SweepResult(point, describe_exit(code) if code in TOLERATED_EXITS else "not begun"))
            continue
        facts = read_facts(folder / run_folder.LOG_FILE)
        state = (
            describe_exit(code)
            if code in TOLERATED_EXITS and facts.state != "finished"
            else facts.state.partition(" after ")[0]
        )
        best = point.recipe.eval.select == "best"
        looked = {step: run_folder.Look(score.loss, score.drift) for step, score in facts.valid}
        at = run_folder.choose_best(looked, point.recipe.eval.drift) if best and looked else max(looked, default=0)
        valid = dict(facts.valid).get(at)
        tested = point.recipe.data.test is not None
        result = SweepResult(point, state, facts.steps, facts.seconds or 0.0, valid, facts.after if tested else None)
        if not tested and facts.after:
            result.valid = facts.after
        results.append(result)
    return sorted(results, key=lambda r: (r.state != "finished", get_ranking_loss(r), r.point.name))


def get_ranking_loss(result: SweepResult) -> float:
    """Return the loss by which results are ordered; infinity: there is none."""
    score = result.valid or result.test
    return score.loss if score else math.inf


def format_table(results: Sequence[SweepResult]) -> list[str]:
    """Return the results as lines of a table, in the order given."""
    from .report.words import format_duration

    keys = list(dict.fromkeys(key for r in results for key in r.point.values))
    words = [key.rpartition(".")[2] for key in keys]
    heads = [word if words.count(word) == 1 else key for key, word in zip(keys, words)]
    columns: dict[str, list[str]] = {}  # set -> its measures
    for result in results:
        for which, score in result.scores.items():
            columns.setdefault(which, list(score.columns()))
    measures = [(which, name) for which in ("valid", "test") for name in columns.get(which, ())]
    rows = [[*heads, *(f"{which} {name}" for which, name in measures), "steps", "time", "state"]]
    for result in results:
        values, scores = result.point.values, {which: score.columns() for which, score in result.scores.items()}
        cells = [
            make_printable(sentences.format_value(values[key]).strip("'"), 32) if key in values else "" for key in keys
        ]
        cells += [scores.get(which, {}).get(name, "-") for which, name in measures]
        duration = format_duration(result.seconds) if result.seconds else "-"
        rows.append([*cells, f"{result.steps:,}", duration, result.state])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(f"{x:>{w}}" for x, w in zip(row[:-1], widths)) + f"  {row[-1]}" for row in rows]
