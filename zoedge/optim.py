"""A torch-style optimiser without gradients, for any module and any closure, by the engine and with the log of a run.

    optimizer = zoedge.optim.ZerothOrder(model.named_parameters(), lr=1e-3, eps=1e-3)
    loss = optimizer.step(lambda: loss_of(model))

Each step is `engine.play`: the closure is the task's score, the parameters are the space's leaves, and what is learnt goes
through the log before it is applied. What a log of a recipe has, and such a log cannot have, is where it begins: the
parameters' own values, which replay is given (`base`), and proves by the header's digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
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
from .errors import DataError, DivergedError, IdentityError, UsageError, ZoedgeError, make_printable
from .log.header import Header
from .log.log import Log
from .methods.spaces._parameters import ParameterSpace, dtype_name
from .recipe.parts import incompatible_parts, parse_options
from .recipe.recipe import part_name
from .run import identity as run_identity
from .run.parameters import UNBOUNDED_STEPS

TRAINABLE_TYPES = ("float32", *HALF_FORMATS)


# -- the task


class ClosureError(Exception):
    """The closure has raised: no fault of the engine's, which must not take it for one."""


class ClosureBatch(NamedTuple):
    """A batch that only the closure knows."""

    check: int = 0
    tokens: int = 1

    def __len__(self) -> int:
        return 1


class ClosureTask:
    """A task whose score is whatever a function returns."""

    def __init__(self) -> None:
        self.f: Callable[[], Any] | None = None

    def batch(self, step: int) -> ClosureBatch:
        return ClosureBatch()

    def score(self, model: Any, batch: Any, copies: int) -> Tensor:
        assert self.f is not None
        try:
            found = self.f()
        except Exception as e:
            raise ClosureError from e
        try:
            if isinstance(found, Tensor):
                found = found.detach().item()
            loss = float(found) if not isinstance(found, (str, bytes)) else None
        except (TypeError, ValueError, RuntimeError):
            loss = None
        if loss is None:
            what = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"The closure returned {what}: it must return one number, the loss (a forgotten return?).")
        return torch.tensor([[loss]], dtype=torch.float64)


# -- the optimiser


