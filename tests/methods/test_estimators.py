"""What an estimate g z is on average, for every estimator and every noise, on a function whose gradient is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from zoedge.core import engine
from zoedge.core import oracle as core_oracle
from zoedge.core import run as core_run
from zoedge.core.memory import MemoryLog
from zoedge.core.parts import PART_FOLDERS, list_words, load_part
from zoedge.core.types import Leaf, Part, Record
from zoedge.lab._bench import ArraySpace, FunctionTask

D = 12
RNG = np.random.default_rng(3)
ROOT = RNG.normal(size=(D, D)) / math.sqrt(D)
H, SLOPE, THETA = ROOT @ ROOT.T, RNG.normal(size=D), RNG.normal(size=D)
GRADIENT = H @ THETA + SLOPE
BOWL = FunctionTask(lambda points: 0.5 * np.einsum("ci,ij,cj->c", points, H, points) + points @ SLOPE)
# of the gradient, on average: 1 if E[z z'] = I
SHARE = {"uniform_raw": (1 - 2**-16) / 3, "sparse": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {
    "low_rank": {"refresh": 1},  # else a window's draws are of one V
    "two_sided": {"queries": 2}, "one_sided": {"queries": 2}, "s2p": {"option": 2},
}  # fmt: skip
# tests/methods/test_forward.py has its derivatives: it needs operations that have some, not a function
DIFFERENTIATED = {"forward"}
# chosen steps and normalised estimates are not the gradient on average, and no paper says they are
BIASED = {"stp", "s2p", "as2p", "conservative", "fzoo", "gauss_newton"}


def estimates(noise: Any, estimator: Any, rule: Any, count: int) -> np.ndarray:
    """[count, D] of sum g[q] z[q] at THETA, from the records that a run would log and along what it would move."""
    space = ArraySpace(THETA)
    space._leaves = [Leaf("x", 0, space.value, (Part("x", 0, (4, 3)),), D)]
    run = core_run.Run(1, count, MemoryLog(), space, noise, rule, estimator, BOWL, space)  # type: ignore[arg-type]
    found = np.zeros((count, D))
    for step in range(count):
        record = run.log.append(engine.measure(run, step))
        for query, weight in enumerate(record.g):
            d = run.direction(record.seq, query, space.leaves()[0])
            if d is not None and not (estimator_of(estimator) == "curved" and query == 1):  # that weight is a curvature
                found[step] += weight * np.asarray(d.z, dtype=float)
    return found


def estimator_of(estimator: Any) -> str:
    return type(estimator).__module__.rpartition(".")[2]


def standard_error(found: np.ndarray) -> np.ndarray:
    return found.std(0, ddof=1) / math.sqrt(len(found))


def agrees(found: np.ndarray, wanted: np.ndarray) -> bool:
    """The mean is within 5 standard errors in every element."""
    return bool((abs(found.mean(0) - wanted) < 5 * standard_error(found) + 1e-4 * abs(wanted)).all())


def tells_half_from_whole(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.linalg.norm(5 * standard_error(found)) < 0.6 * np.linalg.norm(wanted))


@pytest.mark.parametrize("noise", list_words(PART_FOLDERS["noise"]))
def test_two_sided_estimates_are_the_gradient_on_average(noise: str) -> None:
    """Antithetic differences are exact on a quadratic, so the mean is E[z z'] times the gradient."""
    made = load_part("noise", noise)(**OPTIONS.get(noise, {}))
    options = {"queries": made.blocks, "combine": "sum"} if noise == "block" else {}
    found = estimates(made, load_part("estimator", "two_sided")(eps=1e-3, **options), load_part("rule", "sgd")(), 1500)
    wanted = SHARE.get(noise, 1.0) * GRADIENT
    assert agrees(found, wanted) and tells_half_from_whole(found, wanted)


def rule_of(estimator: str) -> Any:
    """The rule that the estimator goes with."""
    return load_part("rule", getattr(load_part("estimator", estimator), "only_with", {}).get("rule", ("sgd",))[0])


UNBIASED = [
    (noise, estimator)
    for estimator in sorted(set(list_words(PART_FOLDERS["estimator"])) - BIASED - DIFFERENTIATED)
    for noise in ("normal", "rademacher")
    if noise in getattr(rule_of(estimator), "only_with", {}).get("noise", [noise])
]


@pytest.mark.parametrize(("noise", "estimator"), UNBIASED)
def test_an_estimator_is_unbiased(noise: str, estimator: str) -> None:
    """Also one-sided and aligned ones: z is symmetric, and a direction aligned with g0 has covariance I given g0."""
    made = load_part("estimator", estimator)(**({"eps": 1e-3} | OPTIONS.get(estimator, {})))
    count = 1500
    if estimator == "residual":  # f itself is in its spread: with eps 1e-3 that would be a thousand times the gradient
        made, count = load_part("estimator", estimator)(eps=1.0), 10_000
    found = estimates(load_part("noise", noise)(), made, rule_of(estimator)(), count)
    assert agrees(found, GRADIENT) and tells_half_from_whole(found, GRADIENT)


def test_biased_estimators_are_named_because_they_are() -> None:
    assert set(list_words(PART_FOLDERS["estimator"])) >= BIASED


# -- chosen steps, on oracles that say what they are told to


class Said:
    """Gives `losses` in the order they are asked for, and keeps the points."""

    step, steps = 3, 100

    def __init__(self, losses: list[float], lr: float = 0.25):
        self.left, self.lr = list(losses), lr
        self.points: list[Any] = []

    def losses(self, points: Any) -> list[float]:
        self.points += points
        found, self.left = self.left[: len(points)], self.left[len(points) :]
        return found


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("up", "down", "here", "g"),
    [
        (1.0, 2.0, 3.0, -1.0), (2.0, 1.0, 3.0, 1.0), (2.0, 2.0, 1.0, 0.0), (1.0, 2.0, 1.0, 0.0), (1.0, 1.0, 2.0, -1.0),
        (NAN, 1.0, 2.0, 1.0), (1.0, NAN, 2.0, -1.0), (1.0, 2.0, NAN, -1.0), (NAN, NAN, NAN, 0.0), (NAN, INF, 1.0, 0.0),
    ],
)  # fmt: skip
def test_stp_takes_the_lowest_of_three_and_stays_on_a_tie(up: float, down: float, here: float, g: float) -> None:
    oracle = Said([up, down, here])
    assert load_part("estimator", "stp")().measure(oracle, []) == [g]
    assert oracle.points == [((0.25, 0),), ((-0.25, 0),), ()], "steps of lr, and theta"


