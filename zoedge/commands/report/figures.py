"""This module draws a report's figures with matplotlib, as SVG whose colours are replaced by the page's, light or dark.

A figure is 400 units wide, with text of 11 units: on a phone, where it fills the screen, that is still text of 10 pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from .facts import RunFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR_COUNT = 8  # so many runs have a colour; those after them are grey
MAX_BINS = 120  # points of a curve at most: 6,000 points would be 400 kB
STEPS_PER_BIN = 10  # steps of a point at least: the loss of one step is noise
LINE_STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))  # for people who do not see the colours
# two colours that the page's own replace; no figure has them for another reason
INK_COLOUR = "#010101"
LINE_COLOUR = "#020202"
Curve = tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # (which run, x, mean, low, high)
Points = list[tuple[int, float]]  # (step, value)


def pick_colour(i: int) -> str:
    """Return the stand-in for the colour of the run of this index."""
    return f"#0300{min(i, COLOUR_COUNT):02x}"


PLOT_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zoedge",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE_COLOUR,
    "axes.labelcolor": INK_COLOUR,
    "axes.linewidth": 1.0,
    "xtick.color": LINE_COLOUR,
    "ytick.color": LINE_COLOUR,
    "xtick.labelcolor": INK_COLOUR,
    "ytick.labelcolor": INK_COLOUR,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE_COLOUR,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": INK_COLOUR,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "axes.xmargin": 0.02,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
}


@dataclass
class ReportFigure:
    """A figure of the page: SVG, with a title and a caption, which are HTML text."""

    name: str  # the figure's id in the page
    title: str
    note: str  # the caption
    svg: Markup


def draw_figures(runs: Sequence[RunFacts]) -> list[ReportFigure]:
    """Return the figures for which these runs have data."""
    import matplotlib

    matplotlib.use("svg")
    with matplotlib.rc_context(PLOT_SETTINGS):
        return [
            figure
            for draw in (draw_losses, draw_scores, draw_gammas, draw_update_sizes, draw_curvature)
            if (figure := draw(runs)) is not None
        ]


def create_axes(x: str = "step", y: str = "") -> tuple[Figure, Axes]:
    """Return an empty figure and its axes, with these labels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(400 / 72, 232 / 72), layout="constrained")
    ax = figure.subplots()
    ax.set_xlabel(x, loc="right")
    ax.set_title(y, loc="left", fontsize=11, color=INK_COLOUR)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=x == "step"))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    if x == "step":
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        ax.xaxis.labelpad = 1
    return figure, ax


def show_all_steps(ax: Axes, runs: Sequence[RunFacts]) -> None:
    """Let the axis reach from the first step to the last step of the longest run, whatever the curves cover."""
    last = max(x.steps for x in runs) or 1
    ax.set_xlim(-0.015 * last, 1.03 * last)


