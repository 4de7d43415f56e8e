"""Moving a mesh's vertices by forward solves alone: do the directions differ? -Laplace u = 1, DAP (arXiv 2510.19975).

Linear elements on the unit square, u = 0 on its edge. The 81 inner vertices of a 10 x 10 mesh are moved to lower the root
mean square, over the vertices of a 20 x 20 mesh, of that mesh's solution less the coarse one's.

Deviations. A solver of our own, and not MFEM: each square is cut along the same diagonal, and the coarse solution is
interpolated on its own triangles, not on a new triangulation of its vertices. The authors' code divides the difference
by the amplitude once too little, so that their lr of 0.1 hardly moves the mesh; here the gradient is right, and lr is 3:
in 60 steps it lowers the error from 0.00106 to 0.00100 (lr 1: to 0.00102), and at lr 10 triangles turn over at some 110
steps. 64 directions, 100 steps and 8 repeats (paper: 512, 200, 10; DAP 512 and 512). DAP gets no more directions than
the others, half of them for its estimate, and projects the inner coordinates alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, MultipleOf
from scipy import stats

from ..core.types import AbstractEstimator, AbstractNoise, Natural, Positive
from ..errors import DivergedError
from ..methods.estimators.dap import Dap
from ..methods.estimators.one_sided import OneSided
from ..methods.noise.coordinate import Coordinate
from ..methods.noise.normal import Normal
from ..methods.noise.rademacher import Rademacher
from ..methods.noise.sphere import Sphere
from ..methods.rules.sgd import Sgd
from ._bench import ArraySpace, Claim, FunctionTask, Outcome, create_axes, descend
from ._triangles import TriangleGrid, barycentric_weights, compute_areas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A point may lie outside a triangle of the first mesh by so much, in barycentric coordinates, and inside it in another mesh
# of the batch: they differ by amplitude * |z|, about 1e-3 of a triangle's height
BARYCENTRIC_SLACK = 0.02


class MeshObjective:
    """The error of a coarse mesh against a fine mesh's solution, for many coarse meshes that lie close together."""

    def __init__(self, coarse: int, fine: int):
        self.grid, reference = TriangleGrid(coarse), TriangleGrid(fine)
        self.count, self.points = len(reference.vertices), reference.vertices[reference.inner]  # both are 0 on the edge
        self.truth = reference.solve(reference.vertices[None])[0, reference.inner]
        inner = self.grid.vertices[self.grid.inner]
        self.start = np.stack([inner.real, inner.imag], axis=1).ravel()

    def losses(self, free: np.ndarray) -> np.ndarray:
        """Return the errors [copies] of meshes [copies, d]. An inverted triangle gives infinity, which the engine skips."""
        meshes = self.grid.meshes(free)
        valid = (compute_areas(self.grid.corners(meshes)) > 0).all(1)
        losses = np.full(len(free), np.inf)
        if valid.any():
            losses[valid] = self.errors(meshes[valid])
        return losses

    def errors(self, meshes: np.ndarray) -> np.ndarray:
        """Return the root mean square error of meshes [copies, vertices] over the vertices of the fine mesh."""
        u, points = self.grid.solve(meshes), self.points[:, None]
        depth = barycentric_weights(self.grid.corners(meshes[:1]), points).min(0)
        near = (depth > -BARYCENTRIC_SLACK).sum(1).max()  # six triangles meet where a point is a vertex
        ids = self.grid.triangles[:, np.argpartition(-depth, near - 1, axis=1)[:, :near]]
        inside = barycentric_weights(np.stack([meshes[:, i] for i in ids]), points)
        best = inside.min(0).argmax(-1)[..., None]  # the triangle that the point lies in
        values = sum(weight * u[:, i] for weight, i in zip(inside, ids))
        off = np.take_along_axis(np.asarray(values), best, axis=2)[..., 0] - self.truth
        return np.sqrt((off**2).sum(1) / self.count)


