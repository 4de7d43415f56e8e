"""A run's folder, and how its parts are put together: from a recipe to train, from a log alone to replay.

runs/NAME/   run.zlog       the only checkpoint
             recipe.yaml    every setting, defaults included
             metrics.jsonl  for people and plots; nothing reads it back for training, `best` is chosen by it
             adapter/       the export
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.canonical import encode_canonical
from ..core.digests import digest, selftest
from ..core.oracle import slot_capacity
from ..core.run import Run
from ..core.storage import write_durably
from ..core.watchdog import Watchdog
from ..errors import LockedError
from ..log.header import Header
from ..log.log import Log
from ..recipe.recipe import Recipe, dump_recipe, part_name
from ..scoring.texts import Datasets, load_datasets
from .display import Plain
from .folder import LOG_FILE, RECIPE_FILE
from .identity import manifest_digest, recipe_digest
from .replay import build_replay_run, copy_values, initial_noise, rounding_bits


@dataclass
class Bench:
    """What measuring needs: the base, the data, the task, and the space attached to the base."""

    recipe: Recipe
    base: Any
    texts: Datasets
    task: Any
    space: Any

    @property
    def limit(self) -> int:
        """Tokens of a sequence at most: past its context LLaMA computes garbage without an error, OPT raises."""
        return min(self.recipe.data.max_length, self.base.context_length)

    @classmethod
    def build(cls, recipe: Recipe) -> Bench:
        from ..scoring.models.families import check_head
        from ..scoring.models.loading import load_base

        base = load_base(recipe.model)
        check_head(part_name(recipe.task), recipe.task.head, base.facts)
        # attached first: virtual tokens take their share of the context
        space = recipe.space.attach(base, recipe.seed, initial_noise(recipe.noise))
        limit = min(recipe.data.max_length, base.context_length)
        datasets = load_datasets(recipe.data, recipe.task, recipe.seed, base.tokenizer, limit)
        task = recipe.task.over(datasets.train, recipe.seed, recipe.train.batch)
        return cls(recipe, base, datasets, task, space)

    def header(self) -> Header:
        from ..scoring.models.checkpoint import tokenizer_digest

        recipe = self.recipe
        first = self.space.leaves()[0].value
        return Header(
            block=encode_canonical({"recipe": recipe.resolved(), "space": self.space.describe()}),
            directions=slot_capacity(recipe.estimator, recipe.train.steps),
            noise=recipe.noise.scheme,
            rule=recipe.rule.rule,
            seed=recipe.seed,
            elements=sum(leaf.value.numel() for leaf in self.space.leaves()),
            hash_every=recipe.log.hash_every,
            sync_every=recipe.log.sync_every,
            recipe=recipe_digest(recipe),
            base=self.base.digest,
            tokenizer=tokenizer_digest(self.base.tokenizer),
            data=self.texts.train.digest(),
            manifest=manifest_digest(self.space),
            initial=digest(self.space),
            selftest=selftest(recipe.noise, recipe.rule, first[:1].float().new_zeros(1024)),
        )

    def run(self, log: Log, workers: Any = None) -> Run:
        r = self.recipe
        return Run(
            r.seed,
            r.train.steps,
            log,
            self.space,
            r.noise,
            r.rule,
            r.estimator,
            self.task,
            self.base,
            r.train.rows,
            rounding_bits(),
            watchdog=Watchdog(r.train.watchdog) if r.train.watchdog else None,
            rewound=lambda: copy_values(self.space, build_replay_run(log).space),
            workers=workers,
        )


def describe_environment(base: Any) -> dict[str, Any]:
    """What the forward's bits may depend on; its digest is the log's SESSION record."""
    import platform

    import bitsandbytes
    import torch
    import transformers

    from ..methods.noise import _fused

    device = torch.cuda.get_device_name(0) if base.device.type == "cuda" else platform.processor() or platform.machine()
    own = {"kernel": _fused.triton_version()} if base.device.type == "cuda" else {}
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bitsandbytes": bitsandbytes.__version__,
        "device": f"{base.device.type} {device}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "compute": str(base.dtype),
        "linear": "train mode, others eval, dropout 0",
        "attention": base.model.config._attn_implementation,
        **own,
    }


# -- opening


def begin_run(bench: Bench, folder: Path, parent: Any = None) -> Log:
    """A new run: recipe.yaml and the log's header, both durable; of a branch, with the parent's steps.

    LockedError: another process was faster.
    """
    from . import branch

    if parent is not None:
        branch.begin_branch(parent, bench.header(), bench.recipe, folder / LOG_FILE)
    write_durably(folder / RECIPE_FILE, dump_recipe(bench.recipe).encode())
    try:
        return Log.create(folder / LOG_FILE, bench.header()) if parent is None else Log.resume(folder / LOG_FILE)
    except FileExistsError:
        raise LockedError(
            f"{folder / LOG_FILE}: another zoedge process has just begun this run. Wait for it, or stop it."
        ) from None


def cache_trunk(bench: Bench, folder: Path, show: Plain) -> None:
    """What is computed once, on all threads; what follows takes those that the recipe wants."""
    texts, threads = bench.texts, bench.recipe.train.threads
    for which, examples in {"train": texts.train, "valid": texts.valid, "test": texts.test}.items():
        if examples is not None:
            show.track(bench.base.keep(examples, folder), len(examples.tokens), f"lower layers, once ({which})")
    if threads:
        import torch

        torch.set_num_threads(threads)