def render_figure(name: str, title: str, note: str, figure: Figure) -> ReportFigure:
    """Return a figure as SVG that can stand inside a page: with ids of its own, the page's colours, and the column's width."""
    raw = io.StringIO()
    figure.savefig(raw, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = raw.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(
        r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{title}" '
        r'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">',
        svg,
    )
    svg = re.sub(r"font: [^;\"]*?([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace(INK_COLOUR, "currentColor").replace(LINE_COLOUR, "var(--line)")
    svg = re.sub(r"#0300([0-9a-f]{2})", lambda m: f"var(--hue-{int(m[1], 16)})", svg)
    return ReportFigure(name, title, note, Markup(re.sub(r"\n\s*", "\n", svg)))


def bin_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut a series into at most MAX_BINS stretches. Return (middle step, mean, 10th, 90th percentile), an array each.

    Values that are not finite are left out, and so are stretches that have no others.
    """
    edges = np.linspace(0, len(values), max(1, min(MAX_BINS, len(values) // STEPS_PER_BIN)) + 1).astype(int)
    rows = []
    for a, b in pairwise(edges):
        if len(finite := values[a:b][np.isfinite(values[a:b])]):
            rows.append(((a + b + 1) / 2, finite.mean(), *np.percentile(finite, [10, 90])))
    table = np.array(rows).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def limit_y_axis(ax: Axes, arrays: Sequence[np.ndarray]) -> None:
    """Fit the axis to nearly all values: the first steps of a run, or a spike, must not flatten the rest."""
    values = np.concatenate([a[np.isfinite(a)] for a in arrays])
    if len(values) > 20:
        low, high = np.percentile(values, [0.5, 99.5])
        if high > low:
            ax.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def pick_line_style(i: int) -> dict[str, Any]:
    """Return matplotlib's arguments for the line of the run of this index."""
    return {"color": pick_colour(i), "linestyle": LINE_STYLES[i // 2 % len(LINE_STYLES)]}


def draw_rings(ax: Axes, points: Points, color: str) -> None:
    """Draw points that belong to other rows than the curve does."""
    ax.plot(*zip(*points), color=color, linestyle="", marker="o", markersize=5.5, markerfacecolor="none", clip_on=False)


def describe_marks(has_valid: bool, has_ends: bool) -> str:
    """Return what a caption says of dots and rings, where the figure has them."""
    rings = " Rings: the test rows, before and after." if has_valid else " Rings: held-out rows."
    return (" Dots: validation rows." if has_valid else "") + (rings if has_ends else "")


def draw_losses(runs: Sequence[RunFacts]) -> ReportFigure | None:
    """Draw the losses of the training batches, of validation rows, and of held-out rows."""
    curves = [(i, *bin_values(x.loss)) for i, x in enumerate(runs) if np.isfinite(x.loss).any()]
    valid = [(i, [(s, v.loss) for s, v in x.valid]) for i, x in enumerate(runs) if x.valid]
    ends = [(i, [(s, v.loss) for s, v in x.ends]) for i, x in enumerate(runs) if x.ends]
    if not curves and not valid and not ends:
        return None
    figure, ax = create_axes()
    draw_curves(ax, curves, band=len(runs) == 1)
    for i, points in valid:
        ax.plot(
            *zip(*points),
            color=INK_COLOUR if len(runs) == 1 else pick_colour(i),
            marker="o",
            markersize=4.5,
            linewidth=0.9 if len(runs) == 1 else 0,
            markeredgewidth=0,
        )
    for i, points in ends:
        draw_rings(ax, points, INK_COLOUR if len(runs) == 1 else pick_colour(i))
    show_all_steps(ax, runs)
    limit_y_axis(
        ax,
        [a for _, _, mean, low, high in curves for a in ((low, high) if len(runs) == 1 else (mean,))]
        + [np.array([v for _, v in points]) for _, points in (*valid, *ends)],
    )
    note = "Training batches: the mean of each stretch of steps"
    note += ", and where eight of ten steps are." if len(runs) == 1 else "."
    note += describe_marks(bool(valid), bool(ends))
    return render_figure("loss", "Loss", note, figure)


def draw_scores(runs: Sequence[RunFacts]) -> ReportFigure | None:
    """Draw the shares of right answers along the way: all kinds of one run, the first known kind of several runs."""
    names = {"calibrated": "calibrated", "accuracy": "raw", "f1": "F1", "exact_match": "exact match"}
    known = [n for n in names if any(vars(s)[n] is not None for x in runs for _, s in (*x.valid, *x.ends))]
    if not known:
        return None
    figure, ax = create_axes(y="%")
    labels: list[tuple[tuple[int, float], str, str]] = []  # (where, text, colour)
    for name in known if len(runs) == 1 else known[:1]:
        for i, x in enumerate(runs):
            colour = known.index(name) if len(runs) == 1 else i
            points, ends = (
                [(step, 100 * v) for step, s in scores if (v := vars(s)[name]) is not None]
                for scores in (x.valid, x.ends)
            )
            if points:
                ax.plot(*zip(*points), **pick_line_style(colour), marker="o", markersize=4.5, markeredgewidth=0)
            if ends:
                draw_rings(ax, ends, pick_colour(colour))
            if (points or ends) and len(runs) == 1:
                labels.append(((points or ends)[-1], names[name], pick_colour(colour)))
    for i, (place, word, color) in enumerate(sorted(labels, key=lambda label: -label[0][1])):
        ax.annotate(word, place, (-2, 8 - 23 * i), ha="right", textcoords="offset points", color=color)
    scored = [s for x in runs for _, s in (*x.valid, *x.ends)]
    majority = {s.count: 100 * s.majority for s in scored if s.majority is not None}
    if majority:
        ax.axhline(majority[max(majority)], color=INK_COLOUR, linewidth=0.9, linestyle=(0, (1.5, 2.5)))
    show_all_steps(ax, runs)
    ax.margins(y=0.12)
    first = "" if len(runs) == 1 else f"{names[known[0]].capitalize()}."
    note = first + describe_marks(any(x.valid for x in runs), any(x.ends for x in runs))
    note += " Dotted: always the commonest label." if majority else ""
    title = "Accuracy" if known[0] in ("calibrated", "accuracy") else "Score"
    return render_figure("scores", title, note.strip(), figure)


def draw_gammas(runs: Sequence[RunFacts]) -> ReportFigure | None:
    """Draw the distribution of the weights g, as shares of all steps."""
    gammas = [(i, g) for i, x in enumerate(runs) if len(g := x.gamma[np.isfinite(x.gamma)])]
    if not gammas or not (reach := max(np.percentile(np.abs(g), 99.5) for _, g in gammas)):
        return None
    figure, ax = create_axes(x="γ")
    edges = np.linspace(-reach, reach, 62)
    for i, g in gammas:
        share = np.histogram(g, edges)[0] / len(g) * 100
        if len(runs) == 1:
            ax.stairs(share, edges, fill=True, color=pick_colour(i), alpha=0.35)
        ax.stairs(share, edges, color=pick_colour(i), linewidth=1.4)
    ax.set_title("% of steps", loc="left", fontsize=11)
    ax.set_ylim(bottom=0)
    note = "The slope of the loss along each step's direction, as it was logged."
    if len(runs) == 1:
        g = np.abs(gammas[0][1])
        note += f" Median of |γ|: {np.median(g):.3g}; it was {format_zeros(g)}."
    return render_figure("gamma", "Distribution of γ", note, figure)


def format_zeros(g: np.ndarray) -> str:
    """Return how many of the values are 0, in a few words."""
    return f"0 in {(g == 0).sum():,} of {len(g):,}" if (g == 0).any() else "never 0"


def draw_curves(ax: Axes, curves: Sequence[Curve], band: bool) -> None:
    """Draw curves as lines. band: shade the region between each curve's low and high values."""
    for i, x, mean, low, high in curves:
        if band:
            ax.fill_between(x, low, high, color=pick_colour(i), alpha=0.18, linewidth=0)
        ax.plot(x, mean, **pick_line_style(i))


def draw_update_sizes(runs: Sequence[RunFacts]) -> ReportFigure | None:
    """Draw the length of the steps."""
    curves = [(i, *bin_values(x.size)) for i, x in enumerate(runs) if (x.size > 0).any()]
    if not curves:
        return None
    figure, ax = create_axes()
    draw_curves(ax, curves, band=len(runs) == 1)
    show_all_steps(ax, runs)
    ax.set_ylim(bottom=0)
    limit_y_top(ax, [c[4] if len(runs) == 1 else c[2] for c in curves])
    note = "‖Δθ‖ a step = lr · |γ| · √(trained parameters)"
    note += "." if all(x.exact for x in runs) else ", before what the rule makes of it, or the noise leaves out."
    return render_figure("size", "Size of an update", note, figure)


def limit_y_top(ax: Axes, arrays: Sequence[np.ndarray]) -> None:
    """Fit the top of the axis to nearly all values; it begins at 0."""
    top = max(float(np.percentile(a, 99)) for a in arrays)
    if top > 0:
        ax.set_ylim(0, 1.08 * top)


def draw_curvature(runs: Sequence[RunFacts]) -> ReportFigure | None:
    """Draw the trace of the Hessian with its standard error, where the runs have measured it."""
    if not any(x.curvature for x in runs):
        return None
    figure, ax = create_axes()
    for i, x in enumerate(runs):
        if x.curvature:
            steps, trace, error = zip(*x.curvature)
            ax.errorbar(steps, trace, error, **pick_line_style(i), marker="o", markersize=4.5, capsize=3, elinewidth=1)
    show_all_steps(ax, runs)
    return render_figure("curvature", "Curvature", "tr H, with its standard error over the directions.", figure)
