"""This module has the space of zoedge.optim: tensors of any module. No recipe names it, as a recipe makes no such tensors."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...core.types import Leaf, Part, Space
from ...errors import UsageError, make_printable

# with more elements than that, a step's direction (256 MiB) is not kept, but drawn each of the three times it is needed
LEAN_ELEMENTS = 1 << 26


class ParameterSpace(Space):
    """The tensors of a module as leaves, in the order given and under their own names.

    A contiguous float32 tensor is its own master. Any other (16 bits, or strided) has a float32 master beside it and holds
    the cast of that, so that an update smaller than its grid is not lost.
    """

    width = 1  # a closure sees one point at a time

    def __init__(self, named: Sequence[tuple[str, Tensor]]):
        check_disjoint(named)
        self.parameters = dict(named)
        self._checksums: dict[str, int] = {}  # of the parameters as the last step left them; empty: none are watched
        total = sum(p.numel() for p in self.parameters.values())
        self.lean = total > LEAN_ELEMENTS
        self.owns_master: dict[str, bool] = {}
        self._leaves, offset = [], 0
        for name, p in self.parameters.items():
            self.owns_master[name] = p.dtype == torch.float32 and p.is_contiguous()
            value = p.data.view(-1) if self.owns_master[name] else p.data.float().contiguous().flatten()
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

    def watch(self) -> None:
        """Remember the parameters' bits as they are now, so that `check_watched` finds what others write to them."""
        self._checksums = {name: checksum(p.data) for name, p in self.parameters.items()}

    def check_watched(self) -> None:
        """Raise UsageError if the bits of a parameter are not those that `watch` has seen."""
        for name, known in self._checksums.items():
            if checksum(self.parameters[name].data) != known:
                raise UsageError(explain_change(name))

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Lend other tensors to the parameters while the context is open; nothing is written to their own.

        UsageError: something else has written to their own since `watch`, before or meanwhile, such as through `.data`.
        """
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
        self.check_watched()


def explain_change(name: str) -> str:
    """Return the sentence about a parameter that something else than the optimiser has changed."""
    return (
        f"{make_printable(name)} was changed, or moved, by something else than this optimiser: the log could not replay "
        "that. Make the optimiser anew, after such changes and with another log."
    )


def checksum(tensor: Tensor) -> int:
    """Return a checksum of a tensor's bits: CRC-32 on a CPU, else sums of the bits, of which each row counts differently."""
    flat = tensor.contiguous().view(-1)
    if tensor.device.type == "cpu":
        return zlib.crc32(flat.view(torch.uint8).numpy().data)
    bits = flat.view(torch.int32 if tensor.element_size() == 4 else torch.int16).view(
        len(tensor) if tensor.dim() else 1, -1
    )
    rows = bits.sum(1, dtype=torch.int64)
    return int((rows * torch.arange(1, len(rows) + 1, device=rows.device)).sum())


def check_disjoint(named: Sequence[tuple[str, Tensor]]) -> None:
    """Raise UsageError if two parameters, or two elements of one, lie in the same memory: a step would move them twice."""
    stored: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
    for name, p in named:
        stored.setdefault((str(p.device), p.untyped_storage().data_ptr()), []).append((name, p))
    for group in stored.values():
        places = sorted((p.storage_offset() * p.element_size(), p.numel() * p.element_size()) for _, p in group)
        apart = all(a + size <= b for (a, size), (b, _) in pairwise(places))
        if not (apart and all(p.is_contiguous() for _, p in group)) and (pair := find_shared(group)):
            raise UsageError(
                f"{' and '.join(map(make_printable, pair))} share memory: a step would move it twice. Give the optimiser one "
                "of them, or copies (`.clone()`)."
            )


def find_shared(group: Sequence[tuple[str, Tensor]]) -> tuple[str, ...]:
    """Return the names of two tensors of one storage that share a byte, or of one that has a byte twice; (): none does."""
    owners = torch.zeros(group[0][1].untyped_storage().nbytes(), dtype=torch.int32)
    for number, (name, p) in enumerate(group, 1):
        size = p.element_size()
        strides = (*(step * size for step in p.stride()), 1)
        mine = owners.as_strided((*p.shape, size), strides, p.storage_offset() * size)
        if other := int(mine.max()):
            return group[other - 1][0], name
        mine.fill_(number)
        if int((owners == number).sum()) < p.numel() * size:
            return (name, name)
    return ()


def dtype_name(p: Tensor) -> str:
    """Return the name of a tensor's type, such as "float32"."""
    return str(p.dtype).removeprefix("torch.")
