"""All weights of a 16 or 32-bit base (MeZO's full fine-tuning, arXiv 2305.17333), never perturbed in place.

All points of a step go through a layer together, so that the layer's direction is drawn once for all of them. The module
computes the rows of each point in turn, with W + c z in one scratch buffer that is lent to it; in tables of tokens, only
the rows that are read are moved. So a step needs the memory of inference, and room for the largest matrix and its
direction. On CUDA, where the noise has a kernel that multiplies by W + c z without storing it, a Linear needs neither.

The trained values are the model's own: a run starts from its base, and replay needs the base. In float32 a step is
theta + delta, as in any space. In 16 bits, rounded to nearest, most of ZO's small steps would vanish (0.1 % of weights move
at lr g = 1e-7). There theta + delta is rounded up or down at random, by bits of the record's own key, so replay is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.base import SpaceBase
from ...core.exact import HALF_FORMATS, round_stochastic
from ...core.types import AbstractNoise, AbstractSpace, Leaf, OnlyWith, Part, Perturbation, Space

# the most elements of a leaf: what is computed of it stays in a core's cache, and grows no further with the model
LEAF_ELEMENTS = 1 << 19
# elements rounded at a time: they stay in a core's cache, and within one period of the rounding bits
ROUNDING_CHUNK = 1 << 18
HALF_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # the values of `storage` that are rounded to
SURVIVAL_SAMPLE = 4096  # elements of each leaf on which it is measured how much of an update survives rounding


@dataclass(frozen=True)
class Full(AbstractSpace):
    """The space of all weights, which has no options.

    Every tensor moves, norms and biases too, and tied ones once. They are stored in the recipe's model.compute_dtype.
    """

    only_with: ClassVar[OnlyWith] = {"model.quantization": ("none",)}
    own_start: ClassVar[bool] = True  # its first values are the base's: replay loads them
    adapter: ClassVar[bool] = False  # no format of PEFT's holds it

    @property
    def points_per_forward(self) -> int:
        """Return how many points its space holds in one forward."""
        return FullSpace.width

    def describe(self, base: SpaceBase) -> dict[str, Any]:
        """Return the type, names and shapes of all parameters. It cuts nothing off the base: all layers are computed."""
        base.set_cut(0)
        return describe_parameters(str(base.dtype).removeprefix("torch."), dict(base.model.named_parameters()))

    def attach(self, base: SpaceBase, seed: int, noise: AbstractNoise) -> FullSpace:
        """Make the space over a base, whose modules it hooks. DataError: the base is quantised."""
        held = FullSpace(base.named_weights(), base.model.get_input_embeddings(), base.model.get_output_embeddings())
        self.describe(base)
        held.hook(base)
        return held

    def elements(self, description: Any) -> int:
        """Return how many elements it trains; -1: it is no description of this space."""
        try:
            known = description["storage"] in ("float32", *HALF_FORMATS)
            good = known and all(isinstance(x, int) and x > 0 for _, *shape in description["shapes"] for x in shape)
            return sum(math.prod(shape) for _, *shape in description["shapes"]) if good else -1
        except (TypeError, KeyError, ValueError):
            return -1

    def summary(self) -> str:
        """Return the words "all weights"."""
        return "all weights"


def describe_parameters(storage: str, parameters: dict[str, nn.Parameter]) -> dict[str, Any]:
    """Return the description of a space of these parameters, whose values are of the type `storage`."""
    return {"storage": storage, "shapes": [[name, *p.shape] for name, p in parameters.items()]}


class FullSpace(Space):
    """The parameters of a model as leaves, each some rows of a tensor.

    kept: three sums over samples of all 16-bit updates so far: applied . intended, nearest . intended, |intended|^2.
    """

    width, lean = 2, True  # the two points of a direction; each needs room for a matrix of its own

    def __init__(self, parameters: dict[str, nn.Parameter], embedding: nn.Module, head: nn.Module):
        self.parameters = parameters
        self.tables = {id(m.weight): m for m in (head, embedding)}
        values = list(parameters.values())
        self.storage: str = str(values[0].dtype).removeprefix("torch.")
        self.largest = max(p.numel() for p in values if id(p) not in self.tables)
        self.total = sum(p.numel() for p in values)
        self.by_parameter: dict[int, list[Leaf]] = {}
        offset = 0
        for name, p in parameters.items():
            self.by_parameter[id(p)] = list(self._cut(name, p, offset))
            offset += p.numel()
        self._leaves = [leaf for leaves in self.by_parameter.values() for leaf in leaves]
        self._points: Sequence[Callable[[Leaf], Tensor | None]] = ()
        self._scratch = torch.empty(self.width, 0)  # where a kernel multiplies, norms alone are in it
        self.kept: list[float] = [0.0, 0.0, 0.0]

    def _cut(self, name: str, p: nn.Parameter, offset: int) -> Iterator[Leaf]:
        """Yield the leaves of a parameter, of at most LEAF_ELEMENTS elements each, or of one row."""
        wide = p[0].numel()
        rows = max(1, LEAF_ELEMENTS // wide)
        for start in range(0, len(p), rows):
            piece = p.data[start : start + rows]
            title = name if rows >= len(p) else f"{name}[{start}:{start + len(piece)}]"
            first = offset + start * wide
            part = Part(title, first, tuple(piece.shape))
            yield Leaf(title, first, piece.view(-1), (part,), self.total, self.storage)

    def leaves(self) -> Sequence[Leaf]:
        """Return the leaves of all parameters."""
        return self._leaves

    def describe(self) -> dict[str, Any]:
        """Return the type, names and shapes of the parameters."""
        return describe_parameters(self.storage, self.parameters)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter by name."""
        for name, p in self.parameters.items():
            yield name, p.data

    def merged(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 weight after training, and its difference to `value`, the base's."""
        trained = self.parameters[name].data.to(value.device, torch.float32)
        return trained, trained - value

    def changes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight that `merged` changes."""
        return {name: tuple(p.shape) for name, p in self.parameters.items()}

    # -- advancing

    def add(self, leaf: Leaf, delta: Tensor, decay: float, bits: Callable[[Leaf], Tensor] | None = None) -> None:
        """Set the leaf to leaf * decay + delta; with `bits`, in float32, and then rounded at random to the 16-bit type."""
        if bits is None:
            if decay != 1.0:
                leaf.value.mul_(decay)
            leaf.value.add_(delta)
            return
        start = 0
        while start < len(delta):
            stop = min(len(delta), start + ROUNDING_CHUNK - (leaf.offset + start) % ROUNDING_CHUNK)
            old = leaf.value[start:stop]
            wanted = (old.float() * decay if decay != 1.0 else old.float()).add_(delta[start:stop])
            new = round_stochastic(wanted, bits(Leaf(leaf.name, leaf.offset + start, old)), self.storage)
            if start == 0:
                self._survival(old[:SURVIVAL_SAMPLE].float(), wanted[:SURVIVAL_SAMPLE], new[:SURVIVAL_SAMPLE])
            old.copy_(new)
            start = stop

    def _survival(self, old: Tensor, wanted: Tensor, new: Tensor) -> None:
        """Add to the sums of `kept`, which are for people: nothing that is trained reads them."""
        intended = (wanted - old).double()
        nearest = wanted.to(HALF_TYPES[self.storage]).float()
        for i, moved in enumerate(((new - old).double(), (nearest - old).double(), intended)):
            self.kept[i] += float((moved * intended).sum())

    # -- measuring

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Make every module compute at the points while the context is open. The parameters themselves do not change."""
        self._points = deltas
        try:
            yield
        finally:
            self._points = ()

    def hook(self, base: SpaceBase) -> None:
        """Make every module of the base with parameters compute point by point, and the tables of tokens move their output."""
        embedding, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
        for module in base.model.modules():
            if module is not embedding and module is not head and any(True for _ in module.parameters(recurse=False)):
                module.forward = self._each(module)
        embedding.register_forward_hook(self._embedded)
        head.register_forward_hook(self._scored)
        self._plain = base.project
        base.project = self._project

    def _each(self, module: nn.Module) -> Callable[..., Tensor]:
        """Return a forward whose inputs are [points * S, ...], and which computes each point's share with its parameters."""

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            return type(module).forward(module, *args, **kwargs)

        def at_points(*args: Any, **kwargs: Any) -> Tensor:
            if type(module) is nn.Linear and (y := self._fused(module, *args)) is not None:
                return y
            count, own, outputs = len(self._points), dict(module._parameters), []
            try:
                lent = {name: self._lent(name, p) for name, p in own.items() if p is not None and count}
                for i in range(count):
                    for name, values in lent.items():
                        module._parameters[name] = nn.Parameter(values[i], requires_grad=False)
                    named = {key: take_chunk(x, i, count) for key, x in kwargs.items()}
                    outputs.append(forward(*(take_chunk(x, i, count) for x in args), **named))
            finally:
                module._parameters.update(own)
            return torch.cat(outputs) if count > 1 else outputs[0] if count else forward(*args, **kwargs)

        return at_points

    def _fused(self, module: nn.Linear, x: Tensor) -> Tensor | None:
        """Return a Linear's output at all points from the noise's kernel, which stores no W + c z; None: there is no kernel."""
        terms = [point.term for point in self._points if isinstance(point, Perturbation) and point.term is not None]
        if not terms or len(terms) < len(self._points) or any(term[:2] != terms[0][:2] for term in terms):
            return None
        noise, key, _ = terms[0]
        if x.dtype != module.weight.dtype or (kernel := noise.kernel(module.weight)) is None:
            return None
        bias = None if module.bias is None else torch.stack(self._lent("bias", module.bias))
        return kernel(
            x, module.weight, bias, self.by_parameter[id(module.weight)][0].offset, key, [c for *_, c in terms]
        )

    def _lent(self, name: str, own: Tensor) -> list[Tensor]:
        """Return a parameter at each point; where nothing moves it, its own value. A leaf is made for all points in a row."""
        if name == "weight" and self._scratch.shape[1] < own.numel():
            with torch.inference_mode(False):  # the buffer outlives the forward that needs it first
                self._scratch = torch.empty(self.width, own.numel(), dtype=own.dtype, device=own.device)
        room = self._scratch if name == "weight" else own.new_empty(len(self._points), own.numel())
        start, still = 0, [True] * len(self._points)
        for leaf in self.by_parameter[id(own)]:
            stop = start + len(leaf.value)
            for i, delta in enumerate(self._points):
                if (moved := delta(leaf)) is None:
                    room[i, start:stop] = leaf.value
                else:
                    torch.add(leaf.value, moved, out=room[i, start:stop])  # the sum is float32
                    still[i] = False
            start = stop
        return [own.data if rests else row[:stop].view(own.shape) for rests, row in zip(still, room)]

    def _embedded(self, table: nn.Embedding, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Return the embeddings at the points. Gemma's table multiplies what it looks up by a factor."""
        if not self._points:
            return y
        rows = table.weight[args[0]]
        for at, i, moved in self._moved(table, args[0].view(len(self._points), -1)):
            rows.view(len(self._points), -1, rows.shape[-1])[i][at] = moved
        return rows.to(y.dtype) * getattr(table, "factor", 1.0)

    def _project(self, head: nn.Linear, h: Tensor, index: Tensor | slice) -> Tensor:
        """Return float32 logits [points * ..., C] of hidden states [points * ..., H] by rows [C] of the head at the points."""
        if not self._points:
            return self._plain(head, h, index)
        count, size = len(self._points), len(head.weight)
        ids = torch.arange(size, device=h.device)[index]
        parts = h.float().view(count, -1, h.shape[-1])
        logits = parts.new_empty(*parts.shape[:2], len(ids))
        for at, i, moved in self._moved(head, ids.expand(count, -1)):
            logits[i][:, at] = nn.functional.linear(parts[i], moved.float())
        for i, bias in enumerate(self._lent("bias", head.bias) if head.bias is not None else ()):
            logits[i] += bias[ids].float()
        return logits.view(*h.shape[:-1], len(ids))

    def _scored(self, head: nn.Linear, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Return the logits at the points of transformers' own forward, which generates text."""
        for leaf, first, (count, wide) in self._slabs(head) if self._points else ():
            for i, delta in enumerate(self._points):
                if (moved := delta(leaf)) is not None:
                    x, logits = take_chunk(args[0], i, len(self._points)), take_chunk(y, i, len(self._points))
                    logits[..., first : first + count] += nn.functional.linear(x.float(), moved.view(count, wide))
        return y

    def _slabs(self, table: nn.Embedding | nn.Linear) -> Iterator[tuple[Leaf, int, tuple[int, ...]]]:
        """Yield (leaf, its first row, its shape) of a table of tokens."""
        leaves = self.by_parameter[id(table.weight)]
        for leaf in leaves:
            shape = leaf.parts[0].shape
            yield leaf, (leaf.offset - leaves[0].offset) // shape[1], shape

    def _moved(self, table: nn.Embedding | nn.Linear, ids: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Yield (a mask over ids[point], the point, those rows of the table moved to it), leaf by leaf. ids: [points, N]."""
        for leaf, first, shape in self._slabs(table):
            inside = (ids >= first) & (ids < first + shape[0])
            for i, delta in enumerate(self._points):
                if bool((mask := inside[i]).any()):
                    rows, moved = table.weight[ids[i][mask]], delta(leaf)
                    new_rows = (
                        rows if moved is None else (rows + moved.view(shape)[ids[i][mask] - first]).to(rows.dtype)
                    )
                    yield mask, i, new_rows


def take_chunk(x: Any, i: int, count: int) -> Any:
    """Return a view of the i-th of `count` equal pieces of a tensor's first dimension; anything else as it is."""
    return x.chunk(count)[i] if isinstance(x, Tensor) else x
