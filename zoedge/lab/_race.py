"""This module lets methods race: all have the same number of forward passes, and each has a step size chosen for it.

It asks how many passes a method needs to reach a loss, as in AS2P's Tables 5 and 6 (arXiv 2402.01621), but over several
seeds, and against GA with a constant step size: in the paper GA constant is cheaper than GA cosine, the paper's baseline.
The loss of a step is the mean of its two-sided losses, which are of one batch and at the probes; `smooth_losses` makes a
curve of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ..core.types import AbstractEstimator, AbstractNoise, AbstractRule, Record
from ..errors import DivergedError
from ..methods.estimators.as2p import As2p
from ..methods.estimators.stp import Stp
from ..methods.estimators.two_sided import TwoSided
from ..methods.noise.normal import Normal
from ..methods.noise.rademacher import Rademacher
from ..methods.rules.sgd import Sgd
from ._bench import create_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Schedule = Literal["constant", "linear", "cosine"]
BUDGET_SHARES = 1.0, 0.75, 0.5, 0.25  # of the baseline's budget
BASELINE = "GA constant"

Parts = tuple[AbstractNoise, AbstractEstimator, AbstractRule]
Trial = Callable[[Parts, int, int], Iterator[Record]]  # (parts, steps, seed): a run from the start


class Method(NamedTuple):
    """A method of a race.

    Attributes:
        make: returns a run's parts for a step size.
        grid: the step sizes to choose from.
    """

    make: Callable[[float], Parts]
    grid: Sequence[float]


class LossCurve(NamedTuple):
    """Smoothed losses of a run, and the forward passes after which each was known."""

    passes: np.ndarray
    losses: np.ndarray

    def cost(self, loss: float) -> float:
        """Return the forward passes until the loss is first as low as this; infinity: it never is."""
        reached = self.losses <= loss
        return float(self.passes[np.argmax(reached)]) if reached.any() else np.inf

    def after(self, share: float) -> float:
        """Return the lowest loss in the first `share` of the run."""
        return float(self.losses[self.passes <= share * self.passes[-1]].min(initial=np.inf))


@dataclass(frozen=True)
class RaceResult:
    """The runs of one method, with the step size that was chosen for it."""

    size: float
    edge: bool  # the size is the grid's first or last: a wider grid might find a better one
    curves: list[LossCurve]  # one for each seed

    def final(self) -> list[float]:
        """Return the last smoothed loss of each run."""
        return [float(curve.losses[-1]) for curve in self.curves]


def make_methods(
    eps: float, eta_b: float, ga: Sequence[float], stp: Sequence[float], rho: Sequence[float]
) -> dict[str, Method]:
    """Return the paper's six methods.

    ga, stp, rho: the grids of lr, of alpha_0, and of AS2P's rho_0, which sizes its steps.
    """

    def descent(noise: AbstractNoise, schedule: Schedule) -> Method:
        return Method(lambda lr: (noise, TwoSided(eps=eps), Sgd(lr=lr, schedule=schedule)), ga)

    def adaptive(noise: AbstractNoise) -> Method:
        return Method(lambda rho: (noise, As2p(rho=rho, rho_end=rho / 10, eta_b=eta_b), Sgd(lr=1.0)), rho)

    return {
        BASELINE: descent(Normal(), "constant"),
        "GA cosine": descent(Normal(), "cosine"),
        "GA_sign": descent(Rademacher(), "constant"),
        "STP": Method(lambda lr: (Normal(), Stp(), Sgd(lr=lr, schedule="cosine")), stp),
        "AS2P": adaptive(Normal()),
        "AS2P_sign": adaptive(Rademacher()),
    }


def split_seeds(seed: int, tune: int, seeds: int) -> tuple[range, range]:
    """Return (the seeds that choose a step size, the seeds that count). Every seed of an experiment has seeds of its own."""
    first = seed * (tune + seeds)
    return range(first, first + tune), range(first + tune, first + tune + seeds)


def run_race(
    methods: dict[str, Method], trial: Trial, passes: int, window: float, tune: Sequence[int], seeds: Sequence[int]
) -> dict[str, RaceResult]:
    """Run every method on every seed, with the step size that has the lowest median final loss over the seeds of `tune`."""
    results = {}
    for name, (make, grid) in methods.items():

        def curve(size: float, seed: int) -> LossCurve:
            return measure_curve(make(size), trial, passes, window, seed)

        ends = [float(np.median([curve(size, seed).losses[-1] for seed in tune])) for size in grid]
        best = int(np.argmin(ends))
        results[name] = RaceResult(grid[best], best in (0, len(grid) - 1), [curve(grid[best], seed) for seed in seeds])
    return results


def measure_curve(parts: Parts, trial: Trial, passes: int, window: float, seed: int) -> LossCurve:
    """Return the curve of a run of `passes` forward passes. window: the share of the run that a smoothed loss averages."""
    each = len(next(trial(parts, 1, seed)).losses)
    steps = passes // each
    losses = np.full(steps, np.inf)
    try:
        for record in trial(parts, steps, seed):
            losses[record.step] = np.mean(record.losses[:2])
    except DivergedError:
        pass
    return smooth_losses(losses, max(1, round(window * steps)), each)


def smooth_losses(losses: np.ndarray, window: int, each: int) -> LossCurve:
    """Return the means of the last `window` losses, from the first step that has so many. A loss that is not finite is inf."""
    plain = np.where(np.isfinite(losses), losses, np.inf)
    means = np.lib.stride_tricks.sliding_window_view(plain, window).mean(1)
    return LossCurve(each * np.arange(window, len(losses) + 1), means)


def compute_cost_ratios(curves: dict[str, LossCurve], baseline: str) -> dict[str, list[float]]:
    """Return each method's passes to the losses that the baseline has after BUDGET_SHARES of its run, over the baseline's.

    A ratio is infinity where a method never reaches the loss.
    """
    base = curves[baseline]
    losses = [base.after(share) for share in BUDGET_SHARES]
    return {name: [curve.cost(loss) / base.cost(loss) for loss in losses] for name, curve in curves.items()}


def compute_median_costs(racers: dict[str, RaceResult], baseline: str = BASELINE) -> dict[str, list[float]]:
    """Return the median over the seeds of `compute_cost_ratios`. Each seed is compared with the baseline's run on that seed."""
    count = len(racers[baseline].curves)
    each = [
        compute_cost_ratios({name: racer.curves[i] for name, racer in racers.items()}, baseline) for i in range(count)
    ]
    return {name: [float(m) for m in np.median([ratios[name] for ratios in each], axis=0)] for name in racers}


