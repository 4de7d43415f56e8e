"""v = X - <a, X> a / |a|^2 + xi a / |a|, xi = +-1: directions aligned with the exact gradient a (DAP, arXiv 2510.19975).

<a, v> = xi |a| exactly and E[v v'] = I. A gradient that is known needs no zeroth-order method: this noise is for
experiments on what alignment could gain. It replays, as a is a function of theta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.types import MASK_STREAM, AbstractNoise, Key, Leaf
from ..methods.noise._philox import philox_numpy
from ..methods.noise.normal import Normal


@dataclass(frozen=True)
class Aligned(AbstractNoise):
    """Directions that are aligned with the exact gradient.

    Attributes:
        gradient: of the objective at theta, which is a single leaf, a numpy array.
        of: the noise of X.
    """

    gradient: Callable[[np.ndarray], np.ndarray]
    of: AbstractNoise = field(default_factory=Normal)

    def draw(self, key: Key, leaf: Leaf) -> Any:
        """Return v, [d] float64; where the gradient is 0, X."""
        x: Any = self.of.draw(key, leaf)
        x = x.astype("f8")
        x *= self.of.gain(len(x), lambda: float(x @ x))
        theta: Any = leaf.value  # an array of numpy
        a = self.gradient(theta)
        length = np.linalg.norm(a)
        if length == 0:
            return x
        unit = a / length
        return x + (draw_sign(key) - unit @ x) * unit


def draw_sign(key: Key) -> float:
    """Return -1 or +1 with equal chance: the lowest bit of a block of random numbers that no direction uses."""
    return 1.0 if philox_numpy(key._replace(stream=MASK_STREAM), 0, 1)[0, 0] & 1 else -1.0
