"""This module has what the three converters share: a configuration that is read key by key, and the recipe it becomes.

Every key ends in one of three lists: carried over, changed in meaning, or left out with a reason. `rest` sees to it that
none is lost. A value that is carried must pass the recipe's own checker. The keys are those that mlx-lm, axolotl and
LLaMA-Factory document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError, UsageError, make_printable
from ...recipe.check import check
from ...recipe.foreign import FOREIGN_KEYS, REASON_BY_KEY
from ...recipe.sentences import format_value

CHAT_TEMPLATES = {"chatml": "chatml", "llama2": "llama2", "empty": "plain", "plain": "plain"}

SCHEDULE_NAMES = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_decay": "cosine",
    "linear_schedule": "linear",
    "constant_with_warmup": "constant",
}

TRUNCATION_NOTE = "longer rows are cut from the left, so that the answer stays"

STEPS_NOTE = (
    "a step here is two forward passes and learns less than a step of backpropagation: expect to need more of them"
)


@dataclass
class ImportedRecipe:
    """The recipe that a configuration becomes, and what became of each key.

    Attributes:
        tool: the name of the other tool.
        table: the recipe.
        carried: (key, its place in the recipe).
        changed: (key, its value, how its meaning changed).
        lost: (key, its value, why it is left out).
        unset: the keys without a value.
    """

    tool: str
    table: dict[str, Any]
    carried: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, Any, str]] = field(default_factory=list)
    lost: list[tuple[str, Any, str]] = field(default_factory=list)
    unset: list[str] = field(default_factory=list)

    def report(self) -> list[str]:
        """Return the lines of the report, one for each key."""
        lines = [
            f"from {self.tool}"
            + (f"; not set in it: {make_printable(', '.join(self.unset), 400)}" if self.unset else "")
        ]
        lines += ["", "carried:", *(f"  {key} -> {to}" for key, to in self.carried)]
        for title, entries in (("changed in meaning", self.changed), ("not carried", self.lost)):
            if entries:
                lines += ["", f"{title}:", *(f"  {key}: {format_value(value)} - {why}" for key, value, why in entries)]
        return [make_printable(line, 500) for line in lines]


class ConfigConverter:
    """A configuration that is being read, and the recipe that is being written.

    Attributes:
        left: the keys that are not dealt with yet, dotted, with their values.
        given: all keys of the configuration.
        out: the recipe.
    """

    def __init__(self, table: dict[str, Any], where: str, tool: str):
        self.where, self.left = where, dict(flatten_keys(table))
        self.given = set(self.left)
        self.out = ImportedRecipe(tool, {"version": 1, "model": {"source": "?"}, "data": {"train": "?"}})
        for key in [key for key, value in self.left.items() if value is None or value in ("", [], {})]:
            self.out.unset.append(key)
            del self.left[key]

    def take(self, *keys: str) -> Any:
        """Return the value of the first of these keys that is set, and mark that key as dealt with; None: none is set."""
        return next((self.left.pop(key) for key in keys if key in self.left), None)

    def put(self, key: str, place: str, value: object, note: str = "", given: object = None) -> bool:
        """Write a value into the recipe if its checker accepts it, else list the key as lost. Return whether it was
        accepted.

        Args:
            key: the configuration's.
            place: the dotted key of the recipe.
            note: how the meaning changes, if it does.
            given: the configuration's value, where it differs from `value`.
        """
        draft = deepcopy(self.out.table)
        into = draft
        *path, last = place.split(".")
        for word in path:
            inner = into.get(word)
            into[word] = inner = {"name": inner} if isinstance(inner, str) else {} if inner is None else inner
            into = inner
        into[last] = value
        given = value if given is None else given
        try:
            check(draft, {}, "it")
        except UsageError as e:
            why = str(e).splitlines()[0].removeprefix("it: ").rstrip(".")
            self.out.lost.append((key, given, f"the recipe does not take it: {why}"))
            return False
        self.out.table = draft
        self.out.carried.append((key, f"{place}: {format_value(value)}"))
        if note:
            self.out.changed.append((key, given, note))
        return True

    def carry(self, key: str, place: str, convert: Callable[[Any], object] = lambda x: x, note: str = "") -> Any:
        """Write the value of a key, if it is set, to its place in the recipe, and return that value as it was; None: not
        set.

        Args:
            convert: makes the recipe's value of it.
            note: how the meaning changes, if it does.
        """
        if (value := self.take(key)) is not None:
            self.put(key, place, convert(value), note, value)
        return value

    def lose(self, key: str, why: str, value: object = None) -> None:
        """List a key as left out, if it is set or a value is given that was taken before."""
        if key in self.left or value is not None:
            self.out.lost.append((key, self.left.pop(key, value), why))

    def change(self, key: str, value: object, how: str) -> None:
        """List a key as changed in meaning."""
        self.out.changed.append((key, value, how))

    def rest(self) -> None:
        """List every key that nobody has dealt with as lost, with its reason, or as one that zoedge does not know."""
        for key, value in self.left.items():
            word = re.sub(r"\.\d+", "", key)
            for part in reversed(word.split(".")):
                if part in REASON_BY_KEY:
                    why = REASON_BY_KEY[part]
                    break
            else:
                ours = FOREIGN_KEYS.get(word.rpartition(".")[2])
                why = (
                    f"the nearest key of a recipe is {ours}"
                    if ours
                    else f"not one of {self.out.tool}'s keys that zoedge knows"
                )
            self.out.lost.append((key, value, why))
        self.left = {}
        self.out.carried = [(self.bracket(key), place) for key, place in self.out.carried]
        self.out.changed = [(self.bracket(key), value, how) for key, value, how in self.out.changed]
        self.out.lost = [(self.bracket(key), value, why) for key, value, why in self.out.lost]

    def bracket(self, key: str) -> str:
        """Return the key in brackets if the configuration does not set it, though the recipe has to decide about it."""
        return key if key in self.given or key[0] == "(" else f"({key})"

    # -- keys that all three tools have

    def base(self, *keys: str) -> None:
        """Carry the base model. UsageError: there is none."""
        if not isinstance(value := self.take(*keys), str):
            raise UsageError(f"{self.where}: no base model ({keys[0]}), so there is nothing to make a recipe of.")
        self.put(keys[0], "model.source", value)
        if re.search(r"mlx-community|-[48]bit$|-(gptq|awq)|gguf", value, re.IGNORECASE):
            self.change(keys[0], value, "zoedge quantises a 16-bit model itself: name that one in model.source")

    def train(self, key: str, value: object) -> None:
        """Carry the source of the training rows. UsageError: there is none."""
        if not isinstance(value, str):
            raise UsageError(f"{self.where}: no rows to train on ({key}), so there is nothing to make a recipe of.")
        self.put(key, "data.train", value)

    def first_order(self, rate: str, optimizer: str) -> None:
        """List the settings that belong to gradients; a learning rate is never carried over."""
        if (value := self.take(rate)) is not None:
            how = (
                "a first-order rate is not a zeroth-order one: rule.lr and estimator.eps are left at zoedge's defaults"
            )
            self.change(rate, value, how)
        self.lose(optimizer, REASON_BY_KEY["optim_args"])

    def schedule(self, key: str) -> None:
        """Carry the schedule of the learning rate, without a warm-up."""
        if (value := self.take(key)) is not None:
            if (ours := SCHEDULE_NAMES.get(value if isinstance(value, str) else "")) is None:
                self.lose(key, REASON_BY_KEY["warmup"], value)
            else:
                self.put(key, "rule.schedule", ours, "" if ours == value else f"{ours}, without a warm-up", value)

    def precision(self) -> None:
        """Carry the compute type from switches such as `bf16: true`."""
        for key, ours in {
            "bf16": "bf16",
            "bfloat16": "bf16",
            "pure_bf16": "bf16",
            "fp16": "fp16",
            "float16": "fp16",
        }.items():
            if (value := self.take(key)) is not None:
                if value is True:
                    self.put(key, "model.compute_dtype", ours, given=value)
                else:
                    self.out.carried.append((key, "model.compute_dtype: auto" if value == "auto" else "as it is"))

    def batch(self, one: str, times: str) -> int:
        """Carry the batch of a step, which is one device's batch times the accumulated ones, and return it."""
        size, accumulated = self.take(one), self.take(times)
        whole = (size if isinstance(size, int) else 1) * (accumulated if isinstance(accumulated, int) else 1)
        if size is not None or accumulated is not None:
            note = (
                f"{one} x {times}: the whole batch of a step, on one device"
                if isinstance(accumulated, int) and accumulated > 1
                else ""
            )
            self.put(one, "train.batch", whole, note, size)
            if accumulated is not None:
                self.out.carried.append((times, f"train.batch: {whole}"))
        return whole

    def steps(self, steps: str, epochs: str, batch: int) -> None:
        """Carry the number of steps, or compute it as epochs x rows / batch where the rows can be counted here."""
        number, times = self.take(steps), self.take(epochs)
        if isinstance(number, int) and number > 0:
            self.put(steps, "train.steps", number, STEPS_NOTE)
            if times is not None:
                self.change(epochs, times, f"{steps} decides, as it does in {self.out.tool}")
        elif number is not None:
            self.out.carried.append((steps, "no limit"))
        if times is not None and not (isinstance(number, int) and number > 0):
            rows = self.rows()
            if rows and isinstance(times, (int, float)) and times > 0:
                count = max(1, math.ceil(rows * times / max(1, batch)))
                note = f"{times:g} epochs of {rows:,} rows in batches of {batch} are {count:,} steps; {STEPS_NOTE}"
                self.put(epochs, "train.steps", count, note, times)
            else:
                self.change(
                    epochs,
                    times,
                    f"train.steps are steps, not epochs (rows x epochs / batch); left at the default: {STEPS_NOTE}",
                )

    def rows(self) -> int:
        """Return the number of training rows; 0: they are not on this machine, or cannot be read."""
        from ...recipe.sections import Data
        from ...scoring.rows.sets import load_rows

        data = self.out.table["data"]
        try:
            if not Path(data["train"].partition(":")[0]).expanduser().exists():
                return 0
            count = len(load_rows(data["train"], "data.train", Data(**data | {"valid": None}))[0])
            return min(count, data.get("limit") or count)
        except DataError:
            return 0

    def alike(self) -> str:
        """Return the task that fits the training rows: `lm` or `chat`; "": they are not on this machine, or neither fits."""
        from ...recipe.sections import Data
        from ...scoring.rows.formats import matching_formats
        from ...scoring.rows.sets import load_rows

        data = self.out.table["data"]
        try:
            rows = load_rows(data["train"], "data.train", Data(**{"train": data["train"]}))[0] if self.rows() else []
        except DataError:
            return ""
        if not rows:
            return ""
        if any(matching_formats(row) for row in rows):
            return "chat"
        return "lm" if all("text" in row.fields for row in rows) else ""

    def holdout(self, key: str) -> None:
        """Carry the share or number of rows that are held out for validation."""
        value = self.take(key)
        if value in (0, 0.0):
            self.out.carried.append((key, "no validation rows"))
        elif value is not None:
            size = int(value) if isinstance(value, float) and value >= 1 else value
            self.put(key, "data.valid.split", size, given=value)

    def targets(self, key: str, value: object) -> None:
        """Carry the names of the modules to adapt: the last word of each, without repetition, or `all`."""
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list) or names in (["all"], ["all-linear"]):
            self.put(key, "space.targets", "all", given=value)
            return
        words = dict.fromkeys(str(name).strip().rpartition(".")[2] for name in names)
        self.put(key, "space.targets", list(words), given=value)

    def whole(self) -> None:
        """Train all weights, which only an unquantised base allows."""
        self.out.table["model"]["quantization"] = "none"
        self.put("(all weights)", "space", "full")

    def kept(self, keys: Iterable[str], how: str) -> None:
        """List keys as carried that need nothing in the recipe; `how` says why."""
        for key in keys:
            if key in self.left:
                self.left.pop(key)
                self.out.carried.append((key, how))


