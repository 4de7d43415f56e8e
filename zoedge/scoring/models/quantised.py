"""The scales of a bitsandbytes Linear: read in float32, and lent to its own forward, which then computes with others.

4 bits: a scale (absmax) a block of 64 weights, itself in 8 bits if quantised doubly; a forward with lent scales reads
them in float32. 8 bits: a scale a row. The integer codes are not touched.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import Tensor, nn


class Scaled:
    """block: consecutive weights of the flattened matrix that share a scale."""

    def __init__(self, module: nn.Linear):
        weight: Any = module.weight
        self.four = hasattr(weight, "quant_state")
        if self.four:
            self.owner, self.name, self.block = weight, "quant_state", weight.quant_state.blocksize
        else:  # where weight_of looks
            self.owner = weight if weight.SCB is not None else module.state  # type: ignore[attr-defined]
            self.name, self.block = "SCB", module.in_features
        self.own = getattr(self.owner, self.name)

    @staticmethod
    def has(module: nn.Module) -> bool:
        import bitsandbytes as bnb

        return isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))

    def read(self) -> Tensor:
        """The stored scales [n], float32."""
        if not self.four:
            return self.own.float()
        if not self.own.nested:
            return self.own.absmax
        from bitsandbytes.functional import dequantize_blockwise

        return dequantize_blockwise(self.own.absmax, self.own.state2) + self.own.offset

    def lend(self, scales: Tensor) -> None:
        """Until `back`, the module computes with these scales [n], float32."""
        value = scales
        if self.four:
            value = copy(self.own)
            value.absmax, value.nested, value.state2, value.offset = scales, False, None, None
        setattr(self.owner, self.name, value)

    def back(self) -> None:
        setattr(self.owner, self.name, self.own)
