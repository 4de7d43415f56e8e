"""Runs of a few steps in a folder: trained, continued, branched and replayed."""

from __future__ import annotations

from pathlib import Path

from zoedge.core import digests, engine
from zoedge.core.types import Space
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import branch, replay, setup
from zoedge.run import folder as run_folder

GUARD = "train.watchdog={clip: 0, factor: 3, patience: 4, rewinds: 2}"


def kinds(raw: bytes, path: Path) -> list[int]:
    with Log.open(path) as log:
        return [raw[at] for at in range(log.header.length, len(raw), log.header.slot_size)]


METHODS = {
    "sgd": [],
    "momentum": ["rule={name: momentum, lr: 1e-2}"],
    "adam": ["rule={name: adam, lr: 1e-3}", "noise=normal"],
    "adamu": ["rule={name: adamu, lr: 1e-3, warm: 2}", "noise=normal"],
    "hizoo": ["rule={name: hizoo, lr: 1e-3}", "estimator={name: curved, eps: 1e-2}"],
    "as2p": ["estimator={name: as2p, rho: 1e-2}", "rule={name: sgd, lr: 1.0}"],
    "residual": ["estimator={name: residual, eps: 1e-2}", "rule.lr=1e-4"],
    "fzoo": ["estimator={name: fzoo, queries: 4}"],
    "prompt": ["space={name: prompt, tokens: 2}"],
    "prefix": ["space={name: prefix, tokens: 2}"],
    "scales": ["space=scales", "output.export=[]"],
    "several": ["space={name: several, of: {lora: {rank: 2}, prompt: {tokens: 2}}}"],
    "full": ["space=full", "model.quantization=none", "rule.lr=1e-4", "output.export=[]"],
    "full bf16": ["space=full", "model.quantization=none", "model.compute_dtype=bf16", "rule.lr=1e-4", "output.export=[]"],
}  # fmt: skip


def train(
    recipe_file: Path,
    folder: Path,
    until: int | None = None,
    overrides: list[str] | None = None,
    parent: branch.Parent | None = None,
) -> tuple[bytes, bytes]:
    """Begin or continue a run in `folder`; return the state's digest and the log's bytes.

    Args:
        until: the step to stop at; the recipe's last if None. At the last the log gets its end.
        parent: what the run is a branch of.
    """
    recipe = read_recipe(str(recipe_file), overrides)
    bench = setup.Measuring.build(recipe)
    folder.mkdir(exist_ok=True)
    sum(bench.base.cache_trunk(bench.texts.train, folder if parent is None else folder.parent))
    path = folder / run_folder.LOG_FILE
    with Log.resume(path) if path.exists() else setup.begin_run(bench, folder, parent) as log:
        for _ in engine.play(bench.run(log), until or recipe.train.steps):
            pass
        if len(log) == recipe.train.steps:
            log.finish(digests.digest(bench.space))
    return digests.digest(bench.space), path.read_bytes()


def replay_to(log: Log, steps: int | None = None, device: str = "cpu", base: str | None = None) -> Space:
    """Return the space after `steps` steps of the log, or all of them, replayed on that device."""
    run = replay.build_replay_run(log, device, base)
    for _ in engine.play(run, len(log) if steps is None else steps):
        pass
    return run.space


def replays(folder: Path) -> bool:
    """Did the finished run move, skip no step, and does its log lead to the state that it ends with?"""
    with Log.open(folder / run_folder.LOG_FILE) as log:
        sound = any(g for record in log for g in record.g) and not any(record.flags for record in log)
        return sound and log.state.end is not None and digests.digest(replay_to(log)).startswith(log.state.end)
