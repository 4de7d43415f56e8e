"""One of several workers on a bowl: `python worker.py FOLDER STEPS QUERIES [key=value ...]`, placed by RANK and WORLD_SIZE.

Every worker writes a log, so that they can be compared. pause: seconds a step; timeout: of Workers; astray: worker 1's
theta is changed before that step; alone=1: no launcher.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from child import Flat, Signs

from zoedge.core import digests, engine
from zoedge.core import run as core_run
from zoedge.errors import ZoedgeError
from zoedge.log.header import DIGEST_FIELDS, Header
from zoedge.log.log import Log
from zoedge.methods.estimators.two_sided import TwoSided
from zoedge.methods.rules.momentum import Momentum
from zoedge.run.workers import Workers, exit_process

ROWS = 8


class Rows:
    tokens, check = ROWS, 0

    def __init__(self, step: int, rows: range = range(ROWS)):
        self.step, self.rows = step, rows

    def __len__(self) -> int:
        return len(self.rows)

    def slice_examples(self, first: int, end: int) -> Rows:
        return Rows(self.step, self.rows[first:end])


class Bowls(Flat):
    """A bowl an example: an example's loss does not depend on who else is scored."""

    width = 16

    def batch(self, step: int) -> Any:
        return Rows(step)

    def score(self, model: Any, batch: Any, copies: int) -> Any:
        centres = [math.sin(batch.step + i / 7) for i in batch.rows]
        return np.array([[float(((p.astype("f8") - c) ** 2).sum()) for c in centres] for p in self.points])


def main(folder: Path, steps: int, queries: int, **options: float) -> int:
    space, workers = Bowls(), None
    header = Header(b"{}", 16, 1, 2, 5, 300, 5, 1, **{name: bytes(32) for name in DIGEST_FIELDS})
    try:
        if not options.get("alone"):
            workers = Workers(options.get("timeout"))
        path = folder / f"run-{workers.index if workers else 0}.zlog"
        with Log.resume(path) if path.exists() else Log.create(path, header) as log:
            task: Any = space
            run = core_run.Run(5, steps, log, task, Signs(), Momentum(lr=0.003), TwoSided(queries=queries), task)
            run.workers = workers
            for record in engine.play(run, steps):
                print(len(log), flush=True)
                time.sleep(options.get("pause", 0))
                if workers and workers.index and record.step + 1 == options.get("astray"):
                    space.leaves()[0].value[3] += 1e-7
            log.finish(digests.digest(task))
            sent = workers.sent if workers else 0
            print(json.dumps({"sent": sent, "fingerprint": log.fingerprint}), flush=True)
    except ZoedgeError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    os.environ.setdefault("RANK", "0")
    name, count, queries, *more = sys.argv[1:]
    exit_process(main(Path(name), int(count), int(queries), **{k: float(v) for k, v in (x.split("=") for x in more)}))
