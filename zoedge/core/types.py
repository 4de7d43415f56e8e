"""This module declares the words of zoedge: the values that its parts exchange, and what each kind of part must offer.

    task -> score -> estimator -> Record          measuring needs the model, the batch and a GPU, whose bits may vary
    Record -> log                                 the waist: a few floats, on disk before they are used
    log -> rule -> space                          advancing needs the log alone, and is exact on any machine
    noise.draw(key, leaf) feeds both halves       the direction that is probed is the direction moved along

    theta[t+1], slots[t+1] = advance(theta[t], slots[t], record[t])     and nothing else changes theta

A recipe names a noise, an estimator, a rule, a space and a task. Each is a frozen dataclass below the abstract class of
its kind: its fields are its options, and its class variables say what it can do. Whatever the rest of the package reads
of a part is declared here, with its default; core/base.py and core/tasks.py declare what a running model and a running
task offer. methods/__init__.py shows how known algorithms are put together.
The module imports no torch. Arrays are duck-typed: the same noise and rule run on torch tensors and on `verify`'s numpy arrays.
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from annotated_doc import Doc
from annotated_types import Ge, Gt

from .exact import HALF_FORMATS, bits16

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from .base import SpaceBase
    from .tasks import Outputs

# Record.flags: a loss was not finite; g was clipped; the batch was cut into parts after memory had run out
SKIPPED, CLIPPED, MICRO_BATCHED = 1, 2, 4

Positive = Annotated[float, Gt(0)]
Natural = Annotated[int, Ge(1)]

# Key.stream: steps' directions, initial values, ..., bits of stochastic rounding; they never overlap
PROBE_STREAM, INIT_STREAM, MASK_STREAM, FACTOR_STREAM, CURVATURE_STREAM, ROUNDING_STREAM = range(6)


class Key(NamedTuple):
    """The name of one random direction: `seed` has 64 bits; `seq`, `query` and `stream` have 32 bits each."""

    seed: int
    seq: int
    query: int
    stream: int = PROBE_STREAM


@dataclass(frozen=True)
class Leaf:
    """One trained tensor: its float32 master, and its place in the vector of everything that the run trains.

    value: [n] float32; with a 16-bit `storage`, the base's own weights in that type.
    offset: the index of its first element in the vector of all trained elements.
    parts: the named matrices inside `value`, for noise that needs their shapes; their offsets count as `offset` does.
    storage: the type on whose grid the values lie.
    least: the value below which no element goes.
    """

    name: str
    offset: int
    value: Tensor
    parts: tuple[Part, ...] = ()
    total: int = 0  # elements of the whole vector
    storage: str = "float32"  # float32 | bfloat16 | float16
    least: float = -math.inf

    def zeros(self) -> Any:
        """Return [n] zeros in the type that rules compute in, on the device and of the library of `value`."""
        zeros: Any = self.value * 0.0
        return zeros.float() if self.storage in HALF_FORMATS and hasattr(zeros, "float") else zeros


class Part(NamedTuple):
    """A named matrix inside a leaf, which is `value[offset - leaf.offset :][: numel]` viewed as `shape`."""

    name: str
    offset: int
    shape: tuple[int, ...]


class Record(NamedTuple):
    """The result of one step, as it is logged. Only `lr`, `g` and `decay` are applied; the rest is for people and proofs.

    `lr` and every weight of `g` have 16 significant bits.
    """

    step: int
    seq: int  # its slot in the log; it keys the noise, so that a step after a rewind never reuses a direction
    lr: float
    g: tuple[float, ...]  # one weight for each query
    losses: tuple[float, ...]  # float32, in the order in which the estimator asked for them
    flags: int = 0
    check: int = 0  # crc32 of the batch
    decay: float = 1.0  # theta is multiplied by this first

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The factor -lr * g of each query's direction, computed in float64 and rounded to 16 bits."""
        return tuple(bits16(-(self.lr * g)) for g in self.g)


class Direction(NamedTuple):
    """A direction z, which is probed and then moved along, and the draws of noise from which the rule made it."""

    z: Tensor
    noise: tuple[Tensor, ...]


Point = Sequence[tuple[float, int]]  # theta + sum c * z[query]; () is theta itself
RuleSlots = dict[str, Any]
# "kind" -> words, or "kind.option" -> values: the parts and options that a part makes sense with
OnlyWith = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Perturbation:
    """A point as a space sees it: a function from a leaf to what is added there, or to None where nothing is.

    term: (noise, key, c) if the function is c * noise.draw(key, leaf), so that a kernel may draw by itself; else None.
    """

    delta: Callable[[Leaf], Tensor | None]
    term: tuple[AbstractNoise, Key, float] | None = None

    def __call__(self, leaf: Leaf) -> Tensor | None:
        return self.delta(leaf)