@pytest.mark.parametrize(
    ("up", "down", "g"),
    [
        (1.0, 2.0, -1.0), (2.0, 1.0, 1.0), (1.0, 1.0, -1.0), (NAN, 1.0, 1.0), (1.0, NAN, -1.0), (NAN, NAN, 0.0),
        (INF, INF, 0.0), (INF, 5.0, 1.0),
    ],
)  # fmt: skip
def test_s2p_takes_the_lower_of_two(up: float, down: float, g: float) -> None:
    """A tie goes to +, by which theta moves by -lr g."""
    for option in (1, 3):
        assert load_part("estimator", "s2p")(option=option).measure(Said([up, down]), []) == [g]


def test_s2p_sizes_its_step_by_gamma() -> None:
    """Options 2 and 4 (A = 1.01), measured at both ends or, within rho, taken from gamma's sign."""
    made = load_part("estimator", "s2p")
    for option, size in ((2, 4.0), (4, 4.0 / (1.01 + 0.5 * 4.0))):
        oracle = Said([1.0, 1.8, 7.0, 6.0])  # gamma is -4
        assert made(option=option, rho=0.1, curve=0.5, trial="exact").measure(oracle, []) == [pytest.approx(size)]
        assert [c for ((c, _),) in oracle.points[2:]] == pytest.approx([0.25 * size, -0.25 * size])
    assert made(option=2, rho=0.1, trial="sign").measure(Said([1.0, 1.8], lr=0.02), []) == [pytest.approx(-4.0)]
    beyond = Said([1.0, 1.8, 3.0, 2.0], lr=0.25)
    assert made(option=2, rho=0.1, trial="sign").measure(beyond, []) == [pytest.approx(4.0)] and len(beyond.points) == 4
    assert made(option=2, rho=0.1, trial="sign").measure(Said([1.0, 1.0]), []) == [0.0]
    assert math.isnan(made(option=2).measure(Said([NAN, 1.0]), [])[0]), "the engine skips the step"