def make_directions(queries: int, eps: float) -> dict[str, tuple[AbstractNoise, AbstractEstimator]]:
    """Return (noise, estimator) by kind of direction, with `queries` directions each.

    DAP takes half of them for its estimate of the gradient.
    """
    plain = OneSided(eps=eps, queries=queries)
    return {
        "gauss": (Normal(), plain),
        "sphere": (Sphere(), plain),
        "rademacher": (Rademacher(), plain),
        "coordinate": (Coordinate(), plain),
        "DAP": (Sphere(), Dap(eps=eps, first=queries // 2, second=queries // 2)),
    }


class RepeatedRuns(NamedTuple):
    """The runs with one kind of direction, an entry for each repeat.

    Attributes:
        curves: the error before each step.
        ends: the error after the last step.
        meshes: the mesh then.
    """

    curves: list[list[float]]
    ends: list[float]
    meshes: list[np.ndarray]


@dataclass(frozen=True)
class Mesh:
    """The experiment, and its options.

    Attributes:
        repeats: runs with each kind of direction, on different noise.
        queries: directions of a step.
        eps: the amplitude of the probes.
    """

    steps: Natural = 100
    repeats: Natural = 8
    queries: Annotated[int, MultipleOf(2), Ge(2)] = 64
    lr: Positive = 3.0
    eps: Positive = 1e-5
    coarse: Annotated[int, Ge(2)] = 10
    fine: Annotated[int, Ge(2)] = 20

    def run(self, seed: int) -> Outcome:
        """Run the experiment, and return its numbers, the paper's claims beside them, and a figure."""
        objective = MeshObjective(self.coarse, self.fine)
        results = {}
        for name, (noise, estimator) in make_directions(self.queries, self.eps).items():
            runs = RepeatedRuns([], [], [])
            for repeat in range(self.repeats):
                space, rule = ArraySpace(objective.start), Sgd(lr=self.lr)
                own = seed * self.repeats + repeat
                records = descend(space, FunctionTask(objective.losses), noise, estimator, rule, self.steps, own)
                runs.curves.append([record.losses[0] for record in records])
                runs.ends.append(float(objective.losses(space.value[None])[0]))
                if not math.isfinite(runs.ends[-1]):
                    raise DivergedError(f"mesh: with {name} directions a triangle turned over. Lower lr.")
                runs.meshes.append(objective.grid.meshes(space.value[None]))
            results[name] = runs
        ends = {name: runs.ends for name, runs in results.items()}
        least = {name: find_smallest_area(objective.grid, runs.meshes) for name, runs in results.items()}
        curves = {name: np.mean(runs.curves, axis=0).tolist() for name, runs in results.items()}
        start = float(objective.losses(objective.start[None])[0])
        numbers = {"start": start, "ends": ends, "mean curves": curves, "smallest area, of its first": least}
        return Outcome(numbers, make_claims(start, ends), lambda: draw_meshes(objective.grid, results))


def find_smallest_area(grid: TriangleGrid, meshes: list[np.ndarray]) -> float:
    """Return the smallest area of a triangle in these meshes, as a share of what it was at the start."""
    return min(
        float((compute_areas(grid.corners(mesh)) / compute_areas(grid.corners(grid.vertices[None]))).min())
        for mesh in meshes
    )


def make_claims(start: float, ends: dict[str, list[float]]) -> list[Claim]:
    """Return the paper's claims, compared with the errors at the end of each repeat."""
    text = ", ".join(f"{name} {np.mean(e):.4e} +- {standard_deviation(e):.0e}" for name, e in ends.items())
    fall = max(max(e) for e in ends.values()) < start
    seen = f"from {start:.4e} to (mean, sd of repeats) {text}"
    claims = [Claim("zeroth-order steps lower the mesh's error", seen, fall)]
    if min(map(len, ends.values())) < 2:
        return claims
    test = stats.f_oneway(*ends.values())
    means = [float(np.mean(e)) for e in ends.values()]
    seen = f"means from {min(means):.4e} to {max(means):.4e}; F test: p = {test.pvalue:.2g}"
    claims.append(Claim("the directions differ by more than their spread over repeats", seen, bool(test.pvalue < 0.01)))
    others = {name: e for name, e in ends.items() if name != "DAP"}
    best = min(others, key=lambda name: float(np.mean(others[name])))
    less = float(np.mean(others[best]) - np.mean(ends["DAP"]))
    error = float(
        np.hypot(standard_deviation(ends["DAP"]), standard_deviation(others[best])) / np.sqrt(len(ends["DAP"]))
    )
    seen = f"below the best other ({best}) by {less:.1e} +- {error:.0e} (standard error)"
    claims.append(Claim("DAP's mesh is better than that of every other direction", seen, less > 2 * error))
    return claims


def standard_deviation(values: list[float]) -> float:
    """Return the standard deviation over repeats; 0 for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def draw_meshes(grid: TriangleGrid, results: dict[str, RepeatedRuns]) -> Figure:
    """Draw the errors by steps, the errors at the end, and one of the meshes."""
    figure, (left, middle, right) = create_axes(3, "steps", "error of the coarse mesh")
    for i, (name, runs) in enumerate(results.items()):
        curves = np.asarray(runs.curves)
        left.plot(curves.mean(0), color=f"C{i}", label=name)
        left.fill_between(range(curves.shape[1]), curves.min(0), curves.max(0), color=f"C{i}", alpha=0.15, linewidth=0)
        middle.plot(runs.ends, [i] * len(runs.ends), "o", color=f"C{i}", alpha=0.5)
    left.legend(frameon=False)
    middle.set_yticks(range(len(results)), list(results))
    middle.set_xlabel("error after the last step, a dot a repeat")
    middle.set_ylabel("")
    middle.locator_params(axis="x", nbins=3)
    vertices = results["DAP"].meshes[0][0]
    right.triplot(vertices.real, vertices.imag, grid.triangles.T, color="grey", linewidth=0.6)
    right.set_title("a mesh moved with DAP")
    right.set_aspect("equal")
    right.set_axis_off()
    return figure
