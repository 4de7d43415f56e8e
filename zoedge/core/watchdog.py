"""The watchdog says when a run has gone wrong. It reads the log's effective records alone: a resumed run decides the same.

It clips: |g| of a query is at most `clip` times the median of that query's last 200 values that were not zero.

It rolls back to an earlier state in three cases: the loss was over `factor` times its best for `patience` steps; or it was
not finite for eight steps; or the mean of the last `patience` losses is over `rise` times the lowest such mean. The third
case catches steps that are too long and keep the loss high without ever making it large; a run is never given up for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from .memory import Journal
from .types import SKIPPED, Record

CLIP_WINDOW = 200  # steps whose |g| the median is of
MIN_STEPS = 10  # the fewest steps for a median or a best loss: with fewer, one lucky batch would decide
NONFINITE_PATIENCE = 8  # non-finite steps in a row before a run is given up


def clip_limit(clip: float, past: Journal, step: int, query: int) -> float:
    """Return the most that |g| of a query may be at `step`; infinity while too few steps are known."""
    recent = (past[i].g for i in range(max(0, step - CLIP_WINDOW), step))
    sizes = [abs(g[query]) for g in recent if len(g) > query and g[query]]
    return clip * median(sizes) if clip and len(sizes) >= MIN_STEPS else math.inf


def trust_limit(trust: float | None, loss: float, lr: float) -> float:
    """Return the most that |g| may be so that a step promises to take at most the share `trust` off its loss.

    If the loss were linear with slope g along z, a step of lr * g would take lr * g^2 off it. One random direction knows
    little of the loss: where it promises a large share of all there is to lose, lr is too large. So lr g^2 <= trust * loss.
    """
    return math.sqrt(trust * loss / lr) if trust and lr and 0 < loss < math.inf else math.inf


def count_nonfinite(past: Journal) -> int:
    """Return how many of the newest steps in a row were not finite; at most NONFINITE_PATIENCE are counted."""
    end = len(past)
    newest = range(end - 1, max(-1, end - 1 - NONFINITE_PATIENCE), -1)
    return next((end - 1 - i for i in newest if not past[i].flags & SKIPPED), len(newest))


def lowest_loss(record: Record) -> float:
    """Return the lowest loss of a step: the others may be of trial steps that were not taken."""
    return min((x for x in record.losses if math.isfinite(x)), default=math.inf)


class LossTrend(NamedTuple):
    """How the loss stands after a step.

    Attributes:
        loss: of this step.
        mean: of the newest losses.
        best: the lowest such mean so far.
        over: for how many steps in a row the loss has been too high.
    """

    loss: float
    mean: float
    best: float
    over: int


@dataclass
class Watchdog:
    """Watches one run.

    Attributes:
        options: recipe.sections.WatchdogOptions.
        seen: the trend after each record of the log, kept because a run asks at every step.
    """

    options: Any
    seen: list[LossTrend] = field(default_factory=list)

    def look(self, past: Journal) -> int:
        """Return how many of the newest steps in a row were over `factor` times the best loss before them."""
        o, seen = self.options, self.seen
        del seen[len(past) :]  # after a rewind
        while len(seen) < len(past):
            loss, last = lowest_loss(past[len(seen)]), seen[-1] if seen else LossTrend(0.0, 0.0, math.inf, 0)
            newest = [x.loss for x in seen[max(0, len(seen) + 1 - o.patience) :]] + [loss]
            mean = math.fsum(newest) / len(newest)
            best = min(last.best, mean) if len(newest) >= min(MIN_STEPS, o.patience) else last.best
            high = 0 < o.factor * last.best < loss  # a goal may be 0 or less: nothing to multiply
            over = last.over + 1 if high else 0
            if o.rise and len(newest) == o.patience and past.state.rewinds < o.rewinds:
                over = o.patience if 0 < o.rise * last.best < mean else over
            seen.append(LossTrend(loss, mean, best, over))
        return seen[-1].over if seen else 0

    def target(self, log: Journal, bad: int) -> int:
        """Return the step to go back to: before the last `bad` steps, the logged state of the lowest mean loss; else 0."""
        before = len(log) - bad
        steps = [s for s in log.state.hashes if 0 < s < before]
        first = self.seen[min(self.options.patience, before) - 1].mean if before else math.inf
        means = {0: first} | {s: self.seen[s - 1].mean for s in steps}
        return min(means, key=lambda s: (means[s], -s))
