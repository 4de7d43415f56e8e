"""This module has the one loop: training, resuming and replaying are all `play`.

Where the log has a record, that record is applied; where the log ends, a new one is measured, logged and then applied by
the same code. A second function that changes theta would be a bug.
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
    """Measure a step and return its record. This half needs the model, and changes nothing."""
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
    """Apply a record to theta and to the rule's slots. This half needs only the log."""
    if record.flags & SKIPPED:
        return
    for leaf in run.space.leaves():
        directions = [run.direction(record.seq, query, leaf) for query in range(len(record.g))]
        moving = [(z, g) for z, g in zip(directions, record.g) if z is not None]  # noise may leave a leaf out
        if moving:
            weights = record._replace(g=tuple(g for _, g in moving))
            delta = run.rule.update(run.slots[leaf.name], [z for z, _ in moving], weights)
            reach_failpoint("apply.mid")
            if leaf.storage in HALF_FORMATS:
                assert run.bits is not None
                bits = partial(run.bits, Key(run.seed, record.seq, 0, ROUNDING_STREAM))
                run.space.add(leaf, delta, record.decay, bits)
            else:
                run.space.add(leaf, delta, record.decay)


def play(run: Run, until: int, start: int = 0) -> Iterator[Record]:
    """Yield the record of every step from `start` to `until` - 1, each after it was applied.

    After a rewind, the steps up to its target are applied again by this same loop without being yielded; the records from
    the target on follow.
    """
    step, trains = start, run.estimator is not None and run.log.writable
    while True:
        log_ends = step == len(run.log)
        if log_ends and trains and (back := check_divergence(run)) is not None:
            run.log.rewind(back)
            run.restart()
            for _ in play(run, back):
                pass
            step = back
            continue
        if step >= until:
            return
        record = run.log.append(measure(run, step)) if log_ends else run.log[step]
        advance(run, record)
        run.log.seal(step + 1, partial(agree_on_digest, run))
        yield record
        step += 1


def check_divergence(run: Run) -> int | None:
    """Return the step that the run must go back to; None: it goes on. DivergedError: it has gone back often enough."""
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
    """Return the digest of the trained values. ReplayError: another worker's values have another digest."""
    own = digest(run.space)
    return own if run.workers is None else run.workers.agree(own)
