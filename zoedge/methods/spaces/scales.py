"""What can move in a quantised base: its scales, relative to what they are, and norms and biases (QZO, arXiv 2505.13430).

A scale becomes s (1 + u), and a norm or bias w + v, where u and v are trained from 0 in one float32 vector. So a direction
moves each scale in proportion to its size (the paper's absolute eps of 1e-3 is 10 to 100 % of a scale), weight decay leads
back to the base, and a log replays without it. u >= -1: a scale never changes its sign, and one that reaches 0 may come
back. The integer codes never change. A forward reads the moved scales in float32, also where the base has them in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_doc import Doc
from torch import Tensor, nn

from ...core.base import SpaceBase
from ...core.types import AbstractNoise, AbstractSpace, Leaf, OnlyWith, Part, Space
from ._loans import ParameterLoans
from ._master import describe_layers


@dataclass(frozen=True)
class Scales(AbstractSpace):
    """The space of a quantised base's scales, with or without its norms and biases."""

    only_with: ClassVar[OnlyWith] = {"model.quantization": ("nf4", "fp4", "int8")}
    adapter: ClassVar[bool] = False  # no format of PEFT's holds it
    layers: Annotated[list[int] | str, Doc("The layers whose scales move: all, 'last k', or a list of numbers.")] = (
        "all"
    )
    vectors: Annotated[
        bool, Doc("Whether norms and biases move too: those of these layers, and those after the last layer.")
    ] = True

    @property
    def points_per_forward(self) -> int:
        """Return how many points its space holds in one forward."""
        return ScalesSpace.width

    def describe(self, base: SpaceBase) -> dict[str, Any]:
        """Return the shape and block length of every scaled matrix, and the length of every norm and bias that moves.

        DataError: the base is not quantised.
        """
        sites = base.find_linears(self.layers, "all")
        blocks = base.scale_blocks(sites)
        vectors = base.find_vectors(self.layers) if self.vectors else {}
        scales = [[name, m.out_features, m.in_features, blocks[name]] for name, m in sites.items()]
        return {"scales": scales, "vectors": [[name, p.numel()] for name, p in vectors.items()]}

    def attach(self, base: SpaceBase, seed: int, noise: AbstractNoise) -> ScalesSpace:
        """Make the space over a base, whose modules it hooks. DataError: the base is not quantised."""
        held = self.blank(self.describe(base), seed, noise, base.device)
        sites = base.find_linears(self.layers, "all")
        held.hook(base.model, sites, base.find_scales(sites))
        return held

    def elements(self, description: Any) -> int:
        """Return how many elements `blank` would train; -1: it is no description of this space."""
        try:
            rows = [row for _, *row in (*description["scales"], *description["vectors"])]
            good = all(isinstance(n, int) and n > 0 for row in rows for n in row)
            return sum(n for row in _element_counts(description) for _, n in row) if good else -1
        except (TypeError, KeyError, ValueError):
            return -1

    def blank(
        self, description: dict[str, Any], seed: int, noise: AbstractNoise, device: torch.device | str = "cpu"
    ) -> ScalesSpace:
        """Rebuild the space from a log's description alone, without a model."""
        return ScalesSpace(description, torch.device(device))

    def summary(self) -> str:
        """Return the layers in words."""
        return f"scales, {describe_layers(self.layers)}"


