"""Z = U V' / sqrt r on every matrix: perturbations of low rank, V kept for `refresh` records (LOZO, arXiv 2410.07698).

The paper draws normal factors, probes along U V' and divides the step by r, so its eps is sqrt r times smaller than ours.
Here U and V are Rademacher: Z sqrt r then has whole numbers of at most 7 bits, whose sums are exact in any order. Parts
that are no matrix get Rademacher noise times sqrt r (rounded to 8 bits), which has the same variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_doc import Doc
from annotated_types import Ge, Le

from ...core.types import FACTOR_STREAM, MASK_STREAM, AbstractNoise, Key, Leaf, Natural, Part
from .rademacher import Rademacher

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRank(AbstractNoise):
    """The noise that has a low rank on every matrix."""

    scheme = 10  # frozen: the noise id in a log's header
    rank: Annotated[int, Ge(1), Le(64), Doc("The rank of the noise on every matrix.")] = 4
    refresh: Annotated[Natural, Doc("How many records the factor V lasts (nu in the paper: 50 to 100).")] = 50

    def draw(self, key: Key, leaf: Leaf) -> Tensor:
        """Return Z sqrt r on the matrices of the leaf, and signs times sqrt r on the other parts, [n] float32."""
        z = leaf.zeros()
        for part in leaf.parts or (Part(leaf.name, leaf.offset, (len(leaf.value),)),):
            size, start = math.prod(part.shape), part.offset - leaf.offset
            values = leaf.value[start : start + size]
            z[start : start + size] = (
                self._matrix(key, part, values) if len(part.shape) == 2 else self._vector(key, part, values)
            )
        return z

    def _matrix(self, key: Key, part: Part, values: Tensor) -> Tensor:
        """Return Z sqrt r of a matrix. U belongs to the record, V to its window of `refresh` records.

        The factors are drawn at the part's offset times the rank, because a factor has `rank` values for each row.
        """
        rows, columns = part.shape
        u = self._signs(key._replace(stream=FACTOR_STREAM), part.offset * self.rank, rows, values)
        window = key._replace(seq=key.seq // self.refresh, query=0, stream=MASK_STREAM)
        return (u @ self._signs(window, part.offset * self.rank, columns, values).T).reshape(-1)

    def _signs(self, key: Key, offset: int, count: int, like: Tensor) -> Tensor:
        """Return [count, rank] signs, drawn as if they began at `offset` in the run's vector."""
        size = count * self.rank
        blank = like.repeat(-(-size // len(like)))[:size]
        return Rademacher().draw(key, Leaf("", offset, blank)).reshape(count, self.rank)

    def _vector(self, key: Key, part: Part, values: Tensor) -> Tensor:
        """Return the noise on a part that is no matrix: signs times sqrt r, which is rounded to 8 significant bits."""
        mantissa, exponent = math.frexp(math.sqrt(self.rank))
        return Rademacher().draw(key, Leaf(part.name, part.offset, values)) * math.ldexp(
            round(mantissa * 256), exponent - 8
        )

    def gain(self, elements: int, square: Callable[[], float]) -> float:
        """Return 1 / sqrt r, because `draw` returns Z sqrt r."""
        return 1.0 / math.sqrt(self.rank)
