"""Photograph the head of a report: its figures of merit and its first two curves, as Chromium shows them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import browser

WIDTH = 900  # pixels; README shows it at about 800
BOTTOM = """document.documentElement.style.overflow = 'hidden';
Math.ceil(document.querySelectorAll('figure')[1].parentElement.querySelector('figcaption').getBoundingClientRect().bottom)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="report.html of zoedge report")
    parser.add_argument("png", type=Path, help="the file to write")
    args = parser.parse_args()
    program = browser.found()
    if program is None:
        sys.exit("No Chromium was found. Install one (Debian: apt-get install chromium), or set ZOEDGE_CHROMIUM.")
    with tempfile.TemporaryDirectory() as folder, browser.Browser(program, Path(folder)) as page:
        bottom = page.see(args.report, WIDTH, 1000, BOTTOM).value
        args.png.write_bytes(page.see(args.report, WIDTH, bottom + 16, BOTTOM).picture)


if __name__ == "__main__":
    main()
