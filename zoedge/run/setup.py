"""A run's folder, and how its parts are put together: from a recipe to train, from a log alone to replay.

runs/NAME/   run.zlog       the only checkpoint
             recipe.yaml    every setting, defaults included
             metrics.jsonl  for people and plots; nothing reads it back for training, `best` is chosen by it
             adapter/       the export
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import storage
from ..core.engine import Run, capacity, digest, selftest
from ..core.parts import by_id, part
from ..core.storage import write_durably
from ..core.watchdog import Watchdog
from ..errors import DamagedError, DataError, IdentityError, LockedError, StorageError, UsageError, nearest, plain
from ..log.log import DIGESTS, Header, Log, canonical
from ..recipe.check import Recipe, Split, check, dump, word_of

LOG, RECIPE, METRICS, ADAPTER = "run.zlog", "recipe.yaml", "metrics.jsonl", "adapter"


# -- folders


def log_of(run: str) -> Path:
    """The log that a user means by a run's folder, a log's path, or a run's name under runs/."""
    for path in (Path(run), Path("runs") / run) if run else ():
        if path.is_dir() and (path / LOG).exists():
            return path / LOG
        if path.is_file():
            return path
    there = [path.parent.name for path in sorted(Path("runs").glob(f"*/{LOG}"))]
    way_out = nearest(run, there) or (f". Under runs/: {plain(', '.join(there))}." if there else ".")
    raise UsageError(f"No run '{plain(run)}': no such log, and no folder with a {LOG}{way_out}")


def folder_of(recipe: Recipe) -> Path:
    return Path(recipe.output.dir) / recipe.name


def claim(folder: Path) -> list[str]:
    """Make a run's folder, and prove that it and its log can be written, before anything slow begins.

    Returns what the user should know of them, a sentence each. StorageError: the disk. LockedError: another process is
    writing the run. DamagedError: the log is damaged.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(storage.disk.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        storage.disk.unlink(probe)
        storage.disk.sync_directory(folder.parent)
    except OSError as e:
        raise StorageError(f"{folder}: cannot write there: {e.strerror}. Choose another output.dir.") from e
    said = []
    if kind := storage.network(folder):
        said.append(
            f"{folder} is on a network file system ({kind}), where a lock may hold on one host alone: do not write one run "
            "from two hosts."
        )
    if os.path.lexists(folder / LOG):
        with Log.resume(folder / LOG) as log:
            if log.torn:
                said.append(
                    f"the log ended in an unfinished write: its {log.torn:,} bytes were cut off and kept as "
                    f"{log.path.with_suffix('.torn')}; the run goes on from step {len(log):,}."
                )
    return said


def note(folder: Path, **fields: Any) -> None:
    """A line of metrics.jsonl. Losing one loses nothing. StorageError: the disk."""
    path, line = folder / METRICS, (json.dumps(fields) + "\n").encode()
    try:
        fd = storage.disk.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        with os.fdopen(fd, "rb") as file:
            if file.seek(0, os.SEEK_END) and os.pread(fd, 1, file.tell() - 1) != b"\n":
                line = b"\n" + line  # the last one was cut by a kill or a full disk: it must not take this one along
            storage.write_all(fd, line, "")
    except OSError as e:
        raise StorageError(f"{path}: cannot write: {e.strerror}.") from e


def notes(folder: Path) -> list[dict[str, Any]]:
    found = []
    if (folder / METRICS).is_file():
        for line in (folder / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a line cut by a kill
            if isinstance(value, dict):
                found.append(value)
    return found


# -- which step


def looks(folder: Path, log: Any) -> dict[int, float]:
    """The validation losses noted of a log's steps; a step that was looked at again has the later one.

    A look notes the slot of its step's record: what the log went back over does not count.
    """
    found = {}
    for line in notes(folder):
        step, loss = line.get("step"), line.get("loss")
        good = line.get("event") == "valid" and isinstance(step, int) and isinstance(loss, float)
        if (
            good
            and 0 < step <= len(log)
            and math.isfinite(loss)
            and line.get("seq", log[step - 1].seq) == log[step - 1].seq
        ):
            found[step] = loss
    return dict(sorted(found.items()))


def step_of(log: Any, at: str | None) -> int:
    """How many steps of a log are meant by a number, `last` or `best`, the lowest validation loss noted beside it.

    None: as the log's own recipe says. UsageError: no such step, or nothing is noted.
    """
    steps, shared = len(log), getattr(log, "delivers", None)
    if at is None and shared is not None:
        return int(shared)
    at = at or ("last" if of_optimizer(log.header) else recipe_of(log.header, str(log.path)).eval.select)
    if at == "best":
        if not (losses := looks(log.path.parent, log)):
            raise UsageError(
                f"{log.path}: no validation loss is noted beside it ({METRICS}), so no step is the best. Train with "
                f"data.valid, or name a step: --at last, or a number up to {steps:,}."
            )
        return min(losses, key=losses.__getitem__)
    if at == "last":
        return steps
    if at.isdecimal() and len(at) < 12 and int(at) <= steps:
        return int(at)
    raise UsageError(f"--at {plain(at)}: not last, best or a number of steps; the log has {steps:,}.")


# -- parts


@dataclass
class Texts:
    """The tokenised rows of a run; dropped and truncated counts by set."""

    train: Any
    valid: Any
    test: Any
    counts: dict[str, dict[str, int]]


def texts(recipe: Recipe, tokenizer: Any, limit: int) -> Texts:
    """The recipe's rows, tokenised. DataError: whatever is wrong with a file, a row or a label."""
    from ..scoring.rows.sets import few, sets

    data = recipe.data
    rows, parts, more = sets(data, recipe.task.fields())
    found, counts = {}, {}
    for which, some in {"train": rows, **parts}.items():
        if data.per_class and (which == "train" or (which == "valid" and isinstance(data.valid, Split))):
            some = few(some, data.per_class, recipe.task.label, recipe.seed, which)
        found[which], counts[which] = recipe.task.encode(some, tokenizer, limit, data.on_overflow)
    counts["train"] |= more
    return Texts(found["train"], found.get("valid"), found.get("test"), counts)


