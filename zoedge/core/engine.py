"""The one loop. Training, resume and replay are `play`: where the log has a record it is applied, where it ends one is
measured, and after that both go the same way. A second function that changes theta would be a bug.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from ..errors import DivergedError
from .digests import digest
from .exact import HALF_FORMATS, bits16
from .oracle import StepOracle
from .run import Run
from .storage import reach_failpoint
from .types import MICRO_BATCHED, ROUNDING_STREAM, SKIPPED, Key, Record
from .watchdog import NONFINITE_PATIENCE, clip_limit, count_nonfinite, trust_limit

LARGEST_WEIGHT = 2.0**64  # a weight beyond it is no estimate, and would leave float32


def measure(run: Run, step: int) -> Record:
    """The half that needs the model: a step's record. Changes nothing."""
    assert run.task is not None and run.estimator is not None
    batch = run.task.batch(step)
    lr = run.rule.rate(step, run.steps)
    if run.watchdog is not None:
        lr = bits16(lr / 2**run.log.state.rewinds)
    oracle = StepOracle(run, batch, step, run.steps, run.log.next_seq, lr)
    g = run.estimator.measure(oracle, run.log)  # type: ignore[arg-type]
    try:
        weights = tuple(bits16(w * oracle.gain(query)) for query, w in enumerate(g))
        if run.watchdog is not None:
            options, loss = run.watchdog.options, min(filter(math.isfinite, oracle.asked), default=math.inf)
            most = trust_limit(options.trust, loss, lr)
            limits = (min(most, clip_limit(options.clip, run.log, step, q)) for q in range(len(weights)))
            weights = tuple(bits16(oracle.clip(w, x)) for w, x in zip(weights, limits))
    except (ValueError, OverflowError):
        weights = (math.inf,)
    if any(abs(w) > LARGEST_WEIGHT for w in weights):
        weights, oracle.flags = (0.0,) * len(g), oracle.flags & MICRO_BATCHED | SKIPPED
    return Record(step, oracle.seq, lr, weights, tuple(oracle.asked), oracle.flags, batch.check, run.rule.decay(lr))


def advance(run: Run, record: Record) -> None:
    """The half that needs only the log: theta and slots after a record."""
    if record.flags & SKIPPED:
        return
    for leaf in run.space.leaves():
        found = [run.direction(record.seq, query, leaf) for query in range(len(record.g))]
        here = record._replace(g=tuple(g for d, g in zip(found, record.g) if d is not None))
        if here.g:  # else the leaf rests
            delta = run.rule.update(run.slots[leaf.name], [d for d in found if d is not None], here)
            reach_failpoint("apply.mid")
            if leaf.storage in HALF_FORMATS:
                assert run.bits is not None
                bits = partial(run.bits, Key(run.seed, record.seq, 0, ROUNDING_STREAM))
                run.space.add(leaf, delta, record.decay, bits)
            else:
                run.space.add(leaf, delta, record.decay)


def play(run: Run, until: int, start: int = 0) -> Iterator[Record]:
    """Train, resume and replay: every record of start .. until - 1 in order, each applied before it is yielded.

    After a rewind, the records from its target on follow: those before it were applied again, by this very loop.
    """
    step, trains = start, run.estimator is not None and run.log.writable
    while True:
        here = step == len(run.log)
        if here and trains and (back := check_divergence(run)) is not None:
            run.log.rewind(back)
            run.restart()
            for _ in play(run, back):
                pass
            step = back
            continue
        if step >= until:
            return
        record = run.log.append(measure(run, step)) if here else run.log[step]
        advance(run, record)
        run.log.seal(step + 1, partial(agree_on_digest, run))
        yield record
        step += 1


def check_divergence(run: Run) -> int | None:
    """The step that the run must go back to; None: go on. DivergedError: it went back often enough, or may not."""
    done, lost = len(run.log), count_nonfinite(run.log)
    over = run.watchdog.look(run.log) if run.watchdog is not None else 0
    if lost < NONFINITE_PATIENCE and (run.watchdog is None or over < run.watchdog.options.patience):
        return None
    if run.watchdog is not None and run.log.state.rewinds < run.watchdog.options.rewinds:
        return run.watchdog.target(run.log, max(lost, over))
    what = "not finite" if lost >= min(max(over, 1), NONFINITE_PATIENCE) else "far over its best"
    tried = f", after {run.log.state.rewinds} rewinds with half the lr" if run.watchdog is not None else ""
    option = "" if run.estimator is None else run.estimator.radius_option
    radius = f" or estimator.{option}" if option else ""
    raise DivergedError(
        f"The loss is {what} at steps {done - max(lost, over)}..{done - 1}{tried}. The log is safe up to there. Lower "
        f"rule.lr{radius}, or set model.compute_dtype: fp32, and start a new run."
    )


def agree_on_digest(run: Run) -> bytes:
    """The state's digest, which every worker has arrived at."""
    found = digest(run.space)
    return found if run.workers is None else run.workers.agree(found)