class ZerothOrder(torch.optim.Optimizer):
    """Moves parameters by differences of a loss: `step(closure)`, where closure() returns the loss of them as they are.

    params: tensors, or (name, tensor) pairs such as `module.named_parameters()`, or torch's groups of either; those that
    do not require a gradient rest. float32, bfloat16 or float16; 16-bit ones cost 4 bytes more an element (the master).
    noise, estimator, rule: words of a recipe, tables ({"name": "low_rank", "rank": 2}), or objects. lr, eps, queries: of
    the rule and the estimator; None: their own defaults. steps: of the whole run, for parts that have schedules of its
    length. log: a file, which is gone on with if it is there, or None: memory alone. sync_every, hash_every: as in a
    recipe's `log`.

    The closure must give the same loss for the same parameters within a step: the same batch, no dropout. No gradient is
    recorded while it is called. Each step reads `param_groups[0]["lr"]`, so torch's schedulers work; the log has one lr
    a step, hence all groups share it.

    UsageError: an argument. IdentityError: the log is of other parameters, values or methods. DamagedError, LockedError,
    StorageError: the log file. DivergedError: eight losses in a row were not finite.
    """

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        *,
        eps: float | None = None,
        noise: Any = "rademacher",
        estimator: Any = "two_sided",
        rule: Any = "sgd",
        queries: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        log: str | os.PathLike[str] | None = "run.zlog",
        hash_every: int = 100,
        sync_every: int = 1,
    ):
        self._journal: Any = None
        for name, value, least, most in (
            ("seed", seed, 0, 2**64 - 1),
            ("steps", 1 if steps is None else steps, 1, UNBOUNDED_STEPS),
            ("hash_every", hash_every, 1, 2**32 - 1),
            ("sync_every", sync_every, 1, 4096),
        ):
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{name}: {make_printable(repr(value))} is not a whole number in {least}..{most}.")
        made = {
            "noise": build_part("noise", noise),
            "estimator": build_part("estimator", estimator, eps=eps, queries=queries),
            "rule": build_part("rule", rule, lr=lr),
        }
        for key, where, allowed, found in incompatible_parts(made):
            raise UsageError(f"{key}: {part_name(made[key])} goes only with {where}: {allowed}, not {found}.")
        self._rule, self._estimator = made["rule"], made["estimator"]
        if steps is None:
            for key in ("rule", "estimator"):
                if made[key].bound:
                    raise UsageError(f"{key}: {part_name(made[key])} depends on the length of the run. Say steps=N.")
            if self._rule.schedule != "constant":
                raise UsageError(
                    f"rule: its schedule is {self._rule.schedule}, over how many steps? Say steps=N, or leave the schedule "
                    "to torch.optim.lr_scheduler."
                )
        try:
            super().__init__(params, {"lr": self._rule.lr})
        except (ValueError, TypeError) as e:
            raise UsageError(f"params: {make_printable(str(e), 300)}.") from None
        for group in self.param_groups:
            group.setdefault(
                "initial_lr", group["lr"]
            )  # which schedulers want where they go on at last_epoch=steps - 1
        self._space = ParameterSpace(trainable_tensors(self.param_groups))
        settings: dict[str, Any] = {"seed": seed, "steps": steps, "hash_every": hash_every}
        settings |= {key: {"name": part_name(value), **asdict(value)} for key, value in made.items()}
        length = steps or UNBOUNDED_STEPS
        header = make_header(settings, self._space, oracle.slot_capacity(self._estimator, length), sync_every, made)
        self._task, self._broken = ClosureTask(), False
        task: Any = self._task
        path = None if log is None else Path(log)
        self._journal = MemoryLog() if path is None else open_or_create(path, header)
        space: Any = self._space
        self._run = run.Run(seed, length, self._journal, space, made["noise"], self._rule, task=task)
        try:
            for _ in engine.play(self._run, len(self._journal)):
                pass
        except BaseException:
            self.close()
            raise
        self._run.estimator = self._estimator  # a log that diverged is replayed too
        self._seen = self._look()

    # -- one step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float:  # type: ignore[override]
        """One step; the mean of the losses that it asked for. Whatever the closure raises comes out as it is, and the
        parameters have the bits that they had before."""
        if closure is None:
            raise UsageError(
                "step: give it a closure that returns the loss, such as optimizer.step(lambda: loss_of(model))."
            )
        self._ready()
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
        before = len(self._journal)
        self._task.f = closure
        try:
            record = next(engine.play(self._run, before + 1, before))
        except ClosureError as e:
            assert e.__cause__ is not None
            raise e.__cause__ from None
        except DataError as e:  # the engine's own: the closure's come as Raised
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
            self._task.f = None
            self._broken = len(self._journal) > before  # until what was logged is known to be applied
        self._broken = False
        return math.fsum(record.losses) / max(1, len(record.losses))

    def _ready(self) -> None:
        """UsageError where a step would not be what the log says of it."""
        if self._broken:
            raise UsageError(
                "The last step was interrupted. Make the optimiser again, over the parameters' first values."
            )
        if isinstance(self._journal, Log) and not self._journal.writable:
            raise UsageError(f"{self._journal.path}: finished, or closed. Make the optimiser again to go on.")
        for name, now in self._look().items():
            if now != self._seen[name]:
                raise UsageError(
                    f"{make_printable(name)} was changed, or moved, by something else than this optimiser: the "
                    "log could not replay "
                    "that. Make the optimiser anew, after such changes and with another log."
                )

    def _look(self) -> dict[str, tuple[int, int]]:
        """What writing to a parameter, or moving it, changes; our own writes go past torch's count."""
        return {name: (p._version, p.data_ptr()) for name, p in self._space.tensors_.items()}

    # -- the log

    @property
    def steps(self) -> int:
        """How many were taken, those of the log included."""
        return len(self._journal)

    @property
    def fingerprint(self) -> str | None:
        """The log's last chain value, 32 hexadecimal digits; None: memory alone."""
        return self._journal.fingerprint if isinstance(self._journal, Log) else None

    def finish(self) -> str | None:
        """Write the final state's digest into the log, after which nothing can follow, and close it: the fingerprint."""
        self._ready()
        if isinstance(self._journal, Log):
            self._journal.finish(digests.digest(self._space))
        self.close()
        return self.fingerprint

    def close(self) -> None:
        """Sync the log and free its lock."""
        if isinstance(self._journal, Log):
            self._journal.close()

    def __enter__(self) -> ZerothOrder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- what torch asks of an optimiser

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self._journal is not None:
            raise UsageError("Parameters cannot be added: the log is of those that were given when it began.")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Where the state is: the log's path and fingerprint, and how many steps it has. Nothing else is state."""
        path = str(self._journal.path) if isinstance(self._journal, Log) else None
        return {"log": path, "steps": self.steps, "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing to load: the log was replayed when the optimiser was made. IdentityError: it is at another step."""
        if not isinstance(self._journal, Log):
            raise UsageError("load_state_dict: without a log nothing of the steps before is kept. Use log='run.zlog'.")
        said = state_dict.get("steps"), state_dict.get("fingerprint")
        if said != (here := (self.steps, self.fingerprint)):
            raise IdentityError(
                f"{self._journal.path}: it is at step {here[0]} ({here[1]}), and the state at step "
                f"{make_printable(str(said[0]))} "
                f"({make_printable(str(said[1]))}). The log is the state: make the optimiser with the one that the state is of."
            )


def build_part(kind: str, given: Any, **more: Any) -> Any:
    """A part from a word, a table or an object, with what is not None of `more`. UsageError: each mistake."""
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
    made = load_part(kind, word)
    for key, value in more.items():
        if value is not None:
            if key not in made.__dataclass_fields__:
                there = ", ".join(made.__dataclass_fields__)
                raise UsageError(f"{kind}: {word} has no {key}; it has {there or 'no options'}.")
            table[key] = float(value) if isinstance(value, int) and key != "queries" else value
    try:
        return parse_options(made, [f"{key}={json.dumps(value)}" for key, value in table.items()])
    except (TypeError, ValueError, ZoedgeError) as e:
        raise UsageError("\n".join(f"{kind}.{line}" for line in str(e).splitlines())) from None


def trainable_tensors(groups: Iterable[dict[str, Any]]) -> list[tuple[str, Tensor]]:
    """(name, tensor) of all that moves. UsageError: nothing does, or a tensor that cannot."""
    found: dict[str, Tensor] = {}
    for i, group in enumerate(groups):
        for j, p in enumerate(group["params"]):
            name = group["param_names"][j] if "param_names" in group else f"{i}.{j}"
            if not p.requires_grad or not p.numel():
                continue
            if dtype_name(p) not in TRAINABLE_TYPES:
                raise UsageError(
                    f"{make_printable(name)} is {dtype_name(p)}: {', '.join(TRAINABLE_TYPES)} can be trained."
                )
            if name in found:
                raise UsageError(f"Two parameters are named {make_printable(name)}.")
            found[name] = p
    if not found:
        raise UsageError(
            "No parameter requires a gradient, which is how those that are to be trained are told from others."
        )
    return list(found.items())


def make_header(settings: dict[str, Any], space: ParameterSpace, directions: int, sync_every: int, made: Any) -> Header:
    """What the run is. The lr is not of its identity: every record has its own."""
    about = space.describe()
    identity = {**settings, "rule": {k: v for k, v in settings["rule"].items() if k != "lr"}, "space": about}
    first = space.leaves()[0].value
    return Header(
        block=encode_canonical({"optimizer": settings, "space": about}),
        directions=directions,
        noise=made["noise"].scheme,
        rule=made["rule"].rule,
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
        selftest=digests.selftest(made["noise"], made["rule"], first[:1].new_zeros(1024)),
    )


def open_or_create(path: Path, header: Header) -> Log:
    """A new log, or the one that is there. IdentityError: of another run."""
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
    """IdentityError unless the log was begun with these settings, tensors and values."""
    if not run_identity.is_optimizer_log(log.header):
        raise IdentityError(
            f"{log.path} is the log of a recipe's run: name another one. `zoedge resume` goes on with it."
        )
    found, old, new = [], log.header.about, now.about
    if log.header.recipe != now.recipe:
        for key in ("optimizer", "space"):
            changed = run_identity.recipe_changes(old.get(key), new[key])
            found += [make_printable(f"{name} {a} -> {b}", 200) for name, a, b in changed if name != "rule.lr"]
    found += run_identity.identity_differences(replace(log.header, recipe=now.recipe), now)
    if found:
        raise IdentityError(
            f"Cannot go on with {log.path}: it began with other {'; '.join(found)}. Give the optimiser the parameters as they "
            "were before its first step, and the same settings, or name another log."
        )
