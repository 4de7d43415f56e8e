"""`zoedge verify`: four levels of proof that a log is what it says, by its bytes, its inputs, its states and its adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..core import digests, engine
from ..core import run as core_run
from ..core.exact import round_stochastic
from ..core.types import Leaf, Record, Space
from ..errors import IdentityError, ReplayError, make_printable
from ..log.log import Log
from ..log.packed import AnyLog
from ..recipe.recipe import Recipe
from ..run import auto, identity, replay, setup
from ..run.folder import RECIPE_FILE, resolve_step
from ..scoring.sources.file_digests import without_memos


def check_integrity(log: Log) -> list[str]:
    """Prove level 1, the log alone, and return what it says, in sentences.

    Opening the log has checked the chain and every slot. This checks that a state hash stands wherever one must.
    """
    identity.check_states_known(log)
    state = log.state
    sentences = [
        f"{len(log):,} steps in {log.seq:,} slots, {log.size:,} bytes: every slot and link is intact",
        f"fingerprint {log.fingerprint}",
    ]
    if log.torn:
        sentences.append("the file ends in an unfinished write (torn tail): the steps before it are whole")
    if state.rewinds:
        sentences.append(f"{state.rewinds} rewinds")
    if (parent := identity.parent_from_header(log.header))["step"]:
        sentences.append(
            f"a branch: its first {parent['step']:,} steps are those of {make_printable(parent['fingerprint'])}"
        )
    if edit := identity.find_recipe_edit(log.header, log.path.parent / RECIPE_FILE):
        sentences.append(edit)
    sentences.append(
        "finished" if state.end is not None else "incomplete: no END record (stopped, or cut at a record's boundary)"
    )
    return sentences


def check_inputs(log: Log, recipe: Recipe) -> list[str]:
    """Prove level 2, the inputs: base, tokenizer, data, recipe, tensors, arithmetic, and the batch of each step.

    All of them are made anew from `recipe`, and no digest is taken from a memo. IdentityError names what differs.
    """
    with without_memos():
        measuring = setup.Measuring.build(auto.fill_from_log(recipe, log.header), log.header)
    here = measuring.header()
    if differences := identity.identity_differences(log.header, here) + identity.held_out_differences(log.header, here):
        raise IdentityError(f"{log.path} is not a log of this recipe: {', '.join(differences)}.")
    parents = identity.parent_from_header(log.header)["step"]  # whose data may be others
    for record in islice(log, parents, None) if isinstance(log, Log) else ():  # a packed log has no batch checks
        if (check := measuring.task.batch(record.step).check) != record.check:
            raise IdentityError(
                f"{log.path}: step {record.step} was measured on another batch (crc {record.check:08x}, here {check:08x})."
            )
    return [
        f"base, tokenizer, data, recipe, tensors, arithmetic and {len(log) - parents:,} batches are the ones it was made with",
        *name_unknown_inputs(log),
    ]


def name_unknown_inputs(log: Log) -> list[str]:
    """Return a sentence on what a log of an older version has no digests of; none if it has them all."""
    if identity.logged_inputs(log.header):
        return []
    return ["its header is older than digests of the tokenizer's files, generation_config.json and held-out rows"]


def check_states(log: AnyLog, device: str = "cpu", base: str | None = None) -> tuple[core_run.Run, list[str]]:
    """Prove level 3, the states: replay the log, and compare every hash in it. Return the run and the result in words.

    base: where the base is, if not where the recipe says, for a space that starts from its weights. ReplayError names the first
    step that differs.
    """
    run = replay.build_replay_run(log, device, base)
    try:
        for _ in engine.play(run, len(log)):
            pass
    except ReplayError as e:
        raise ReplayError(f"{e}\n{find_difference(log, device, base)}") from None
    state = digests.digest(run.space)
    if log.state.end is not None and log.state.end != state[:24]:
        raise ReplayError(f"{log.path}: all hashes agree, and the final state is not the one that END says.")
    return run, [f"replayed {len(log):,} steps: {len(log.state.hashes)} state hashes agree, state {state.hex()[:16]}"]


def cut_replay(log: AnyLog, whole: core_run.Run, at: str | None, base: str | None) -> core_run.Run:
    """Return the replay of a log up to a step: `whole`, the replay of all steps, if that is the last one."""
    steps = resolve_step(log, at)
    if steps == len(log):
        return whole
    run = replay.build_replay_run(log, base=base)
    for _ in engine.play(run, steps):
        pass
    return run


class NumpySpace(Space):
    """A space's leaves as numpy arrays: the second implementation, with no line of torch in noise, rule or update.

    It is never attached to a model: nothing can be measured with it.
    """

    lean = True

    def __init__(self, space: Space):
        values: list[Any] = [leaf.value.float().cpu().numpy().copy() for leaf in space.leaves()]
        self._leaves = [replace(leaf, value=value) for leaf, value in zip(space.leaves(), values)]

    def leaves(self) -> list[Leaf]:
        """Return the leaves, whose values are numpy arrays."""
        return self._leaves

    def describe(self) -> dict[str, Any]:
        """Refuse: these leaves belong to no model."""
        raise NotImplementedError("numpy's leaves belong to no model")

    def visit(self, deltas: Sequence[Any]) -> AbstractContextManager[None]:
        """Refuse: these leaves belong to no model."""
        raise NotImplementedError("numpy's leaves belong to no model")

    def add(self, leaf: Leaf, delta: Any, decay: float, bits: Any = None) -> None:
        """Set the leaf to leaf * decay + delta in float32, rounded and bounded as the space that is checked does it."""
        value: Any = leaf.value
        if decay != 1.0:
            np.multiply(value, np.float32(decay), out=value)
        np.add(value, delta, out=value)
        if bits is not None:
            value[:] = round_stochastic(value, bits(leaf), leaf.storage)
        np.maximum(value, np.float32(leaf.least), out=value)


class UncheckedLog:
    """The records of a log without its hashes, so that replay goes on past a state that differs."""

    def __init__(self, log: AnyLog):
        self.log = log

    def __len__(self) -> int:
        return len(self.log)

    def __getitem__(self, step: int) -> Record:
        return self.log[step]

    def seal(self, step: int, digest: Callable[[], bytes]) -> None:
        """Do nothing: the states are compared elsewhere."""
        pass


def find_difference(log: AnyLog, device: str = "cpu", base: str | None = None) -> str:
    """Return which step, tensor and element differ first between torch here and numpy, as a sentence.

    Where the two agree, it names the window of steps in which the log's own state is another.
    """
    first = replay.build_replay_run(log, device, base)
    records: Any = UncheckedLog(log)
    runs_ = [
        core_run.Run(first.seed, first.steps, records, space, first.noise, first.rule, bits=first.bits)
        for space in (first.space, NumpySpace(first.space))
    ]
    last = 0
    steps: Iterator[tuple[Any, Any]] = zip(*(engine.play(run, len(records)) for run in runs_))
    for record, _ in steps:
        for a, b in zip(runs_[0].space.leaves(), runs_[1].space.leaves()):
            ours, theirs = a.value.float().cpu().numpy(), np.asarray(b.value)
            if ours.tobytes() != theirs.tobytes():
                where = int(np.flatnonzero(ours.view("<u4") != theirs.view("<u4"))[0])
                name = next((p.name for p in reversed(a.parts) if p.offset <= a.offset + where), a.name)
                return (
                    f"This device's arithmetic is at fault: torch and numpy differ first at step {record.step}, {name}, "
                    f"element {where}: {ours[where]!r} and {theirs[where]!r}."
                )
        done = record.step + 1
        if (known := log.state.hashes.get(done)) is not None:
            if known != digests.digest(runs_[0].space)[:24]:
                return f"torch and numpy agree here: the log's states are off from some step in {last}..{record.step}."
            last = done
    return "torch and numpy agree here at every step."


def check_adapter(run: core_run.Run, log: Log, folder: Path, base: str | None = None) -> list[str]:
    """Prove level 4: the tensors of an exported adapter are the replayed ones, bit for bit. Return the result in words."""
    from .export import folder as export_folder
    from .export import peft

    space: Any = run.space
    whole = space if space.complete else replay.attach_replayed(run, log, base)
    count = 0
    for name, member in export_folder.list_members(whole):
        tensors = peft.load_adapter(folder / name, member, log.header.base, log.fingerprint)
        for key, value in member.tensors():
            if value.cpu().numpy().tobytes() != tensors[key].float().numpy().tobytes():
                raise ReplayError(f"{folder / name}: {key} is not what the log replays to.")
            count += 1
    return [f"{folder}: {count} tensors equal the replayed ones, bit for bit"]
