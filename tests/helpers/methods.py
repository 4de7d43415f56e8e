"""What every method is held to, without a model: a new file is tested by being there, the page's example too."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoedge.commands.verify import NumpySpace
from zoedge.core import digests, engine, parts
from zoedge.core import oracle as core_oracle
from zoedge.core import run as core_run
from zoedge.core.parts import load_part
from zoedge.core.types import Leaf, Part, Record
from zoedge.log.header import Header
from zoedge.log.log import Log
from zoedge.scoring.models.dual import differentiate

STEPS = 8  # of a run; a state is logged after every fourth


SIZES = {"matrix": (6, 4), "vector": (9,)}


class Plain:
    """A space of two tensors in one vector, without a model: the point being visited is what the task reads."""

    lean = False
    width = 3

    def __init__(self) -> None:
        parts, offset = [], 0
        for name, shape in SIZES.items():
            parts.append(Part(name, offset, shape))
            offset += math.prod(shape)
        self.value = torch.linspace(-1, 1, offset)
        cut = parts[1].offset
        self._leaves = [
            Leaf("first", 0, self.value[:cut], (parts[0],), offset),
            Leaf("second", cut, self.value[cut:], (parts[1],), offset),
        ]
        self.points: list[Tensor] = []

    def leaves(self) -> Sequence[Leaf]:
        return self._leaves

    def add(self, leaf: Leaf, delta: Tensor, decay: float) -> None:
        leaf.value.mul_(decay).add_(delta)

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        found = [[make(leaf) for leaf in self._leaves] for make in deltas]
        self.points = [
            torch.cat([leaf.value if d is None else leaf.value + d for leaf, d in zip(self._leaves, row)])
            for row in found
        ]
        yield
        self.points = []

    @contextmanager
    def visit_duals(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        value = torch.cat([leaf.value for leaf in self._leaves])
        for make in deltas:
            found = [make(leaf) for leaf in self._leaves]
            tangent = torch.cat([torch.zeros_like(x.value) if d is None else d for x, d in zip(self._leaves, found)])
            self.points.append(forward_ad.make_dual(value, tangent))
        yield
        self.points = []


class Duals:
    """A model of nothing, whose operations have derivatives beside their values."""

    def differentiate(self) -> Any:
        return differentiate(torch.nn.Identity())


class Bowl:
    """A batch is a shift; the loss of an example is a bowl around it, slightly bent."""

    tokens, check = 1, 7
    option_count = 0

    def __init__(self, space: Plain, step: int = 0):
        self.space, self.step = space, step
        self.asked: list[Tensor] = []

    def __len__(self) -> int:
        return 2

    def batch(self, step: int) -> Bowl:
        self.step = step
        return self

    def score(self, model: Any, batch: Any, copies: int) -> Tensor:
        points = torch.stack(self.space.points).double()
        for point in points:
            value, tangent = forward_ad.unpack_dual(point)
            self.asked.append(value if tangent is None else value + tangent)
        shift = 0.05 * math.sin(self.step)
        bowl = ((points - shift) ** 2).sum(1)
        return torch.stack([bowl, bowl + points.sum(1) / 7], dim=1)


def run_of(triple: tuple[str, str, str], log: Any, steps: int = STEPS) -> core_run.Run:
    noise, estimator, rule = triple
    space = Plain()
    made = load_part("rule", rule)(lr=2.0**-7, schedule="cosine", weight_decay=0.01)
    task = Bowl(space)
    return core_run.Run(
        11, steps, log, space, load_part("noise", noise)(), made, load_part("estimator", estimator)(), task, Duals()
    )  # type: ignore[arg-type]


def header_of(triple: tuple[str, str, str]) -> Header:
    noise, estimator, rule = triple
    zero = bytes(32)
    k = core_oracle.slot_capacity(load_part("estimator", estimator)(), STEPS)
    ids = load_part("noise", noise).scheme, load_part("rule", rule).rule
    return Header(b"{}", k, *ids, 11, 33, 4, 1, zero, zero, zero, zero, zero, zero, zero)


def check_replays(triple: tuple[str, str, str], folder: Path) -> None:
    """Assert that a run, its resumption and its replays, also in numpy, end in the same bits."""
    with Log.create(folder / "whole", header_of(triple)) as log:
        whole = run_of(triple, log)
        before = digests.digest(whole.space)
        records = list(engine.play(whole, STEPS))
    assert digests.digest(whole.space) != before and all(math.isfinite(g) for r in records for g in r.g)
    with Log.create(folder / "cut", header_of(triple)) as log:
        list(engine.play(run_of(triple, log), 3))
    with Log.resume(folder / "cut") as log:
        resumed = run_of(triple, log)
        list(engine.play(resumed, STEPS))
    assert (folder / "cut").read_bytes() == (folder / "whole").read_bytes()
    log = Log.open(folder / "whole")
    replayed = run_of(triple, log)
    replayed.task = replayed.estimator = None
    list(engine.play(replayed, STEPS))
    second = run_of(triple, log)
    second.space = NumpySpace(second.space)  # type: ignore[assignment]
    second.__post_init__()
    list(engine.play(second, STEPS))
    assert len({digests.digest(run.space) for run in (whole, resumed, replayed, second)}) == 1


def check_direction(triple: tuple[str, str, str], folder: Path) -> None:
    """Each probed point less theta, and the directions that `advance` is handed, span the same lines."""
    with Log.create(folder / "log", header_of(triple)) as log:
        run = run_of(triple, log)
        for _ in engine.play(run, 3):
            pass
        theta = torch.cat([leaf.value for leaf in run.space.leaves()]).double()
        assert isinstance(run.task, Bowl)
        run.task.asked.clear()
        record = engine.measure(run, 3)
        moved = []
        for query in range(len(record.g)):
            rows = [(leaf, run.direction(record.seq, query, leaf)) for leaf in run.space.leaves()]
            moved.append(torch.cat([torch.zeros_like(leaf.value) if d is None else d.z for leaf, d in rows]).double())
    span = torch.stack(moved).T
    for point in run.task.asked:
        probe = point - theta
        if probe.abs().max() < 1e-7:
            continue
        left = probe - span @ (torch.linalg.pinv(span) @ probe)  # directions may repeat
        assert left.norm() <= 2e-4 * probe.norm() + 1e-6


class Slope:
    """An oracle on f(x) = a'x + b, directions the unit vectors."""

    step, steps, lr = 3, 100, 2.0**-6

    def __init__(self, slope: Sequence[float]):
        self.slope, self.asked = slope, 0

    def losses(self, points: Any) -> list[float]:
        self.asked += len(points)
        return [1.0 + sum(c * self.slope[q] for c, q in point) for point in points]

    def each(self, points: Any) -> list[list[float]]:
        return [[loss] for loss in self.losses(points)]

    def outputs(self, points: Any) -> None:
        return None

    def slopes(self, queries: int) -> list[float]:
        self.asked += 2 * queries
        return list(self.slope[:queries])

    def dot(self, a: int, b: int) -> float:
        return float(a == b)

    def sign(self, query: int) -> float:
        return 1.0


