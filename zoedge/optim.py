"""This module has `ZerothOrder`, an optimiser in torch's style that needs losses alone, for any module and any closure.

    optimizer = zoedge.optim.ZerothOrder(model.named_parameters(), lr=1e-3, eps=1e-3)
    loss = optimizer.step(lambda: loss_of(model))

It is the engine of a recipe's run, with the closure as the task and the parameters as the space. The log does not hold the
values that the parameters had before the first step: replay is given them (`base`), and compares their digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .core import digests, engine, oracle, run
from .core.canonical import encode_canonical
from .core.exact import HALF_FORMATS
from .core.memory import MemoryLog
from .core.parts import PART_FOLDERS, list_words, load_part
from .core.types import AbstractEstimator, AbstractNoise, AbstractRule
from .errors import DataError, DivergedError, IdentityError, UsageError, ZoedgeError, make_printable
from .log.header import Header
from .log.log import Log
from .methods.spaces._parameters import ParameterSpace, dtype_name, explain_change
from .recipe.parts import incompatible_parts, parse_options
from .recipe.recipe import part_name
from .run import identity as run_identity
from .run.parameters import UNBOUNDED_STEPS

TRAINABLE_TYPES = ("float32", *HALF_FORMATS)


# -- the task


class ClosureError(Exception):
    """Carries what the closure raised through the engine, which must not take it for a fault of its own."""


class ClosureBatch(NamedTuple):
    """Stands for a batch that only the closure knows."""

    check: int = 0
    tokens: int = 1

    def __len__(self) -> int:
        return 1

    def slice_examples(self, first: int, end: int) -> ClosureBatch:
        """Return the batch itself: it cannot be cut."""
        return self


class ClosureTask:
    """A task whose score is what the closure returns."""

    option_count = 0

    def __init__(self) -> None:
        self.closure: Callable[[], Any] | None = None

    def batch(self, step: int) -> ClosureBatch:
        """Return the one batch that there is."""
        return ClosureBatch()

    def score(self, model: object, batch: object, copies: int) -> Tensor:
        """Return the loss of the closure as [1, 1]. UsageError: it returned something else. ClosureError: it raised."""
        assert self.closure is not None
        try:
            answer = self.closure()
        except Exception as e:
            raise ClosureError from e
        try:
            if isinstance(answer, Tensor):
                answer = answer.detach().item()
            loss = float(answer) if not isinstance(answer, (str, bytes)) else None
        except (TypeError, ValueError, RuntimeError):
            loss = None
        if loss is None:
            what = f"a tensor of shape {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            raise UsageError(f"The closure returned {what}: it must return one number, the loss (a forgotten return?).")
        return torch.tensor([[loss]], dtype=torch.float64)


# -- the optimiser


class ZerothOrder(torch.optim.Optimizer):
    """Moves parameters by differences of a loss: `step(closure)`, where closure() returns the loss at their present values.

    Within a step the closure must return the same loss for the same parameters: the same batch, and no dropout. No gradient
    is recorded while it is called. Each step reads `param_groups[0]["lr"]`, so torch's schedulers work; a record has one
    lr, so all groups share it.

    Args:
        params: tensors, or (name, tensor) pairs such as `module.named_parameters()`, or torch's groups of either. Those
            that do not require a gradient stay as they are. The others are float32, bfloat16 or float16; a 16-bit one
            costs 4 bytes more an element, for its float32 master.
        lr, eps, queries: the options of the rule and the estimator; None keeps their own defaults.
        noise, estimator, rule: a recipe's words, tables such as {"name": "low_rank", "rank": 2}, or objects.
        seed: what the directions are drawn from.
        steps: the length of the whole run, for parts with schedules of that length.
        log: the log's file; if it exists, the run goes on where it ends. None keeps the records in memory alone.
        hash_every, sync_every: as in a recipe's `log`.

    Raises:
        UsageError: an argument is wrong. IdentityError: the log is of other parameters, values or methods.
        DamagedError, LockedError, StorageError: the log's file. DivergedError: eight losses in a row were not finite.
    """

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        *,
        eps: float | None = None,
        noise: str | Mapping[str, Any] | AbstractNoise = "rademacher",
        estimator: str | Mapping[str, Any] | AbstractEstimator = "two_sided",
        rule: str | Mapping[str, Any] | AbstractRule = "sgd",
        queries: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        log: str | os.PathLike[str] | None = "run.zlog",
        hash_every: int = 100,
        sync_every: int = 64,
    ):
        self._journal: MemoryLog | Log | None = None
        check_whole_numbers(seed, steps, hash_every, sync_every)
        self._noise = build_part("noise", noise)
        self._estimator = build_part("estimator", estimator, eps=eps, queries=queries)
        self._rule = build_part("rule", rule, lr=lr)
        parts = {"noise": self._noise, "estimator": self._estimator, "rule": self._rule}
        check_parts(parts, steps)
        try:
            super().__init__(params, {"lr": self._rule.lr})
        except (ValueError, TypeError) as e:
            raise UsageError(f"params: {make_printable(str(e), 300)}.") from None
        for group in self.param_groups:  # torch's schedulers want it where they go on at last_epoch=steps - 1
            group.setdefault("initial_lr", group["lr"])
        self._space = ParameterSpace(trainable_tensors(self.param_groups))
        settings: dict[str, Any] = {"seed": seed, "steps": steps, "hash_every": hash_every}
        settings |= {key: {"name": part_name(part), **asdict(part)} for key, part in parts.items()}
        directions = oracle.slot_capacity(self._estimator, steps or UNBOUNDED_STEPS)
        header = make_header(settings, self._space, directions, sync_every, self._noise, self._rule)
        self._task, self._broken = ClosureTask(), False
        self._journal = MemoryLog() if log is None else open_or_create(Path(log), header)
        self._run = self._replay(seed, steps or UNBOUNDED_STEPS)
        self._versions = self._read_versions()
        self._space.watch()

    def _replay(self, seed: int, steps: int) -> run.Run:
        """Bring the parameters to the end of the log, and return the run that goes on from there."""
        replayed = run.Run(seed, steps, self._log, self._space, self._noise, self._rule, task=self._task)
        try:
            for _ in engine.play(replayed, len(self._log)):
                pass
        except BaseException:
            self.close()
            raise
        replayed.estimator = self._estimator  # not before: a log that diverged is replayed too
        return replayed

    @property
    def _log(self) -> MemoryLog | Log:
        assert self._journal is not None
        return self._journal

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float:  # type: ignore[override]
        """Take one step, and return the mean of the losses that it measured.

        Whatever the closure raises is raised as it is, and the parameters then have the bits that they had before.
        """
        if closure is None:
            raise UsageError(
                "step: give it a closure that returns the loss, such as optimizer.step(lambda: loss_of(model))."
            )
        self._check_ready()
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) > 1:
            raise UsageError(f"One lr a step is logged, and the groups have {', '.join(map(repr, sorted(rates)))}.")
        (lr,) = rates
        try:
            if not 0 <= lr < math.inf:
                raise ValueError("not a step size")
            self._run.rule = replace(self._rule, lr=lr)
        except ValueError as e:
            raise UsageError(f"lr: {lr!r}: {e}.") from None
        before = len(self._log)
        self._task.closure = closure
        try:
            record = next(engine.play(self._run, before + 1, before))
        except ClosureError as e:
            assert e.__cause__ is not None
            raise e.__cause__ from None
        except DataError as e:  # the engine's own: what the closure raises comes as ClosureError
            raise DataError(
                "Memory ended while the parameters were moved to a point: a step needs room for another copy of them, and for "
                "its directions (4 bytes an element each). Nothing was changed."
            ) from e
        except DivergedError:
            raise DivergedError(
                f"The loss is not finite at steps {before - 8}..{before - 1}: no step moved anything. Lower lr or eps, and "
                "begin again with the parameters' first values and another log."
            ) from None
        finally:
            self._task.closure = None
            self._broken = len(self._log) > before  # a record is in the log: broken until it is known to be applied
        self._broken = False
        self._space.watch()
        return math.fsum(record.losses) / max(1, len(record.losses))

    def _check_ready(self) -> None:
        """Raise UsageError if a step would not be what the log would say of it."""
        if self._broken:
            raise UsageError(
                "The last step was interrupted. Make the optimiser again, over the parameters' first values."
            )
        if isinstance(self._journal, Log) and not self._journal.writable:
            raise UsageError(f"{self._journal.path}: finished, or closed. Make the optimiser again to go on.")
        for name, now in self._read_versions().items():
            if now != self._versions[name]:
                raise UsageError(explain_change(name))

    def _read_versions(self) -> dict[str, tuple[int, int]]:
        """Return what changes when others write to a parameter or move it; our own writes do not raise torch's count."""
        return {name: (p._version, p.data_ptr()) for name, p in self._space.parameters.items()}

    @property
    def steps(self) -> int:
        """How many steps were taken, those that the log held at the start included."""
        return len(self._log)

    @property
    def fingerprint(self) -> str | None:
        """The log's last chain value, 32 hexadecimal digits; None: the records are in memory alone."""
        return self._journal.fingerprint if isinstance(self._journal, Log) else None

    def finish(self) -> str | None:
        """Write the digest of the final state into the log, close it, and return its fingerprint. No step can follow."""
        self._check_ready()
        self._space.check_watched()
        if isinstance(self._journal, Log):
            self._journal.finish(digests.digest(self._space))
        self.close()
        return self.fingerprint

    def close(self) -> None:
        """Write the log to the disk and release its lock. UsageError: something else has changed a parameter meanwhile."""
        if isinstance(self._journal, Log):
            goes_on = self._journal.writable and not self._broken
            self._journal.close()
            if goes_on:
                self._space.check_watched()

    def __enter__(self) -> ZerothOrder:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        with suppress(UsageError) if kind else nullcontext():  # the block's own error is the one to show
            self.close()

    # -- what torch asks of an optimiser

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in a group while the optimiser is made; afterwards, refuse it with UsageError."""
        if self._journal is not None:
            raise UsageError("Parameters cannot be added: the log is of those that were given when it began.")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return where the state is: the log's path, its fingerprint and its number of steps. Nothing else is state."""
        path = str(self._journal.path) if isinstance(self._journal, Log) else None
        return {"log": path, "steps": self.steps, "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Check that the log, which was replayed when the optimiser was made, is at this state's step.

        IdentityError: it is at another.
        """
        if not isinstance(self._journal, Log):
            raise UsageError("load_state_dict: without a log nothing of the steps before is kept. Use log='run.zlog'.")
        wanted = state_dict.get("steps"), state_dict.get("fingerprint")
        if wanted != (here := (self.steps, self.fingerprint)):
            raise IdentityError(
                f"{self._journal.path}: it is at step {here[0]} ({here[1]}), and the state at step "
                f"{make_printable(str(wanted[0]))} ({make_printable(str(wanted[1]))}). The log is the state: make the "
                "optimiser with the one that the state is of."
            )


def check_whole_numbers(seed: int, steps: int | None, hash_every: int, sync_every: int) -> None:
    """Raise UsageError if one of the numbers is not whole, or is out of the range that the log has for it."""
    for name, value, least, most in (
        ("seed", seed, 0, 2**64 - 1),
        ("steps", 1 if steps is None else steps, 1, UNBOUNDED_STEPS),
        ("hash_every", hash_every, 1, 2**32 - 1),
        ("sync_every", sync_every, 1, 4096),
    ):
        if type(value) is not int or not least <= value <= most:
            raise UsageError(f"{name}: {make_printable(repr(value))} is not a whole number in {least}..{most}.")


def check_parts(parts: dict[str, Any], steps: int | None) -> None:
    """Raise UsageError if the parts do not go together, or depend on the length of a run that has none."""
    for key, where, allowed, found in incompatible_parts(parts):
        raise UsageError(f"{key}: {part_name(parts[key])} goes only with {where}: {allowed}, not {found}.")
    if (estimator := parts["estimator"]).per_example or estimator.differentiates:
        reads = "reads the losses of single examples" if estimator.per_example else "differentiates a recipe's model"
        what = f"estimator: {part_name(estimator)} {reads}, and a closure returns one number"
        raise UsageError(f"{what}. Take two_sided or fzoo.")
    if steps is not None:
        return
    for key in ("rule", "estimator"):
        if parts[key].bound:
            raise UsageError(f"{key}: {part_name(parts[key])} depends on the length of the run. Say steps=N.")
    if parts["rule"].schedule != "constant":
        raise UsageError(
            f"rule: its schedule is {parts['rule'].schedule}, over how many steps? Say steps=N, or leave the schedule "
            "to torch.optim.lr_scheduler."
        )


def build_part(kind: str, given: Any, **options: Any) -> Any:
    """Return a part from a word, a table or an object, with those of `options` that are not None.

    UsageError lists every mistake.
    """
    if isinstance(given, str):
        table: dict[str, Any] = {"name": given}
    elif isinstance(given, Mapping):
        table = {str(key): value for key, value in given.items()}
    else:
        word = part_name(given)
        if word not in list_words(PART_FOLDERS[kind]) or type(given) is not load_part(kind, word):
            raise UsageError(
                f"{kind}: {make_printable(repr(given))} is not a word, a table with a name, or one of zoedge's {kind}s."
            )
        table = {"name": word, **asdict(given)}
    if not isinstance(word := table.pop("name", None), str):
        raise UsageError(f"{kind}: {make_printable(repr(given))} has no name.")
    part_class = load_part(kind, word)
    for key, value in options.items():
        if value is not None:
            if key not in part_class.__dataclass_fields__:
                known = ", ".join(part_class.__dataclass_fields__)
                raise UsageError(f"{kind}: {word} has no {key}; it has {known or 'no options'}.")
            table[key] = float(value) if isinstance(value, int) and key != "queries" else value
    try:
        return parse_options(part_class, [f"{key}={json.dumps(value)}" for key, value in table.items()])
    except (TypeError, ValueError, ZoedgeError) as e:
        raise UsageError("\n".join(f"{kind}.{line}" for line in str(e).splitlines())) from None


def trainable_tensors(groups: Iterable[dict[str, Any]]) -> list[tuple[str, Tensor]]:
    """Return (name, tensor) of every parameter that is trained. UsageError: there is none, or one is of another type."""
    trained: dict[str, Tensor] = {}
    for i, group in enumerate(groups):
        for j, p in enumerate(group["params"]):
            name = group["param_names"][j] if "param_names" in group else f"{i}.{j}"
            if not p.requires_grad or not p.numel():
                continue
            if dtype_name(p) not in TRAINABLE_TYPES:
                raise UsageError(
                    f"{make_printable(name)} is {dtype_name(p)}: {', '.join(TRAINABLE_TYPES)} can be trained."
                )
            if name in trained:
                raise UsageError(f"Two parameters are named {make_printable(name)}.")
            trained[name] = p
    if not trained:
        raise UsageError(
            "No parameter requires a gradient, which is how those that are to be trained are told from others."
        )
    return list(trained.items())


def make_header(
    settings: dict[str, Any],
    space: ParameterSpace,
    directions: int,
    sync_every: int,
    noise: AbstractNoise,
    rule: AbstractRule,
) -> Header:
    """Return the header that identifies the run. The lr is no part of the identity: every record has its own."""
    about = space.describe()
    identity = {**settings, "rule": {k: v for k, v in settings["rule"].items() if k != "lr"}, "space": about}
    first = space.leaves()[0].value
    return Header(
        block=encode_canonical({"optimizer": settings, "space": about}),
        directions=directions,
        noise=noise.scheme,
        rule=rule.rule,
        seed=settings["seed"],
        elements=sum(leaf.value.numel() for leaf in space.leaves()),
        hash_every=settings["hash_every"],
        sync_every=sync_every,
        recipe=hashlib.sha256(encode_canonical(identity)).digest(),
        base=bytes(32),
        tokenizer=bytes(32),
        data=bytes(32),
        manifest=run_identity.manifest_digest(space),
        initial=digests.digest(space),
        selftest=digests.selftest(noise, rule, first[:1].new_zeros(1024)),
    )


def open_or_create(path: Path, header: Header) -> Log:
    """Create the log, or open the one that exists. IdentityError: it is of another run."""
    if not os.path.lexists(path):
        try:
            return Log.create(path, header)
        except FileExistsError:
            pass  # another process was faster: it has the lock
    log = Log.resume(path)
    try:
        check_same_run(log, header)
    except BaseException:
        log.close()
        raise
    return log


def check_same_run(log: Log, now: Header) -> None:
    """Raise IdentityError unless the log was begun with these settings, tensors and values."""
    if not run_identity.is_optimizer_log(log.header):
        raise IdentityError(
            f"{log.path} is the log of a recipe's run: name another one. `zoedge resume` goes on with it."
        )
    differences, old, new = [], log.header.about, now.about
    if log.header.recipe != now.recipe:
        for key in ("optimizer", "space"):
            changed = run_identity.recipe_changes(old.get(key), new[key])
            differences += [make_printable(f"{name} {a} -> {b}", 200) for name, a, b in changed if name != "rule.lr"]
    differences += run_identity.identity_differences(replace(log.header, recipe=now.recipe), now)
    if differences:
        raise IdentityError(
            f"Cannot go on with {log.path}: it began with other {'; '.join(differences)}. Give the optimiser the parameters "
            "as they were before its first step, and the same settings, or name another log."
        )
