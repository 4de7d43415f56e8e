"""This module has what the converters share: a configuration that is read key by key, and the recipe it becomes.

Every key ends in one of three lists: carried over, changed in meaning, or left out with a reason. `rest` sees to it that
none is lost. A value that is carried must pass the recipe's own checker. Where a configuration leaves a setting open, its
own tool's default is carried, because zoedge's is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from ...errors import UsageError, make_printable
from ...recipe.check import check
from ...recipe.foreign import CHANGE_BY_KEY, FOREIGN_KEYS, REASON_BY_KEY
from ...recipe.sentences import format_value


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
        if any(key.startswith("(") for key, _ in self.carried):
            lines += [f"  (in brackets: what the file does not set, and {self.tool} has as its default)"]
        for title, entries in (("changed in meaning", self.changed), ("not carried", self.lost)):
            if entries:
                lines += ["", f"{title}:", *(f"  {key}: {format_value(value)} - {why}" for key, value, why in entries)]
        return [make_printable(line, 500) for line in lines]


class ConfigConverter:
    """A configuration that is being read, and the recipe that is being written.

    Attributes:
        left: the keys that are not dealt with yet, dotted, with their values; what is not set has the tool's default.
        given: all keys of the configuration.
        out: the recipe.
    """

    def __init__(self, table: dict[str, Any], where: str, tool: str, defaults: dict[str, Any] | None = None):
        self.where = where
        written = dict(flatten_keys(table))
        self.given = set(written)
        self.out = ImportedRecipe(tool, {"version": 1, "model": {"source": "?"}, "data": {"train": "?"}})
        self.out.unset = [key for key, value in written.items() if value is None or value in ("", [], {})]
        self.left = (defaults or {}) | {key: written[key] for key in written if key not in self.out.unset}

    def take(self, *keys: str) -> Any:
        """Return the value of the first of these keys that is set, and mark that key as dealt with; None: none is set."""
        return next((self.left.pop(key) for key in keys if key in self.left), None)

    def is_set(self, key: str) -> bool:
        """Return whether the configuration itself sets a key that is not dealt with yet."""
        return key in self.given and key in self.left

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

    def keep(self, keys: Iterable[str], how: str) -> None:
        """List keys as carried that need nothing in the recipe; `how` says why."""
        for key in keys:
            if key in self.left:
                self.left.pop(key)
                self.out.carried.append((key, how))

    def read(self, place: str) -> Any:
        """Return the value at a dotted place of the recipe as it is so far; None: it is not written."""
        value: Any = self.out.table
        for word in place.split("."):
            value = {"name": value}.get(word) if isinstance(value, str) else (value or {}).get(word)
        return value

    def rest(self) -> None:
        """List every key that nobody has dealt with: as changed, as lost with its reason, or as one that is not known."""
        for key, value in self.left.items():
            if key not in self.given:
                continue
            words = [part for part in reversed(key.split(".")) if not part.isdigit()]
            how = next((CHANGE_BY_KEY[word] for word in words if word in CHANGE_BY_KEY), None)
            if how is not None and value is not False:
                self.change(key, value, how)
            else:
                self.out.lost.append((key, value, self.explain_loss(words)))
        self.left = {}
        entries = (*self.out.carried, *self.out.changed, *self.out.lost)
        listed = {entry[0] for entry in entries} | set(self.out.unset)
        self.out.carried += [(key, "read together with the keys beside it") for key in sorted(self.given - listed)]
        self.out.carried = [(self.bracket(key), place) for key, place in self.out.carried]
        self.out.changed = [(self.bracket(key), value, how) for key, value, how in self.out.changed]
        self.out.lost = [(self.bracket(key), value, why) for key, value, why in self.out.lost]

    def explain_loss(self, words: list[str]) -> str:
        """Return why a key has no place in a recipe. words: its parts, the last one first."""
        for word in words:
            if word in REASON_BY_KEY:
                return REASON_BY_KEY[word]
        if any(word in CHANGE_BY_KEY for word in words):
            return "it is switched off, as it always is here"
        ours = FOREIGN_KEYS.get(words[0])
        return (
            f"the nearest key of a recipe is {ours}" if ours else f"not one of {self.out.tool}'s keys that zoedge knows"
        )

    def bracket(self, key: str) -> str:
        """Return the key in brackets if the configuration does not set it, though the recipe has to decide about it."""
        return key if key in self.given or key[0] == "(" else f"({key})"


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
