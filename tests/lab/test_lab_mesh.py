"""The lab's mesh: the solver against known solutions, interpolation, meshes that are turned over, a tiny run."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from zoedge.commands import lab
from zoedge.errors import DivergedError
from zoedge.lab import _triangles, mesh

CENTRE = 0.0736713  # of -Laplace u = 1 on the unit square: its double sine series


def test_the_solution_at_the_centre_converges() -> None:
    series = sum(
        16 * (-1) ** ((j + k) // 2 - 1) / (np.pi**4 * j * k * (j * j + k * k))
        for j in range(1, 400, 2)
        for k in range(1, 400, 2)
    )
    assert series == pytest.approx(CENTRE, abs=1e-6)
    grids = [_triangles.TriangleGrid(n) for n in (4, 8, 16, 32)]
    off = [CENTRE - float(g.solve(g.vertices[None])[0].max()) for g in grids]
    ratios = [a / b for a, b in pairwise(off)]
    assert off[-1] < 1e-4 and all(3.5 < r < 4.5 for r in ratios)  # second order


def test_linear_elements_are_the_five_point_stencil_on_squares() -> None:
    grid = _triangles.TriangleGrid(5)
    u = grid.solve(grid.vertices[None])[0].reshape(6, 6)
    inner = u[1:-1, 1:-1]
    laplace = 4 * inner - u[:-2, 1:-1] - u[2:, 1:-1] - u[1:-1, :-2] - u[1:-1, 2:]
    assert np.allclose(laplace * 25, 1)


def test_moved_meshes_are_solved_each_by_itself() -> None:
    """Galerkin: integral u = energy, and the energy of a subspace is below the true one, 0.0351443."""
    made = mesh.MeshObjective(5, 10)
    free = made.start + 0.02 * np.random.RandomState(0).randn(4, len(made.start))
    many = made.grid.solve(made.grid.meshes(free))
    for row, u in zip(free, many):
        alone = made.grid.meshes(row[None])
        assert np.allclose(made.grid.solve(alone)[0], u)
        mean = u[made.grid.triangles].mean(0) * _triangles.compute_areas(made.grid.corners(alone))[0]
        assert 0.02 < mean.sum() < 0.0351443


def test_the_error_is_of_the_interpolated_solution() -> None:
    """Against matplotlib's interpolation on the same triangles."""
    from matplotlib.tri import LinearTriInterpolator, Triangulation

    made = mesh.MeshObjective(4, 12)
    free = made.start + 0.03 * np.random.RandomState(1).randn(1, len(made.start))
    vertices, u = made.grid.meshes(free)[0], made.grid.solve(made.grid.meshes(free))[0]
    triangles = Triangulation(vertices.real, vertices.imag, made.grid.triangles.T)
    values = LinearTriInterpolator(triangles, u)(made.points.real, made.points.imag)
    assert made.losses(free)[0] == pytest.approx(np.sqrt(((values - made.truth) ** 2).sum() / 13**2))


def test_the_error_of_the_same_mesh_is_zero_and_a_batch_agrees_with_its_rows() -> None:
    same = mesh.MeshObjective(6, 6)
    assert same.losses(same.start[None])[0] < 1e-15
    made = mesh.MeshObjective(6, 12)
    free = made.start + 1e-5 * np.random.RandomState(2).randn(9, len(made.start))
    assert np.allclose(made.losses(free), [made.losses(row[None])[0] for row in free], rtol=1e-12)


def test_a_mesh_turned_over_is_infinite() -> None:
    made = mesh.MeshObjective(4, 8)
    free = np.repeat(made.start[None], 2, axis=0)
    free[1, 0] = 0.9
    found = made.losses(free)
    assert np.isfinite(found[0]) and np.isinf(found[1])
    assert np.isinf(made.losses(free[1:])).all()


def test_a_rate_that_turns_triangles_over_is_an_error() -> None:
    with pytest.raises(DivergedError, match="turned over"):
        mesh.Mesh(coarse=4, fine=8, steps=3, repeats=1, queries=8, lr=2000.0).run(0)


def test_a_tiny_run(tmp_path: Path) -> None:
    made = lab.make_experiment("mesh", ["coarse=4", "fine=8", "steps=4", "repeats=2", "queries=8", "lr=0.3"])
    outcome = lab.run_experiment("mesh", made, 1, tmp_path)
    assert len(outcome.claims) == 3 and outcome.claims[0].holds
    found = json.loads((tmp_path / "mesh.json").read_text())["numbers"]
    assert found["ends"].keys() == {"gauss", "sphere", "rademacher", "coordinate", "DAP"}
    assert len(set(found["ends"]["sphere"])) == 2  # repeats have other noise
    assert "<svg" in (tmp_path / "mesh.svg").read_text()
