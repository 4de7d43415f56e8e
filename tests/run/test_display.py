"""What a run shows meanwhile: at 80 columns, with arrows where a score went, and in numbers for machines."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from rich.console import Console

from zoedge.core.types import SKIPPED, Record
from zoedge.run import display
from zoedge.run.display import Json, Live, Plain, format_changes
from zoedge.run.evaluate import Score


def fed(show: Any, steps: int = 100) -> Any:
    show.start(steps, "quickstart: smollm2-135m-instruct, nf4, 81,408 trained", {"rows": "1,500 train, 200 valid"})
    for step in range(steps):
        show.step(Record(step, step, 1e-3, (0.5,), (1.0 - step / 200, 1.2 - step / 200)))
    return show


def drawn(show: Live, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    console.print(show.draw(show.figures(Record(99, 99, 1e-3, (0.5,), (0.7, 0.5)))))
    return console.export_text(styles=False)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Live:
    show = Live()
    show.console = Console(width=80, record=True, file=open("/dev/null", "w"))
    show.opened = True  # the panel is drawn by the tests
    return show


def test_the_panel_fits_a_terminal_of_80_columns(live: Live) -> None:
    fed(live).scored = [(s, Score(0.5, 200, accuracy=0.7, calibrated=0.72)) for s in (2000, 4000, 6000, 8000, 10000)]
    lines = drawn(live).splitlines()
    assert {len(line) for line in lines} == {80} and lines[0].startswith(
        "╭─ quickstart: smollm2-135m-instruct, nf4, 81,408"
    )
    assert "100/100" in lines[1] and "steps/s" in lines[1] and "left" in lines[1]
    assert "loss 0." in lines[2] and "passes/s" in lines[2] and re.search(r"peak \d\.\d\d GB", lines[2])
    assert "2,000" not in drawn(live) and "10,000" in drawn(live), "the last four"


def test_the_panel_shows_drift_beside_every_score(live: Live) -> None:
    """A look has no figure of the ordinary text: its cell is empty, and the columns stay in their places."""
    start = Score(1.6, 1000, accuracy=0.5, calibrated=0.66, drift=0.0, text=3.808, base_text=3.808)
    looks = [Score(0.6, 200, accuracy=0.7, calibrated=0.72, drift=drift) for drift in (0.365, 0.841)]
    fed(live).scored = [(0, start), (1000, looks[0]), (2000, looks[1])]
    lines = [line.strip("│ ") for line in drawn(live).splitlines()]
    (head,) = [line.split() for line in lines if "drift" in line]
    assert head == ["step", "raw", "calibrated", "loss", "drift", "text"]
    assert [line.split()[-2:] for line in lines if line.startswith("0 ")] == [["0.000", "3.808"]]
    assert [line.split()[-2:] for line in lines if line.startswith("2,000 ")] == [["0.841", "↑"]]
    assert format_changes(looks[1], looks[0])[-1] == "0.841 [red]↑[/]"
    assert {len(line) for line in drawn(live).splitlines()} == {80}


def test_the_start_says_what_will_happen(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    fed(live, 1)
    text = live.console.export_text()
    assert (
        text.startswith("quickstart: smollm2-135m-instruct, nf4, 81,408 trained\n")
        and "rows  1,500 train, 200 valid" in text
    )
    fed(Plain(), 1)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "quickstart: smollm2-135m-instruct, nf4, 81,408 trained",
        "rows: 1,500 train, 200 valid",
    ]


def test_arrows_are_of_the_same_rows_alone() -> None:
    first, second = Score(0.61, 200, accuracy=0.695, calibrated=0.72), Score(0.58, 200, accuracy=0.69, calibrated=0.72)
    assert format_changes(second, first) == ["69.0 % [red]↓[/]", "72.0 %  ", "0.5800 [green]↓[/]"]
    assert format_changes(first, second) == ["69.5 % [green]↑[/]", "72.0 %  ", "0.6100 [red]↑[/]"]
    assert (
        format_changes(second, None)
        == format_changes(second, Score(0.9, 1000, accuracy=0.5, calibrated=0.5))
        == ["69.0 %  ", "72.0 %  ", "0.5800  "]
    )


def test_an_arrow_is_in_the_panel(live: Live) -> None:
    fed(live).scored = [(10, Score(0.6, 200, accuracy=0.6)), (20, Score(0.5, 200, accuracy=0.7))]
    rows = [line for line in drawn(live).splitlines() if "70.0 %" in line or "60.0 %" in line]
    assert "↑" in rows[1] and "↓" in rows[1] and "↑" not in rows[0] and "↓" not in rows[0]


def test_names_are_no_markup(live: Live) -> None:
    live.start(1, "[red]a: [/nope] model", {"rows": "[bold]5"})
    live.warn("[/x] odd")
    assert (
        "[red]a: [/nope] model" in live.console.export_text(clear=False)
        and "note: [/x] odd" in live.console.export_text()
    )
    assert "[red]a: [/nope] model" in drawn(live)


def test_machines_get_passes_and_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(i) for i in range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    show = Json()
    for step in range(3):
        show.step(Record(step, step, 1e-3, (0.5,), (1.0, 1.2)))
    show.step(Record(3, 3, 1e-3, (0.0,), (1.0, float("inf")), SKIPPED))
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["step"] == 4 and last["steps_per_s"] == 0.75 and last["passes_per_s"] == 1.5, (
        "6 passes in 4 s since step 1"
    )
    assert 1e7 < last["peak_bytes"] < 1e12
    assert last["loss"] == 1.1, "what was skipped is not of the mean"


def test_the_peak_is_what_the_process_had_at_once() -> None:
    before = display.read_peak_memory()
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert display.read_peak_memory() >= max(before, len(block))
