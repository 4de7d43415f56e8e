"""Several spaces at once, such as LoRA and a soft prompt: one vector, one direction through all of it.

Each is attached as if it were alone, and keeps its own master, its file format and what it refuses; only the places of its
leaves change. One step size and one radius hold for all of them, which fits badly if their values differ much in size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from annotated_doc import Doc
from torch import Tensor

from ...core.base import SpaceBase
from ...core.types import AbstractNoise, AbstractSpace, Leaf, Space

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Several(AbstractSpace):
    """The space that joins several spaces. They are taken in alphabetical order, whatever order is written."""

    nested: ClassVar[dict[str, str]] = {"of": "space"}

    of: Annotated[
        dict[str, Any], Doc("The words of the spaces, each with its options as they stand under `space` alone.")
    ] = field(default_factory=lambda: {"lora": {}, "prompt": {}})

    def __post_init__(self) -> None:
        if len(self.of) < 2:
            raise ValueError("of: name two spaces at least, such as {lora: {rank: 8}, prompt: {tokens: 10}}")
        options = dict(sorted(self.of.items()))
        # the default's options are no spaces yet
        spaces = {word: one for word, one in options.items() if isinstance(one, AbstractSpace)}
        for word, one in spaces.items():
            if one.own_start or one.nested:
                raise ValueError(f"of.{word}: goes with no other space")
            if one.wants_start:
                key = word if one.starts_at_base else f"{word}.start"
                raise ValueError(f"of.{key}: what it computes first is of the base alone, and goes with no other space")
        if sum(not one.merges for one in spaces.values()) > 1:
            raise ValueError("of: one kind of virtual tokens alone, PEFT loads no prompt onto a prefix")
        traits = {
            "only_with": {key: words for one in spaces.values() for key, words in one.only_with.items()},
            "title": " with ".join(one.title or word for word, one in spaces.items()),
            "adapter": all(one.adapter for one in spaces.values()),
            "merges": all(one.merges for one in spaces.values()),
            "differentiable": all(one.differentiable for one in spaces.values()),
        }
        for name, value in {"of": options, **traits}.items():  # its traits are what its spaces say
            object.__setattr__(self, name, value)

    @property
    def points_per_forward(self) -> int:
        """Return how many points all of its spaces can hold in one forward."""
        return min(int(one.points_per_forward) for one in self.of.values())

    @property
    def virtual_tokens(self) -> int:
        """Return the virtual tokens of all its spaces together."""
        return sum(one.virtual_tokens for one in self.of.values())

    def describe(self, base: SpaceBase) -> dict[str, Any]:
        """Return the description of each space, by word."""
        return self._ask_each(base, lambda one: one.describe(base))

    def attach(self, base: SpaceBase, seed: int, noise: AbstractNoise) -> SeveralSpace:
        """Make all of them over one base. DataError: what one of them refuses."""
        return SeveralSpace(self, self._ask_each(base, lambda one: one.attach(base, seed, noise)))

    def _ask_each(self, base: SpaceBase, ask: Callable[[AbstractSpace], Answer]) -> dict[str, Answer]:
        """Return the answer of each space; afterwards the base is cut where the lowest of them needs it."""
        answers, cuts = {}, []
        for word, one in self.of.items():
            answers[word] = ask(one)
            cuts.append(base.cut)
        base.set_cut(min(cuts))
        return answers

    def elements(self, description: Any) -> int:
        """Return how many elements `blank` would train; -1: it is no description of these spaces."""
        if not isinstance(description, dict) or description.keys() != self.of.keys():
            return -1
        sizes = [one.elements(description[word]) for word, one in self.of.items()]
        return sum(sizes) if min(sizes) > 0 else -1

    def blank(
        self, description: dict[str, Any], seed: int, noise: AbstractNoise, device: torch.device | str = "cpu"
    ) -> SeveralSpace:
        """Rebuild the spaces from a log's description alone, without a model."""
        return SeveralSpace(
            self, {word: one.blank(description[word], seed, noise, device) for word, one in self.of.items()}
        )

    def summary(self) -> str:
        """Return the word "several"."""
        return "several"


class SeveralSpace(Space):
    """Several spaces as one. Its leaves are those of its members, in the same memory, one after another.

    members: the space of each word.
    """

    def __init__(self, options: Several, members: dict[str, Any]):
        self.options, self.members = options, members
        self.complete = all(member.complete for member in members.values())
        self.width = min(member.width for member in members.values())
        inner = [(member, leaf) for member in members.values() for leaf in member.leaves()]
        total, offset = sum(len(leaf.value) for _, leaf in inner), 0
        self._inner, leaves = {}, []
        for member, leaf in inner:
            parts = tuple(part._replace(offset=part.offset - leaf.offset + offset) for part in leaf.parts)
            leaves.append(replace(leaf, offset=offset, parts=parts, total=total))
            self._inner[leaf.name] = member, leaf
            offset += len(leaf.value)
        self._leaves = tuple(leaves)

    def named_members(self) -> dict[str, Any]:
        """Return the members by word."""
        return self.members

    def leaves(self) -> Sequence[Leaf]:
        """Return the leaves of all members, in one vector."""
        return self._leaves

    def describe(self) -> dict[str, Any]:
        """Return the description of each member, by word."""
        return {word: member.describe() for word, member in self.members.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of every member, under its own names."""
        for member in self.members.values():
            yield from member.tensors()

    def merged(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 weight with every member's update, and the sum of the updates. value: the base's weight."""
        updates = [m.merged(name, value)[1] for m in self.members.values() if name in m.changes()]
        update = torch.stack(updates).sum(0)
        return value + update, update

    def changes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight that `merged` changes."""
        return {name: shape for m in self.members.values() for name, shape in m.changes().items()}

    def add(self, leaf: Leaf, delta: Tensor, decay: float, bits: Callable[[Leaf], Tensor] | None = None) -> None:
        """Add to the leaf of the member that owns it."""
        member, own = self._inner[leaf.name]
        member.add(own, delta, decay, bits)

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Hold the points in every member while the context is open."""
        with self._visit_members(deltas, lambda member, own: member.visit(own)):
            yield

    @contextmanager
    def visit_duals(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Hold theta with its tangents in every member while the context is open."""
        with self._visit_members(deltas, lambda member, own: member.visit_duals(own)):
            yield

    @contextmanager
    def _visit_members(
        self, deltas: Sequence[Callable[[Leaf], Tensor | None]], visit: Callable[[Any, Any], Any]
    ) -> Iterator[None]:
        own_leaves = {leaf.name: leaf for leaf in self._leaves}

        def moved(delta: Callable[[Leaf], Tensor | None]) -> Callable[[Leaf], Tensor | None]:
            return lambda leaf: delta(own_leaves[leaf.name])

        member_deltas = [moved(delta) for delta in deltas]
        with ExitStack() as stack:
            for member in self.members.values():
                stack.enter_context(visit(member, member_deltas))
            yield