@dataclass
class Bench:
    """What measuring needs: the base, the data, the task, and the space attached to the base."""

    recipe: Recipe
    base: Any
    texts: Texts
    task: Any
    space: Any

    @property
    def limit(self) -> int:
        """Tokens of a sequence at most: past its context LLaMA computes garbage without an error, OPT raises."""
        return min(self.recipe.data.max_length, self.base.context_length)

    @classmethod
    def build(cls, recipe: Recipe) -> Bench:
        from ..scoring.models.base import suits
        from ..scoring.models.loading import load

        base = load(recipe.model)
        suits(word_of(recipe.task), getattr(recipe.task, "head", "CausalLM"), base.facts)
        space = recipe.space.attach(base, recipe.seed, initial(recipe.noise))  # virtual tokens take of the context
        found = texts(recipe, base.tokenizer, min(recipe.data.max_length, base.context_length))
        task = recipe.task.over(found.train, recipe.seed, recipe.train.batch)
        return cls(recipe, base, found, task, space)

    def header(self) -> Header:
        from ..scoring.models.loading import tokenizer_digest

        recipe = self.recipe
        first = self.space.leaves()[0].value
        return Header(
            block=canonical({"recipe": recipe.resolved(), "space": self.space.describe()}),
            directions=capacity(recipe.estimator, recipe.train.steps),
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
            manifest=manifest(self.space),
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
            bits(),
            watchdog=Watchdog(r.train.watchdog) if r.train.watchdog else None,
            rewound=lambda: move(self.space, replayer(log).space),
            workers=workers,
        )


def bits() -> Any:
    """Where stochastic rounding's random bits come from: a function of (key, leaf)."""
    from ..methods.noise._uniform import rounding

    return rounding


def initial(noise: Any) -> Any:
    """What initial values are drawn from: the run's noise, unless that leaves elements out or is of another variance."""
    return noise if noise.dense else part("noise", "normal")()


def manifest(space: Any) -> bytes:
    """SHA-256 over the ordered (name, offset, shape, dtype) of everything trained."""
    rows = [[p.name, p.offset, list(p.shape), leaf.storage] for leaf in space.leaves() for p in leaf.parts]
    return hashlib.sha256(canonical(rows)).digest()


def environment(base: Any) -> dict[str, Any]:
    """What the forward's bits may depend on; its digest is the log's SESSION record."""
    import platform

    import bitsandbytes
    import torch
    import transformers

    from ..methods.noise import _fused

    device = torch.cuda.get_device_name(0) if base.device.type == "cuda" else platform.processor() or platform.machine()
    own = {"kernel": _fused.about()} if base.device.type == "cuda" else {}
    return {
        "torch": torch.__version__, "transformers": transformers.__version__, "bitsandbytes": bitsandbytes.__version__,
        "device": f"{base.device.type} {device}", "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(), "compute": str(base.dtype), "linear": "train mode, others eval, dropout 0",
        "attention": base.model.config._attn_implementation, **own,
    }  # fmt: skip