class ScalesSpace(Space):
    """The space with its master. `value` is [elements] float32: the u of every scale, module by module, then every v."""

    width = 1  # a forward has one set of scales

    def __init__(self, description: dict[str, Any], device: torch.device):
        self.description = description
        self.blocks = {name: block for name, _, _, block in description["scales"]}
        sizes = _element_counts(description)
        total, offset, leaves = sum(n for counts in sizes for _, n in counts), 0, []
        self.value = torch.zeros(total, device=device)
        for title, counts, least in zip(("scales", "vectors"), sizes, (-1.0, Leaf.least)):
            parts, start = [], offset
            for name, n in counts:
                parts.append(Part(name, offset, (n,)))
                offset += n
            if parts:
                leaves.append(Leaf(title, start, self.value[start:offset], tuple(parts), total, least=least))
        self._leaves = tuple(leaves)
        self._point: dict[str, Tensor] | None = None
        self._places: dict[int, str] = {}
        self._scaled: dict[str, Any] = {}
        self._loans = ParameterLoans(self._lend)

    def leaves(self) -> Sequence[Leaf]:
        """Return one leaf of all scales, and one of all norms and biases, if there are any."""
        return self._leaves

    def describe(self) -> dict[str, Any]:
        """Return what the space was made from."""
        return self.description

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what every scale, norm and bias is moved by, as views of the master."""
        for leaf in self._leaves:
            yield from _part_views(leaf, leaf.value)

    def merged(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 weight with moved scales, or a moved norm or bias, and its difference to `value`, the base's."""
        moved = dict(self.tensors())
        if name in moved:
            update = moved[name].to(value.device)
        else:
            site = name.removesuffix(".weight")
            shares = moved[f"{site}.scales"].to(value.device).repeat_interleave(self.blocks[site])
            update = value * shares[: value.numel()].view(value.shape)
        return value + update, update

    def changes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight that `merged` changes."""
        shapes = {f"{name}.weight": (out, wide) for name, out, wide, _ in self.description["scales"]}
        return shapes | {name: (n,) for name, n in self.description["vectors"]}

    def add(self, leaf: Leaf, delta: Tensor, decay: float, bits: Callable[[Leaf], Tensor] | None = None) -> None:
        """Set the leaf to leaf * decay + delta, and keep its elements from falling below `leaf.least`."""
        if decay != 1.0:
            leaf.value.mul_(decay)
        leaf.value.add_(delta)
        leaf.value.clamp_(leaf.least)

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Lend the scales, norms and biases of one point to the modules while the context is open."""
        (make,) = deltas
        point: dict[str, Tensor] = {}
        for leaf in self._leaves:
            delta = make(leaf)
            point |= _part_views(leaf, leaf.value if delta is None else (leaf.value + delta).clamp_(leaf.least))
        self._point = point
        try:
            yield
        finally:
            self._point = None
            self._loans.back()
            for scaled in self._scaled.values():
                scaled.back()

    def hook(self, model: nn.Module, sites: dict[str, nn.Linear], scaled: dict[str, Any]) -> None:
        """While a point is held, make the sites compute with moved scales, and other modules with moved norms and biases."""
        self._scaled = scaled
        trained = dict(self.tensors())
        self._places = {id(p): name for name, p in model.named_parameters() if name in trained}
        for name, module in sites.items():
            module.register_forward_pre_hook(self._before(f"{name}.scales", scaled[name]))
            module.register_forward_hook(lambda m, args, y, own=scaled[name]: own.back())
        for any_module in model.modules():
            if any(id(p) in self._places for p in any_module.parameters(recurse=False)):
                self._loans.attach(any_module)

    def _before(self, name: str, scaled: Any) -> Callable[[nn.Module, Any], None]:
        def lend(module: nn.Module, args: object) -> None:
            if self._point is not None:
                scaled.lend(scaled.read() * (self._point[name] + 1.0))

        return lend

    def _lend(self, module: nn.Module, name: str) -> Tensor | None:
        """Return the moved value of a norm or bias; None: it does not move, or no point is held."""
        own = module._parameters[name]
        place = self._places.get(id(own))
        if self._point is None or place is None or own is None:
            return None
        return (own.data + self._point[place]).to(own.dtype)


def _element_counts(description: dict[str, Any]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return (name, elements) of every matrix's scales, and of every norm and bias."""
    scales = [(f"{name}.scales", -(-out * wide // block)) for name, out, wide, block in description["scales"]]
    return scales, [(name, n) for name, n in description["vectors"]]


def _part_views(leaf: Leaf, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield each part of a leaf by name, as a view of `values`, which are laid out as the leaf's."""
    for name, offset, (n,) in leaf.parts:
        yield name, values[offset - leaf.offset : offset - leaf.offset + n]
