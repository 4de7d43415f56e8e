"""This module declares what the loop needs of a log, and has a log in memory, for runs that nobody will resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from .types import Record


class Journal(Protocol):
    """What the loop needs of a log: the file of a run, a packed log, or a list in memory."""

    writable: bool
    delivers: int | None  # of a shared log: after how many steps it delivers the trained values; None: of any other log

    def __len__(self) -> int: ...
    def __getitem__(self, step: int) -> Record: ...
    def __iter__(self) -> Iterator[Record]: ...
    def append(self, record: Record) -> Record:
        """Append a step's record, and return it as it will be read back."""

    def seal(self, step: int, digest: Callable[[], bytes]) -> None:
        """Log the state after `step` steps, or compare it with the one that is logged. digest: computes its SHA-256."""

    def rewind(self, step: int) -> None:
        """Drop the steps from `step` on."""

    @property
    def state(self) -> Any:
        """What is known besides the records: the hashes, and the end."""

    @property
    def next_seq(self) -> int:
        """The number of the next slot, which keys the noise of the next step."""


@dataclass
class MemoryLog:
    """A log that is a list in memory."""

    state = None  # nothing but the records is known
    writable = True
    delivers: int | None = None
    records: list[Record] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, step: int) -> Record:
        return self.records[step]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def append(self, record: Record) -> Record:
        """Append a record, and return it."""
        self.records.append(record)
        return record

    def seal(self, step: int, digest: Callable[[], bytes]) -> None:
        """Do nothing: this log is not kept, so that there is nothing to prove."""

    def rewind(self, step: int) -> None:
        """Drop the records from `step` on."""
        del self.records[step:]

    @property
    def next_seq(self) -> int:
        """The number of records."""
        return len(self.records)
