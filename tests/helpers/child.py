"""A process to be killed: `python child.py FOLDER STEPS W` begins or resumes a run of the engine, without torch or a model,
and exports it; each step that is durable and applied is said. Used by the torture suites."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from zoedge.core import digests, engine, storage
from zoedge.core import run as core_run
from zoedge.core.types import AbstractNoise, Key, Leaf, Part
from zoedge.errors import ZoedgeError
from zoedge.log.header import DIGEST_FIELDS, Header
from zoedge.log.log import Log
from zoedge.methods.estimators.two_sided import TwoSided
from zoedge.methods.rules.momentum import Momentum


class Signs(AbstractNoise):
    """Signs from a hash: zoedge's own noise imports torch, a second for every process."""

    def draw(self, key: Key, leaf: Leaf) -> Any:
        name = f"{key} {leaf.name}".encode()
        bits = np.unpackbits(np.frombuffer(hashlib.shake_128(name).digest(len(leaf.value)), "u1"))[: len(leaf.value)]
        return bits.astype("f4") * 2 - 1


class Flat:
    """Two tensors of 300 elements; the loss is a bowl."""

    width = 2

    lean = False

    def __init__(self) -> None:
        self._leaves = [
            Leaf(f"leaf {i}", 150 * i, np.zeros(150, "f4"), (Part(f"leaf {i}", 150 * i, (150,)),), 300)  # type: ignore[arg-type]
            for i in range(2)
        ]
        self.points: list[Any] = []

    def leaves(self) -> list[Leaf]:
        return self._leaves

    def add(self, leaf: Leaf, delta: Any, decay: float, bits: Any = None) -> None:
        value: Any = leaf.value
        value *= np.float32(decay)
        value += delta

    @contextmanager
    def visit(self, deltas: Any) -> Any:
        self.points = [np.concatenate([leaf.value + d(leaf) for leaf in self._leaves]) for d in deltas]
        yield

    def batch(self, step: int) -> Any:
        return Rows(step)

    def score(self, model: Any, batch: Any, copies: int) -> Any:
        return np.array([[float(((p.astype("f8") - math.sin(batch.check)) ** 2).sum())] for p in self.points])


class Rows(SimpleNamespace):
    def __init__(self, step: int):
        super().__init__(check=step, tokens=1)

    def __len__(self) -> int:
        return 1


def export(space: Flat, folder: Path) -> None:
    """As export.py does it."""
    with storage.replace_folder(folder) as draft:
        storage.write_durably(
            draft / "weights", b"".join(bytes(digests.host_bytes(leaf.value)) for leaf in space.leaves())
        )
        storage.reach_failpoint("export.marker")
        facts = {"zoedge": 1, "kind": "peft", "files": ["weights"], "state": digests.digest(space).hex()}
        storage.write_durably(draft / "zoedge.json", json.dumps(facts).encode())


def main(folder: Path, steps: int, sync_every: int, pause: float = 0.0) -> int:
    space, noise, rule = Flat(), Signs(), Momentum(lr=0.01)
    zeros = {name: bytes(32) for name in DIGEST_FIELDS}
    path = folder / "run.zlog"
    try:
        exists = path.exists()
        log = Log.resume(path) if exists else Log.create(path, Header(b"{}", 2, 1, 2, 5, 300, 5, sync_every, **zeros))
        with log:
            print("held", flush=True)
            run = core_run.Run(5, steps, log, space, noise, rule, TwoSided(), space, bits=None)  # type: ignore[arg-type]
            for _ in engine.play(run, steps):
                print(len(log), flush=True)
                time.sleep(pause)
            log.finish(digests.digest(space))  # type: ignore[arg-type]
        print("finished", flush=True)
        export(space, folder / "adapter")
        print("exported", flush=True)
    except ZoedgeError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:])))
