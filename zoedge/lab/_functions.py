"""This module has the six functions of two variables of ZO-AdaMU's Figure 2, and draws paths over their contours.

The minimum of each is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._bench import create_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTOUR_LEVELS = np.linspace(0.02, 0.98, 14)  # each level is the height below which this share of the square lies


class PlaneFunction(NamedTuple):
    """A function of x and y, with its minimum, where it is 0, and the point from which runs start."""

    text: str
    f: Callable[[np.ndarray, np.ndarray], np.ndarray]
    minimum: tuple[float, float]
    start: tuple[float, float]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return self.f(points[..., 0], points[..., 1])


def beale(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Beale's function."""
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


FUNCTIONS = {
    "a": PlaneFunction("|x| + |y|", lambda x, y: abs(x) + abs(y), (0, 0), (-2, 1.5)),
    "b": PlaneFunction("|x + y| + |x - y| / 10", lambda x, y: abs(x + y) + abs(x - y) / 10, (0, 0), (-2, 0.5)),
    "c": PlaneFunction("(x + y)² + (x - y)² / 10", lambda x, y: (x + y) ** 2 + (x - y) ** 2 / 10, (0, 0), (-2, 0.5)),
    "d": PlaneFunction("|x| / 10 + |y|", lambda x, y: abs(x) / 10 + abs(y), (0, 0), (-2, 1.5)),
    "beale": PlaneFunction("Beale", beale, (3, 0.5), (1, 1)),
    "rosenbrock": PlaneFunction(
        "100 (x - y²)² + (1 - y)²", lambda x, y: 100 * (x - y**2) ** 2 + (1 - y) ** 2, (1, 1), (1, -1)
    ),
}


def draw_paths(paths: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draw paths over contours. A path is averaged over 2 % of its steps, because the steps themselves are a scribble."""
    figure, panels = create_axes(len(paths), "x", "y")
    for ax, (name, walks) in zip(panels, paths.items()):
        function = FUNCTIONS[name]
        draw_contours(ax, function)
        for i, (method, path) in enumerate(walks.items()):
            ax.plot(*smooth_path(path).T, color=f"C{i}", linewidth=1.2, alpha=0.8, label=method)
        ax.plot(*function.minimum, "k*", markersize=9, zorder=3)
        ax.plot(*function.start, "ko", markersize=4)
        ax.set_title(function.text)
    figure.set_layout_engine("constrained")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(walks), frameon=False)
    return figure


def smooth_path(path: np.ndarray) -> np.ndarray:
    """Return moving averages over 2 % of a path's steps, after its first point."""
    window = max(1, len(path) // 50)
    means = np.lib.stride_tricks.sliding_window_view(path, window, axis=0).mean(-1)
    return np.concatenate([path[:1], means[:: max(1, window // 4)]])


def draw_contours(ax: Axes, function: PlaneFunction) -> None:
    """Draw the contours of a function over a square around its start and its minimum."""
    ends = np.array([function.start, function.minimum], float)
    middle, reach = ends.mean(0), 0.75 * np.abs(ends[0] - ends[1]).max()  # a quarter of their distance lies around them
    (left, bottom), (right, top) = middle - reach, middle + reach
    xs, ys = np.meshgrid(np.linspace(left, right, 120), np.linspace(bottom, top, 120))
    heights = function(np.stack([xs, ys], -1))
    ax.contour(xs, ys, heights, np.unique(np.quantile(heights, CONTOUR_LEVELS)), colors="0.8", linewidths=0.6)
    ax.set(xlim=(left, right), ylim=(bottom, top))
