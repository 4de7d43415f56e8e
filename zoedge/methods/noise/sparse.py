"""z = mask * noise, each element kept with probability `density`: sparse ZO (ZO-Bench, arXiv 2402.11592).

The mask is cut from uniform bits, and is the same in the probe and in the update. ZO-Bench compares a normal draw with the
ratio instead, so that its "0.1" leaves out 54 % of the elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_doc import Doc
from annotated_types import Gt, Le

from ...core.types import MASK_STREAM, AbstractNoise, Key, Leaf, Natural
from ._lookup import look_up_noise
from ._uniform import RANK_TABLE
from .normal import Normal
from .rademacher import Rademacher

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sparse(AbstractNoise):
    """The noise on a random share of the elements."""

    scheme = 8  # frozen: the noise id in a log's header
    of: Annotated[Literal["rademacher", "normal"], Doc("The noise on the elements that move.")] = "rademacher"
    density: Annotated[float, Gt(0), Le(1), Doc("The share of elements that move.")] = 0.1
    refresh: Annotated[Natural, Doc("How many records a mask lasts.")] = 1

    def draw(self, key: Key, leaf: Leaf) -> Tensor:
        """Return the noise where the mask of the record's window is 1, and zeros elsewhere."""
        inner = Rademacher() if self.of == "rademacher" else Normal()
        where = key._replace(seq=key.seq // self.refresh, query=0, stream=MASK_STREAM)
        kept = look_up_noise(where, leaf, 16, RANK_TABLE, 1) < round(self.density * 65536)
        return inner.draw(key, leaf) * kept
