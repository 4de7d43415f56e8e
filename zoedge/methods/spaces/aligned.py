"""W + B R A on the modules that write to the hidden states; A and B are computed first, and R alone is trained, from 0.

For a task whose answers are options of one token, almost everything that moves the answers can be said in a few numbers: with
two options, k 16 and one block, 32 of them. A run trains these, with any estimator and for any goal.

B [H, r] says where the options' logits are. J [C, H] is the mean derivative of the C centred logits by the hidden states that
the last norm reads, J = U S E'. B = E / S, so that a unit of a coefficient moves the logits by a unit: the numbers have the
same size in every model and every task. r is the number of options less one. As every block adds to the same hidden states,
B is the same for all modules.

A [k, in] says what the module knows of the text. m is its input at the scored positions of up to 256 training rows, whose
labels are not read; mu is its mean. Row 0 is mu / |mu|^2: it is 1 on average, and takes up the bias for some options. The
others are the k - 1 largest principal directions of what m has besides mu, each over the root of its variance. So the
features A m are white, and a random direction moves all of them alike.

The term is linear in R: there is no saddle at the start, as LoRA has one. The noise of a zeroth-order estimate grows with the
number of trained elements, so that fewer learn sooner, where they can hold the solution. `auto` takes what is known without a
search: `estimator.eps` is .05 for a loss, and 1 for another goal, whose steps the smoothing must bridge; `rule.lr` of a slope
is 3 over the number of trained elements for a loss, and 16 over it for another goal.

Bases from activations are EVA's (arXiv 2410.07170), AGZO's and ZO-Act's; a small trained matrix between two fixed ones is
LoRA-XS's (arXiv 2405.17604). A log's header holds A in 8 bits an element and B in 16, so that replay needs neither data nor a
model. It is exported as plain LoRA, with A and B R.
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

from ...core.base import SpaceBase
from ...core.types import AbstractNoise, AbstractSpace, Leaf, Natural
from ...errors import DataError
from ._basis import Basis, count_basis_bytes
from ._master import MasterSpace, describe_layers
from ._peft import make_lora_config

BASIS_KEY = "basis"  # of the description in a log's header
MOST_BASIS_BYTES = 700_000  # 875 kB as text: a log's header may have 1 MiB in all


@dataclass(frozen=True)
class Aligned(AbstractSpace):
    """The space of what moves the options' logits, by what the modules know of a text."""

    title: ClassVar[str] = "aligned LoRA adapter"
    differentiable: ClassVar[bool] = True
    key: ClassVar[str] = "base_model.model.{}.weight"  # PEFT's, of our name
    auto: ClassVar[tuple[str, ...]] = ("rank",)
    starts_at_base: ClassVar[bool] = True
    known_steps: ClassVar[Mapping[str, tuple[float, float]]] = {"loss": (0.05, 3.0), "goal": (1.0, 16.0)}

    k: Annotated[
        Natural, Doc("The features of each module's input that are used: its mean, and its largest others.")
    ] = 16
    rank: Annotated[
        Natural, Doc("The directions in which logits are moved. auto: the number of options less one, which is all.")
    ] = 1
    targets: Annotated[
        list[str] | Literal["auto"],
        Doc("The names of the modules, which must add to the hidden states. auto: all that do, two in each block."),
    ] = "auto"
    layers: Annotated[list[int] | str, Doc("The layers that are adapted: all, 'last k', or a list of numbers.")] = (
        "last 1"
    )

    @property
    def wants_start(self) -> bool:
        """Return True: A and B are computed before the first step."""
        return True

    @property
    def points_per_forward(self) -> int:
        """Return how many points its space holds in one forward."""
        return AlignedSpace.width

    def describe(self, base: SpaceBase) -> dict[str, Any]:
        """Return the name and shape of every module that the options choose. DataError: there is none, or it is too much."""
        sites = base.find_writers(self.layers, self.targets)
        modules = list(sites.values())
        size = count_basis_bytes([m.in_features for m in modules], self.k, modules[0].out_features, self.rank)
        if size > MOST_BASIS_BYTES:
            raise DataError(
                f"space.k: {self.k} features of {len(modules)} modules are {size:,} bytes in the log's header, which holds "
                f"{MOST_BASIS_BYTES:,}. Choose a smaller k, or fewer layers."
            )
        return {"shapes": [[name, m.out_features, m.in_features] for name, m in sites.items()]}

    def attach(self, base: SpaceBase, seed: int, noise: AbstractNoise) -> AlignedSpace:
        """Make the space over a base, whose chosen modules it hooks. Nothing moves until it is given A and B."""
        held = self.blank(self.describe(base), seed, noise, base.device)
        held.hook(base.find_writers(self.layers, self.targets), base.dtype)
        return held

    def elements(self, description: Any) -> int:
        """Return how many elements `blank` would train; -1: it is no description of this space."""
        try:
            shapes = {name: tuple(size) for name, *size in description["shapes"]}
            sizes = list(shapes.values())
            if not all(len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size) for size in sizes):
                return -1
            if len({out for out, _ in sizes}) != 1 or len(shapes) != len(description["shapes"]):
                return -1
            if BASIS_KEY in description:
                Basis.read(description[BASIS_KEY], shapes, self.k, self.rank)
            return self.rank * self.k * len(shapes)
        except (TypeError, KeyError, ValueError):
            return -1

    def blank(
        self, description: dict[str, Any], seed: int, noise: AbstractNoise, device: torch.device | str = "cpu"
    ) -> AlignedSpace:
        """Rebuild the space from a log's description alone, without a model."""
        space = AlignedSpace(self, description["shapes"], torch.device(device))
        space.take_start(description)
        return space

    def exported(self, description: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes by name of what `AlignedSpace.tensors` yields."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, out, wide in description["shapes"]:
            shapes[f"{name}.lora_A"], shapes[f"{name}.lora_B"] = (self.k, wide), (out, self.k)
        return shapes

    def peft(self, description: dict[str, Any]) -> dict[str, Any]:
        """Return adapter_config.json without the base's name: LoRA of rank k, whose scale is 1."""
        return make_lora_config([name for name, *_ in description["shapes"]], self.k, self.k)

    def summary(self) -> str:
        """Return the size of a module's R and the layers in words."""
        return f"aligned, {self.rank} x {self.k} a module, {describe_layers(self.layers)}"


class AlignedSpace(MasterSpace):
    """An aligned space with its master. `value` is [elements] float32: R [rank, k] of each module, zeros at first."""

    options: Aligned

    def __init__(self, options: Aligned, shapes: Sequence[Any], device: torch.device):
        self.options = options
        self.scale = 1.0  # of its terms, as of LoRA's
        self.shapes = {str(name): (int(out), int(wide)) for name, out, wide in shapes}
        super().__init__("aligned", [(f"{name}.R", (options.rank, options.k)) for name in self.shapes], device)
        self._basis = Basis.empty(self.shapes, options.k, options.rank).to(device)
        self._has_basis, self._forward = False, torch.float32
        self._points: Tensor | None = None
        self._still: dict[str, Tensor] = {}  # A' [in, k] of each module in the forward's type
        self._into = torch.empty(0, 0)  # B' [rank, out], likewise

    def describe(self) -> dict[str, Any]:
        """Return the name and shape of every module, and A and B where they have been computed."""
        basis = {BASIS_KEY: self._basis.describe()} if self._has_basis else {}
        return {"shapes": [[name, *shape] for name, shape in self.shapes.items()], **basis}

    def take_start(self, description: Mapping[str, Any]) -> None:
        """Take A and B from a description of the space, such as that in a log's header."""
        self._has_basis = BASIS_KEY in description
        size = self.options.k, self.options.rank
        read = Basis.read(description[BASIS_KEY], self.shapes, *size) if self._has_basis else None
        self._basis = (read or Basis.empty(self.shapes, *size)).to(self.value.device)
        self._prepare()

    def _prepare(self) -> None:
        """Bring A and B into the forward's type. There they are exact: 8 significant bits are bfloat16's."""
        self._still = {name: a.to(self._forward).T.contiguous() for name, a in self._basis.a.items()}
        self._into = self._basis.b.to(self._forward).T.contiguous()

    def _matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Yield R [rank, k] of every module by the module's name, as a view of the master."""
        for name, part in zip(self.shapes, self._leaves[0].parts):
            yield name, self.value[part.offset : part.offset + math.prod(part.shape)].view(part.shape)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield A and B R of every module by name, as LoRA's two matrices.

        The product is a sum of columns in a fixed order, so that it has the same bits on every machine.
        """
        for name, r in self._matrices():
            yield f"{name}.lora_A", self._basis.a[name]
            product = torch.zeros(len(self._basis.b), r.shape[1], device=r.device)
            for column, row in zip(self._basis.b.T, r):
                product = product + column[:, None] * row
            yield f"{name}.lora_B", product

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take R from an adapter's matrices, which have the names and shapes of `tensors`, up to float32's rounding."""
        inverse = torch.linalg.pinv(self._basis.b.double())
        for name, r in self._matrices():
            r.copy_(inverse @ tensors[f"{name}.lora_B"].to(inverse.device).double())

    def merged(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 weight [out, in] of a module with its term, and the term. value: the base's weight."""
        matrices = dict(self.tensors())
        a, b = (matrices[f"{name.removesuffix('.weight')}.lora_{which}"].detach().cpu() for which in "AB")
        update = b @ a
        return value + update, update

    def changes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight that `merged` changes."""
        return {f"{name}.weight": shape for name, shape in self.shapes.items()}

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Make the adapted modules add the terms of the points while the context is open."""
        self._points = self.points(deltas)
        try:
            yield
        finally:
            self._points = None

    def hook(self, sites: dict[str, nn.Linear], dtype: torch.dtype) -> None:
        """Make the chosen modules add their term while points are held. dtype: of the base's forward.

        The points themselves stay in float32, as eps may be lost in a 16-bit R, and they are few.
        """
        self._forward = dtype
        self._prepare()
        for name, module in sites.items():
            module.register_forward_hook(self._term(name))

    def _term(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        """Return a forward hook that adds a module's term at every point to the base's output."""
        (part,) = (part for part in self._leaves[0].parts if part.name == f"{name}.R")
        place = slice(part.offset, part.offset + math.prod(part.shape))

        def add_term(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            if self._points is None:
                return y
            x, r = args[0], self._points[:, place].view(-1, *part.shape)
            features = (x.reshape(-1, x.shape[-1]) @ self._still[name]).float().view(len(r), -1, part.shape[1])
            moves = torch.bmm(features, r.transpose(1, 2)).flatten(0, 1)  # [copies * rows, rank]
            # in place: y is the base product, fresh and contiguous, rows grouped by point
            y.view(-1, y.shape[-1]).addmm_(moves.to(y.dtype), self._into)
            return y

        return add_term