# -- opening


def begin(bench: Bench, folder: Path, parent: Any = None) -> Log:
    """A new run: recipe.yaml and the log's header, both durable; of a branch, with the parent's steps.

    LockedError: another process was faster.
    """
    from . import branch

    if parent is not None:
        branch.begin(parent, bench.header(), bench.recipe, folder / LOG)
    write_durably(folder / RECIPE, dump(bench.recipe).encode())
    try:
        return Log.create(folder / LOG, bench.header()) if parent is None else Log.resume(folder / LOG)
    except FileExistsError:
        raise LockedError(
            f"{folder / LOG}: another zoedge process has just begun this run. Wait for it, or stop it."
        ) from None


def recipe_digest(recipe: Recipe) -> bytes:
    return hashlib.sha256(canonical(recipe.semantic())).digest()


def same_recipe(log: Header, recipe: Recipe, run: Path) -> None:
    """IdentityError unless the log was begun by a recipe that decides the same numbers; no model is needed to tell."""
    if log.recipe != recipe_digest(recipe):
        refuse(run, settings(log.about.get("recipe"), recipe.resolved()))


def differences(log: Header, now: Header) -> list[str]:
    """What of a run's identity is another now, in words that name the field."""
    found = []
    if log.recipe != now.recipe:
        found += settings(log.about.get("recipe"), now.about.get("recipe"))
    words = {
        "base": "the base model (model.source, quantization)", "tokenizer": "the tokenizer",
        "data": "data.train content", "manifest": "the trained tensors", "initial": "their initial values",
        "selftest": "this device's arithmetic (self-test)",
    }  # fmt: skip
    for name in DIGESTS[1:]:
        a, b = getattr(log, name), getattr(now, name)
        if a != b:
            found.append(f"{words[name]} (sha256 {a[:4].hex()}.. -> {b[:4].hex()}..)")
    return found


def settings(old: Any, new: Any) -> list[str]:
    """What two recipes differ in; nothing of them is trusted, a log may be anyone's."""
    return [plain(f"{path} {a} -> {b}".strip()) for path, a, b in changed(old, new)] or ["the recipe"]


