"""The words of zoedge, and how they fit together.

    task -> score -> estimator -> Record          measuring: needs the model, the batch, a GPU's moods
    Record -> log                                 the waist: a few floats, durable before they are used
    log -> rule -> space                          advancing: needs the log alone, exact on any machine
    noise.draw(key, leaf) feeds both halves       the direction moved along is the direction probed

    theta[t+1], slots[t+1] = advance(theta[t], slots[t], record[t])     and nothing else changes theta

This module imports nothing of ours and no torch: every array below is duck-typed, so that the same noise and the same
rule run on torch tensors (training, replay) and on numpy arrays (the second implementation that `verify` compares with).
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from annotated_types import Ge, Gt

from .exact import HALF_FORMATS, bits16

if TYPE_CHECKING:
    from torch import Tensor

SKIPPED, CLIPPED, MICRO_BATCHED = (
    1,
    2,
    4,
)  # Record.flags: non-finite losses, clipped g, micro-batched after out-of-memory

Positive = Annotated[float, Gt(0)]

Natural = Annotated[int, Ge(1)]

# Key.stream: steps' directions, initial values, ..., bits of stochastic rounding; they never overlap
PROBE_STREAM, INIT_STREAM, MASK_STREAM, FACTOR_STREAM, CURVATURE_STREAM, ROUNDING_STREAM = range(6)


class Key(NamedTuple):
    """Names one random direction. seed: 64 bits; seq, query, stream: 32 bits each."""

    seed: int
    seq: int
    query: int
    stream: int = PROBE_STREAM


@dataclass(frozen=True)
class Leaf:
    """One trained tensor: a float32 master and its place in the run's vector.

    value: 1-D [n] float32; offset: its first element's index in the vector of all trained elements;
    parts: the named matrices inside `value`, for noise that needs their shapes (offset counts as above).
    storage: the grid that the values lie on. 16 bits: the base's own weights, whose `value` has that type too.
    least: no element goes below it.
    """

    name: str
    offset: int
    value: Tensor
    parts: tuple[Part, ...] = ()
    total: int = 0  # elements of the whole vector
    storage: str = "float32"  # float32 | bfloat16 | float16
    least: float = -math.inf

    def zeros(self) -> Any:
        """[n] zeros in the type that rules compute in, wherever `value` lies."""
        zeros: Any = self.value * 0.0
        return zeros.float() if self.storage in HALF_FORMATS and hasattr(zeros, "float") else zeros


class Part(NamedTuple):
    """A named matrix inside a leaf: `value[offset - leaf.offset :][: numel]` viewed as `shape`."""

    name: str
    offset: int
    shape: tuple[int, ...]


class Record(NamedTuple):
    """What one step leaves behind. `lr` and `g` have 16 significant bits and are what is applied; the rest informs."""

    step: int
    seq: int  # slot in the log; keys the noise, so a rewound step never reuses a direction
    lr: float
    g: tuple[float, ...]  # a weight a query
    losses: tuple[float, ...]  # float32, in the order the estimator asked for them
    flags: int = 0
    check: int = 0  # crc32 of the batch
    decay: float = 1.0  # theta is multiplied by this first

    @property
    def coefficients(self) -> tuple[float, ...]:
        """-lr * g a query, in float64, rounded to 16 bits: what multiplies a direction."""
        return tuple(bits16(-(self.lr * g)) for g in self.g)


class Direction(NamedTuple):
    """z is what was probed and is moved along; noise: the draws that the rule made it from."""

    z: Tensor
    noise: tuple[Tensor, ...]


Point = Sequence[tuple[float, int]]  # theta + sum c * z[query]; () is theta itself

RuleSlots = dict[str, Any]


@dataclass(frozen=True)
class Perturbation:
    """A point as a space sees it: leaf -> what is added there (None: nothing).

    term: (noise, key, c) where that is c * noise.draw(key, leaf) and nothing else, so that a kernel may draw by itself.
    """

    delta: Callable[[Leaf], Tensor | None]
    term: tuple[AbstractNoise, Key, float] | None = None

    def __call__(self, leaf: Leaf) -> Tensor | None:
        return self.delta(leaf)


@dataclass(frozen=True)
class AbstractNoise(ABC):
    """Random directions as values; subclasses are final."""

    dense: ClassVar[bool] = False  # every element, unit variance: initial values may be drawn from it

    @abstractmethod
    def draw(self, key: Key, leaf: Leaf) -> Tensor | None:
        """The direction named by `key` on `leaf`: [n] float32 of at most 8 significant bits. None: the leaf rests."""

    def kernel(self, like: Tensor) -> Callable[..., Tensor] | None:
        """`noise._fused.product` of this noise for weights like `like`: x (W + c z)' without a W + c z. None: draw."""
        return None

    def gain(self, elements: int, square: Callable[[], float]) -> float:
        """What `draw` is to be multiplied by for E[z z'] = I. It goes into points and weights, never into z.

        elements: trained in all; square(): |z|^2 of this direction over all of them.
        """
        return 1.0


