"""Every noise x estimator x rule that a recipe may name: measured, logged, resumed and replayed to the same bits.

The tests iterate over the files there are: a new method is tested by being there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoedge.commands.verify import NumpySpace
from zoedge.core import digests, engine
from zoedge.core import oracle as core_oracle
from zoedge.core import run as core_run
from zoedge.core.parts import PART_FOLDERS, list_words, load_part
from zoedge.core.types import Key, Leaf, Part, Record
from zoedge.log.header import Header
from zoedge.log.log import Log

N = {kind: list_words(PART_FOLDERS[kind]) for kind in ("noise", "estimator", "rule")}
STEPS = 8  # of a run; a state is logged after every fourth
SIZES = {"matrix": (6, 4), "vector": (9,)}


def allowed(noise: str, estimator: str, rule: str) -> bool:
    """As recipe.check decides it: what each part says it goes with."""
    chosen = {"noise": noise, "estimator": estimator, "rule": rule}
    rules = [getattr(load_part(kind, word), "only_with", {}) for kind, word in chosen.items()]
    return all(chosen[kind] in those for one in rules for kind, those in one.items() if kind in chosen)


TRIPLES = [t for t in itertools.product(N["noise"], N["estimator"], N["rule"]) if allowed(*t)]


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


class Bowl:
    """A batch is a shift; the loss of an example is a bowl around it, slightly bent."""

    tokens, check = 1, 7

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
        self.asked += list(points)
        shift = 0.05 * math.sin(self.step)
        bowl = ((points - shift) ** 2).sum(1)
        return torch.stack([bowl, bowl + points.sum(1) / 7], dim=1)


def run_of(triple: tuple[str, str, str], log: Any, steps: int = STEPS) -> core_run.Run:
    noise, estimator, rule = triple
    space = Plain()
    made = load_part("rule", rule)(lr=2.0**-7, schedule="cosine", weight_decay=0.01)
    task = Bowl(space)
    return core_run.Run(
        11, steps, log, space, load_part("noise", noise)(), made, load_part("estimator", estimator)(), task
    )  # type: ignore[arg-type]


def header_of(triple: tuple[str, str, str]) -> Header:
    noise, estimator, rule = triple
    zero = bytes(32)
    k = core_oracle.slot_capacity(load_part("estimator", estimator)(), STEPS)
    ids = load_part("noise", noise).scheme, load_part("rule", rule).rule
    return Header(b"{}", k, *ids, 11, 33, 4, 1, zero, zero, zero, zero, zero, zero, zero)


def test_there_are_methods() -> None:
    assert len(N["noise"]) >= 9 and len(N["estimator"]) >= 10 and len(N["rule"]) >= 6 and len(TRIPLES) > 100


@pytest.mark.parametrize("triple", TRIPLES, ids=" ".join)
def test_train_resume_and_replay_end_in_the_same_bits(triple: tuple[str, str, str], tmp_path: Path) -> None:
    with Log.create(tmp_path / "whole", header_of(triple)) as log:
        whole = run_of(triple, log)
        before = digests.digest(whole.space)
        records = list(engine.play(whole, STEPS))
    assert digests.digest(whole.space) != before and all(math.isfinite(g) for r in records for g in r.g)
    with Log.create(tmp_path / "cut", header_of(triple)) as log:
        list(engine.play(run_of(triple, log), 3))
    with Log.resume(tmp_path / "cut") as log:
        resumed = run_of(triple, log)
        list(engine.play(resumed, STEPS))
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    log = Log.open(tmp_path / "whole")
    replayed = run_of(triple, log)
    replayed.task = replayed.estimator = None
    list(engine.play(replayed, STEPS))
    second = run_of(triple, log)
    second.space = NumpySpace(second.space)  # type: ignore[assignment]
    second.__post_init__()
    list(engine.play(second, STEPS))
    assert len({digests.digest(run.space) for run in (whole, resumed, replayed, second)}) == 1


@pytest.mark.parametrize("triple", TRIPLES, ids=" ".join)
def test_the_direction_moved_along_is_the_direction_probed(triple: tuple[str, str, str], tmp_path: Path) -> None:
    """Each probed point less theta, and the directions that `advance` is handed, span the same lines."""
    with Log.create(tmp_path / "log", header_of(triple)) as log:
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


def test_directions_are_kept_for_a_step_or_for_a_leaf_of_it() -> None:
    """A lean space's are another copy of the model: those of one leaf are in memory."""
    for lean, kept in ((False, {"first", "second"}), (True, {"second"})):
        run = run_of(("rademacher", "two_sided", "sgd"), None)
        run.space.lean = lean
        for leaf in run.space.leaves():
            first = [run.direction(5, query, leaf) for query in (0, 1)]
            assert all(run.direction(5, query, leaf) is z for query, z in enumerate(first)), "not drawn again"
        assert set(run._drawn) == {(5, query, name) for query in (0, 1) for name in kept}
        run.direction(6, 0, leaf)
        assert set(run._drawn) == {(6, 0, "second")}