def changed(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if path + key not in ("name", "output", "eval"):
                yield from changed(
                    old.get(key), new.get(key), f"{path}{key}." if isinstance(old.get(key), dict) else path + key
                )
    elif old != new:
        yield path, old, new


def same(log: Header, now: Header, run: Path) -> None:
    """IdentityError unless the log is of this base, tokenizer, data, recipe and arithmetic."""
    if found := differences(log, now):
        refuse(run, found)


def refuse(run: Path, found: list[str]) -> None:
    raise IdentityError(
        f"Cannot resume {run}: what was trained on changed: {', '.join(found)}. Undo the change, or start a new run "
        "(another name, or --run-dir)."
    )


def same_base(log: Header, now: Header, run: str) -> None:
    """IdentityError unless a trained state means on this base what it meant when it was trained."""
    off = [
        w
        for w in differences(log, now)
        if w.startswith(("the base", "the tokenizer", "the trained", "their", "this dev"))
    ]
    if off:
        raise IdentityError(f"{run} does not belong to what is here now: {', '.join(off)}.")


def of_optimizer(header: Header) -> bool:
    """Is it the log of a zoedge.optim.ZerothOrder? Then no recipe is in it."""
    return isinstance(header.about.get("optimizer"), dict)


def recipe_of(header: Header, where: str) -> Recipe:
    """The recipe inside a log, checked as strictly as a user's. UsageError: there is none, it is an optimiser's."""
    if of_optimizer(header):
        raise UsageError(
            f"{where} is the log of a zoedge.optim.ZerothOrder: no recipe made it, and only its own program has the loss. "
            "`zoedge replay` and `verify --replay` read it, with --base FILE.safetensors: the values it began with."
        )
    try:
        table = header.about["recipe"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DamagedError(f"{where}: the header's recipe cannot be read ({type(e).__name__}).") from None
    return check(table, {}, f"{where} (its recipe)")


def parent_of(header: Header) -> dict[str, Any]:
    """Of a branch, the parent's fingerprint and how many of its steps came first; else an empty fingerprint and 0."""
    found = header.about.get("parent", {"fingerprint": "", "step": 0})
    match found:
        case {"fingerprint": str(), "step": int(step), **more} if step >= 0 and not more:
            return dict(found)
    raise DamagedError(f"{header.where}: what the header says of a parent run cannot be read.")


def base_of(log: Log, recipe: Recipe, source: str | None = None, **changes: Any) -> Any:
    """A log's base, loaded from `source`, else as the recipe says. IdentityError: it is another."""
    from ..scoring.models.loading import load

    base = load(recipe.model.model_copy(update=changes | ({"source": source, "revision": None} if source else {})))
    if base.digest != log.header.base:
        raise IdentityError(
            f"{log.path}: the base in {base.path} is not the one that was trained on (sha256 {log.header.base[:4].hex()}.."
            f" -> {base.digest[:4].hex()}..). Name that one's folder with --base."
        )
    return base


def over_base(run: Run, log: Log, source: str | None = None) -> Any:
    """A replayed run's space over its base, which is loaded from `source`, else as the log's recipe says."""
    recipe = recipe_of(log.header, str(log.path))
    return move(recipe.space.attach(base_of(log, recipe, source), run.seed, initial(recipe.noise)), run.space)


def replayer(log: Log, device: str = "cpu", base: str | None = None) -> Run:
    """The half of a run that needs no data and no forward, from the log alone. IdentityError: arithmetic or noise differ.

    A space whose first values are the base's own takes them from `base` (a folder or another source), else from where
    the recipe says. IdentityError: that is another base.
    """
    if of_optimizer(log.header):
        from ..optim import replayer

        return replayer(log, device, base)
    recipe = recipe_of(log.header, str(log.path))
    header = log.header
    numbered(log, recipe.noise, recipe.rule)
    about = header.about.get("space")
    if recipe.space.elements(about) != header.elements:  # before anything is allocated by it
        raise DamagedError(
            f"{log.path}: its description of what is trained is not one of {header.elements:,} elements."
        )
    own = getattr(recipe.space, "own_start", False)
    space = own_start(log, recipe, device, base) if own else blank(log, recipe, device)
    proven(log, space, recipe.noise, recipe.rule)
    return Run(header.seed, recipe.train.steps, log, space, recipe.noise, recipe.rule, bits=bits())


def numbered(log: Log, noise: Any, rule: Any) -> None:
    """IdentityError: the header's frozen numbers of noise and rule are not those of its settings."""
    header = log.header
    for kind, attribute, number, made in (
        ("noise", "scheme", header.noise, noise),
        ("rule", "rule", header.rule, rule),
    ):
        if getattr(made, attribute) != number:
            raise IdentityError(
                f"{log.path}: the header says {by_id(kind, attribute, number)}, its recipe another {kind}."
            )


def proven(log: Log, space: Any, noise: Any, rule: Any) -> None:
    """IdentityError: this space, at its start, or this device's arithmetic would not replay the log's bits."""
    header, first = log.header, space.leaves()[0].value
    for what, ours, theirs in (
        ("trained tensors", manifest(space), header.manifest),
        ("initial values", digest(space), header.initial),
        ("arithmetic (self-test)", selftest(noise, rule, first[:1].float().new_zeros(1024)), header.selftest),
    ):
        if ours != theirs:
            raise IdentityError(f"{log.path}: this machine's {what} are not the log's: it would replay other bits.")


def blank(log: Log, recipe: Recipe, device: str) -> Any:
    """The recipe's space from the log's description alone. DataError: memory cannot hold what the log describes."""
    import psutil

    header = log.header
    wanted, free = 4 * header.elements, psutil.virtual_memory().available
    try:
        if device == "cpu" and wanted > free:  # the kernel would promise more than it has, and then kill us
            raise MemoryError
        return recipe.space.blank(header.about["space"], header.seed, initial(recipe.noise), device)
    except (MemoryError, RuntimeError) as e:  # torch's own, of either kind of memory, is a RuntimeError
        raise DataError(
            f"{log.path}: what it trains, {header.elements:,} elements, needs {wanted / 1e9:,.1f} GB of memory: "
            f"{free / 1e9:,.1f} GB are free."
        ) from e


def move(space: Any, to: Any) -> Any:
    """The space, at the value that another one of the same tensors has."""
    for ours, theirs in zip(space.leaves(), to.leaves()):
        ours.value.copy_(theirs.value)
    return space


def own_start(log: Log, recipe: Recipe, device: str, source: str | None) -> Any:
    """A space over its base as the run found it, stored as the log says: `auto` may be another type on this device."""
    stored = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[log.header.about["space"]["storage"]]
    base = base_of(log, recipe, source, device=device, compute_dtype=stored)
    return recipe.space.attach(base, log.header.seed, initial(recipe.noise))
