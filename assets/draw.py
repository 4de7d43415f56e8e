"""Draw a recorded session (record.py) as one animated SVG: real screens, shown for a time each; the last one stays."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 80, 30
LIVE_SCREENS = 14  # of the longest command, evenly spaced in time
CONTROL = re.compile(r"\r|\n|\x1b\[\?25[lh]|\x1b\[(\d*)([AK])|\x1b\][^\x07]*\x07")
PART = "\0"  # between the parts of rich's export


class Frame(NamedTuple):
    """What the terminal shows, a line of ANSI text each, and for how many seconds the SVG shows it."""

    lines: list[str]
    seconds: float


class Screen:
    """A terminal that knows what rich's live display uses: carriage return, line up, erase line."""

    def __init__(self) -> None:
        self.lines, self.row, self.rewrite = [""], 0, False

    def write(self, text: str) -> None:
        """Apply a piece of a program's output."""
        end = 0
        for control in CONTROL.finditer(text):
            self.put(text[end : control.start()])
            end = control.end()
            match control.group(), control[2]:
                case "\r", _:
                    self.rewrite = True
                case "\n", _:
                    self.row, self.rewrite = self.row + 1, False
                    self.lines += [""] * (self.row + 1 - len(self.lines))
                case _, "A":
                    self.row = max(0, self.row - int(control[1] or 1))
                case _, "K":
                    self.lines[self.row] = ""
        self.put(text[end:])

    def put(self, text: str) -> None:
        """Write at the end of the line, or over the line if a carriage return came before."""
        if text:
            self.lines[self.row] = text if self.rewrite else self.lines[self.row] + text
            self.rewrite = False


def collect_frames(session: list[dict[str, Any]]) -> list[Frame]:
    """Return the screens of a session: each command as typed, some of its screens while it runs, and its last one."""
    screen, frames = Screen(), list[Frame]()
    longest = max(command["seconds"] for command in session)
    for command in session:
        typed = shlex.join(["zoedge", *command["words"]]).replace("'", '"')
        screen.write(f"\x1b[1;32m$\x1b[0m \x1b[1m{typed}\x1b[0m\n")
        frames.append(Frame(list(screen.lines), 1.2))
        live = command["seconds"] == longest
        due = step = command["seconds"] / LIVE_SCREENS
        for second, text in command["pieces"]:
            if live and second > due:
                frames.append(Frame(list(screen.lines), 0.8))
                due += step * (1 + (second - due) // step)
            screen.write(text)
        frames.append(Frame(list(screen.lines), 4.0 if live else 2.5))
        screen.write("\n")
    return [*frames[:-1], frames[-1]._replace(seconds=6.0)]


def export_frame(lines: list[str], name: str, code_format: str) -> str:
    """Return rich's SVG of the screen's last rows. name: a prefix of its CSS classes, of its own for each frame."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    rows = [row for line in lines for row in Text.from_ansi(line).wrap(console, COLUMNS) or [Text()]]
    while rows and not rows[-1].plain.strip():
        rows.pop()
    rows = rows[1 - ROWS :]  # the lowest row stays empty
    for row in [*rows, *[Text()] * (ROWS - len(rows))]:
        console.print(row)
    return console.export_svg(title="zoedge", code_format=code_format, unique_id=name)


SHELL = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"><style>
text {{ font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; white-space: pre }}
text {{ font-size: {char_height}px }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px }}
STYLE</style>
{chrome}<g transform="translate({terminal_x}, {terminal_y})">
GROUPS</g></svg>
"""  # braces are rich's; STYLE and GROUPS are replaced


def draw(frames: list[Frame]) -> str:
    """Return the animated SVG. A viewer without animation, or one that was asked for less motion, shows the last frame."""
    total, begin, style, groups = sum(frame.seconds for frame in frames), 0.0, "", ""
    for number, frame in enumerate(frames):
        name, last = f"f{number}", number == len(frames) - 1
        parts = export_frame(frame.lines, name, PART.join(["{styles}", "{backgrounds}", "{matrix}"]))
        classes, backgrounds, matrix = parts.split(PART)
        shown, hidden = (f"{100 * second / total:.2f}%" for second in (begin, begin + frame.seconds))
        stop = "" if last else f" {hidden} {{ visibility: hidden }}"
        style += (
            f"{classes}\n@keyframes {name} {{ 0% {{ visibility: hidden }} {shown} {{ visibility: visible }}{stop} }}\n"
        )
        matrix = re.sub(r' clip-path="[^"]*"', "", matrix)
        visibility = "visible" if last else "hidden"
        groups += (
            f'<g class="frame" visibility="{visibility}" style="animation-name: {name}">{backgrounds}{matrix}</g>\n'
        )
        begin += frame.seconds
    moving = f".frame {{ animation: {total:.1f}s step-end infinite }}"
    style += f"@media (prefers-reduced-motion: no-preference) {{ {moving} }}\n"
    return export_frame([], "shell", SHELL).replace("STYLE", style).replace("GROUPS", groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("session", type=Path, help="session.json of record.py")
    parser.add_argument("svg", type=Path, help="the file to write")
    args = parser.parse_args()
    frames = collect_frames(json.loads(args.session.read_text(encoding="utf-8")))
    args.svg.write_text(draw(frames), encoding="utf-8")


if __name__ == "__main__":
    main()
