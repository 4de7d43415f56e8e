"""AS2P against GA and STP on a language model: what do their losses cost in passes? (arXiv 2402.01621, Table 6)

The paper fine-tunes all of OPT-13B on six tasks, once each, and counts against GA with a cosine step size; GA with a
constant one beats that in its own table, so it is the baseline here. Here: recipes/two-sided.yaml's task, SmolLM2-135M
in 4 bits, rank-8 LoRA on its last block, 1,500 film reviews, batch 16. All methods start at the same point of a seed and
see the same batches. Step sizes are chosen, as many for each method, on two seeds that are not counted. AS2P's is rho_0, which
both probes and sizes its steps: with the paper's eta_b of 50 for language models it must be so large that probing leaves
the neighbourhood (LoRA's A starts at 0.04 an element), so AS2P stands here with eta_b 5, and once with 50.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.types import Natural, Positive, Record
from ..methods.estimators.as2p import As2p
from ..methods.noise.normal import Normal
from ..methods.rules.sgd import Sgd
from . import _race
from ._bench import Claim, Outcome
from ._race import BASELINE, Method, Parts, RaceResult, format_ratios, make_methods

if TYPE_CHECKING:
    from ..run.evaluate import Score

STEP_SIZE_GRIDS = {"ga": (5e-4, 1e-3, 2e-3, 4e-3), "stp": (2e-3, 4e-3, 8e-3, 1.6e-2), "rho": (1e-2, 3e-2, 6e-2, 1e-1)}
LARGE_RHO_GRID = (5e-2, 1e-1, 2e-1, 4e-1)  # rho_0 with eta_b 50


@dataclass(frozen=True)
class Sentiment:
    """The experiment, and its options.

    Attributes:
        recipe: the recipe that has the task.
        passes: forward passes of a run.
        window: the share of a run that a smoothed loss averages.
        tune, seeds: how many seeds choose step sizes, and how many count.
    """

    recipe: str = "two-sided"
    passes: Natural = 2400
    eps: Positive = 3e-3
    window: Positive = 0.05
    tune: Natural = 2
    seeds: Natural = 3

    def run(self, seed: int) -> Outcome:
        """Run the experiment, and return its numbers, the paper's claims beside them, and a figure."""
        from ..recipe.reading import read_recipe
        from ._model import SharedModel

        tune, seeds = _race.split_seeds(seed, self.tune, self.seeds)
        methods = make_methods(self.eps, 5.0, **STEP_SIZE_GRIDS)
        methods["AS2P, eta_b 50"] = Method(
            lambda rho: (Normal(), As2p(rho=rho, rho_end=rho / 10), Sgd(lr=1.0)), LARGE_RHO_GRID
        )
        scores: dict[tuple[Parts, int], Score] = {}
        with tempfile.TemporaryDirectory() as folder:
            model = SharedModel(read_recipe(self.recipe, []), Path(folder))

            def trial(parts: Parts, steps: int, seed: int) -> Iterator[Record]:
                yield from model.trial(*parts, steps, seed)
                if seed in seeds and steps > 1:
                    scores[parts, seed] = model.score()

            racers = _race.run_race(methods, trial, self.passes, self.window, tune, seeds)
        numbers = {"trained": model.trained, **_race.collect_numbers(racers)}
        for name, racer in racers.items():
            parts = methods[name].make(racer.size)
            numbers[name] |= {"accuracy": [scores[parts, s].accuracy for s in seeds if (parts, s) in scores]}
            numbers[name] |= {"calibrated": [scores[parts, s].calibrated for s in seeds if (parts, s) in scores]}
        title = f"{self.recipe}: {model.trained:,} trained, {self.seeds} seeds"
        return Outcome(numbers, make_claims(racers), lambda: _race.draw_race(racers, title))


def make_claims(racers: dict[str, RaceResult]) -> list[Claim]:
    """Return the paper's claims, compared with this race."""
    constant, cosine = _race.compute_median_costs(racers), _race.compute_median_costs(racers, "GA cosine")
    shares = "/".join(f"{100 * share:.0f}" for share in _race.BUDGET_SHARES)
    names = ("AS2P", "AS2P_sign", "AS2P, eta_b 50")
    best = min(names, key=lambda name: sum(constant[name]))
    return [
        Claim(
            "AS2P reaches GA's losses in half the forward passes or fewer (0.03 to 0.17 of GA cosine's)",
            f"for the losses after {shares} % of the run, of {BASELINE}'s passes: "
            + "; ".join(f"{name} {format_ratios(constant[name])}" for name in names)
            + f"; {best} of GA cosine's: {format_ratios(cosine[best])}",
            max(constant[best]) <= 0.5,
        ),
        Claim(
            "AS2P needs fewer forward passes than STP (in five of six tasks)",
            f"{best} {format_ratios(constant[best])}, STP {format_ratios(constant['STP'])} of {BASELINE}'s",
            all(a < b for a, b in zip(constant[best], constant["STP"])),
        ),
        Claim(
            "GA constant needs fewer forward passes than GA cosine (0.23 to 0.50 of its on SST-2)",
            f"{format_ratios(cosine[BASELINE])}",
            max(cosine[BASELINE]) < 1,
        ),
    ]
