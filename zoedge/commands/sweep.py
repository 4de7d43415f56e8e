"""One recipe with many values: a grid of them, or points drawn at random, a run each, one after another.

A point is a run in a folder of its own, named by its values, trained by `zoedge finetune` in a process of its own: it
gives the log that it would give alone. So a sweep is resumable as its runs are: what is finished is not run again.
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

PAIRED_KEY = "_"  # axolotl's word for values that go together: a list of tables
RESERVED_KEYS = ("name", "version", "output.dir")  # what a sweep sets itself
MAX_POINTS = 1000  # points of a grid
MAX_NAME_LENGTH = 60  # characters of a folder's
TOLERATED_EXITS = (
    DivergedError.exit_code,
    DataError.exit_code,
    -signal.SIGKILL,
)  # a point's own fault: too far, or too large


@dataclass(frozen=True)
class SweepPoint:
    """A run of a sweep. values: dotted key -> value."""

    name: str
    values: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Axis:
    """What is chosen among: values, each a table of keys with the place of each; or a range of one key, if low < high."""

    values: list[dict[str, tuple[Any, Position]]]
    key: str = ""
    place: Position = (0, 0)
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def draw(self, u: float) -> dict[str, tuple[Any, Position]]:
        """The value at u in 0 .. 1, of a range rounded to 4 digits: they are in the folder's name."""
        if self.values:
            return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
        if self.log:
            found = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        else:
            found = self.low + u * (self.high - self.low)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return {self.key: (min(self.high, math.floor(found + (0.0 if self.log else u))), self.place)}
        return {self.key: (min(self.high, max(self.low, float(f"{found:.4g}"))), self.place)}


class Stopped(ZoedgeError):
    """Ctrl-C or SIGTERM: nothing is lost."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.exit_code = 128 + number


class RunFailed(ZoedgeError):
    """A run ended in a way that the others would, too."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.exit_code = shell_exit_code(code)


# -- what to run


