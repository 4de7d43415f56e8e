"""All weights of a 16 or 32-bit base (MeZO's full fine-tuning, arXiv 2305.17333), never perturbed in place.

While a module computes at a point, W + c z is written into one scratch buffer and lent to it; of tables of tokens, only
the rows that are read. The memory is that of inference and the largest matrix's scratch: points come one after the
other, and directions are drawn where they are needed, a tensor at a time.

The trained values are the model's own, so a run starts from its base, and replay needs it. float32: theta + delta, as
any space. 16 bits: rounded to nearest, the small steps of ZO mostly vanish (0.1 % of weights move at lr g = 1e-7), so
theta + delta is rounded up or down by chance, by bits of the record's own key: replay is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..types import HALVES, AbstractNoise, Leaf, Part, dithered
from ._loans import Loans

CHUNK = 1 << 20  # elements rounded at a time
SAMPLE = 4096  # elements a leaf of which it is seen how much of the update arrives


@dataclass(frozen=True)
class Full:
    """No options: every tensor moves, tied ones once, norms and biases too. Storage is model.compute_dtype."""

    only_with: ClassVar[dict[str, tuple[str, ...]]] = {"model.quantization": ("none",)}
    own_start: ClassVar[bool] = True  # its first values are the base's: replay loads them
    adapter: ClassVar[bool] = False  # no format of PEFT's holds it

    def attach(self, base: Any, seed: int, noise: AbstractNoise) -> Held:
        """The space over a base (models.base.Base), whose modules it hooks. DataError: the base is quantised."""
        held = Held(base.weights(), base.model.get_input_embeddings(), base.model.get_output_embeddings())
        base.cut_at(0)
        held.hook(base)
        return held

    def elements(self, description: Any) -> int:
        """How many elements it trains; -1: not a description of this space."""
        try:
            known = description["storage"] in ("float32", *HALVES)
            good = known and all(isinstance(x, int) and x > 0 for _, *shape in description["shapes"] for x in shape)
            return sum(math.prod(shape) for _, *shape in description["shapes"]) if good else -1
        except (TypeError, KeyError, ValueError):
            return -1


class Held:
    """The parameters of a model as leaves, one a tensor; a table of tokens is cut into slabs of rows.

    kept: (applied . intended, nearest . intended, |intended|^2) over samples of all 16-bit updates so far.
    """

    width = 1

    def __init__(self, parameters: dict[str, nn.Parameter], embedding: nn.Module, head: nn.Module):
        self.parameters = parameters
        self.tables = {id(m.weight): m for m in (head, embedding)}
        values = list(parameters.values())
        self.storage = str(values[0].dtype).removeprefix("torch.")
        self.largest = max(p.numel() for p in values if id(p) not in self.tables)
        self.total = sum(p.numel() for p in values)
        self.by_parameter: dict[int, list[Leaf]] = {}
        offset = 0
        for name, p in parameters.items():
            self.by_parameter[id(p)] = list(self._cut(name, p, offset))
            offset += p.numel()
        self._leaves = [leaf for some in self.by_parameter.values() for leaf in some]
        self._delta: Callable[[Leaf], Tensor | None] | None = None
        self._loans = Loans(self._lend)
        self._scratch = torch.empty(0)
        self.kept = [0.0, 0.0, 0.0]

    def _cut(self, name: str, p: nn.Parameter, offset: int) -> Iterator[Leaf]:
        """The leaves of a parameter: one, or slabs of a table that are no larger than the largest other tensor."""
        wide = p[0].numel()
        rows = max(1, self.largest // wide) if id(p) in self.tables else len(p)
        for start in range(0, len(p), rows):
            piece = p.data[start : start + rows]
            title = name if rows >= len(p) else f"{name}[{start}:{start + len(piece)}]"
            here = offset + start * wide
            part = Part(title, here, tuple(piece.shape))
            yield Leaf(title, here, piece.view(-1), (part,), self.total, self.storage)

    def leaves(self) -> Sequence[Leaf]:
        return self._leaves

    def describe(self) -> dict[str, Any]:
        return {"storage": self.storage, "shapes": [[name, *p.shape] for name, p in self.parameters.items()]}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name."""
        for name, p in self.parameters.items():
            yield name, p.data

    def merged(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """(the float32 weight after training, how far it is from `value`, the base's)."""
        trained = self.parameters[name].data.to(value.device, torch.float32)
        return trained, trained - value

    def changes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight that `merged` changes."""
        return {name: tuple(p.shape) for name, p in self.parameters.items()}

    # -- advancing

    def add(self, leaf: Leaf, delta: Tensor, decay: float, bits: Callable[[Leaf], Tensor] | None = None) -> None:
        if bits is None:
            if decay != 1.0:
                leaf.value.mul_(decay)
            leaf.value.add_(delta)
            return
        for start in range(0, len(delta), CHUNK):
            old = leaf.value[start : start + CHUNK]
            wanted = old.float() * decay + delta[start : start + CHUNK]
            new = dithered(wanted, bits(Leaf(leaf.name, leaf.offset + start, old)), self.storage)
            if start == 0:
                self._survival(old[:SAMPLE].float(), wanted[:SAMPLE], new[:SAMPLE])
            old.copy_(new)

    def _survival(self, old: Tensor, wanted: Tensor, new: Tensor) -> None:
        """Sums for people; nothing that is trained reads them."""
        intended = (wanted - old).double()
        nearest = wanted.to(getattr(torch, self.storage)).float()
        for i, moved in enumerate(((new - old).double(), (nearest - old).double(), intended)):
            self.kept[i] += float((moved * intended).sum())

    # -- measuring

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        (self._delta,) = deltas
        try:
            yield
        finally:
            self._loans.back()
            self._delta = None

    def hook(self, base: Any) -> None:
        """Make every module of the base that has parameters borrow them, and the tables add to the rows they give."""
        self._scratch = torch.empty(self.largest, dtype=getattr(torch, self.storage), device=base.device)
        embedding, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
        for module in base.model.modules():
            if module is not embedding and module is not head and any(True for _ in module.parameters(recurse=False)):
                self._loans.attach(module)
        embedding.register_forward_hook(self._embedded)
        head.register_forward_hook(self._scored)
        base.rows = self._rows

    def _lend(self, module: nn.Module, name: str) -> Tensor | None:
        own = module._parameters[name]
        assert own is not None
        (leaf,) = self.by_parameter[id(own)]
        delta = None if self._delta is None else self._delta(leaf)
        if delta is None:
            return None
        value = self._scratch[: own.numel()].view(own.shape) if name == "weight" else torch.empty_like(own.data)
        return value.copy_(own.data + delta.view(own.shape))  # the sum is float32

    def _rows(self, head: Any, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """Rows [N, H] of the head, and of its bias, at the point that is visited."""
        rows, bias = head.weight[index], None if head.bias is None else head.bias[index]
        if self._delta is None:
            return rows, bias
        if bias is not None and (delta := self._delta(self.by_parameter[id(head.bias)][0])) is not None:
            bias = (bias + delta[index]).to(bias.dtype)
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(head.weight)), device=rows.device)
        return self._moved(head, index, rows), bias

    def _embedded(self, table: Any, args: Any, y: Tensor) -> Tensor:
        """What the table of tokens gives, at the point; Gemma's multiplies what it looks up."""
        if self._delta is None:
            return y
        rows = self._moved(table, args[0], table.weight[args[0]])
        return rows.to(y.dtype) * getattr(table, "factor", 1.0)

    def _scored(self, head: Any, args: Any, y: Tensor) -> Tensor:
        """Logits of transformers' own forward, by which text is generated, at the point."""
        for leaf, first, (count, wide) in self._slabs(head) if self._delta is not None else ():
            if (delta := self._delta(leaf)) is not None:
                y[..., first : first + count] += nn.functional.linear(args[0].float(), delta.view(count, wide))
        return y

    def _slabs(self, table: Any) -> Iterator[tuple[Leaf, int, tuple[int, ...]]]:
        """(leaf, its first row, its shape) of a table of tokens."""
        leaves = self.by_parameter[id(table.weight)]
        for leaf in leaves:
            shape = leaf.parts[0].shape
            yield leaf, (leaf.offset - leaves[0].offset) // shape[1], shape

    def _moved(self, table: Any, ids: Tensor, rows: Tensor) -> Tensor:
        """rows [..., H] of a table at ids [...], moved to the point that is visited."""
        if self._delta is None:
            return rows
        moved = None
        for leaf, first, (count, wide) in self._slabs(table):
            here = (ids >= first) & (ids < first + count)
            if bool(here.any()) and (delta := self._delta(leaf)) is not None:
                moved = rows.float().clone() if moved is None else moved
                moved[here] += delta.view(count, wide)[ids[here] - first]
        return rows if moved is None else moved.to(rows.dtype)
