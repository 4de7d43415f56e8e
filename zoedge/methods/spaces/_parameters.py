"""Tensors of any module as a space: what zoedge.optim trains. No word of a recipe's: nothing there makes such tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...core.types import Leaf, Part, Space

LEAN_ELEMENTS = (
    1 << 26
)  # elements: beyond, a step's direction is not kept (256 MiB) but drawn where it is needed, three times


class ParameterSpace(Space):
    """Tensors of anybody's as leaves, in the order given: names are theirs.

    A contiguous float32 tensor is its own master. Others (16 bits, or strided) have a float32 master beside them, of which
    they hold the cast: an update smaller than their grid is not lost.
    """

    width = 1  # a closure sees one point at a time

    def __init__(self, named: Sequence[tuple[str, Tensor]]):
        self.tensors_ = dict(named)
        total = sum(p.numel() for p in self.tensors_.values())
        self.lean = total > LEAN_ELEMENTS
        self.own: dict[str, bool] = {}
        self._leaves, offset = [], 0
        for name, p in self.tensors_.items():
            self.own[name] = p.dtype == torch.float32 and p.is_contiguous()
            value = p.data.view(-1) if self.own[name] else p.data.float().flatten()
            place = (Part(name, offset, tuple(p.shape)),)
            self._leaves.append(Leaf(name, offset, value, place, total))
            offset += p.numel()

    def leaves(self) -> Sequence[Leaf]:
        return self._leaves

    def describe(self) -> dict[str, Any]:
        return {"shapes": [[name, dtype_name(p), *p.shape] for name, p in self.tensors_.items()]}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, in its own type."""
        for name, p in self.tensors_.items():
            yield name, p.data

    def add(self, leaf: Leaf, delta: Tensor, decay: float, bits: Any = None) -> None:
        if decay != 1.0:
            leaf.value.mul_(decay)
        leaf.value.add_(delta)
        if not self.own[leaf.name]:
            p = self.tensors_[leaf.name]
            p.data.copy_(leaf.value.view(p.shape))

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Other tensors are lent to the parameters meanwhile: nothing is written to their own."""
        (delta,) = deltas
        kept = {name: p.data for name, p in self.tensors_.items()}
        try:
            for leaf in self._leaves:
                if (moved := delta(leaf)) is not None:
                    p = self.tensors_[leaf.name]
                    p.data = torch.add(leaf.value, moved).view(p.shape).to(p.dtype)
            yield
        finally:
            for name, p in self.tensors_.items():
                p.data = kept[name]


def dtype_name(p: Tensor) -> str:
    return str(p.dtype).removeprefix("torch.")
