"""Ctrl-C and SIGTERM end a run between two steps; nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.types import Record
from ..errors import ZoedgeError
from ..log.log import Log
from . import folder as run_folder
from .display import Plain
from .workers import Workers


class Stopped(ZoedgeError):
    """The run was stopped by Ctrl-C or SIGTERM. Nothing is lost, and the same call goes on."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.exit_code = 128 + number


class Interrupt(BaseException):
    """A signal has come. It is no Exception, because libraries swallow those."""


@dataclass
class SignalHandler:
    """Handles SIGINT and SIGTERM: a step is finished first, and anything else is left at once.

    That is safe: the log is written ahead, files are written whole, and an evaluation is done again. A second signal ends
    the process at once.

    Attributes:
        seen: the number of the signal that came; 0: none.
        waits: whether a step is going on, which must be finished.
        workers: the other processes, which must stop after the same step.
    """

    seen: int = 0
    waits: bool = False
    workers: Workers | None = None

    def __call__(self, number: int, frame: Any) -> None:
        if self.seen:
            raise SystemExit(128 + number)
        self.seen = number
        if not self.waits:
            raise Interrupt

    def between(self, steps: Iterator[Record]) -> Iterator[Record]:
        """Yield the steps' records, and finish each step. Interrupt: a signal came meanwhile."""
        while True:
            self.waits = True
            try:
                record = next(steps, None)
            finally:
                self.waits = self.workers is not None  # they all stop after the same step, or they would miss this one
            if self.ended():
                raise Interrupt
            if record is None:
                self.waits = False
                return
            yield record

    def ended(self) -> bool:
        """Return whether the run must stop after this step."""
        if self.workers is None:
            return self.seen > 0
        self.workers.wish = self.seen
        self.seen = self.seen or self.workers.stop
        return self.workers.stop > 0


@contextmanager
def handle_signals(folder: Path, show: Plain, workers: Workers | None = None) -> Iterator[SignalHandler]:
    """Turn a signal that comes while the context is open into Stopped, which says how to go on."""
    handler = SignalHandler(workers=workers)
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup, `&`
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python lets no other thread handle them
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield handler
    except Interrupt:
        show.close()
        path = folder / run_folder.LOG_FILE
        if workers and workers.index:
            raise Stopped("Stopped with worker 0.", handler.seen) from None
        if not path.exists():
            raise Stopped("Stopped before the first step.", handler.seen) from None
        with Log.open(path) as log:
            raise Stopped(
                f"Stopped after step {len(log):,}; nothing is lost. Go on with: zoedge resume {folder}", handler.seen
            ) from None
    finally:
        for number, former in old.items():
            signal.signal(number, former)