def encode_infinite(values: Sequence[float]) -> list[float | None]:
    """Return values as JSON has them: null stands for infinity, which is a loss that is never reached."""
    return [float(value) if np.isfinite(value) else None for value in values]


def collect_numbers(
    racers: dict[str, RaceResult], baselines: Sequence[str] = (BASELINE, "GA cosine")
) -> dict[str, Any]:
    """Return the results of a race as JSON: step sizes, final losses, and costs against each baseline."""
    numbers: dict[str, Any] = {"shares": list(BUDGET_SHARES)}
    tables = {baseline: compute_median_costs(racers, baseline) for baseline in baselines}
    for name, racer in racers.items():
        cost = {f"cost against {baseline}": encode_infinite(table[name]) for baseline, table in tables.items()}
        numbers[name] = {
            "size": racer.size,
            "edge of grid": racer.edge,
            "final loss": encode_infinite(racer.final()),
            **cost,
        }
    return numbers


def format_ratios(values: Sequence[float]) -> str:
    """Return ratios as 0.50/0.62/never."""
    return "/".join(f"{value:.2f}" if np.isfinite(value) else "never" for value in values)


def draw_race(racers: dict[str, RaceResult], title: str) -> Figure:
    """Draw the median loss over the seeds, with a band from the lowest to the highest."""
    figure, (ax,) = create_axes(1, "forward passes", "training loss, smoothed")
    for i, (name, racer) in enumerate(racers.items()):
        losses = np.array([curve.losses for curve in racer.curves])
        passes = racer.curves[0].passes
        shown = np.unique(np.linspace(0, len(passes) - 1, 200).astype(int))
        low, high = losses.min(0)[shown], losses.max(0)[shown]
        ax.plot(passes[shown], np.median(losses, 0)[shown], color=f"C{i}", label=f"{name} ({racer.size:.0e})")
        ax.fill_between(passes[shown], low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    start = max(curve.losses[0] for curve in racers[BASELINE].curves)
    ax.set(title=title, ylim=(0, 1.1 * start))
    ax.legend(frameon=False)
    return figure
