"""W + alpha/rank * B A on chosen Linear modules (LoRA, Hu et al., arXiv 2106.09685), A and B in one float32 vector.

The base stays as it is, quantised or not: a forward hook on each chosen Linear adds the low-rank term. All points of a step
are held at once. The batch is repeated for each point, every base matrix is read once, and the low-rank terms of all points
are one batched product.

`start: probe` begins with a classifier in closed form on the last block's last Linear, a term of its own rank that stays as it
is while the steps train the rest. One forward pass over N labelled rows gives that Linear's input m and the option logits f.
J [C, H] is the mean derivative of the centred logits by the hidden states that the last norm reads; J = U S E'. B = E / S, so
that a unit of a coefficient moves the logits by a unit. A has a row that is 1 on average and takes up the label bias, and the
k - 1 whitened principal directions of m. R minimises mean CE(f + J B R A m, y) + ridge |R|^2 / 2 + drift, by Newton's method in
float64; the drift is .05 times the mean |R A m|^2 / 2 over positions that are not scored, so that other text changes little.
k and the ridge are chosen by 5-fold cross-validation. Under 16 rows, or 2 of a label, only the bias is taken off. It is a
linear probe (Alain and Bengio, arXiv 1610.01644) on whitened activations (as EVA, arXiv 2410.07170), written as LoRA: it
needs forward passes alone, but reads hidden states. The log's header holds it, so that replay needs no data for it.

For `chat`, `generate`, `choose` and options of several tokens the right answers' tokens are fitted, over the whole
vocabulary. At every scored token the logits are head norm(h), h [H] what the last norm reads. e is the gradient of the loss
at h, and F = mean e e' for tokens drawn from the model's own p, two for each scored one, plus .1 of its mean eigenvalue (the
Fisher matrix, by sampling). With phi = A m, B = F^-1/2 V, V the first 16 right singular vectors (or as many as there are
different right tokens) of mean phi e' F^-1/2, each column scaled to b'F b = 1. R minimises the mean CE of head norm(h + B R
phi) + .1 |R|^2 / 2 + the drift, here with the weight 1, by Gauss-Newton steps damped as Levenberg's and Marquardt's: with s
the size by which the norm divides, q = ds/dphi and G = s dlogits/dphi at fixed s, the logits move by (G - f q') / s, so that
the matrix needs the covariance of G and f under p alone. Where rows times vocabulary are above 2^24, the right tokens, the
2,048 likeliest ones and 2,500 others that stand for the rest are the vocabulary. Nothing, the bias row, or 8, 16 or 32
features (at most half the examples) are chosen by cross-validation over whole examples; under 16 examples the bias row alone
is fitted. Plain `lm` has no start: nearly all it would learn is how often words occur.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_doc import Doc
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...core.base import HeldTerm, SpaceBase
from ...core.exact import bits16
from ...core.types import INIT_STREAM, AbstractNoise, AbstractSpace, Key, Leaf, Natural, Part, Positive
from ._frozen import FrozenTerm
from ._master import MasterSpace, describe_layers, lay_out_parts
from ._peft import make_lora_config

START_KEY = "start"  # of the description in a log's header


@dataclass(frozen=True)
class Lora(AbstractSpace):
    """The space of low-rank terms, one for each adapted matrix."""

    title: ClassVar[str] = "LoRA adapter"
    differentiable: ClassVar[bool] = True
    key: ClassVar[str] = "base_model.model.{}.weight"  # PEFT's, of our name

    rank: Annotated[Natural, Doc("The rank of the term that is added to each matrix.")] = 8
    alpha: Annotated[Positive, Doc("Scales that term: it is alpha / rank * B A.")] = 16.0
    targets: Annotated[list[str] | Literal["all"], Doc("The names of the modules that are adapted, or all.")] = "all"
    layers: Annotated[list[int] | str, Doc("The layers that are adapted: all, 'last k', or a list of numbers.")] = (
        "last 1"
    )
    train: Annotated[
        Literal["both", "b"],
        Doc(
            "both trains A and B. b keeps A at its random start, which halves the number of trained values and "
            "makes the term linear."
        ),
    ] = "both"
    start: Annotated[
        Literal["zero", "probe"],
        Doc(
            "What the term is at first. zero: nothing. probe: a classifier, or a term for the answers' tokens, that is "
            "fitted in closed form to one forward pass over the training rows; it has its own rank, and the steps train "
            "the rest beside it."
        ),
    ] = "zero"

    @property
    def wants_start(self) -> bool:
        """Return whether a start is computed before the first step."""
        return self.start != "zero"

    @property
    def points_per_forward(self) -> int:
        """Return how many points its space holds in one forward."""
        return LoraSpace.width

    def describe(self, base: SpaceBase) -> dict[str, Any]:
        """Return the name and shape of every Linear module that the options choose. DataError: there is none."""
        sites = base.find_linears(self.layers, self.targets)
        return {"shapes": [[name, m.out_features, m.in_features] for name, m in sites.items()]}

    def attach(self, base: SpaceBase, seed: int, noise: AbstractNoise) -> LoraSpace:
        """Make the space over a base, whose chosen Linear modules it hooks."""
        held = self.blank(self.describe(base), seed, noise, base.device)
        sites = base.find_linears(self.layers, self.targets)
        held.hook(sites, base.dtype, base.model.get_submodule)
        base.terms.update({module: HeldLowRank(held, name) for name, module in sites.items()})
        return held

    def elements(self, description: Any) -> int:
        """Return how many elements `blank` would train; -1: it is no description of this space."""
        try:
            sizes = [size for _, *size in description["shapes"]]
            if not all(len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size) for size in sizes):
                return -1  # checked first: rank times a long text, say, would be gigabytes
            if START_KEY in description:
                FrozenTerm.read(description[START_KEY])
            return sum(self.rank * (out + (wide if self.train == "both" else 0)) for out, wide in sizes)
        except (TypeError, KeyError, ValueError):
            return -1

    def blank(
        self, description: dict[str, Any], seed: int, noise: AbstractNoise, device: torch.device | str = "cpu"
    ) -> LoraSpace:
        """Rebuild the space from a log's description alone, without a model."""
        space = LoraSpace(self, description["shapes"], seed, noise, torch.device(device))
        space.take_start(description)
        return space

    def exported(self, description: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes by name of what `LoraSpace.tensors` yields."""
        shapes: dict[str, tuple[int, ...]] = {}
        modules, rank = self._exported_modules(description)
        for name, (out, wide) in modules.items():
            shapes[f"{name}.lora_A"], shapes[f"{name}.lora_B"] = (rank, wide), (out, rank)
        return shapes

    def _exported_modules(self, description: dict[str, Any]) -> tuple[dict[str, tuple[int, int]], int]:
        """Return the shape [out, in] of every module that has a term, and the rank of all terms: the start adds its own."""
        modules = {name: (out, wide) for name, out, wide in description["shapes"]}
        start = description.get(START_KEY)
        if start is None:
            return modules, self.rank
        out, wide, rank = start["shape"]
        return modules | {start["module"]: (out, wide)}, self.rank + rank

    def peft(self, description: dict[str, Any]) -> dict[str, Any]:
        """Return adapter_config.json without the base's name."""
        shapes, rank = self._exported_modules(description)
        return make_lora_config(list(shapes), rank, self.alpha / self.rank * rank)

    def summary(self) -> str:
        """Return the rank and the layers in words."""
        start = f", {self.start} start" if self.wants_start else ""
        return f"LoRA, rank {self.rank}, {describe_layers(self.layers)}{start}"


class LoraSpace(MasterSpace):
    """A LoRA space with its master. `value` is [elements] float32: for each module A [rank, in], then B [out, rank]."""

    def __init__(self, options: Lora, shapes: Sequence[Any], seed: int, noise: AbstractNoise, device: torch.device):
        self.options = options
        self.shapes = {str(name): (int(out), int(wide)) for name, out, wide in shapes}
        self.rank, self.scale, self.shares_a = options.rank, options.alpha / options.rank, options.train == "b"
        moving: list[tuple[str, tuple[int, ...]]] = []
        fixed: list[tuple[str, tuple[int, ...]]] = []
        for name, (out, wide) in self.shapes.items():
            (moving if options.train == "both" else fixed).append((f"{name}.lora_A", (options.rank, wide)))
            moving.append((f"{name}.lora_B", (out, options.rank)))
        super().__init__("lora", moving, device)
        parts, still = lay_out_parts(fixed)
        self.fixed = torch.zeros(still, device=device)
        self._fixed = Leaf("lora_A", 0, self.fixed, parts, still)
        for leaf in (*self._leaves, self._fixed):
            self._start(leaf, seed, noise)
        self._still = self.fixed
        self._points: Tensor | None = None
        self._frozen: FrozenTerm | None = None
        self._find_module: Callable[[str], nn.Module] | None = None
        self._term_hook: RemovableHandle | None = None

    def _start(self, leaf: Leaf, seed: int, noise: AbstractNoise) -> None:
        """Set A to noise / sqrt(in) and B to 0. A comes from the noise's own stream, so a log alone rebuilds it."""
        z = noise.draw(Key(seed, 0, 0, INIT_STREAM), leaf) if leaf.value.numel() else None
        for part in leaf.parts:
            if part.name.endswith("lora_A") and z is not None:
                place = slice(part.offset, part.offset + math.prod(part.shape))
                leaf.value[place] = z[place] * bits16(1 / math.sqrt(part.shape[1]))

    def describe(self) -> dict[str, Any]:
        """Return the name and shape of every adapted matrix, and the start where there is one."""
        start = {} if self._frozen is None else {START_KEY: self._frozen.describe()}
        return {"shapes": [[name, *shape] for name, shape in self.shapes.items()], **start}

    def freeze_term(self, module: str, a: Tensor, b: Tensor) -> None:
        """Add B A, of a [r, in] and b [out, r], to the output of a module of the base; it is no part of what is trained."""
        self._set_term(FrozenTerm.of(module, a.to(self.value.device), b.to(self.value.device)))

    def take_start(self, description: Mapping[str, Any]) -> None:
        """Take the start from a description of the space, such as that in a log's header."""
        start = description.get(START_KEY)
        self._set_term(None if start is None else FrozenTerm.read(start, self.value.device))

    def _set_term(self, term: FrozenTerm | None) -> None:
        if self._term_hook is not None:
            self._term_hook.remove()
            self._term_hook = None
        self._frozen = term
        if term is not None and self._find_module is not None:
            module = self._find_module(term.name)
            self._term_hook = term.hook_module(module, self._dtype, lambda: self._points is not None)

    def _trained_matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every trained matrix, and A where it stays as it was, by name, as a view of the master."""
        for leaf in (self._fixed, *self._leaves):
            for name, offset, shape in leaf.parts:
                yield name, leaf.value[offset : offset + math.prod(shape)].view(shape)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every matrix of the adapter by name: views of the master; with a start, copies with its rank added to all.

        Readers of adapters know one rank for all modules, so that the others' added rows and columns are 0.
        """
        if self._frozen is None:
            yield from self._trained_matrices()
            return
        known, added = dict(self._trained_matrices()), self._frozen.rank
        for module, (out, wide) in {
            **self.shapes,
            self._frozen.name: (len(self._frozen.b), self._frozen.a.shape[1]),
        }.items():
            is_start = module == self._frozen.name
            a = self._frozen.a if is_start else self.value.new_zeros(added, wide)
            b = self._frozen.b / self.scale if is_start else self.value.new_zeros(out, added)
            rank = self.rank
            own_a = known.get(f"{module}.lora_A", self.value.new_zeros(rank, wide))
            own_b = known.get(f"{module}.lora_B", self.value.new_zeros(out, rank))
            yield f"{module}.lora_A", torch.cat([own_a, a])
            yield f"{module}.lora_B", torch.cat([own_b, b], dim=1)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the trained values from an adapter's matrices, which have the names and shapes of `tensors`."""
        rank = self.rank
        for name, value in self._trained_matrices():
            value.copy_(tensors[name][:rank] if name.endswith("lora_A") else tensors[name][:, :rank])

    def merged(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 weight [out, in] of a module with its term, and the term. value: the base's weight."""
        matrices = dict(self.tensors())
        a, b = (matrices[f"{name.removesuffix('.weight')}.lora_{which}"].detach().cpu() for which in "AB")
        update = (b @ a).mul_(self.scale)
        return value + update, update

    def changes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight that `merged` changes."""
        shapes = dict(self.shapes)
        if self._frozen is not None:
            shapes[self._frozen.name] = (len(self._frozen.b), self._frozen.a.shape[1])
        return {f"{name}.weight": shape for name, shape in shapes.items()}

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Make the adapted modules add the terms of the points while the context is open."""
        self._points = self.points(deltas)
        try:
            yield
        finally:
            self._points = None

    def hook(self, sites: dict[str, nn.Linear], dtype: torch.dtype, find_module: Callable[[str], nn.Module]) -> None:
        """Make the chosen Linear modules add their term while points are held.

        dtype: of the base's forward. find_module: returns the module of a name; a start may stand at any.
        """
        self._dtype, self._still, self._find_module = dtype, self.fixed.to(dtype), find_module
        for name, module in sites.items():
            module.register_forward_hook(HeldLowRank(self, name))

    def held_matrix(self, part: Part, stays: bool) -> Tensor | None:
        """Return a matrix at every point that is held, [points, *shape], a view; None: no point is held.

        stays: it is none of the trained ones, and the same at all points.
        """
        if self._points is None:
            return None
        held = self._still.expand(len(self._points), -1) if stays else self._points
        return held[:, part.offset : part.offset + math.prod(part.shape)].view(-1, *part.shape)


class HeldLowRank:
    """The low-rank term of one module at the points that a space holds, and the forward hook that adds it."""

    def __init__(self, space: LoraSpace, name: str):
        """Take a space and the full name of one of its modules."""
        places = {part.name: part for part in (*space._fixed.parts, *space._leaves[0].parts)}
        self.space, self.a, self.b = space, places[f"{name}.lora_A"], places[f"{name}.lora_B"]

    def matrices(self) -> HeldTerm | None:
        """Return A, B and the scale at every point that is held; None: no point is held."""
        space = self.space
        a, b = space.held_matrix(self.a, space.shares_a), space.held_matrix(self.b, False)
        return None if a is None or b is None else HeldTerm(a, b, space.scale)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Add the term to the base's output, whose rows are grouped by point."""
        if (term := self.matrices()) is None:
            return y
        copies, x = len(term.a), args[0]
        low = torch.bmm(x.reshape(copies, -1, x.shape[-1]), term.a.transpose(1, 2))
        # in place: y is the base product, fresh and contiguous
        y.view(copies, -1, y.shape[-1]).baddbmm_(low, term.b.transpose(1, 2), alpha=term.scale)
        return y