class Oracle(Protocol):
    """What an estimator may ask. All answers are host floats."""

    step: int
    steps: int
    lr: float  # the rule's step size at this step, as it will be logged

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Mean loss of the step's batch at each point, in float64; as many points in one forward as fit."""

    def dot(self, a: int, b: int) -> float:
        """<z[a], z[b]> over all that is trained."""

    def sign(self, query: int) -> float:
        """-1 or +1 with equal chance: a random bit of the step."""

    def clip(self, g: float, limit: float) -> float:
        """g in -limit .. limit; the record says if that changed it."""


class Estimator(Protocol):
    """bound = True on a class that reads `past`: it must have measured those records itself."""

    def measure(self, oracle: Oracle, past: Sequence[Record]) -> Sequence[float]:
        """A weight g a query: the gradient estimate is sum g[q] * z[q]."""


@dataclass(frozen=True, kw_only=True)
class AbstractRule(ABC):
    """g and z -> delta, one leaf at a time. Elementwise +, -, *, / alone, one operation a kernel; subclasses are final.

    lr: the step size. schedule: how it falls to zero over the run; where a recipe's lr is auto, linear if not told.
    weight_decay: theta *= 1 - lr * weight_decay.
    """

    draws: ClassVar[int] = 1  # of noise, a query
    bound: ClassVar[bool] = False  # to the run's length: `slots` depends on it
    auto: ClassVar[tuple[str, ...]] = ("lr",)  # a recipe's default is `auto`; the number is where its search begins
    lr: Positive = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        if self.lr * self.weight_decay >= 1:
            raise ValueError("weight_decay: lr * weight_decay must be below 1")

    def rate(self, step: int, steps: int) -> float:
        """The step size of `step` of `steps`, rounded to 16 bits. It is logged: cosines differ between machines."""
        left = {
            "constant": 1.0,
            "linear": 1.0 - step / steps,
            "cosine": 0.5 + 0.5 * math.cos(math.pi * step / steps),
        }[self.schedule]
        return bits16(self.lr * left)

    def decay(self, lr: float) -> float:
        """What theta is multiplied by: float32, not 16 bits, in which 1 - 5e-6 would be 1."""
        found: float = struct.unpack("<f", struct.pack("<f", 1.0 - lr * self.weight_decay))[0]
        return found

    def check(self, steps: int) -> None:  # noqa: B027 - for rules with schedules of their own
        """ValueError("option: why") if a schedule of the rule's has no value somewhere in a run of `steps`."""

    def slots(self, leaf: Leaf, steps: int) -> RuleSlots:
        """The rule's own state for a leaf, at step 0 of a run of `steps`."""
        return {}

    def direction(self, slots: RuleSlots, *noise: Tensor) -> Tensor:
        """What `draws` draws of noise stand for: probed and moved along. Changes nothing."""
        return noise[0]

    @abstractmethod
    def update(self, slots: RuleSlots, directions: Iterable[Direction], record: Record) -> Tensor:
        """What to add to the leaf: [n] float32; may change `slots`. directions: one a query, drawn when asked for."""


class Space(Protocol):
    """What is trained. Owns the float32 master; `add` is the only mutation of theta in the package."""

    width: int  # how many points it can hold in one forward
    lean: bool  # as large as the base: a direction is drawn leaf by leaf, where it is needed

    def leaves(self) -> Sequence[Leaf]: ...

    def describe(self) -> dict[str, Any]:
        """JSON from which `blank` rebuilds the same space without the model: names, shapes, order."""

    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> AbstractContextManager[None]:
        """While open, the model holds theta + delta a point. On leaving, also by an exception: the same bits as before."""

    def add(self, leaf: Leaf, delta: Tensor, decay: float, bits: Callable[[Leaf], Tensor] | None = None) -> None:
        """leaf = leaf * decay + delta, in that order, rounding after each.

        bits: of a leaf in 16-bit storage, 16 random bits an element ([n] int32) of any piece of it, for `dithered`.
        """


class Batch(Protocol):
    check: int  # crc32 of token ids, lengths and labels
    tokens: int  # padded rows of one copy in a forward

    def __len__(self) -> int: ...
    def part(self, first: int, end: int) -> Batch:
        """Some of its examples, each with the loss that it has in the whole."""


class Task(Protocol):
    def batch(self, step: int) -> Batch:
        """Pure in (seed, step): no cursor, no epoch state."""

    def score(self, model: Any, batch: Any, copies: int) -> Any:
        """[copies, examples] losses in float64: cross-entropy or 1 - F1 alike."""


class Workers(Protocol):
    """The processes that share a run's steps (workers.py)."""

    def means(
        self, points: int, rows: int, score: Callable[[slice, slice], tuple[list[list[float]], int]]
    ) -> tuple[list[float], int]:
        """(mean loss a point, flags): each worker scores a share of the points or rows, all hear the same."""

    def agree(self, digest: bytes) -> bytes:
        """The digest, if it is every worker's."""


class Journal(Protocol):
    """What the loop needs of a log (log.py, or a packed log)."""

    writable: bool

    def __len__(self) -> int: ...
    def __getitem__(self, step: int) -> Record: ...
    def __iter__(self) -> Iterator[Record]: ...
    def append(self, record: Record) -> Record: ...
    def seal(self, step: int, digest: Callable[[], bytes]) -> None: ...
    def rewind(self, step: int) -> None: ...
    @property
    def state(self) -> Any: ...
    @property
    def next_seq(self) -> int: ...
