"""This module has what the spaces of one leaf share: a float32 vector with named parts, and the points around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...core.types import Leaf, Part, Space


def lay_out_parts(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[tuple[Part, ...], int]:
    """Return the parts of these shapes, one after the other from offset 0, and the number of their elements."""
    parts, offset = [], 0
    for name, shape in shapes:
        parts.append(Part(name, offset, shape))
        offset += math.prod(shape)
    return tuple(parts), offset


def describe_layers(layers: list[int] | str) -> str:
    """Return the option `layers` in words: all layers, the last layer, the last 4, 3 layers."""
    if not isinstance(layers, str):
        return f"{len(layers)} layers"
    return {"all": "all layers", "last 1": "the last layer"}.get(layers, layers.replace("last", "the last"))


class MasterSpace(Space):
    """A space whose only leaf is `value`, [elements] float32, zeros at first.

    start: the values [elements] float32 of which `value` is the change; None: of zero.
    """

    width = 64  # points in one forward; Run.rows limits them by tokens
    start: Tensor | None = None

    def __init__(self, name: str, shapes: Sequence[tuple[str, tuple[int, ...]]], device: torch.device):
        parts, elements = lay_out_parts(shapes)
        self.value = torch.zeros(elements, device=device)
        self._leaves = (Leaf(name, 0, self.value, parts, elements),)
        self._dtype = torch.float32
        self._buffer = torch.empty(0, 0)
        self._makes_duals = False

    def leaves(self) -> Sequence[Leaf]:
        """Return the one leaf, which is the whole master."""
        return self._leaves

    def add(self, leaf: Leaf, delta: Tensor, decay: float, bits: Callable[[Leaf], Tensor] | None = None) -> None:
        """Set the master to value * decay + delta, in float32."""
        if decay != 1.0:
            leaf.value.mul_(decay)
        leaf.value.add_(delta)

    def points(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Tensor:
        """Return start + value + delta for each delta, [points, elements] in the forward's type.

        The next call overwrites it. In `visit_duals`, it is start + value for each, with the deltas as its tangents.
        """
        if self._makes_duals:
            return self._duals(deltas)
        if len(self._buffer) < len(deltas):
            self._buffer = torch.empty(len(deltas), len(self.value), dtype=self._dtype, device=self.value.device)
        points = self._buffer[: len(deltas)]
        (leaf,) = self._leaves
        for point, make in zip(points, deltas):
            delta, value = make(leaf), leaf.value if self.start is None else self.start + leaf.value
            point.copy_(value) if delta is None else torch.add(value, delta, out=point)
        return points

    def _duals(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Tensor:
        (leaf,) = self._leaves
        value = leaf.value if self.start is None else self.start + leaf.value
        found = [make(leaf) for make in deltas]
        tangents = torch.stack([torch.zeros_like(value) if delta is None else delta for delta in found])
        dual: Tensor = forward_ad.make_dual(value.to(self._dtype).repeat(len(found), 1), tangents.to(self._dtype))  # type: ignore[no-untyped-call]
        return dual

    @contextmanager
    def visit_duals(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Hold theta, once for each delta, with the delta as its tangent."""
        self._makes_duals = True
        try:
            with self.visit(deltas):
                yield
        finally:
            self._makes_duals = False
