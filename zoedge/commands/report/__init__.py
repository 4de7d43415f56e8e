"""`zoedge report` writes one run, or several beside one another, as one HTML file that loads nothing: no script, no font.

Numbers come from the log and the notes beside it (facts.py), figures from matplotlib as SVG in the page's colours
(figures.py), and the page from a jinja2 template. The template escapes all text, because a log may come from anyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ...errors import UsageError
from .facts import RunFacts, read_facts, recipe_differences

REPORT_FILE = "report.html"


def require_matplotlib(what: str) -> None:
    """Raise UsageError where matplotlib is not installed. what: what needs it, for the message."""
    if find_spec("matplotlib") is None:
        raise UsageError(f"{what} draws with matplotlib, which is not installed: pip install 'zoedge[report]'")


def render_page(runs: Sequence[RunFacts], title: str = "") -> str:
    """Return the HTML of one run's report, or of a comparison of several, which may have a title."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from . import figures, words

    env = Environment(
        loader=PackageLoader("zoedge.commands.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= words.TEMPLATE_FILTERS
    one = runs[0] if len(runs) == 1 else None
    return env.get_template("page.html.jinja").render(
        title=one.name if one else title or f"{len(runs)} runs",
        one=one,
        runs=runs,
        figures=figures.draw_figures(runs),
        differences=recipe_differences(runs),
        measures=words.list_measures(runs),
        words=words,
    )


def write_report(folders: Sequence[Path], out: Path, title: str = "") -> Path:
    """Write the report of some runs to `out`, and return that path.

    folders: the runs' folders, or their logs. UsageError: matplotlib is missing, or there is no such log. StorageError: the
    disk.
    """
    from ...core.storage import write_durably

    require_matplotlib("A report")
    write_durably(out, render_page([read_facts(path) for path in folders], title).encode())
    return out
