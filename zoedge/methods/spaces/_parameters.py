"""This module has the space of zoedge.optim: tensors of any module. No recipe names it, as a recipe makes no such tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...core.types import Leaf, Part, Space

# with more elements than that, a step's direction (256 MiB) is not kept, but drawn each of the three times it is needed
LEAN_ELEMENTS = 1 << 26


class ParameterSpace(Space):
    """The tensors of a module as leaves, in the order given and under their own names.

    A contiguous float32 tensor is its own master. Any other (16 bits, or strided) has a float32 master beside it and holds
    the cast of that, so that an update smaller than its grid is not lost.
    """

    width = 1  # a closure sees one point at a time

    def __init__(self, named: Sequence[tuple[str, Tensor]]):
        self.parameters = dict(named)
        total = sum(p.numel() for p in self.parameters.values())
        self.lean = total > LEAN_ELEMENTS
        self.owns_master: dict[str, bool] = {}
        self._leaves, offset = [], 0
        for name, p in self.parameters.items():
            self.owns_master[name] = p.dtype == torch.float32 and p.is_contiguous()
            value = p.data.view(-1) if self.owns_master[name] else p.data.float().flatten()
            place = (Part(name, offset, tuple(p.shape)),)
            self._leaves.append(Leaf(name, offset, value, place, total))
            offset += p.numel()

    def leaves(self) -> Sequence[Leaf]:
        """Return a leaf for each tensor."""
        return self._leaves

    def describe(self) -> dict[str, Any]:
        """Return the name, type and shape of every tensor."""
        return {"shapes": [[name, dtype_name(p), *p.shape] for name, p in self.parameters.items()]}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor by name, in its own type."""
        for name, p in self.parameters.items():
            yield name, p.data

    def add(self, leaf: Leaf, delta: Tensor, decay: float, bits: Callable[[Leaf], Tensor] | None = None) -> None:
        """Set the master of a tensor to value * decay + delta, and the tensor to the cast of it."""
        if decay != 1.0:
            leaf.value.mul_(decay)
        leaf.value.add_(delta)
        if not self.owns_master[leaf.name]:
            p = self.parameters[leaf.name]
            p.data.copy_(leaf.value.view(p.shape))

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Lend other tensors to the parameters while the context is open; nothing is written to their own."""
        (delta,) = deltas
        kept = {name: p.data for name, p in self.parameters.items()}
        try:
            for leaf in self._leaves:
                if (moved := delta(leaf)) is not None:
                    p = self.parameters[leaf.name]
                    p.data = torch.add(leaf.value, moved).view(p.shape).to(p.dtype)
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = kept[name]


def dtype_name(p: Tensor) -> str:
    """Return the name of a tensor's type, such as "float32"."""
    return str(p.dtype).removeprefix("torch.")