@pytest.mark.parametrize(
    ("here", "ahead", "behind", "g"),
    [
        (3.0, 1.0, 2.0, 4.0), (3.0, 2.0, 1.0, -4.0), (1.0, 2.0, 3.0, 0.0), (1.0, 1.0, 1.0, 0.0), (2.0, NAN, 1.0, -4.0),
        (2.0, NAN, NAN, 0.0), (NAN, 1.0, 1.0, 0.0),
    ],
)  # fmt: skip
def test_conservative_stays_steps_or_steps_back(here: float, ahead: float, behind: float, g: float) -> None:
    oracle = Said([1.8, 1.0, here, ahead, behind])
    found = load_part("estimator", "conservative")(eps=0.1).measure(oracle, [])
    assert found == [pytest.approx(g)]
    assert oracle.points[2:] == [(), ((pytest.approx(-1.0), 0),), ((pytest.approx(1.0), 0),)], "theta -+ lr g z"


def test_fzoo_is_its_equation() -> None:
    rng = np.random.default_rng(0)
    there, here = rng.normal(size=8), 0.3
    found = load_part("estimator", "fzoo")(eps=0.01).measure(Said([here, *there]), [])
    assert np.allclose(found, (there - here) / (0.01 * 8 * there.std(ddof=1)), rtol=1e-12)
    assert load_part("estimator", "fzoo")(queries=3).measure(Said([1.0, 2.0, 2.0, 2.0]), []) == [0.0] * 3


def test_residual_takes_the_last_records_loss() -> None:
    made = load_part("estimator", "residual")(eps=0.5)
    past = [Record(0, 0, 1.0, (0.0,), (9.0,)), Record(1, 1, 1.0, (0.0,), (2.0,))]
    assert made.measure(Said([2.75]), past) == [1.5] and made.measure(Said([2.75]), []) == [0.0]


def as2p(gammas: list[float], k: int, steps: int, o: dict[str, Any]) -> float:
    """|alpha| of ALGORITHMS 5's closed form with its resolutions, signed as what `g` stands for."""

    def decay(a: float, b: float) -> float:
        return b + (a - b) / 2 * (1 + math.cos(math.pi * k / steps))

    rho = o["rho"] if o.get("full_batch") else decay(o["rho"], o["rho_end"])
    width = max(10, math.ceil(0.1 * (k if o.get("window_of") == "elapsed" else steps)))
    recent = np.array(gammas[max(0, k - width + 1) : k + 1])
    recent = abs(recent) if o.get("sigma") == "abs" else recent
    sigma = recent.std() if len(recent) >= 8 else math.sqrt((recent**2).mean())
    eta_a = 5.0 if o.get("full_batch") else decay(10.0, 5.0)
    reach = rho if o.get("full_batch") else (rho * 0.5 * (1 + math.cos(math.pi * k / steps)))
    return math.copysign(reach / (50 * sigma / abs(gammas[k]) + 50 / eta_a), gammas[k])


