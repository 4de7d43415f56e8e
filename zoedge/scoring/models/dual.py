"""This module lets a model's forward compute derivatives beside its values, in forward mode.

A dual tensor has values and their derivatives along one direction, its tangent (torch.autograd.forward_ad). Every operation
on one gives another. A space puts duals where it puts points otherwise; the loss that comes out has the derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from .quantised import Int8Forward, dequantise_weight

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
def differentiate(model: nn.Module, below: Iterable[nn.Module] = ()) -> Iterator[Callable[[Tensor], Tensor]]:
    """Make the operations of the model, and all others in the context, compute tangents.

    below: blocks that no tangent reaches; their Linear modules stay as they are, because what is cached of them must have
    the bits that it has in any other run.

    The context gives a function that splits a dual [...] into its values and tangents, [..., 2]. Attention is computed by
    operations that have a derivative, which the fused one has not, and Linear modules by one product.
    """
    # accelerate's forward of a module whose weight lies elsewhere fetches it first, and stays
    own_kinds = Int8Forward, type(None)
    left = {module for block in below for module in block.modules()}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and isinstance(vars(m).get("forward"), own_kinds)]
    linears = [module for module in linears if module not in left]
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        own = [(module, vars(module).get("forward")) for module in linears]
        for module in linears:
            setattr(module, "forward", StackedForward(module))  # noqa: B010 - mypy takes it for a method
        try:
            yield split_dual
        finally:
            for module, forward in own:
                if forward is None:
                    del module.forward
                else:
                    setattr(module, "forward", forward)  # noqa: B010


class StackedForward:
    """The forward of a Linear on dual tensors: one product for values and tangents, with a weight that is dequantised once.

    torch's own two products take 1.5 to 1.7 times as long on a CPU.
    """

    def __init__(self, module: nn.Linear):
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        bias: Any = self.module.bias
        bias = None if bias is None else bias.to(x.dtype)
        weight = dequantise_weight(self.module, x.dtype)
        value, tangent = forward_ad.unpack_dual(x)
        if tangent is None:
            return nn.functional.linear(x, weight, bias)
        values, tangents = nn.functional.linear(torch.cat([value, tangent]), weight).chunk(2)
        if bias is not None:
            values += bias
        dual: Tensor = forward_ad.make_dual(values, tangents)
        return dual


def split_dual(dual: Tensor) -> Tensor:
    """Return the values and tangents of a dual tensor [...], side by side, [..., 2]."""
    value, tangent = forward_ad.unpack_dual(dual)
    return torch.stack([value, torch.zeros_like(value) if tangent is None else tangent], -1)
