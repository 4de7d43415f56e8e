"""Six functions of two variables: which rules and chosen steps reach the minimum, and how soon? (arXiv 2312.15184, Fig. 2)

Every rule of zoedge, with the estimator it goes with, and STP, S2P (option 1) and AS2P under `sgd`: for each the same
forward passes, starts, normal noise and a cosine step size, because a constant one does not come to rest on |x| + |y|.
Each takes on each function the step size of GRID with the lowest worst final loss over the tuning seeds, which are not
counted. AS2P takes rho_0 from 10 times GRID, because its step is a fraction of it; eta_b is 5, as for vision; it decays
as for batches, because without decay it circles at its radius.

The paper gives neither starts, step sizes nor steps, and draws six pictures: all these are ours. Its language models have
a constant step size. ZO-AdaMU warms up for 5 % of the steps (1,024 of 100,000 in the paper). HiZOO's Hessian moves at
1e-3 (1e-8 in the paper), or it would stay at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from ..core.parts import list_words, load_part
from ..core.types import AbstractEstimator, AbstractNoise, AbstractRule, Key, Leaf, Natural, Positive
from ..errors import DivergedError
from ..methods.estimators.as2p import As2p
from ..methods.estimators.s2p import S2p
from ..methods.estimators.stp import Stp
from ..methods.noise.normal import Normal
from ..methods.rules.sgd import Sgd
from ._bench import ArraySpace, Claim, FunctionTask, Outcome, descend
from ._functions import FUNCTIONS, PlaneFunction, draw_paths
from ._race import Schedule

STEP_SIZES = tuple(10.0 ** (k / 2) for k in range(-8, 0))  # 1e-4 to 0.32, two in each decade
ORIGIN: Any = np.zeros(2)
PLANE_LEAF = Leaf("theta", 0, ORIGIN, (), 2)
RULE_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {  # rule -> its options in a run of so many steps
    "adamu": lambda steps: {"warm": steps // 20},
    "hizoo": lambda steps: {"a": 1e-3},
}
RULE_NAMES = {"sgd": "MeZO", "adamu": "ZO-AdaMU"}


@dataclass(frozen=True)
class CachedNoise(AbstractNoise):
    """A noise that makes every draw of `of` once for all runs of a seed, because drawing is most of a step's work."""

    of: AbstractNoise

    def draw(self, key: Key, leaf: Leaf) -> Any:
        """Return the draw of `of`, made once."""
        return draw_once(self.of, key)

    def gain(self, elements: int, square: Callable[[], float]) -> float:
        """Return the factor of `of`."""
        return self.of.gain(elements, square)


@lru_cache(maxsize=1 << 17)
def draw_once(noise: AbstractNoise, key: Key) -> Any:
    """Return a draw, and keep it. The array must not be written."""
    z: Any = noise.draw(key, PLANE_LEAF)
    if z is not None:
        z.flags.writeable = False
    return z


# makes a run's parts from a step size and a number of steps
MakeParts = Callable[[float, int], tuple[AbstractNoise, AbstractEstimator, AbstractRule]]


def make_methods(eps: float, schedule: Schedule) -> dict[str, MakeParts]:
    """Return every method by its name: zoedge's rules, then the estimators that choose their steps."""

    def with_sgd(estimator: AbstractEstimator) -> MakeParts:
        return lambda lr, steps: (CachedNoise(Normal()), estimator, Sgd(lr=lr, schedule=schedule))

    def adaptive(lr: float, steps: int) -> tuple[AbstractNoise, AbstractEstimator, AbstractRule]:
        return CachedNoise(Normal()), As2p(rho=10 * lr, rho_end=lr, eta_b=5.0), Sgd(lr=1.0)

    rules = {RULE_NAMES.get(word, word): make_rule_method(word, eps, schedule) for word in list_words("methods.rules")}
    return {**rules, "STP": with_sgd(Stp()), "S2P": with_sgd(S2p()), "AS2P": adaptive}


def make_rule_method(word: str, eps: float, schedule: Schedule) -> MakeParts:
    """Return a rule with two-sided differences and normal noise, or with the parts that its `only_with` names."""
    rule = load_part("rule", word)
    noises = rule.only_with.get("noise", ("normal",))
    estimators = rule.only_with.get("estimator", ("two_sided",))
    noise = load_part("noise", "normal" if "normal" in noises else noises[0])
    estimator = load_part("estimator", estimators[0])
    radius = {"eps": eps} if "eps" in {f.name for f in fields(estimator)} else {}

    def make(lr: float, steps: int) -> tuple[AbstractNoise, AbstractEstimator, AbstractRule]:
        options = RULE_OPTIONS[word](steps) if word in RULE_OPTIONS else {}
        return CachedNoise(noise()), estimator(**radius), rule(lr=lr, schedule=schedule, **options)

    return make


