"""This module compares a run's recipe, base, tokenizer, data and arithmetic with what is here now, and names what differs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..core.canonical import encode_canonical
from ..core.digests import digest, selftest
from ..core.parts import find_word_by_id
from ..core.types import AbstractNoise, AbstractRule, Space
from ..errors import DamagedError, IdentityError, UsageError, ZoedgeError, make_printable
from ..log.header import DIGEST_FIELDS, MINOR, Header
from ..recipe.check import check
from ..recipe.recipe import Recipe

if TYPE_CHECKING:
    from ..log.packed import AnyLog


LONGER_PATTERN = re.compile(r"train\.steps ([0-9]+) -> ([0-9]+)")


def manifest_digest(space: Space) -> bytes:
    """Return the SHA-256 over name, offset, shape and dtype of everything trained, in order."""
    rows = [[p.name, p.offset, list(p.shape), leaf.storage] for leaf in space.leaves() for p in leaf.parts]
    return hashlib.sha256(encode_canonical(rows)).digest()


def initial_digest(space: Space) -> bytes:
    """Return the SHA-256 of a space's values at its start, and of the computed start beside them, where it has one."""
    state = digest(space)
    if space.options is None or not space.options.wants_start:
        return state
    return hashlib.sha256(state + encode_canonical(space.describe())).digest()


def recipe_digest(recipe: Recipe) -> bytes:
    """Return the SHA-256 of what decides a recipe's numbers."""
    return hashlib.sha256(encode_canonical(recipe.semantic())).digest()


def check_same_recipe(log: Header, recipe: Recipe, run: Path) -> None:
    """Raise IdentityError unless the log was begun by a recipe that decides the same numbers. No model is needed."""
    if log.recipe != recipe_digest(recipe):
        refuse_resume(run, describe_changes(log.about.get("recipe"), recipe.resolved()))


def identity_differences(log: Header, now: Header) -> list[str]:
    """Return what of a run's identity differs from what is here now, one phrase for each field."""
    differences = []
    if log.recipe != now.recipe:
        differences += describe_changes(log.about.get("recipe"), now.about.get("recipe"))
    words = {
        "base": "the base model (model.source, quantization)",
        "tokenizer": "the tokenizer",
        "data": "data.train content",
        "manifest": "the trained tensors",
        "initial": "their initial values",
        "selftest": "this device's arithmetic (self-test)",
    }
    for name in DIGEST_FIELDS[1:]:
        a, b = vars(log)[name], vars(now)[name]
        if a != b:
            differences.append(f"{words[name]} (sha256 {a[:4].hex()}.. -> {b[:4].hex()}..)")
    return differences + (input_differences(log, inputs) if (inputs := logged_inputs(now)) else [])


def input_differences(log: Header, now: dict[str, Any]) -> list[str]:
    """Return which files, and what type or quantisation of the base are others than the log's header says.

    now: `Base.inputs`. A log that was written before headers had them differs in nothing.
    """
    old = logged_inputs(log)
    files, known = (table if isinstance(table, dict) else {} for table in (now.get("files"), old.get("files")))
    found = [
        f"{name} of the base ({format_change(known.get(name), files.get(name))})"
        for name in (sorted(known.keys() | files.keys()) if old else ())
        if known.get(name) != files.get(name)
    ]
    for key, words in (("compute", "the type of the forward"), ("quantization", "the base's quantisation")):
        if key in old and old[key] != now.get(key):
            found.append(f"{words} ({old[key]} -> {now.get(key)})")
    return [make_printable(text, 200) for text in found]


def held_out_differences(log: Header, now: Header) -> list[str]:
    """Return which of the validation and test rows are others than those that the log was begun with."""
    old, new = logged_inputs(log), logged_inputs(now)
    if not old:
        return []
    return [
        make_printable(f"data.{which} content ({format_change(old.get(which), new.get(which))})", 200)
        for which in ("valid", "test")
        if old.get(which) != new.get(which)
    ]


def logged_inputs(header: Header) -> dict[str, Any]:
    """Return what a header says of the inputs besides its digests; nothing if it is older than that, or says nonsense."""
    inputs = header.about.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def format_change(old: object, new: object) -> str:
    """Return two digests in hexadecimal as "sha256 a.. -> b..", where None is absent."""
    before, after = ("absent" if x is None else f"{str(x)[:8]}.." for x in (old, new))
    return f"sha256 {before} -> {after}"


def describe_changes(old: Any, new: Any) -> list[str]:
    """Return what two recipes differ in, made printable: a log may come from anyone."""
    return [make_printable(f"{path} {a} -> {b}".strip()) for path, a, b in recipe_changes(old, new)] or ["the recipe"]


def recipe_changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, old value, new value) of what two resolved recipes differ in, names and folders left out."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if path + key not in ("name", "output", "eval", "cache"):
                inner = isinstance(old.get(key), dict) and isinstance(new.get(key), dict)
                yield from recipe_changes(old.get(key), new.get(key), f"{path}{key}." if inner else path + key)
    elif old != new:
        yield path, old, new


def check_same_run(log: Header, now: Header, run: Path) -> None:
    """Raise IdentityError unless the log is of this base, tokenizer, data, recipe and arithmetic."""
    if found := identity_differences(log, now):
        refuse_resume(run, found)


