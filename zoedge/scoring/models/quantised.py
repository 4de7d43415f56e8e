"""This module has what Linear modules of bitsandbytes need: scales, weights, and forwards that are alike in every mode.

In 4 bits, each block of 64 weights has a scale (absmax), which is itself stored in 8 bits with double quantisation. In
8 bits, each row has a scale. Scales can be exchanged for others in float32 for a while; the integer codes never change.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

QUANTISED_BLOCK = 64  # weights that share a scale in 4 bits: the default of bitsandbytes, which no recipe changes


class LinearScales:
    """The scales of one quantised Linear module, and the exchange of them for others.

    block: how many consecutive weights of the flattened matrix share a scale.
    """

    def __init__(self, module: nn.Linear):
        weight: Any = module.weight
        self.four = hasattr(weight, "quant_state")
        if self.four:
            self.owner, self.name, self.block = weight, "quant_state", weight.quant_state.blocksize
        else:  # as in dequantise_weight
            self.owner = weight if weight.SCB is not None else module.state
            self.name, self.block = "SCB", module.in_features
        self.own = getattr(self.owner, self.name)

    @staticmethod
    def has(module: nn.Module) -> bool:
        """Return whether the module is a quantised Linear."""
        import bitsandbytes as bnb

        return isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))

    def read(self) -> Tensor:
        """Return the module's own scales, [n] float32."""
        if not self.four:
            return self.own.float()
        if not self.own.nested:
            return self.own.absmax
        from bitsandbytes.functional import dequantize_blockwise

        return dequantize_blockwise(self.own.absmax, self.own.state2) + self.own.offset

    def lend(self, scales: Tensor) -> None:
        """Let the module compute with these scales, [n] float32, until `back` is called."""
        value = scales
        if self.four:
            value = copy(self.own)
            value.absmax, value.nested, value.state2, value.offset = scales, False, None, None
        setattr(self.owner, self.name, value)

    def back(self) -> None:
        """Give the module its own scales back."""
        setattr(self.owner, self.name, self.own)


def make_linear_deterministic(module: nn.Module, dtype: torch.dtype) -> None:
    """Let a Linear of bitsandbytes compute the same function in every mode, in `dtype`. Other modules stay as they are."""
    import bitsandbytes as bnb

    if isinstance(module, bnb.nn.Linear4bit):
        module.train()
        module.support_avx512bf16_for_cpu = False
        module.compute_dtype, module.compute_type_is_set = dtype, True
    if isinstance(module, bnb.nn.Linear8bitLt):
        module.train()
        module.forward = Int8Forward(module)  # type: ignore[method-assign]


# of dequantised weights at most, of the blocks above a cached trunk: a block of a model of 1B parameters has 243 MB
KEPT_BYTES = 1 << 28


class KeptForward:
    """The forward of a quantised Linear that keeps its weight, dequantised at its first call, [out, in].

    Where a space lends the module other scales, the forward is the module's own.
    """

    def __init__(self, module: nn.Linear, dtype: torch.dtype):
        self.module, self.dtype, self.own = module, dtype, module.forward
        self.scales = LinearScales(module).own
        self.kept: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if LinearScales(self.module).own is not self.scales:
            return self.own(x)
        bias = self.module.bias
        return nn.functional.linear(x, self.weight(), None if bias is None else bias.to(self.dtype))

    def weight(self) -> Tensor:
        """Return the weight."""
        if self.kept is None:
            with torch.inference_mode(False), torch.no_grad():  # so that a backward pass of others' can read it
                self.kept = dequantise_weight(self.module, self.dtype)
        return self.kept


def keep_weights(blocks: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Let the quantised Linear modules of some blocks keep their weights in `dtype`, if these are KEPT_BYTES at most."""
    linears = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear) and LinearScales.has(m)]
    if sum(m.in_features * m.out_features for m in linears) * dtype.itemsize <= KEPT_BYTES:
        for module in linears:
            if not isinstance(module.forward, KeptForward):
                module.forward = KeptForward(module, dtype)  # type: ignore[method-assign,assignment]


class LowerForward:
    """The forward of a Linear module, quantised or not, computed in `dtype`; it takes and gives what it did."""

    def __init__(self, module: nn.Linear, dtype: torch.dtype):
        make_linear_deterministic(module, dtype)  # which gives an int8 module its forward
        self.own, self.dtype = module.forward, dtype
        if not LinearScales.has(module):
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    parameter.data = parameter.data.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.own(x.to(self.dtype)).to(x.dtype)


def lower_products(blocks: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Let the Linear modules of some blocks compute their products in `dtype`; all else stays in the type that it has."""
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.forward = LowerForward(module, dtype)  # type: ignore[method-assign,assignment]


class Int8Forward:
    """The forward of an int8 Linear on every device, y = x (CB * SCB / 127)'.

    Weights are dequantised first, and activations are not quantised, as they would be in the library's own forward.
    """

    def __init__(self, module: nn.Linear):
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, dequantise_weight(self.module, x.dtype), self.bias(x.dtype))

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the module's bias [out] in this type; None: it has none."""
        return None if self.module.bias is None else self.module.bias.to(dtype)


def read_weight(module: nn.Linear, dtype: torch.dtype) -> Tensor:
    """Return the weight of a Linear as its forward uses it, [out, in], which may be a kept one."""
    forward = module.forward
    return forward.weight() if isinstance(forward, KeptForward) else dequantise_weight(module, dtype)


def dequantise_weight(module: nn.Linear, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the weight of a Linear as its forward uses it, [out, in], dequantised to `dtype`."""
    import bitsandbytes as bnb

    weight: Any = module.weight
    if isinstance(module, bnb.nn.Linear4bit):
        quant = copy(weight.quant_state)
        quant.dtype = dtype  # as the forward does; the type that the checkpoint names, float16, would round once more
        return bnb.functional.dequantize_4bit(weight.data, quant)
    if isinstance(module, bnb.nn.Linear8bitLt):
        state: Any = module.state
        codes = weight.CB if weight.CB is not None else state.CB if state.CB is not None else weight.data
        scale = weight.SCB if weight.SCB is not None else state.SCB
        return (codes.float() * (scale.float()[:, None] / 127.0)).to(dtype)
    return weight.data.to(dtype)