@pytest.mark.parametrize("options", [{}, {"full_batch": True}, {"sigma": "abs"}, {"window_of": "elapsed"}])
def test_as2p_is_its_closed_form_and_its_ring_is_the_log(options: dict[str, Any]) -> None:
    o = {"rho": 0.02, "rho_end": 0.002} | options
    made, rng, steps = load_part("estimator", "as2p")(**o), np.random.default_rng(1), 150
    past: list[Record] = []
    gammas: list[float] = []
    for k in range(steps):
        gammas.append(float(rng.normal(0.3, 2)))
        rho = made._radius(k, steps)
        oracle = Said([1.0 + rho * gammas[k], 1.0 - rho * gammas[k]], lr=1.0)
        oracle.step, oracle.steps = k, steps
        (g,) = made.measure(oracle, past)
        assert g == pytest.approx(as2p(gammas, k, steps, o), rel=1e-9)
        past.append(Record(k, k, 1.0, (g,), (1.0 + rho * gammas[k], 1.0 - rho * gammas[k])))


def test_as2p_stands_still_where_there_is_no_slope_and_goes_downhill() -> None:
    made, past = load_part("estimator", "as2p")(), [Record(k, k, 1.0, (0.1,), (1.0, 1.1)) for k in range(3)]
    assert made.measure(Said([1.0, 1.0]), past) == [0.0]
    assert made.measure(Said([2.0, 1.0]), past)[0] > 0, "theta moves by -lr g z: away from the larger loss"
    assert math.isnan(made.measure(Said([NAN, 1.0]), past)[0])
    found = estimates_end("as2p", rho=0.1, rho_end=0.01, eta_b=5.0)
    assert found < 0.1, "of the loss above the minimum that it started with"


def estimates_end(word: str, **options: Any) -> float:
    """The share of the quadratic's excess loss that is left after 400 steps."""
    bowl = FunctionTask(lambda points: 0.5 * np.einsum("ci,ij,cj->c", points, H + np.eye(D) / 4, points))
    space = ArraySpace(THETA)
    run = core_run.Run(2, 400, MemoryLog(), space, load_part("noise", "normal")(), load_part("rule", "sgd")(lr=1.0),
                     load_part("estimator", word)(**options), bowl, space)  # type: ignore[arg-type]  # fmt: skip
    first = float(bowl.f(THETA[None])[0])
    for _ in engine.play(run, 400):
        pass
    return float(bowl.f(space.value[None])[0]) / first


def test_daps_directions_are_aligned_with_its_first_estimate() -> None:
    """<g0, v> = xi |g0| for every aligned point, g0 being the first half's estimate (ALGORITHMS 7.2, 7.3)."""
    space = ArraySpace(THETA)
    run = core_run.Run(
        1, 9, MemoryLog(), space, load_part("noise", "sphere")(), load_part("rule", "sgd")(), None, BOWL, space
    )  # type: ignore[arg-type]
    made = load_part("estimator", "dap")(eps=1e-3, first=3, second=4)
    oracle = core_oracle.StepOracle(run, BOWL.batch(0), 0, 9, 0)
    asked: list[Any] = []
    losses = oracle.losses
    oracle.losses = lambda points: asked.extend(points) or losses(points)  # type: ignore[method-assign, func-returns-value]
    g = made.measure(oracle, [])
    leaf = space.leaves()[0]
    z = [np.asarray(run.direction(0, q, leaf).z, float) * oracle.gain(q) for q in range(7)]  # type: ignore[union-attr]
    f = oracle.asked
    g0 = sum((f[1 + i] - f[0]) / (1e-3 * 3) * z[i] for i in range(3))
    v = [sum(c * z[q] for c, q in point) / 1e-3 for point in asked[4:]]
    assert all(abs(abs(g0 @ u) / np.linalg.norm(g0) - 1) < 1e-5 for u in v) and len(v) == 4, "sums of float32"
    g1 = sum((f[4 + j] - f[0]) / (1e-3 * 4) * v[j] for j in range(4))
    assert np.allclose(sum(w * d for w, d in zip(g, z)), (g0 + g1) / 2, rtol=1e-9)