def check_passes(estimator: str, options: dict[str, Any], passes: int) -> None:
    """Assert how many points a step of the estimator asks for."""
    oracle = Slope([0.5 + 0.1 * i for i in range(32)])
    past = [Record(i, i, 1.0, (0.1,), (1.0 + 0.01 * i, 0.9)) for i in range(3)]
    load_part("estimator", estimator)(**options).measure(oracle, past)
    assert oracle.asked == passes


def check_slope(estimator: str) -> None:
    """Assert that the estimate is the slope of a linear function."""
    g = load_part("estimator", estimator)().measure(Slope([0.625] * 4), [])
    assert g[0] == pytest.approx(0.625, rel=1e-9)


def check_part(kind: str, word: str) -> None:
    """Assert that the part is one frozen dataclass, named as its file."""
    part = parts.load_part(kind, word)
    assert part.__name__ == "".join(w.capitalize() for w in word.split("_"))
    module = parts.load_module(parts.PART_FOLDERS[kind], word)
    public = [
        c for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__ and n[0] != "_"
    ]
    options = [c for c in public if dataclasses.is_dataclass(c) and c.__dataclass_params__.frozen]  # type: ignore[attr-defined]
    assert options == [part], "one method a file; a method's fields are its options"
    if kind in ("noise", "estimator", "rule"):  # a space or a task also defines what it makes
        assert public == [part]
    made = part()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.something = 1
    assert part.__subclasses__() == [], "parts are final"
    assert [base for base in part.__mro__[1:] if base.__module__.split(".")[0] == "zoedge"][1:] == []
    assert made == part() and all(f.default is not None for f in dataclasses.fields(part)), "every option has a default"
    lines = (Path(module.__file__ or "").read_text()).splitlines()
    assert lines[0].startswith('"""') and len(lines[0]) > 20, "line 1 says what it does"