@dataclass(frozen=True)
class AbstractNoise(ABC):
    """A kind of random directions, as a value. Subclasses are final, and their fields are the options of a recipe.

    The class variables below are what a subclass says of itself: they are no options, and no log holds them.
    """

    only_with: ClassVar[OnlyWith] = {}  # the other parts and options that it makes sense with; {}: any
    auto: ClassVar[tuple[str, ...]] = ()  # options whose default in a recipe is `auto`, a number that the run searches
    nested: ClassVar[Mapping[str, str]] = {}  # option -> the kind of the parts that its table holds
    scheme: ClassVar[int]  # frozen: the id of the noise in a log's header
    dense: ClassVar[bool] = False  # every element has unit variance: initial values may be drawn from it

    @abstractmethod
    def draw(self, key: Key, leaf: Leaf) -> Tensor | None:
        """Return the direction `key` on `leaf`, [n] float32 of at most 8 significant bits; None: the leaf does not move."""

    def kernel(self, like: Tensor) -> Callable[..., Tensor] | None:
        """Return a function that computes x (W + c z)' without storing W + c z (noise/_fused.py), for weights like `like`.

        None: there is none for this noise or device, and directions must be drawn.
        """
        return None

    def gain(self, elements: int, square: Callable[[], float]) -> float:
        """Return the factor that makes E[z z'] = I of what `draw` returns. Points and weights are multiplied by it, not z.

        elements: how many the run trains. square: computes |z|^2 of this direction over all of them.
        """
        return 1.0


class Oracle(Protocol):
    """What an estimator may ask for during one step. All answers are Python floats."""

    step: int
    steps: int
    lr: float  # the rule's step size at this step, as it will be logged

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Return the mean loss of the step's batch at each point, in float64. One forward holds as many points as fit."""

    def each(self, points: Sequence[Point]) -> list[list[float]]:
        """Return the loss of each example of the batch at each point, [points][B]. Their means are logged."""

    def outputs(self, points: Sequence[Point]) -> Outputs | None:
        """Return the options' logits at each point; None: the task has no options. The mean losses are logged."""

    def slopes(self, queries: int) -> list[float]:
        """Return the derivative of the batch's mean loss along each query's direction. The mean loss at theta is logged."""

    def dot(self, a: int, b: int) -> float:
        """Return the inner product of the directions of two queries, over everything that is trained."""

    def sign(self, query: int) -> float:
        """Return -1 or +1 with equal chance: a random bit that is fixed by the step and the query."""

    def clip(self, g: float, limit: float) -> float:
        """Return g cut to -limit .. limit. The record's flags say whether that changed it."""


@dataclass(frozen=True)
class AbstractEstimator(ABC):
    """What turns losses at chosen points into weights. Subclasses are final and keep no state."""

    only_with: ClassVar[OnlyWith] = {}
    auto: ClassVar[tuple[str, ...]] = ()
    nested: ClassVar[Mapping[str, str]] = {}
    slope: ClassVar[bool] = False  # g is the derivative along z, so that lr * g is a step down a slope
    bound: ClassVar[bool] = False  # it reads `past`, and must have measured those records itself
    per_example: ClassVar[bool] = False  # it asks for the losses of single examples: a goal that is one number has none
    differentiates: ClassVar[bool] = False  # it asks for slopes, which only spaces that are `differentiable` have
    known_lr: ClassVar[float | None] = None  # the lr that suits it whatever the model is: `auto` takes it
    radius_option: ClassVar[str] = "eps"  # the option that says how far from theta it measures; "": it has none

    @property
    def queries(self) -> int:
        """The number of directions of a step, where that is an option."""
        return 1

    @abstractmethod
    def measure(self, oracle: Oracle, past: Sequence[Record]) -> Sequence[float]:
        """Return a weight g for each query: the gradient estimate is sum g[q] * z[q]."""


