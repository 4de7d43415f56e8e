"""This module solves -Laplace u = 1 on the unit square, with u = 0 on its edge, by linear elements on many meshes at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse


class TriangleGrid:
    """A mesh of n x n squares, each cut into two triangles. Points are complex numbers.

    All meshes share the triangles, so that the sparsity of their matrices is known in advance.
    """

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
        """Return vertices [copies, vertices] from x and y of the inner vertices in turn, [copies, 2 * inner]."""
        meshes = np.repeat(self.vertices[None], len(free), axis=0)
        meshes[:, self.inner] = free[:, ::2] + 1j * free[:, 1::2]
        return meshes

    def corners(self, meshes: np.ndarray) -> np.ndarray:
        """Return the corners of every triangle, [3, copies, triangles]."""
        return np.stack([meshes[:, ids] for ids in self.triangles])

    def solve(self, meshes: np.ndarray) -> np.ndarray:
        """Return u at all vertices, [copies, vertices]. The area of every triangle must be positive."""
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
    """Return the 0-1 matrix that adds values up at these places; a value whose place is -1 is left out."""
    kept = np.flatnonzero(places >= 0)
    shape = places.max() + 1, len(places)
    return sparse.csr_array((np.ones(len(kept)), (places[kept], kept)), shape=shape)


def compute_areas(corners: np.ndarray) -> np.ndarray:
    """Return the signed areas of triangles with corners [3, ...]."""
    return cross_product(corners[1] - corners[0], corners[2] - corners[0]) / 2


def cross_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cross product of vectors that are complex numbers."""
    return (a.conj() * b).imag


def barycentric_weights(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the barycentric coordinates [3, ...] of points in triangles."""
    a, b, c = corners - points
    parts = np.stack([cross_product(b, c), cross_product(c, a), cross_product(a, b)])
    return parts / parts.sum(0)
