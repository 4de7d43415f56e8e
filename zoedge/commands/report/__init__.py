"""A run, or several beside one another, as one HTML file that needs nothing else: no script, no request, no font.

Numbers come from the log and from what is noted beside it (facts.py), figures from matplotlib as SVG whose colours are
the page's (figures.py), and the page from a jinja2 template that escapes whatever it is given: a log may be anyone's.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ...errors import UsageError
from .facts import RunFacts, read_facts, recipe_differences

REPORT_FILE = "report.html"


def require_matplotlib(what: str) -> None:
    """UsageError where matplotlib is not installed. what: that which asks for it."""
    if find_spec("matplotlib") is None:
        raise UsageError(f"{what} draws with matplotlib, which is not installed: pip install 'zoedge[report]'")


def render_page(runs: Sequence[RunFacts], title: str = "") -> str:
    """The HTML of one run's report, or of a comparison. title: of a comparison."""
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
    """The report of the runs whose logs lie at `folders` (or are these files), at `out`. StorageError: the disk."""
    from ...core.storage import write_durably

    require_matplotlib("A report")
    write_durably(out, render_page([read_facts(path) for path in folders], title).encode())
    return out
