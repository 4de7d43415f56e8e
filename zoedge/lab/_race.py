"""A race: methods with the same forward passes, each with a step size of its own, and what a loss costs each of them.

As in AS2P's Tables 5 and 6 (arXiv 2402.01621), but over several seeds and against GA with a constant step size: in the
paper GA constant is cheaper than GA cosine, its baseline. The loss at a step is the mean of its two-sided losses, which
are of one batch and at the probes; `smooth` makes a curve of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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

BUDGET_SHARES = 1.0, 0.75, 0.5, 0.25  # of the baseline's budget
BASELINE = "GA constant"

Parts = tuple[AbstractNoise, AbstractEstimator, AbstractRule]
Trial = Callable[[Parts, int, int], Iterator[Record]]  # (parts, steps, seed): a run from the start


class Method(NamedTuple):
    """make: a run's parts by step size; grid: the sizes to choose from."""

    make: Callable[[float], Parts]
    grid: Sequence[float]


class LossCurve(NamedTuple):
    """Smoothed losses, and the forward passes after which each was known."""

    passes: np.ndarray
    losses: np.ndarray

    def cost(self, loss: float) -> float:
        """Forward passes to the first loss that is as low; inf: never."""
        found = self.losses <= loss
        return float(self.passes[np.argmax(found)]) if found.any() else np.inf

    def after(self, share: float) -> float:
        """The lowest loss in a share of the run."""
        return float(self.losses[self.passes <= share * self.passes[-1]].min(initial=np.inf))


@dataclass(frozen=True)
class RaceResult:
    size: float
    edge: bool  # the size is the grid's first or last: a wider grid might find a better one
    curves: list[LossCurve]  # a seed

    def final(self) -> list[float]:
        return [float(curve.losses[-1]) for curve in self.curves]


def make_methods(
    eps: float, eta_b: float, ga: Sequence[float], stp: Sequence[float], rho: Sequence[float]
) -> dict[str, Method]:
    """The paper's six. ga, stp, rho: grids of lr, of alpha_0, and of AS2P's rho_0, which sizes its steps."""

    def descent(noise: AbstractNoise, schedule: Any) -> Method:
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
    """(seeds that choose a step size, seeds that count): others for every seed of an experiment."""
    first = seed * (tune + seeds)
    return range(first, first + tune), range(first + tune, first + tune + seeds)


def run_race(
    methods: dict[str, Method], trial: Trial, passes: int, window: float, tune: Sequence[int], seeds: Sequence[int]
) -> dict[str, RaceResult]:
    """Every method on every seed, with the size of the lowest final loss over the seeds of `tune` (median)."""
    found = {}
    for name, (make, grid) in methods.items():

        def curve(size: float, seed: int) -> LossCurve:
            return measure_curve(make(size), trial, passes, window, seed)

        ends = [float(np.median([curve(size, seed).losses[-1] for seed in tune])) for size in grid]
        best = int(np.argmin(ends))
        found[name] = RaceResult(grid[best], best in (0, len(grid) - 1), [curve(grid[best], seed) for seed in seeds])
    return found


def measure_curve(parts: Parts, trial: Trial, passes: int, window: float, seed: int) -> LossCurve:
    """A run of `passes` forward passes; window: the share of it that a smoothed loss is the mean of."""
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
    """Means of the last `window` losses, from where there are so many; a loss that is not finite counts as inf."""
    plain = np.where(np.isfinite(losses), losses, np.inf)
    means = np.lib.stride_tricks.sliding_window_view(plain, window).mean(1)
    return LossCurve(each * np.arange(window, len(losses) + 1), means)


def compute_cost_ratios(curves: dict[str, LossCurve], baseline: str) -> dict[str, list[float]]:
    """A method's passes to the loss that the baseline reaches in each of SHARES, over the baseline's. inf: never."""
    base = curves[baseline]
    losses = [base.after(share) for share in BUDGET_SHARES]
    return {name: [curve.cost(loss) / base.cost(loss) for loss in losses] for name, curve in curves.items()}


def compute_median_costs(racers: dict[str, RaceResult], baseline: str = BASELINE) -> dict[str, list[float]]:
    """The median over the seeds of `ratios`, each seed against the baseline's run on the same seed and batches."""
    count = len(racers[baseline].curves)
    each = [
        compute_cost_ratios({name: racer.curves[i] for name, racer in racers.items()}, baseline) for i in range(count)
    ]
    return {name: [float(m) for m in np.median([found[name] for found in each], axis=0)] for name in racers}


def encode_infinite(values: Sequence[float]) -> list[float | None]:
    """As JSON has it: null for never."""
    return [float(value) if np.isfinite(value) else None for value in values]


def collect_numbers(
    racers: dict[str, RaceResult], baselines: Sequence[str] = (BASELINE, "GA cosine")
) -> dict[str, Any]:
    found: dict[str, Any] = {"shares": list(BUDGET_SHARES)}
    tables = {baseline: compute_median_costs(racers, baseline) for baseline in baselines}
    for name, racer in racers.items():
        cost = {f"cost against {baseline}": encode_infinite(table[name]) for baseline, table in tables.items()}
        found[name] = {
            "size": racer.size,
            "edge of grid": racer.edge,
            "final loss": encode_infinite(racer.final()),
            **cost,
        }
    return found


def format_ratios(values: Sequence[float]) -> str:
    return "/".join(f"{value:.2f}" if np.isfinite(value) else "never" for value in values)


def draw_race(racers: dict[str, RaceResult], title: str) -> Any:
    """The median over the seeds, and a band from the lowest to the highest."""
    figure, (ax,) = create_axes(1, "forward passes", "training loss, smoothed")
    for i, (name, racer) in enumerate(racers.items()):
        losses = np.array([curve.losses for curve in racer.curves])
        passes = racer.curves[0].passes
        some = np.unique(np.linspace(0, len(passes) - 1, 200).astype(int))
        ax.plot(passes[some], np.median(losses, 0)[some], color=f"C{i}", label=f"{name} ({racer.size:.0e})")
        ax.fill_between(passes[some], losses.min(0)[some], losses.max(0)[some], color=f"C{i}", alpha=0.15, linewidth=0)
    start = max(curve.losses[0] for curve in racers[BASELINE].curves)
    ax.set(title=title, ylim=(0, 1.1 * start))
    ax.legend(frameon=False)
    return figure
