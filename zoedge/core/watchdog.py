"""When a run has gone wrong: a function of its effective records alone, so that resume finds what training found.

Clipping: |g| of a query is at most so many times the median of its last 200 that were not zero. Rolling back: the loss
was over factor times its best for so many steps, or not finite for eight, and the run goes back to an earlier state.
Too long a step need not show so: it may keep the loss high without ever making it large. So it may also be the mean of
so many losses that is over `rise` times the lowest such mean; that is no reason to give a run up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from .memory import Journal
from .types import SKIPPED, Record

CLIP_WINDOW = 200  # steps whose |g| the median is of
MIN_STEPS = 10  # steps before there is a median, or a best loss: of fewer, one lucky batch decides
NONFINITE_PATIENCE = 8  # non-finite steps in a row before a run is given up


def clip_limit(clip: float, past: Journal, step: int, query: int) -> float:
    """The most that |g| of a query may be at `step`."""
    some = (past[i].g for i in range(max(0, step - CLIP_WINDOW), step))
    sizes = [abs(g[query]) for g in some if len(g) > query and g[query]]
    return clip * median(sizes) if clip and len(sizes) >= MIN_STEPS else math.inf


def trust_limit(trust: float | None, loss: float, lr: float) -> float:
    """The most that |g| may be for a step not to promise more of its loss than that share: lr g^2 <= trust * loss.

    Of the slope g along z, a step of lr g takes lr g^2 off the loss, if the loss were linear. A direction in many tells
    little of the rest: where the promise is a large part of all there is to lose, lr is too large, by that step alone.
    """
    return math.sqrt(trust * loss / lr) if trust and lr and 0 < loss < math.inf else math.inf


def count_nonfinite(past: Journal) -> int:
    """How many of the newest steps in a row were not finite; at most PATIENCE are counted."""
    end = len(past)
    newest = range(end - 1, max(-1, end - 1 - NONFINITE_PATIENCE), -1)
    return next((end - 1 - i for i in newest if not past[i].flags & SKIPPED), len(newest))


def lowest_loss(record: Record) -> float:
    """The lowest loss of a step: others may be of trial steps that were not taken."""
    return min((x for x in record.losses if math.isfinite(x)), default=math.inf)


class LossTrend(NamedTuple):
    """After a step. mean: of the newest losses. best: the lowest such mean so far. over: steps in a row too high."""

    loss: float
    mean: float
    best: float
    over: int


@dataclass
class Watchdog:
    """options: recipe.Watchdog. seen: one a record of the log, kept because a run asks at every step."""

    options: Any
    seen: list[LossTrend] = field(default_factory=list)

    def look(self, past: Journal) -> int:
        """How many of the newest steps in a row were over factor times the best loss before them."""
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

    def target(self, log: Any, bad: int) -> int:
        """The step to go back to: of those with a logged state before the last `bad` ones, the lowest in loss; or 0."""
        before = len(log) - bad
        steps = [s for s in log.state.hashes if 0 < s < before]
        first = self.seen[min(self.options.patience, before) - 1].mean if before else math.inf
        means = {0: first} | {s: self.seen[s - 1].mean for s in steps}
        return min(means, key=lambda s: (means[s], -s))