def read_axes(path: Path) -> list[Axis]:
    """The file's axes in its order. UsageError: every mistake, with file:line:column."""
    table, marks = strict_yaml.read_yaml(strict_yaml.read_text_file(path), str(path))
    if not isinstance(table, dict) or not table:
        raise UsageError(
            f"{path}: a sweep is a table of recipe keys and lists of values, such as 'rule.lr: [1e-3, 1e-4]'."
        )
    found, wrong = [], []

    def at(*place: Any) -> Position:
        return next(marks[place[:i]] for i in range(len(place), -1, -1) if place[:i] in marks)

    def fault(place: Position, what: str) -> None:
        wrong.append(f"{path}:{place[0]}:{place[1]}: {what}")

    for key, value in table.items():
        place = at(key)
        here = make_printable(key)
        if key in RESERVED_KEYS:
            fault(place, f"{here}: a sweep names its runs and folders itself; --dir says where they go.")
        elif key == PAIRED_KEY:
            if isinstance(value, list) and value and all(isinstance(v, dict) and v for v in value):
                found.append(Axis([{k: (x, at(key, i, k)) for k, x in v.items()} for i, v in enumerate(value)]))
            else:
                fault(
                    place,
                    f"{PAIRED_KEY}: a list of tables of keys that go together, such as [{{rule.lr: 1e-3, seed: 1}}].",
                )
        elif isinstance(value, list):
            if value:
                found.append(Axis([{key: (v, at(key, i))} for i, v in enumerate(value)], key, place))
            else:
                fault(place, f"{here}: an empty list. Write values, such as [1e-3, 1e-4], or remove it.")
        elif isinstance(value, dict) and {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
            low, high, log = value["low"], value["high"], value.get("log", False)
            if not all(type(x) in (int, float) and math.isfinite(x) for x in (low, high)) or not low < high:
                fault(place, f"{here}: low and high are two numbers, the lower first.")
            elif not isinstance(log, bool) or (log and low <= 0):
                fault(place, f"{here}: log is true or false, and where it is true, low is above 0.")
            else:
                found.append(Axis([], key, place, low, high, log))
        else:
            shown = sentences.format_value(value)
            fault(
                place,
                f"{here}: {shown} is no list of values, and no range such as {{low: 1e-4, high: 1e-2, log: true}}.",
            )
    if wrong:
        raise UsageError(format_faults(wrong))
    seen: dict[str, Position] = {}
    for axis in found:
        for key in dict.fromkeys(key for some in axis.values for key in some) if axis.values else [axis.key]:
            if key in seen:
                raise UsageError(
                    f"{path}:{seen[key][0]}:{seen[key][1]}: {make_printable(key)} stands twice, under {PAIRED_KEY} and alone."
                )
            seen[key] = axis.place if axis.key else next(some[key][1] for some in axis.values if key in some)
    return found


def build_points(
    name: str, path: Path, overrides: list[str] | None, folder: Path | None, draws: int, seed: int
) -> list[SweepPoint]:
    """A sweep's points, each with its checked recipe. draws: so many at random; 0: the grid.

    UsageError: the recipe's own sentences, with the place in the sweep's file of the value that is at fault.
    """
    base = reading.read_table(name, overrides)
    whole = check.check(*base)
    there = read_axes(path)
    if draws:
        chosen = [[axis.draw(u) for axis, u in zip(there, draw_uniform(seed, i, len(there)))] for i in range(draws)]
    else:
        for axis in there:
            if not axis.values:
                raise UsageError(
                    f"{path}:{axis.place[0]}:{axis.place[1]}: {make_printable(axis.key)}: a range is drawn "
                    "from. Add --random N, or "
                    "write a list of values."
                )
        if (count := math.prod(len(axis.values) for axis in there)) > MAX_POINTS:
            raise UsageError(f"{path}: a grid of {count:,} points, where {MAX_POINTS:,} is the most. Add --random N.")
        chosen = [list(some) for some in product(*(axis.values for axis in there))]
    parent = folder or Path(whole.output.dir) / clean_name(path.stem)
    found: dict[str, SweepPoint] = {}
    wrong: dict[str, None] = {}
    for some in chosen:
        placed = {key: pair for part in some for key, pair in part.items()}
        values = {key: value for key, (value, _) in placed.items()}
        table, marks = deepcopy(base[0]), {(): next(iter(placed.values()))[1]}
        try:
            for key, (value, place) in placed.items():
                at = f"{path}:{place[0]}:{place[1]}: "
                words = tuple(key.split("."))
                if not all(words) or len(words) > strict_yaml.MAX_DEPTH:
                    raise UsageError(f"{at}'{make_printable(key)}' is no recipe key, such as rule.lr.")
                recipe_overrides.set_value(table, marks, words, value, at, place)
            title = name_point(values)
            table |= {"name": title}
            recipe_overrides.set_value(table, marks, ("output", "dir"), str(parent))
            found.setdefault(title, SweepPoint(title, values, check.check(table, marks, str(path))))
        except UsageError as e:
            wrong |= dict.fromkeys(str(e).splitlines())
    if wrong:
        raise UsageError(format_faults(list(wrong)))
    return list(found.values())


def draw_uniform(seed: int, index: int, count: int) -> Iterator[float]:
    """Numbers in 0 .. 1 as a function of (seed, index): a longer sweep begins with the points of a shorter one."""
    stream = random.Random(f"zoedge sweep {seed} {index}")
    return (stream.random() for _ in range(count))


def clean_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")[:MAX_NAME_LENGTH] or "sweep"


def name_point(values: dict[str, Any]) -> str:
    """A folder's name that tells these values from others: lr-0.001_eps-0.01, with a digest where words are not enough."""
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


def run_points(some: Sequence[SweepPoint], how: list[str], say: Callable[[str], None], again: str) -> None:
    """Train every point that is not finished. how: options of finetune. again: the command that goes on.

    A point that diverges, or that does not fit, is noted, and the others are run. Stopped: a signal; the point that is
    being trained has ended after a whole step. Failed: a point ended otherwise. IdentityError: a folder of the sweep's
    has a run of another recipe.
    """
    for point in some:
        check_same_recipe(point)
    with forward_signals() as children:
        for i, point in enumerate(some, 1):
            folder = run_folder.run_folder(point.recipe)
            head = f"[{i}/{len(some)}] {point.name}"
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
    """IdentityError: the run in the point's folder was begun by another recipe: the base, not a value, has changed."""
    folder = run_folder.run_folder(point.recipe)
    if os.path.lexists(folder / run_folder.LOG_FILE):
        with Log.open(folder / run_folder.LOG_FILE) as log:
            identity.check_same_recipe(log.header, auto.fill_from_log(point.recipe, log.header), folder)


def describe_exit(code: int) -> str:
    return {DivergedError.exit_code: "diverged", DataError.exit_code: "did not fit, or its data is wrong"}.get(
        code, "killed"
    )


def is_finished(folder: Path) -> bool:
    """Trained to its end, scored and exported."""
    if not os.path.lexists(folder / run_folder.LOG_FILE):
        return False
    with Log.open(folder / run_folder.LOG_FILE) as log:
        return log.state.end is not None and any(
            line.get("event") == "finished" for line in run_folder.read_metrics(folder)
        )


def read_exit_codes(folder: Path) -> dict[str, int]:
    """How each point's last run ended, as it was noted."""
    lines = [
        line
        for line in run_folder.read_metrics(folder)
        if line.get("event") == "point" and isinstance(line.get("exit"), int)
    ]
    return {str(line.get("name")): line["exit"] for line in lines}


# -- what came of it


@dataclass
class SweepResult:
    """valid: on validation rows, of the step that is delivered. test: on test rows, if there are any."""

    point: SweepPoint
    state: str
    steps: int = 0
    seconds: float = 0.0
    valid: Score | None = None
    test: Score | None = None


def collect_results(some: Sequence[SweepPoint]) -> list[SweepResult]:
    """Of every point, by validation loss; then those that have none."""
    from .report.facts import read_facts

    found = []
    for point in some:
        folder = run_folder.run_folder(point.recipe)
        code = read_exit_codes(folder.parent).get(point.name, 0)
        if not os.path.lexists(folder / run_folder.LOG_FILE):
            found.append(SweepResult(point, describe_exit(code) if code in TOLERATED_EXITS else "not begun"))
            continue
        facts = read_facts(folder / run_folder.LOG_FILE)
        state = (
            describe_exit(code)
            if code in TOLERATED_EXITS and facts.state != "finished"
            else facts.state.partition(" after ")[0]
        )
        best = point.recipe.eval.select == "best"
        looks = [score for _, score in facts.valid]
        valid = (min(looks, key=lambda s: s.loss) if best else looks[-1]) if looks else None
        tested = point.recipe.data.test is not None
        result = SweepResult(point, state, facts.steps, facts.seconds or 0.0, valid, facts.after if tested else None)
        if not tested and facts.after:
            result.valid = facts.after
        found.append(result)
    return sorted(found, key=lambda r: (r.state != "finished", get_ranking_loss(r), r.point.name))


def get_ranking_loss(result: SweepResult) -> float:
    score = result.valid or result.test
    return score.loss if score else math.inf


def format_table(found: Sequence[SweepResult]) -> list[str]:
    """As text, the best first."""
    from .report.words import format_duration

    keys = list(dict.fromkeys(key for r in found for key in r.point.values))
    short = [key.rpartition(".")[2] for key in keys]
    heads = [word if short.count(word) == 1 else key for key, word in zip(keys, short)]
    sets = [which for which in ("valid", "test") if any(getattr(r, which) for r in found)]
    columns = {which: list(next(getattr(r, which) for r in found if getattr(r, which)).columns()) for which in sets}
    rows = [[*heads, *(f"{which} {name}" for which in sets for name in columns[which]), "steps", "time", "state"]]
    for r in found:
        cells = [
            make_printable(sentences.format_value(r.point.values[key]).strip("'"), 32) if key in r.point.values else ""
            for key in keys
        ]
        for which in sets:
            score = getattr(r, which)
            shown = score.columns() if score else {}
            cells += [shown.get(name, "-") for name in columns[which]]
        rows.append([*cells, f"{r.steps:,}", format_duration(r.seconds) if r.seconds else "-", r.state])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(f"{x:>{w}}" for x, w in zip(row[:-1], widths)) + f"  {row[-1]}" for row in rows]
