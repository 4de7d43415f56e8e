"""FlatZero's toy, f = (y'z - 1)^2 / 2 with d = 100: does zeroth-order descent drift to flat minima? (arXiv 2506.05454)

The trace of the Hessian is |y|^2 + |z|^2 on the minimum y'z = 1; the flattest minimum has 2. A two-point step of radius
lambda descends f + lambda^2 / 2 tr H, so the trace should fall with lambda, and stand still for lambda -> 0 and for
gradient descent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.types import AbstractNoise, Key, Leaf, Natural
from ..methods.estimators.two_sided import TwoSided
from ..methods.noise.normal import Normal
from ..methods.rules.sgd import Sgd
from ._bench import ArraySpace, Claim, FunctionTask, Outcome, create_axes, descend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VECTOR_SIZE = 100
# DD stands for lambda -> 0: in float64, a smaller radius than 1e-5 would be lost in rounding
RUN_RADII = {"DD": 1e-5, "lambda 0.1": 0.1, "lambda 0.05": 0.05, "lambda 0.01": 0.01}
GOLDEN_TRACES = {  # trace of H after 1,000, 10,000, 50,000 and 100,000 steps of the paper's script, measured with numpy 2.4.6
    "GD": (180.142, 180.142, 180.142, 180.142),
    "DD": (219.503, 219.503, 219.503, 219.503),
    "lambda 0.1": (215.208, 189.259, 94.506, 37.973),
    "lambda 0.05": (218.283, 210.158, 173.472, 135.162),
    "lambda 0.01": (219.452, 219.103, 217.376, 215.137),
}
GOLDEN_STEPS = 1_000, 10_000, 50_000, 100_000


@dataclass(frozen=True)
class PaperNoise(AbstractNoise):
    """The paper's own draws, from numpy's legacy generator: u_y, then u_z in each step.

    It is a stream that only goes forward: the key is ignored.
    """

    rng: np.random.RandomState

    def draw(self, key: Key, leaf: Leaf) -> Any:
        """Return the next numbers of the stream, whatever the key is."""
        return self.rng.randn(2 * VECTOR_SIZE)


def loss(points: np.ndarray) -> np.ndarray:
    """Return (y'z - 1)^2 / 2 at points [copies, 2 * VECTOR_SIZE]."""
    return 0.5 * ((points[:, :VECTOR_SIZE] * points[:, VECTOR_SIZE:]).sum(1) - 1.0) ** 2


def gradient_descent(theta: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    """Yield the points of gradient descent with lr 0.01."""
    for _ in range(steps):
        y, z = theta[:VECTOR_SIZE], theta[VECTOR_SIZE:]
        theta = theta - 0.01 * (y @ z - 1.0) * np.concatenate([z, y])
        yield theta


@dataclass(frozen=True)
class FlatMinima:
    """The experiment, and its options.

    Attributes:
        steps: of a run; 100,000 in the paper.
        every: the steps between two measurements of the trace.
    """

    steps: Natural = 100_000
    every: Natural = 500

    def run(self, seed: int) -> Outcome:
        """Run the experiment, and return its numbers, the paper's claims beside them, and a figure."""
        rng = np.random.RandomState(17)
        start = np.concatenate([rng.randn(VECTOR_SIZE), rng.randn(VECTOR_SIZE)])
        after = rng.get_state()
        traces, losses = {}, {}
        for name, points in {"GD": gradient_descent(start, self.steps)}.items():
            traces[name], losses[name] = self.watch(points)
        for name, eps in RUN_RADII.items():
            for suffix in ("", ", zoedge's noise"):
                rng.set_state(after)
                noise = Normal() if suffix else PaperNoise(rng)
                space = ArraySpace(start)
                records = descend(space, FunctionTask(loss), noise, TwoSided(eps=eps), Sgd(lr=1e-3), self.steps, seed)
                traces[name + suffix], losses[name + suffix] = self.watch(space.value for _ in records)
        claims = self.claims(traces, float(start @ start))
        numbers = {"start": float(start @ start), "every": self.every, "trace": traces, "mean loss of the end": losses}
        return Outcome(numbers, claims, lambda: self.draw(traces))

    def watch(self, points: Iterator[np.ndarray]) -> tuple[list[float], float]:
        """Return the trace after every `every` steps, and the mean loss of the last 1,000 steps."""
        traces, last = [], []
        for step, theta in enumerate(points, 1):
            if step % self.every == 0:
                traces.append(float(theta @ theta))
            if step > self.steps - 1000:
                last.append(float(loss(theta[None])[0]))
        return traces, float(np.mean(last))

    def claims(self, traces: dict[str, list[float]], start: float) -> list[Claim]:
        """Return the paper's claims, compared with these traces. start: the trace at the start."""
        claims = []
        for name, golden in GOLDEN_TRACES.items():
            pairs = [(traces[name][m // self.every - 1], g) for m, g in zip(GOLDEN_STEPS, golden) if m <= self.steps]
            if pairs:
                worst = max(abs(t / g - 1) for t, g in pairs)
                seen = ", ".join(f"{t:.3f}" for t, _ in pairs)
                paper = f"{name}: tr H = {', '.join(f'{g:.3f}' for _, g in pairs)} after {self.marks(len(pairs))} steps"
                claims.append(Claim(paper, f"{seen} (the paper's draws; off by {worst:.1e} at most)", worst < 0.01))
        end = {name: traces[f"{name}, zoedge's noise"][-1] for name in RUN_RADII}
        falls = end["lambda 0.1"] < end["lambda 0.05"] < end["lambda 0.01"] < end["DD"] * 1.001
        still = abs(end["DD"] / traces["DD, zoedge's noise"][0] - 1) < 0.01
        seen = ", ".join(f"{name} {value:.1f}" for name, value in end.items())
        claims.append(Claim("the larger lambda, the flatter the minimum", f"{seen} (zoedge's noise)", falls and still))
        return claims

    def marks(self, count: int) -> str:
        """Return the first `count` of GOLDEN_STEPS, as text."""
        return ", ".join(f"{m:,}" for m in GOLDEN_STEPS[:count])

    def draw(self, traces: dict[str, list[float]]) -> Figure:
        """Draw the traces by steps."""
        figure, (ax,) = create_axes(1, "steps", "trace of the Hessian")
        for i, name in enumerate(GOLDEN_TRACES):
            for suffix, style in (("", "-"), (", zoedge's noise", "--")):
                if name + suffix in traces:
                    ys = traces[name + suffix]
                    xs = [self.every * (k + 1) for k in range(len(ys))]
                    ax.plot(xs, ys, style, color=f"C{i}", label=name if not suffix else None)
        ax.axhline(2, color="grey", linewidth=0.8, linestyle=":")
        ax.set_title("solid: the paper's draws, dashed: zoedge's; dotted: the flattest minimum")
        ax.legend(frameon=False)
        return figure