@dataclass(frozen=True, kw_only=True)
class AbstractRule(ABC):
    """What turns weights g and directions z into an update, one leaf at a time. Subclasses are final.

    An update uses elementwise +, -, * and / alone, one operation at a time, so that it has the same bits on every machine.
    """

    only_with: ClassVar[OnlyWith] = {}
    auto: ClassVar[tuple[str, ...]] = ("lr",)  # the class's own number is where the search begins
    nested: ClassVar[Mapping[str, str]] = {}
    rule: ClassVar[int]  # frozen: the id of the rule in a log's header
    draws: ClassVar[int] = 1  # draws of noise for each query
    linear: ClassVar[bool] = False  # an update is -lr * sum g z, and nothing else
    bound: ClassVar[bool] = False  # `slots` depends on the length of the run
    lr: Annotated[Positive, Doc("The step size.")] = 1e-3
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Doc("How the step size falls to zero over the run. Where a recipe's lr is auto, linear is the default."),
    ] = "constant"
    weight_decay: Annotated[float, Ge(0), Doc("A step first multiplies the weights by 1 - lr * weight_decay.")] = 0.0

    def __post_init__(self) -> None:
        if self.lr * self.weight_decay >= 1:
            raise ValueError("weight_decay: lr * weight_decay must be below 1")

    def rate(self, step: int, steps: int) -> float:
        """Return the step size of `step` in a run of `steps`, rounded to 16 bits. It is logged: cosines differ by machine."""
        left = {
            "constant": 1.0,
            "linear": 1.0 - step / steps,
            "cosine": 0.5 + 0.5 * math.cos(math.pi * step / steps),
        }[self.schedule]
        return bits16(self.lr * left)

    def decay(self, lr: float) -> float:
        """Return the factor that theta is multiplied by, in float32: in 16 bits, 1 - 5e-6 would be 1."""
        factor: float = struct.unpack("<f", struct.pack("<f", 1.0 - lr * self.weight_decay))[0]
        return factor

    def check(self, steps: int) -> None:  # noqa: B027 - for rules with schedules of their own
        """Raise ValueError("option: why") if a schedule of the rule has no value somewhere in a run of `steps`."""

    def slots(self, leaf: Leaf, steps: int) -> RuleSlots:
        """Return the rule's own state for a leaf, at step 0 of a run of `steps`."""
        return {}

    def direction(self, slots: RuleSlots, *noise: Tensor) -> Tensor:
        """Return the direction, to be probed and moved along, that `draws` draws of noise stand for. It changes nothing."""
        return noise[0]

    @abstractmethod
    def update(self, slots: RuleSlots, directions: Iterable[Direction], record: Record) -> Tensor:
        """Return what is added to the leaf, [n] float32, and bring `slots` up to date.

        directions: one for each query of the record, drawn only as the iteration asks for it.
        """