def test_an_estimators_own_signs_are_these_for_ever() -> None:
    """Another version that goes on with a run asks for the same points."""
    oracle = core_oracle.StepOracle(SimpleNamespace(seed=7), None, 0, 1, 3)  # type: ignore[arg-type]
    assert "".join("+-"[oracle.sign(query) < 0] for query in range(32)) == "+-+-+--+--+-------+-+--+--++-+++"


@pytest.mark.parametrize("noise", N["noise"])
def test_noise_is_the_same_in_torch_and_numpy_in_pieces_and_of_few_bits(noise: str) -> None:
    made = load_part("noise", noise)()
    whole = Leaf("x", 0, torch.zeros(600), (), 600)
    for query in range(3):
        z = made.draw(Key(5, 9, query), whole)
        other = made.draw(Key(5, 9, query), Leaf("x", 0, np.zeros(600, np.float32), (), 600))
        assert z is not None and other is not None and z.numpy().tobytes() == other.tobytes()
        mantissas = np.frexp(z.double().numpy())[0] * 256
        assert (mantissas == mantissas.round()).all()
        if noise != "low_rank":  # whose matrices are no pieces
            pieces = [made.draw(Key(5, 9, query), Leaf("x", i, torch.zeros(150), (), 600)) for i in range(0, 600, 150)]
            joined = torch.cat([torch.zeros(150) if p is None else p for p in pieces])
            assert torch.equal(joined, z)


def scaled(made: Any, key: Key, n: int) -> Tensor:
    leaf = Leaf("x", 0, torch.zeros(n), (Part("x", 0, (n // 4, 4)),), n)
    z = made.draw(key, leaf)
    assert z is not None
    return z.double() * made.gain(n, lambda: float((z.double() ** 2).sum()))


@pytest.mark.parametrize("noise", sorted(set(N["noise"]) - {"uniform_raw", "sparse", "block"}))
def test_directions_have_unit_covariance(noise: str) -> None:
    """E[s s'] = I within five standard errors of 1,500 draws in 16 dimensions."""
    made, n, draws = load_part("noise", noise)(), 16, 1500
    if noise == "low_rank":
        made = load_part("noise", noise)(refresh=1)
    s = torch.stack([scaled(made, Key(1, i, 0), n) for i in range(draws)])
    covariance = s.T @ s / draws
    spread = (s[:, :, None] * s[:, None, :]).std(0) / math.sqrt(draws)
    assert ((covariance - torch.eye(n)).abs() <= 5 * spread + 1e-3).all()


PASSES: list[tuple[str, dict[str, Any], int]] = [  # ALGORITHMS 0.1: forward passes of a step
    ("two_sided", {}, 2), ("two_sided", {"queries": 5}, 10), ("one_sided", {}, 2), ("one_sided", {"queries": 5}, 6),
    ("residual", {}, 1), ("stp", {}, 3), ("s2p", {"option": 1}, 2), ("s2p", {"option": 3}, 2),
    ("s2p", {"option": 2}, 4), ("s2p", {"option": 4}, 4), ("s2p", {"option": 2, "trial": "sign", "rho": 0.1}, 2),
    ("s2p", {"option": 4, "trial": "sign", "rho": 0.1}, 2), ("as2p", {}, 2), ("conservative", {}, 5),
    ("fzoo", {"queries": 8}, 9), ("dap", {"first": 1, "second": 1}, 3), ("dap", {"first": 3, "second": 5}, 9),
    ("curved", {}, 3),
]  # fmt: skip


class Slope:
    """An oracle on f(x) = a'x + b, directions the unit vectors."""

    step, steps, lr = 3, 100, 2.0**-6

    def __init__(self, slope: Sequence[float]):
        self.slope, self.asked = slope, 0

    def losses(self, points: Any) -> list[float]:
        self.asked += len(points)
        return [1.0 + sum(c * self.slope[q] for c, q in point) for point in points]

    def dot(self, a: int, b: int) -> float:
        return float(a == b)

    def sign(self, query: int) -> float:
        return 1.0


@pytest.mark.parametrize(("estimator", "options", "passes"), PASSES)
def test_forward_passes_are_the_tables(estimator: str, options: dict[str, Any], passes: int) -> None:
    oracle = Slope([0.5 + 0.1 * i for i in range(32)])
    past = [Record(i, i, 1.0, (0.1,), (1.0 + 0.01 * i, 0.9)) for i in range(3)]
    load_part("estimator", estimator)(**options).measure(oracle, past)
    assert oracle.asked == passes


@pytest.mark.parametrize("estimator", ["two_sided", "one_sided", "curved", "conservative"])
def test_differences_are_the_slope_on_a_linear_function(estimator: str) -> None:
    g = load_part("estimator", estimator)().measure(Slope([0.625] * 4), [])
    assert g[0] == pytest.approx(0.625, rel=1e-9)
