"""The memory of one step measured in a process of its own (`zoedge estimate --measure`)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import ZoedgeError, plain
from .machine import peak, resident, rest_peak

# -- a step for real


def measured(recipe: Any) -> dict[str, dict[str, int]]:
    """{moment: {before, peak}} bytes of a fresh process that loads the base and takes the longest batch's step.

    ZoedgeError: what the run itself would say. It leaves nothing behind but the quantised weights in the cache.
    """
    command = [sys.executable, "-m", "zoedge.commands.estimate.machine"]
    done = subprocess.run(
        command, input=json.dumps(recipe.resolved()), capture_output=True, text=True, errors="replace", check=False
    )
    try:
        found: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        error = ZoedgeError(f"--measure: the process that took the step ended ({done.returncode}): {plain(last, 300)}")
        error.exit_code = 3
        raise error from None
    return found


def child(recipe: Any) -> dict[str, dict[str, int]]:
    """What `measured` says, of this process."""
    import torch

    from ...core import engine
    from ...run import setup
    from ...scoring.models import loading
    from ...scoring.sources import resolve
    from .work import longest

    cuda = loading.device_of(recipe.model).type == "cuda"
    found: dict[str, dict[str, int]] = {}

    def moment(name: str, act: Callable[[], Any]) -> Any:
        rest_peak()
        before = torch.cuda.memory_reserved() if cuda else resident()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        result = act()
        most = torch.cuda.max_memory_reserved() if cuda else peak()
        found[name] = {"before": before, "peak": max(before, most)}  # Linux counts a process's pages in batches
        return result

    import bitsandbytes  # noqa: F401 - so that it is not counted as the base's
    import transformers  # noqa: F401

    loading.auto_class(resolve.resolve_model(recipe.model.source, recipe.model.revision))
    moment("loading", lambda: loading.prepare(recipe.model))
    bench = moment("base", lambda: setup.Bench.build(recipe))
    with tempfile.TemporaryDirectory() as folder:
        if bench.base.cut:
            keep = bench.base.keep(bench.texts.train, Path(folder))  # the longest sequences come first
            moment("lower layers", lambda: next(keep))
            for _ in keep:
                pass
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        run, at = bench.run(Unwritten()), longest(recipe, bench.texts.train)  # type: ignore[arg-type]

        def step() -> None:
            for seq in range(2):
                run.log.next_seq = seq  # type: ignore[misc]
                engine.advance(run, engine.measure(run, at)._replace(flags=0))

        moment("step", step)
        for examples in (bench.texts.valid, bench.texts.test):
            if examples is not None and len(examples):
                few = examples.head(len(examples))
                moment("look", lambda: look(bench, few))
    return found


def look(bench: Any, examples: Any) -> None:
    """The longest batch of held-out rows, scored."""
    from ...scoring.tasks._training import batches

    longest = list(batches(examples))[-1]
    bench.task.score(bench.base, examples.collate(longest), 1)


class Unwritten:
    """A log of no steps: what estimators and rules may ask of one."""

    writable, next_seq = True, 0

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())
