"""The scales of a bitsandbytes Linear: read in float32, and lent to its own forward, which then computes with others.

4 bits: a scale (absmax) a block of 64 weights, itself in 8 bits if quantised doubly; a forward with lent scales reads
them in float32. 8 bits: a scale a row. The integer codes are not touched.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

QUANTISED_BLOCK = 64  # weights that share a scale in 4 bits: bitsandbytes' own, which no option changes


class LinearScales:
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


def make_linear_deterministic(module: nn.Module, dtype: torch.dtype) -> None:
    """A bitsandbytes Linear that computes the same function in every mode, in `dtype`; others are left alone."""
    import bitsandbytes as bnb

    if isinstance(module, bnb.nn.Linear4bit):
        module.train()
        module.support_avx512bf16_for_cpu = False
        module.compute_dtype, module.compute_type_is_set = dtype, True
    if isinstance(module, bnb.nn.Linear8bitLt):
        module.train()
        module.forward = Int8Forward(module)  # type: ignore[method-assign]


class Int8Forward:
    """y = x (CB * SCB / 127)': an int8 Linear that dequantises and leaves the activations alone, on every device."""

    def __init__(self, module: Any):
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, dequantise_weight(self.module, x.dtype), self.bias(x.dtype))

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        return None if self.module.bias is None else self.module.bias.to(dtype)


def dequantise_weight(module: nn.Linear, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight [out, in] as the forward uses it, dequantised."""
    import bitsandbytes as bnb

    weight: Any = module.weight
    if isinstance(module, bnb.nn.Linear4bit):
        quant = copy(weight.quant_state)
        quant.dtype = dtype  # the forward dequantises to its own type; the checkpoint's float16 would round once more
        return bnb.functional.dequantize_4bit(weight.data, quant)
    if isinstance(module, bnb.nn.Linear8bitLt):
        state: Any = module.state
        codes = weight.CB if weight.CB is not None else state.CB if state.CB is not None else weight.data
        scale = weight.SCB if weight.SCB is not None else state.SCB
        return (codes.float() * (scale.float()[:, None] / 127.0)).to(dtype)
    return weight.data.to(dtype)
