"""Several threads of one process: the libraries exchange functions of the process while they load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import zoedge as package
from zoedge.recipe.sections import Model
from zoedge.scoring.models.loading import load_base


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """What each of them returned, or raised, when all ran at once."""
    found: list[Any] = [None] * len(work)

    def run(i: int) -> None:
        try:
            found[i] = work[i]()
        except BaseException as e:
            found[i] = e

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_one_thread_at_a_time_loads(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    own, inside, most = AutoModelForCausalLM.from_pretrained, [0], [0]

    def slow(*args: Any, **options: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.1)
        try:
            return own(*args, **options)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", slow)
    spec = Model(source=str(llama), quantization="none")
    found = in_threads(*[lambda: load_base(spec).digest] * 3)
    assert len(set(found)) == 1 and isinstance(found[0], bytes) and most == [1]


def test_runs_in_threads_are_those_that_run_alone(recipe_file: Path, tmp_path: Path) -> None:
    def run(name: str, seed: int) -> str:
        short = (f"seed={seed}", "model.quantization=none", "train.steps=3", "output.export=[]")
        outcome = package.finetune(recipe_file, *short, run_dir=tmp_path / name)
        assert outcome is not None
        return outcome.fingerprint

    alone = [run(f"alone{seed}", seed) for seed in (1, 2)]
    for i in range(2):
        names = f"a{i}", f"b{i}"
        assert in_threads(partial(run, names[0], 1), partial(run, names[1], 2)) == alone
    assert run("after", 1) == alone[0]
