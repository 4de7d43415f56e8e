"""README is short, its pictures are there and shown, its tree is the tree, and what makes the pictures works."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "assets"))

import draw
import record

README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = {"demo.svg", "report.png"}
MOST_LINES = 150
MOST_BYTES = 300_000
RULE = "A recipe's word is a file in `methods/` or `scoring/`; a command's word is a file in `commands/`."


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_both_pictures_are_shown_and_complete() -> None:
    assert set(re.findall(r"!\[[^\]]+\]\(assets/([^)]+)\)", README)) == PICTURES
    assert all(0 < (ROOT / "assets" / name).stat().st_size < MOST_BYTES for name in PICTURES)
    demo = (ROOT / "assets" / "demo.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(demo).tag == "{http://www.w3.org/2000/svg}svg"
    assert set(re.findall(r"https?://[^\"')]+", demo)) == {"http://www.w3.org/2000/svg"}, "a viewer fetches nothing"
    report = (ROOT / "assets" / "report.png").read_bytes()
    assert report[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(report[16:20]) >= 800
    assert report.endswith(b"IEND\xaeB`\x82")


def test_the_rule_of_the_tree_is_said_in_both_pages() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        assert RULE in " ".join((ROOT / page).read_text(encoding="utf-8").split()), page


def test_the_tree_is_the_tree() -> None:
    (tree,) = re.findall(r"^```\nzoedge/\n(.*?)^```$", README, re.S | re.M)
    listed = set(re.findall(r"^  (\S+)  ", tree, re.M))
    private = {"__init__.py", "__main__.py", "py.typed", "__pycache__/"}
    entries = {path.name + "/" * path.is_dir() for path in (ROOT / "zoedge").iterdir()} - private
    assert listed == entries
    assert all((ROOT / name).is_dir() for name in tree.splitlines()[-1].split())


def test_a_live_display_leaves_its_last_screen() -> None:
    """rich erases the lines of its panel and writes them anew; what was printed before stays."""
    screen = draw.Screen()
    screen.write("loading\r\n")
    screen.write("one\r\n\x1b[1mpanel\x1b[0m\x1b[?25l")
    screen.write("\r\x1b[2K\x1b[1A\x1b[2Ktwo\r\npanel 2\r\n")
    screen.write("10 %\r20 %\n")
    assert screen.lines == ["loading", "two", "panel 2", "20 %", ""]


def test_a_session_becomes_an_svg_whose_last_screen_stays() -> None:
    pieces = [[0.1 * i, f"\r\x1b[2Kstep {i} <&>"] for i in range(100)]
    session = [
        {"words": ["finetune", "film.yaml"], "seconds": 10.0, "pieces": [*pieces, [9.9, "\r\n"]]},
        {"words": ["generate", "runs/film", "-p", "It was"], "seconds": 1.0, "pieces": [[1.0, "great\r\n"]]},
    ]
    frames = draw.collect_frames(session)
    assert 10 < len(frames) <= draw.LIVE_SCREENS + 4 and "step 99" in "".join(frames[-1].lines)
    svg = ElementTree.fromstring(draw.draw(frames))
    groups = [group for group in svg.iter("{http://www.w3.org/2000/svg}g") if group.get("class") == "frame"]
    assert [group.get("visibility") for group in groups] == ["hidden"] * (len(frames) - 1) + ["visible"]
    last = "".join(groups[-1].itertext()).replace("\xa0", " ")
    assert 'zoedge generate runs/film -p "It was"' in last and "great" in last and "step 98" not in last


def test_a_command_is_recorded_as_a_terminal_gets_it(tmp_path: Path) -> None:
    recorded = record.record_command(["recipes", "--help"], tmp_path)
    text = "".join(piece for _, piece in recorded["pieces"])
    assert "Usage: zoedge recipes" in text and "\r\n" in text, "a terminal's line ends"
    assert max(map(len, text.splitlines())) <= record.COLUMNS
