"""This module has the displays of a run: a live panel on a terminal, plain lines elsewhere, JSON lines, or nothing.

A display is given records and scores; it decides nothing.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..core.canonical import null_nonfinite
from ..core.types import SKIPPED, Record
from .evaluate import Score

SPARKLINE_BARS = "▁▂▃▄▅▆▇█"
LOWER_IS_BETTER = ("loss", "drift", "text")
MEAN_DECAY = 0.98  # how much of the running means of loss and |gamma| a step keeps


def draw_sparkline(values: Iterable[float], width: int = 40) -> str:
    """Draw the last values as a line of blocks, the lowest value as the lowest block."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    return "".join(
        SPARKLINE_BARS[int((v - low) / (high - low) * 7.999)] if high > low else SPARKLINE_BARS[3] for v in shown
    )


def format_seconds(seconds: float) -> str:
    """Return a duration as h:mm:ss, or as m:ss below an hour."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def read_peak_memory() -> int:
    """Return the most memory that this process has held at once, in bytes; the memory of a GPU is not counted."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Plain:
    """Prints one line for each event: for pipes, logs and --plain. The other displays show the same in another form."""

    every = 50  # steps for each line

    def __init__(self, steps: int = 0):
        self.steps, self.first, self.began = steps, -1, 0.0
        self.loss = self.gamma = 0.0
        self.passes = 0  # of a batch, since the first step shown
        self.losses: deque[float] = deque(maxlen=400)
        self.scored: list[tuple[int, Score]] = []

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def warn(self, text: str) -> None:
        """Print a line that asks for attention."""
        self.say(f"note: {text}")

    def start(self, steps: int, title: str, facts: dict[str, str] | None = None) -> None:
        """Say what is about to happen: a title, and one line for each fact."""
        self.steps, self.title = steps, title
        self.say(title)
        for name, text in (facts or {}).items():
            self.say(f"{name}: {text}")

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Show that something takes a while whose length is not known."""
        self.say(f"{text} ...")
        yield

    def track(self, sizes: Iterable[int], total: int, text: str) -> None:
        """Show the progress of work that yields how much of `total` each part was."""
        began, done = time.monotonic(), 0
        for size in sizes:
            done += size
        if done:
            self.say(f"{text}: {done:,} of {total:,} in {format_seconds(time.monotonic() - began)}")

    def step(self, record: Record) -> None:
        """Take in a step: bring the running means up to date, and show it."""
        if self.first < 0:
            self.first, self.began = record.step, time.monotonic()
        self.passes += len(record.losses) if record.step > self.first else 0
        if record.losses and not record.flags & SKIPPED:
            mean = sum(record.losses) / len(record.losses)
            size = sum(map(abs, record.g)) / len(record.g)
            fresh = not self.losses
            self.loss = mean if fresh else MEAN_DECAY * self.loss + (1 - MEAN_DECAY) * mean
            self.gamma = size if fresh else MEAN_DECAY * self.gamma + (1 - MEAN_DECAY) * size
            self.losses.append(self.loss)
        self.show(record)

    def figures(self, record: Record) -> dict[str, Any]:
        """Return the numbers of a step by name: progress, rate, running means of loss and |gamma|, memory."""
        passed = max(time.monotonic() - self.began, 1e-9)
        done = record.step - self.first
        rate = done / passed if done else 0.0
        left = (self.steps - record.step - 1) / rate if rate else 0.0
        return {
            "step": record.step + 1,
            "steps": self.steps,
            "steps_per_s": round(rate, 2),
            "left_s": round(left),
            "loss": round(self.loss, 4),
            "gamma": round(self.gamma, 4),
            "lr": record.lr,
            "passes_per_s": round(self.passes / passed, 1),
            "peak_bytes": read_peak_memory(),
        }

    def show(self, record: Record) -> None:
        """Print the line of a step, if it is the turn of one."""
        if (record.step + 1) % self.every == 0 or record.step + 1 == self.steps:
            f = self.figures(record)
            self.say(
                f"step {f['step']:,}/{self.steps:,}  loss {f['loss']:.4f}  |gamma| {f['gamma']:.3f}  lr {f['lr']:.2e}  "
                f"{f['steps_per_s']:.1f} steps/s  {format_seconds(f['left_s'])} left"
            )

    def score(self, step: int, score: Score, rows: str) -> None:
        """Print a score. rows: the name of the rows that were scored, such as "valid"."""
        self.scored.append((step, score))
        self.say(f"step {step:,}: {score.sentence()} ({score.count:,} {rows} rows)")

    def close(self) -> None:
        """End the display. Nothing is shown after it."""
        pass


class Quiet(Plain):
    """Shows nothing; errors are raised."""

    def say(self, text: str) -> None:
        """Print nothing."""
        pass


class Json(Plain):
    """Prints one JSON object on each line of standard output."""

    def say(self, text: str) -> None:
        """Print a message."""
        self.put("message", text=text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.put("warning", text=text)

    def put(self, event: str, **fields: Any) -> None:
        """Print one object: the kind of event, and its fields."""
        print(json.dumps(null_nonfinite({"event": event, **fields}), allow_nan=False), flush=True)

    def show(self, record: Record) -> None:
        """Print a step."""
        self.put("step", **self.figures(record), g=list(record.g), losses=list(record.losses), flags=record.flags)

    def score(self, step: int, score: Score, rows: str) -> None:
        """Print a score."""
        self.put("score", step=step, rows=rows, **vars(score))


def format_changes(score: Score, before: Score | None, names: Iterable[str] | None = None) -> list[str]:
    """Return a score's columns, each with an arrow for its change since `before`, if that is of as many rows.

    names: of the columns, "" where the score has none; None: those that it has.
    """
    now, then = score.columns(), before.columns() if before is not None and before.count == score.count else {}
    columns = []
    for name in now if names is None else names:
        if (text := now.get(name)) is None:
            columns.append("")
            continue
        a, b = (float(x.removesuffix(" %")) for x in (then.get(name, text), text))
        better = (b < a) if name in LOWER_IS_BETTER else (b > a)
        arrow = " " if a == b else f"[{'green' if better else 'red'}]{'↑' if b > a else '↓'}[/]"
        columns.append(f"{text} {arrow}")
    return columns


class Live(Plain):
    """Shows a panel that stays in place: progress, steps/s, time left, loss, gamma, a sparkline, the last scores."""

    def __init__(self, steps: int = 0):
        super().__init__(steps)
        from rich.console import Console
        from rich.live import Live as Panel

        self.console = Console()
        self.panel = Panel(console=self.console, refresh_per_second=4, transient=False)
        self.opened, self.drawn = False, 0.0

    def say(self, text: str) -> None:
        """Print a line above the panel."""
        self.console.print(text, highlight=False)

    def warn(self, text: str) -> None:
        """Print a line above the panel that asks for attention."""
        from rich.text import Text

        self.console.print(Text.assemble(("note: ", "yellow"), text))

    def start(self, steps: int, title: str, facts: dict[str, str] | None = None) -> None:
        """Print the title and a table of facts."""
        from rich.table import Table
        from rich.text import Text

        self.steps, self.title = steps, title
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        for name, text in (facts or {}).items():
            table.add_row(name, Text(text))
        self.console.print(Text(title, style="bold"))
        self.console.print(table)

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Show a spinner, and then how long it took."""
        with self.console.status(text):
            began = time.monotonic()
            yield
        self.say(f"[dim]{text}: {format_seconds(time.monotonic() - began)}[/]")

    def track(self, sizes: Iterable[int], total: int, text: str) -> None:
        """Show a bar of progress."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(text, total=total)
            for size in sizes:
                progress.advance(task, size)

    def show(self, record: Record) -> None:
        """Draw the panel anew, at most four times a second."""
        if not self.opened:
            self.panel.start()
            self.opened = True
        last = record.step + 1 == self.steps
        if last or time.monotonic() - self.drawn > 0.25:
            self.drawn = time.monotonic()
            self.panel.update(self.draw(self.figures(record)))

    def draw(self, f: dict[str, Any]) -> Any:
        """Return the panel of a step. f: the numbers of `figures`."""
        from rich import box
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        top = Table.grid(expand=True, padding=(0, 1))
        top.add_column(ratio=1)
        top.add_column(justify="right", no_wrap=True)
        counts = f"{f['step']:,}/{self.steps:,}  {f['steps_per_s']:.1f} steps/s  {format_seconds(f['left_s'])} left"
        top.add_row(ProgressBar(total=self.steps, completed=f["step"]), counts)
        numbers = f"loss [bold]{f['loss']:.4f}[/]   |gamma| [bold]{f['gamma']:.3f}[/]   lr {f['lr']:.2e}"
        middle = Table.grid(expand=True)
        middle.add_column()
        middle.add_column(justify="right", no_wrap=True)
        middle.add_row(numbers, f"[dim]{f['passes_per_s']:.0f} passes/s   peak {f['peak_bytes'] / 1e9:.2f} GB[/]")
        parts: list[Any] = [top, middle, f"[cyan]{draw_sparkline(self.losses)}[/]"]
        if self.scored:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            names = list(dict.fromkeys(name for _, s in self.scored[-4:] for name in s.columns()))
            for name in ("step", *names):
                table.add_column(name, justify="right")
            for i, (step, s) in enumerate(self.scored[-4:], max(0, len(self.scored) - 4)):
                table.add_row(f"{step:,}", *format_changes(s, self.scored[i - 1][1] if i else None, names))
            parts.append(table)
        return Panel(Group(*parts), title=Text(self.title), title_align="left", box=box.ROUNDED)

    def score(self, step: int, score: Score, rows: str) -> None:
        """Show a score in the panel, or print it before the panel is opened."""
        self.scored.append((step, score))
        if not self.opened:
            super().say("")
            self.scored.pop()
            super().score(step, score, rows)

    def close(self) -> None:
        """Close the panel, which stays as it was last drawn."""
        if self.opened:
            self.panel.stop()
            self.opened = False


def make_display(style: str) -> Plain:
    """Return the display of a name: auto, plain, quiet or json; auto is the panel on a terminal, plain lines elsewhere."""
    if style == "auto":
        return Live() if sys.stdout.isatty() else Plain()
    return {"plain": Plain, "quiet": Quiet, "json": Json}[style]()