def refuse_resume(run: Path, differences: list[str]) -> NoReturn:
    """Raise IdentityError: the run in this folder is of something else."""
    longer = next((found for what in differences if (found := LONGER_PATTERN.fullmatch(what))), None)
    hint = ""
    if longer is not None and int(longer[1]) < int(longer[2]):
        hint = f" To go on from its end: zoedge finetune RECIPE --from {run}@{longer[1]} name=longer train.steps={longer[2]}"
    raise IdentityError(
        f"Cannot resume {run}: what was trained on changed: {', '.join(differences)}. Undo the change, or start a new run "
        f"(another name, or --run-dir).{hint}"
    )


def check_same_base(log: Header, now: Header, run: str) -> None:
    """Raise IdentityError unless base, tokenizer, trained tensors and arithmetic are those of the log. The data may differ."""
    same_rows = replace(now, recipe=log.recipe, data=log.data)
    off = identity_differences(log, same_rows)
    if off:
        raise IdentityError(f"{run} does not belong to what is here now: {', '.join(off)}.")


def is_optimizer_log(header: Header) -> bool:
    """Return whether it is the log of a zoedge.optim.ZerothOrder, which holds no recipe."""
    return isinstance(header.about.get("optimizer"), dict)


def recipe_from_header(header: Header, where: str) -> Recipe:
    """Return the recipe inside a log, checked as strictly as a user's. UsageError: it is an optimiser's log."""
    if is_optimizer_log(header):
        raise UsageError(
            f"{where} is the log of a zoedge.optim.ZerothOrder: no recipe made it, and only its own program has the loss. "
            "`zoedge replay` and `verify --replay` read it, with --base FILE.safetensors: the values it began with."
        )
    try:
        table = header.about["recipe"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DamagedError(f"{where}: the header's recipe cannot be read ({type(e).__name__}).") from None
    return check(table, {}, f"{where} (its recipe)")


def find_recipe_edit(header: Header, path: Path) -> str:
    """Return a sentence on how a recipe beside a log differs from the one in the log's header; '': it does not, or is gone."""
    from ..recipe.reading import read_recipe

    if not path.is_file() or is_optimizer_log(header):
        return ""
    logged = recipe_from_header(header, header.where).resolved()
    try:
        table = read_recipe(str(path)).resolved()
    except ZoedgeError as e:
        what = f"cannot be read as a recipe any more ({make_printable(str(e).splitlines()[0], 200)})"
    else:
        if table == logged:
            return ""
        sections = [key for key in ("name", "eval", "output") if table[key] != logged[key]]
        changes = [make_printable(f"{key} {a} -> {b}") for key, a, b in recipe_changes(logged, table)] + sections
        what = f"was edited ({', '.join(changes[:5])})"
    return f"{path} {what}: the recipe in the log is the one that counts"


def parent_from_header(header: Header) -> dict[str, Any]:
    """Return a branch's parent: its fingerprint, and how many of its steps came first; '' and 0 for other runs."""
    parent = header.about.get("parent", {"fingerprint": "", "step": 0})
    match parent:
        case {"fingerprint": str(), "step": int(step), **more} if step >= 0 and not more:
            return dict(parent)
    raise DamagedError(f"{header.where}: what the header says of a parent run cannot be read.")


def note_digest(parent: dict[str, Any]) -> bytes:
    """Return the digest that the NOTEs of a branch have, which stand where its parent has other slots."""
    return hashlib.sha256(encode_canonical(parent)).digest()


def check_states_known(log: AnyLog) -> None:
    """Raise DamagedError unless the log knows every state that a run logs, and has no slot that no run writes.

    The chain alone does not show that a HASH or END was made into a NOTE by a program that has made the chain right again.
    """
    every, state = log.header.hash_every, log.state
    missing = [s for s in range(every, len(log) + 1, every) if s not in state.hashes]
    if missing and not (missing == [len(log)] and state.end is None):
        raise DamagedError(f"{log.path}: no state hash after step {missing[0]}, where there must be one.")
    if not state.notes or log.header.minor > MINOR:
        return
    parent = parent_from_header(log.header)
    if state.notes.keys() - ({note_digest(parent)[:24]} if parent["step"] else set()):
        raise DamagedError(f"{log.path}: it has a NOTE that no run writes: an END or a HASH was changed into it.")


def check_part_ids(log: AnyLog, noise: AbstractNoise, rule: AbstractRule) -> None:
    """Raise IdentityError if the frozen ids of noise and rule in the header are not those of the parts in its recipe."""
    header = log.header
    for kind, number, own in (("noise", header.noise, noise.scheme), ("rule", header.rule, rule.rule)):
        if own != number:
            raise IdentityError(
                f"{log.path}: the header says {find_word_by_id(kind, number)}, its recipe another {kind}."
            )


def check_replayable(log: AnyLog, space: Space, noise: AbstractNoise, rule: AbstractRule) -> None:
    """Raise IdentityError if this space, at its start, or this device's arithmetic would replay other bits."""
    header, first = log.header, space.leaves()[0].value
    for what, ours, theirs in (
        ("trained tensors", manifest_digest(space), header.manifest),
        ("initial values", initial_digest(space), header.initial),
        ("arithmetic (self-test)", selftest(noise, rule, first[:1].float().new_zeros(1024)), header.selftest),
    ):
        if ours != theirs:
            raise IdentityError(f"{log.path}: this machine's {what} are not the log's: it would replay other bits.")