@dataclass(frozen=True)
class Testfunctions:
    """The experiment, and its options.

    Attributes:
        passes: forward passes of a run.
        eps: the smoothing radius.
        reach: the loss that a run should reach.
        schedule: of all methods but AS2P.
        tune, seeds: runs that choose a step size, and runs that count.
    """

    passes: Natural = 2500
    eps: Positive = 1e-3
    reach: Positive = 1e-2
    schedule: Schedule = "cosine"
    tune: Natural = 2
    seeds: Natural = 5

    def run(self, seed: int) -> Outcome:
        """Run the experiment, and return its numbers, the paper's claims beside them, and a figure."""
        numbers: dict[str, Any] = {name: {} for name in FUNCTIONS}
        paths: dict[str, dict[str, np.ndarray]] = {name: {} for name in FUNCTIONS}
        for method, make in make_methods(self.eps, self.schedule).items():
            each = count_passes(make)
            for name, function in FUNCTIONS.items():
                size, walks = self.best(function, make, self.passes // each, seed)
                paths[name][method] = walks[0]
                numbers[name][method] = {"size": size, "passes a step": each, **self.measured(function, walks, each)}
        return Outcome(numbers, self.claims(numbers), lambda: draw_paths(paths))

    def best(self, function: PlaneFunction, make: MakeParts, steps: int, seed: int) -> tuple[float, list[np.ndarray]]:
        """Return the step size that the tuning seeds choose, and the other seeds' paths with it."""
        first = seed * (self.tune + self.seeds)  # of the engine's seeds
        ends = {
            size: [final_loss(function, trace_path(function, make, size, steps, first + i)) for i in range(self.tune)]
            for size in STEP_SIZES
        }
        size = min(STEP_SIZES, key=lambda size: max(ends[size]))
        return size, [trace_path(function, make, size, steps, first + self.tune + i) for i in range(self.seeds)]

    def measured(self, function: PlaneFunction, walks: list[np.ndarray], each: int) -> dict[str, Any]:
        """Return the final losses of some paths, and the passes after which each first had the loss `reach`."""
        finals = [final_loss(function, path) for path in walks]
        with np.errstate(all="ignore"):
            firsts = [find_first(function(path) <= self.reach) * each for path in walks]
        return {"final loss": summarize_values(finals), "passes to reach": summarize_values(firsts)}

    def claims(self, numbers: dict[str, Any]) -> list[Claim]:
        """Return ZO-AdaMU's claims, compared with these numbers."""

        def all_of(method: str, key: str) -> list[float]:
            return [missing_to_infinity(numbers[name][method][key]["median"]) for name in FUNCTIONS]

        ends = all_of("ZO-AdaMU", "final loss")
        ours, mezo = all_of("ZO-AdaMU", "passes to reach"), all_of("MeZO", "passes to reach")
        fewer = [a < b for a, b in zip(ours, mezo)]
        labels = list(FUNCTIONS)
        seen = ", ".join(f"{n} {format_count(a)} against {format_count(b)}" for n, a, b in zip(labels, ours, mezo))
        return [
            Claim(
                "ZO-AdaMU converges on all six functions",
                "median final loss " + ", ".join(f"{n} {e:.1e}" for n, e in zip(labels, ends)),
                all(e <= self.reach for e in ends),
            ),
            Claim(
                "ZO-AdaMU needs fewer forward passes than MeZO",
                f"on {sum(fewer)} of {len(fewer)}: to a loss of {self.reach:g}, medians: {seen}",
                all(fewer),
            ),
        ]


def count_passes(make: MakeParts) -> int:
    """Return the forward passes of a step: one for each loss."""
    records = descend(ArraySpace(np.ones(2)), FunctionTask(FUNCTIONS["c"].__call__), *make(STEP_SIZES[0], 1), 1, 0)
    return len(next(records).losses)


def trace_path(function: PlaneFunction, make: MakeParts, size: float, steps: int, seed: int) -> np.ndarray:
    """Return where theta was, [steps + 1, 2]. The path ends early where the losses stop being finite."""
    space = ArraySpace(np.array(function.start, float))
    path = [space.value.copy()]
    with np.errstate(all="ignore"):
        try:
            for _ in descend(space, FunctionTask(function.__call__), *make(size, steps), steps, seed):
                path.append(space.value.copy())
        except DivergedError:
            path.append(np.full(2, np.nan))
    return np.array(path)


def final_loss(function: PlaneFunction, path: np.ndarray) -> float:
    """Return the loss at a path's last point; infinity: it is not finite."""
    with np.errstate(all="ignore"):
        return missing_to_infinity(float(function(path[-1])))


def missing_to_infinity(x: float | None) -> float:
    """Return a finite number as it is, and infinity for None and everything else."""
    return x if x is not None and np.isfinite(x) else np.inf


def find_first(reached: np.ndarray) -> float:
    """Return the index of the first true value; infinity: there is none."""
    return float(np.argmax(reached)) if reached.any() else np.inf


def format_count(x: float) -> str:
    """Return a number of passes as text; infinity is "never"."""
    return f"{x:.0f}" if np.isfinite(x) else "never"


def summarize_values(values: Iterable[float]) -> dict[str, Any]:
    """Return the median and all values, as JSON: null stands for never, and for what is not finite."""
    values = list(values)
    plain = [float(x) if np.isfinite(x) else None for x in (np.median(values), *values)]
    return {"median": plain[0], "all": plain[1:]}