class Space(ABC):
    """What is trained, with its values. It owns the float32 master; `add` is the only mutation of theta in the package."""

    width: int = 1  # how many points it can hold in one forward
    lean: bool = False  # as large as the base: a direction is drawn leaf by leaf, where it is needed
    complete: bool = True  # False: its values are changes of what only a base can give
    options: AbstractSpace | None = None  # the recipe's part that made it
    storage: str | None = None  # the type of the base's weights that it moves in place; None: it moves none in place
    kept: Sequence[float] = (0.0, 0.0, 0.0)  # of 16-bit storage: how much of all updates arrived (spaces/full.py)

    @abstractmethod
    def leaves(self) -> Sequence[Leaf]:
        """Return its trained tensors, in the order of their offsets."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the JSON from which `AbstractSpace.blank` rebuilds the same space without the model."""

    @abstractmethod
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> AbstractContextManager[None]:
        """Hold the points theta + delta in the model while the context is open; afterwards it has the bits of before."""

    def visit_duals(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> AbstractContextManager[None]:
        """Hold theta with each delta as its tangent (scoring/models/dual.py). Only if its options are `differentiable`."""
        raise NotImplementedError(f"{type(self).__name__} has no tangents")

    @abstractmethod
    def add(self, leaf: Leaf, delta: Tensor, decay: float, bits: Callable[[Leaf], Tensor] | None = None) -> None:
        """Set the leaf to leaf * decay + delta, in that order, rounding after each operation.

        bits: for a leaf in 16-bit storage, returns 16 random bits ([n] int32) for each element of any piece of it, by which
        `exact.round_stochastic` rounds.
        """

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every trained tensor by the name under which it is exported."""
        raise NotImplementedError(f"{type(self).__name__} exports no tensors")

    def freeze_term(self, module: str, a: Tensor, b: Tensor) -> None:
        """Add B A, of a [r, in] and b [out, r], to the output of a module, untrained. Only if its options `wants_start`."""
        raise NotImplementedError(f"{type(self).__name__} has no start")

    def take_start(self, description: Mapping[str, Any]) -> None:  # noqa: B027 - for spaces with a start
        """Take from a description of the space, such as that in a log, what a start has computed for it."""

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the trained values from tensors with the names and shapes of `tensors()`. Only of LoRA."""
        raise NotImplementedError(f"{type(self).__name__} reads no adapter back")

    def named_members(self) -> Mapping[str, Space]:
        """Return the spaces that this one is made of, by word; one that is made of no others is its own under ''."""
        return {"": self}

    def changes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight of the base that `merged` changes, by name."""
        return {}

    def merged(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a weight of `changes` in float32 after training, and its difference to `value`, the base's."""
        raise KeyError(name)


@dataclass(frozen=True)
class AbstractSpace(ABC):
    """What a recipe says of what is trained: `attach` makes the `Space` over a base. Subclasses are final."""

    only_with: ClassVar[OnlyWith] = {}
    auto: ClassVar[tuple[str, ...]] = ()
    nested: ClassVar[Mapping[str, str]] = {}
    title: ClassVar[str] = ""  # what it exports, in two words, such as "LoRA adapter"
    key: ClassVar[str] = "{}"  # the name of a tensor in PEFT's file, made from ours
    adapter: ClassVar[bool] = True  # PEFT has a format for it
    merges: ClassVar[bool] = True  # it changes weights, so that a plain model can hold the result
    own_start: ClassVar[bool] = False  # its first values are the base's own: replay must load the base
    differentiable: ClassVar[bool] = False  # it has `visit_duals`
    starts_at_base: ClassVar[bool] = False  # what it computes before the first step changes no output of the base
    known_steps: ClassVar[Mapping[str, tuple[float, float]]] = {}  # for "loss", "goal": eps, lr times elements

    @property
    def points_per_forward(self) -> int:
        """The number of points that its `Space` holds in one forward."""
        return 1

    @property
    def wants_start(self) -> bool:
        """Whether something is computed from the rows before the first step; its values stand in the log's header."""
        return False

    @property
    def virtual_tokens(self) -> int:
        """The number of positions that it takes ahead of every sequence."""
        return 0

    @abstractmethod
    def describe(self, base: SpaceBase) -> dict[str, Any]:
        """Return what `Space.describe` will say of the space over this base, whose weights may be without data.

        It asks the base for all that `attach` needs, and so sets the base's cut and reserves positions. DataError: the base
        has no such layers, modules or room.
        """

    @abstractmethod
    def attach(self, base: SpaceBase, seed: int, noise: AbstractNoise) -> Space:
        """Make the space over a base, whose modules it hooks. It begins with `describe`. DataError: as there."""

    @abstractmethod
    def elements(self, description: Any) -> int:
        """Return how many elements a space of this description trains; -1: it is no description of such a space."""

    def blank(self, description: dict[str, Any], seed: int, noise: AbstractNoise, device: Any = "cpu") -> Space:
        """Rebuild the space from a log's description, without a model. Not of a space with `own_start`."""
        raise NotImplementedError(f"{type(self).__name__} starts from the base's own values")

    def exported(self, description: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes by name of what `Space.tensors` yields. Only of a space with `adapter`."""
        raise NotImplementedError(f"{type(self).__name__} is no adapter")

    def peft(self, description: dict[str, Any]) -> dict[str, Any]:
        """Return adapter_config.json without the base's name. Only of a space with `adapter`."""
        raise NotImplementedError(f"{type(self).__name__} is no adapter")

    @abstractmethod
    def summary(self) -> str:
        """Return what is trained in a few words, such as "LoRA, rank 8, the last layer"."""


@dataclass(frozen=True)
class AbstractTask(ABC):
    """What a recipe says of what a row is and how it is scored. Subclasses are final."""

    only_with: ClassVar[OnlyWith] = {}
    auto: ClassVar[tuple[str, ...]] = ()
    nested: ClassVar[Mapping[str, str]] = {}
    formats: ClassVar[tuple[str, ...]] = ()  # the values of data.format that it reads, besides auto
    head: ClassVar[str] = "CausalLM"  # what follows AutoModelFor in the name of the model class that it scores
    has_answers: ClassVar[bool] = True  # a row is a question and a right answer, to which a start can be fitted

    @property
    def objective(self) -> str:
        """What a run lowers: `loss`, a metric, or a function of the user's, where that is an option."""
        return "loss"

    @property
    def label(self) -> str:
        """The field of a row that holds its label, where the task has one; "": it has none."""
        return ""

    @property
    def labels(self) -> list[str]:
        """The labels that an example may have, in order; none: the loss reads the whole vocabulary."""
        return []

    @abstractmethod
    def fields(self) -> list[str]:
        """Return the fields of a row that its text is made of."""

    @abstractmethod
    def content(self, row: Any) -> str:
        """Return what a row asks the model, the same text for rows that ask the same. DataError: the row is not valid."""

    @abstractmethod
    def encode(
        self, rows: list[Any], tokenizer: PreTrainedTokenizerBase, limit: int, overflow: str
    ) -> tuple[Any, dict[str, int]]:
        """Return tokenised rows (scoring's Examples), and counts of what was truncated or dropped. DataError: a row."""

    @abstractmethod
    def make_training(self, train: Any, seed: int, size: int) -> Any:
        """Return the task of a run (scoring's AbstractTraining) over these examples, in batches of `size`."""
