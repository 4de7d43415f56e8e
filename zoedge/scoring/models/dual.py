"""This module lets a model's forward compute derivatives beside its values, in forward mode.

A dual tensor has values and their derivatives along one direction, its tangent (torch.autograd.forward_ad). Every operation
on one gives another. A space puts duals where it puts points otherwise; the loss that comes out has the derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from .quantised import LinearScales, dequantise_weight

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def without_gradients(method: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Keep a method of Base from recording what a backward pass would need; derivatives in forward mode are allowed."""

    @wraps(method)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        with torch.no_grad() if forward_ad._current_level >= 0 else torch.inference_mode():
            return method(*args, **kwargs)

    return run


@contextmanager
def differentiate(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Make the operations of the model, and all others in the context, compute tangents.

    The context gives a function that splits a dual [...] into its values and tangents, [..., 2]. Attention is computed by
    operations that have a derivative, which the fused one has not, and so are the products of 4-bit modules.
    """
    quantised = [module for module in model.modules() if isinstance(module, nn.Linear) and LinearScales.has(module)]
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        own = [(module, vars(module).get("forward")) for module in quantised]
        for module in quantised:
            setattr(module, "forward", DequantisedForward(module))  # noqa: B010 - mypy takes it for a method
        try:
            yield split_dual
        finally:
            for module, forward in own:
                if forward is None:
                    del module.forward
                else:
                    setattr(module, "forward", forward)  # noqa: B010


class DequantisedForward:
    """The forward of a quantised Linear on dual tensors: its weight is dequantised, and multiplied as any other."""

    def __init__(self, module: nn.Linear):
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        bias: Any = self.module.bias
        weight = dequantise_weight(self.module, x.dtype)
        return nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def split_dual(dual: Tensor) -> Tensor:
    """Return the values and tangents of a dual tensor [...], side by side, [..., 2]."""
    value, tangent = forward_ad.unpack_dual(dual)
    return torch.stack([value, torch.zeros_like(value) if tangent is None else tangent], -1)
