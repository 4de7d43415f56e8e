"""This module lets several processes share a run: each worker scores a share of a step's work, and only losses travel.

Every worker holds the same base and theta, and computes the same record from the losses of all; the first one's log is the
run's. `accelerate launch -m zoedge ...` or torchrun starts them and sets RANK and WORLD_SIZE. gloo of torch.distributed
carries the numbers, even where the models are on GPUs. No parameter is ever sent: a worker that comes later gets the log,
and replays it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import reduce
from operator import or_
from typing import Any

from ..core.exact import mean
from ..errors import LostError, ReplayError, format_error

PointLosses = list[list[float]]  # a point, its examples' losses
DEFAULT_TIMEOUT = 1800.0  # seconds to wait for another worker; all wait while the first one evaluates


def is_launched() -> bool:
    """Return whether a launcher (accelerate launch, torchrun) has started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def is_follower() -> bool:
    """Return whether this process is one of several, and not the one that has the run's log."""
    return is_launched() and os.environ.get("RANK", "0") != "0"


def exit_process(code: int) -> None:
    """End this process at once: gloo's threads may abort one that ends by itself once another worker is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def split_work(points: int, workers: int) -> tuple[int, int]:
    """Return into how many groups the points and the rows of a step are split, for so many workers.

    The points are split among as many workers as possible, since a share of them answers with one mean a point, 8 bytes. A
    share of the rows must answer with one number an example, because their sum is rounded once, in example order.
    """
    groups = next(g for g in range(min(points, workers), 0, -1) if workers % g == 0)
    return groups, workers // groups


class Workers:
    """This process among those of its launch. Its methods raise LostError if another one has gone or is too late.

    Attributes:
        index: of this process; 0 has the log.
        count: of processes.
        wish: the signal that has come here; 0: none.
        stop: the signal that all have seen after the same step; 0: none.
        sent: bytes of losses that this process has sent.
    """

    def __init__(self, timeout: float | None = None, cuda: bool = False):
        from accelerate import PartialState
        from torch import distributed

        from ..scoring.sources import resolve as sources  # noqa: F401 - offline first

        wait = timedelta(seconds=timeout or DEFAULT_TIMEOUT)
        try:
            state = PartialState(cpu=not cuda, timeout=wait)
            self._group = distributed.new_group(backend="gloo", timeout=wait) if cuda else None
        except (RuntimeError, ValueError) as e:
            raise LostError(
                f"The workers did not find each other: {format_reason(e)}. Start all of them with the same --num_machines (or "
                "--nnodes) and address."
            ) from None
        self.index, self.count = state.process_index, state.num_processes
        self.wish = self.stop = 0
        self.sent = 0  # bytes of payload, this worker's

    def means(
        self, points: int, rows: int, score: Callable[[slice, slice], tuple[PointLosses, int]]
    ) -> tuple[list[float], int]:
        """Return the mean loss of each point on a batch, and the flags of all workers.

        Args:
            points: how many points.
            rows: how many rows the batch has.
            score: computes the losses and flags of this process's share, given as slices of points and rows.
        """
        groups, parts = split_work(points, self.count)
        points_each, rows_each = math.ceil(points / groups), math.ceil(rows / parts)

        def share(index: int) -> tuple[range, range]:
            a, b = index % groups * points_each, index // groups * rows_each
            return range(points)[a : a + points_each], range(rows)[b : b + rows_each]

        own_points, own_rows = share(self.index)
        own_losses: PointLosses = []
        flags = 0
        if own_points and own_rows:
            own_losses, flags = score(*(slice(r.start, r.stop) for r in (own_points, own_rows)))
        values = [mean(row) for row in own_losses] if parts == 1 else [x for row in own_losses for x in row]
        room = points_each * (1 if parts == 1 else rows_each)
        heard = self._gather([float(self.wish << 8 | flags), *values, *[0.0] * (room - len(values))])
        words = [int(h[0]) for h in heard]
        self.stop = max(word >> 8 for word in words)
        losses: PointLosses = [[] for _ in range(points)]
        for index, (_, *numbers) in enumerate(heard):  # example order: an index's rows come before the next one's
            its_points, its_rows = share(index)
            width = 1 if parts == 1 else len(its_rows)
            for i, point in enumerate(its_points):
                losses[point] += numbers[i * width : (i + 1) * width]
        return [row[0] if parts == 1 else mean(row) for row in losses], reduce(or_, words) & 255

    def examples(
        self, points: int, rows: int, width: int, score: Callable[[slice], tuple[list[PointLosses], int]]
    ) -> tuple[list[PointLosses], int]:
        """Return `width` numbers of each example of a batch at each point, [points][rows][width], and all workers' flags.

        Args:
            points, rows: how many there are.
            score: computes the numbers and flags of this process's share of the rows, at every point.
        """
        each = math.ceil(rows / self.count)
        shares = [range(rows)[i * each : (i + 1) * each] for i in range(self.count)]
        own = shares[self.index]
        numbers, flags = score(slice(own.start, own.stop)) if own else ([], 0)
        values = [x for point in numbers for example in point for x in example]
        padding = [0.0] * (points * each * width - len(values))
        heard = self._gather([float(self.wish << 8 | flags), *values, *padding])
        words = [int(first) for first, *_ in heard]
        self.stop = max(word >> 8 for word in words)
        merged: list[PointLosses] = [[] for _ in range(points)]
        for share, (_, *theirs) in zip(shares, heard):
            size = len(share) * width  # of a point
            for i in range(points):
                of_point = theirs[i * size : (i + 1) * size]
                merged[i] += [of_point[k : k + width] for k in range(0, size, width)]
        return merged, reduce(or_, words) & 255

    def agree(self, digest: bytes) -> bytes:
        """Return the state's digest if every worker has the same. ReplayError: another worker has another state."""
        own = [float(int.from_bytes(digest[i : i + 6], "big")) for i in range(0, len(digest), 6)]  # exact: 48 bits
        for index, other in enumerate(self._gather(own)):
            if other != own:
                raise ReplayError(
                    f"Worker {index} has another state than worker {self.index}: one of them computes other bits. The log "
                    "is worker 0's; find the machine with `zoedge doctor`, and go on without it: zoedge resume."
                )
        return digest

    def share(self, data: bytes | None) -> bytes:
        """Send worker 0's bytes (its log) to all; returns them. data: of worker 0; the others give None."""
        import torch
        from torch import distributed

        size = torch.tensor([len(data) if data is not None else 0])
        self._talk(distributed.broadcast, size, 0)
        whole = torch.frombuffer(bytearray(data or bytes(int(size))) or bytearray(1), dtype=torch.uint8)
        self._talk(distributed.broadcast, whole, 0)
        return bytes(whole.numpy())[: int(size)]

    def _gather(self, values: Sequence[float]) -> list[list[float]]:
        """Return the values of every worker, in their order. All give the same number of values."""
        import torch
        from torch import distributed

        own = torch.tensor(values, dtype=torch.float64)
        heard = [torch.empty_like(own) for _ in range(self.count)]
        self._talk(distributed.all_gather, heard, own)
        self.sent += own.numel() * own.itemsize
        return [x.tolist() for x in heard]

    def _talk(self, operation: Callable[..., Any], *args: Any) -> None:
        try:
            operation(*args, group=self._group)
        except RuntimeError as e:
            raise LostError(
                f"Another worker is gone, or did not answer in time ({format_reason(e)}). The log is safe up to the last step. "
                "Go on with as many workers as there are: zoedge resume."
            ) from None


def format_reason(e: Exception) -> str:
    """Return gloo's words for a failure, without the name of its source file."""
    return format_error(str(e).rpartition("] ")[2].splitlines()[0].split(". This may")[0])[:160].rstrip(".")
