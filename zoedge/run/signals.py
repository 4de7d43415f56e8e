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


class Stopped(ZoedgeError):
    """Ctrl-C or SIGTERM: nothing is lost."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.exit_code = 128 + number


class Interrupt(BaseException):
    """A signal has come. No Exception: libraries swallow those."""


@dataclass
class SignalHandler:
    """SIGINT and SIGTERM. A step is finished first; anything else is left where it is: the log is written ahead, files
    are written whole, and looks are taken again. A second signal exits at once, whatever is going on."""

    seen: int = 0
    waits: bool = False
    workers: Any = None  # who must stop after the same step

    def __call__(self, number: int, frame: Any) -> None:
        if self.seen:
            raise SystemExit(128 + number)
        self.seen = number
        if not self.waits:
            raise Interrupt

    def between(self, steps: Iterator[Record]) -> Iterator[Record]:
        """The steps, each whole. Interrupt: a signal came meanwhile."""
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
        if self.workers is None:
            return self.seen > 0
        self.workers.wish = self.seen
        self.seen = self.seen or self.workers.stop
        return self.workers.stop > 0


@contextmanager
def handle_signals(folder: Path, show: Plain, workers: Any = None) -> Iterator[SignalHandler]:
    """While open, a signal ends in Stopped, which says how to go on."""
    here = SignalHandler(workers=workers)
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup, `&`
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python lets no other thread handle them
    old = {number: signal.signal(number, here) for number in numbers}
    try:
        yield here
    except Interrupt:
        show.close()
        path = folder / run_folder.LOG_FILE
        if workers and workers.index:
            raise Stopped("Stopped with worker 0.", here.seen) from None
        if not path.exists():
            raise Stopped("Stopped before the first step.", here.seen) from None
        with Log.open(path) as log:
            raise Stopped(
                f"Stopped after step {len(log):,}; nothing is lost. Go on with: zoedge resume {folder}", here.seen
            ) from None
    finally:
        for number, former in old.items():
            signal.signal(number, former)
