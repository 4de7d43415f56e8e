"""-Laplace u = 1 on the unit square, u = 0 on its edge, by linear elements on many triangle meshes at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse


class TriangleGrid:
    """n x n squares of two triangles each; points are complex numbers. Meshes share triangles, so sparsity is known."""

    def __init__(self, n: int):
        line = np.linspace(0, 1, n + 1)
        self.vertices = (line + 1j * line[:, None]).ravel()
        ids = np.arange((n + 1) ** 2).reshape(n + 1, n + 1)
        a, b, c, d = (part.ravel() for part in (ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]))
        self.triangles = np.stack([np.r_[a, a], np.r_[b, d], np.r_[d, c]])
        self.inner = ids[1:-1, 1:-1].ravel()
        place = np.full(len(self.vertices), -1)
        place[self.inner] = np.arange(len(self.inner))
        rows, columns = np.broadcast_arrays(place[self.triangles][:, None], place[self.triangles][None])
        self.stiffness = build_scatter_matrix(
            np.where((rows >= 0) & (columns >= 0), rows * len(self.inner) + columns, -1).ravel()
        )
        self.load = build_scatter_matrix(place[self.triangles].ravel())

    def meshes(self, free: np.ndarray) -> np.ndarray:
        """[copies, vertices] from x and y of the inner vertices in turn, [copies, 2 * inner]."""
        found = np.repeat(self.vertices[None], len(free), axis=0)
        found[:, self.inner] = free[:, ::2] + 1j * free[:, 1::2]
        return found

    def corners(self, meshes: np.ndarray) -> np.ndarray:
        """[3, copies, triangles]."""
        return np.stack([meshes[:, ids] for ids in self.triangles])

    def solve(self, meshes: np.ndarray) -> np.ndarray:
        """u at all vertices, [copies, vertices]; every triangle's area must be positive."""
        copies, size = len(meshes), len(self.inner)
        corners = self.corners(meshes)
        area = compute_areas(corners)
        edges = np.roll(corners, 1, axis=0) - np.roll(corners, -1, axis=0)  # |grad| of a corner's hat: edge / (2 area)
        blocks = (edges[:, None].conj() * edges[None]).real / (4 * area)
        matrix = self.stiffness @ blocks.transpose(0, 1, 3, 2).reshape(-1, copies)
        load = self.load @ np.concatenate([area.T / 3] * 3)
        u = np.zeros(meshes.shape)
        u[:, self.inner] = np.linalg.solve(matrix.T.reshape(copies, size, size), load.T[..., None])[..., 0]
        return u


def build_scatter_matrix(places: np.ndarray) -> Any:
    """The 0-1 matrix that sums values into these places; -1 is nowhere."""
    kept = np.flatnonzero(places >= 0)
    shape = places.max() + 1, len(places)
    return sparse.csr_array((np.ones(len(kept)), (places[kept], kept)), shape=shape)


def compute_areas(corners: np.ndarray) -> np.ndarray:
    """Signed, of [3, ...] corners."""
    return cross_product(corners[1] - corners[0], corners[2] - corners[0]) / 2


def cross_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.conj() * b).imag


def barycentric_weights(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Barycentric coordinates [3, ...] of points in triangles."""
    a, b, c = corners - points
    parts = np.stack([cross_product(b, c), cross_product(c, a), cross_product(a, b)])
    return parts / parts.sum(0)
