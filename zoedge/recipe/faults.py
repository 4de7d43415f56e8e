"""`Faults` collects the mistakes of a recipe, each with the place where it stands, and raises them together at the end."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import UsageError, format_faults
from .sentences import MAX_FAULTS
from .strict_yaml import KeyPath, Position, Positions


class Faults:
    """The mistakes that a check has met so far.

    Args:
        where: the name of the file or log that is checked; each sentence begins with it.
        marks: the line and column of each key; empty if the table does not come from a file.
        earlier: the sentences of mistakes that are known before the check.
    """

    def __init__(self, where: str, marks: Positions, earlier: Collection[str] = ()):
        self.where, self.marks = where, marks
        self.sentences: list[tuple[Position, str]] = [((0, 0), text) for text in earlier]

    def report(self, path: KeyPath, what: str) -> None:
        """Note a mistake at a key, or at the closest table above it that has a place. UsageError: there are too many."""
        above = (path[:length] for length in range(len(path), -1, -1))
        place = next((self.marks[key] for key in above if key in self.marks), (0, 0))
        override = f"{self.where} (key=value)" if self.marks else self.where
        at = f"{self.where}:{place[0]}:{place[1]}" if place[0] else override
        self.sentences.append((place, f"{at}: {what}" + ("" if what.endswith(("?", ".")) else ".")))
        if len(self.sentences) > MAX_FAULTS:
            self.raise_all()

    def raise_all(self) -> None:
        """Raise a UsageError that lists the mistakes in the order of the file. Without mistakes, do nothing."""
        if self.sentences:
            raise UsageError(format_faults([text for _, text in sorted(self.sentences)]))