def flatten_keys(table: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the dotted keys of nested tables, and of tables in lists, with their values."""
    for key, value in table.items():
        dotted = f"{before}{key}"
        if isinstance(value, dict) and value:
            yield from flatten_keys(value, f"{dotted}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for i, item in enumerate(value):
                yield from flatten_keys(item, f"{dotted}.{i}.")
        else:
            yield dotted, value


def convert_template(s: ConfigConverter, *keys: str) -> None:
    """Carry the chat template: one that is built into zoedge, a file, or the tokenizer's own."""
    for key in keys:
        if (value := s.take(key)) is None:
            continue
        if s.out.table.get("task") == "lm" or (
            isinstance(s.out.table.get("task"), dict) and s.out.table["task"]["name"] == "lm"
        ):
            s.lose(key, "plain text has no template", value)
        elif value in CHAT_TEMPLATES:
            s.put(key, "task.format", CHAT_TEMPLATES[value], given=value)
        elif value in ("tokenizer_default", "default"):
            s.out.carried.append((key, "task.format: own"))
        elif value == "jinja":
            s.change(key, value, "write the template to a file, and name it: task.format: FILE.jinja")
        else:
            s.change(
                key,
                value,
                "the tokenizer's own chat template is used (task.format: own); if the base has none, set chatml",
            )
    if (text := s.take("chat_template_jinja")) is not None:
        if isinstance(text, str) and text.endswith(".jinja"):
            s.put("chat_template_jinja", "task.format", text)
        else:
            s.change("chat_template_jinja", text, "write the template to a file, and name it: task.format: FILE.jinja")
