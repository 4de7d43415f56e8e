"""A small torch module and its loss, for the optimiser that steps any module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def mlp(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)


def task(module: nn.Module, seed: int = 1) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 3, generator=generator)
    y = x[:, :1] - 0.5 * x[:, 1:2] * x[:, 2:]
    dtype = next(module.parameters()).dtype
    return lambda: nn.functional.mse_loss(module(x.to(dtype)).float(), y)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}
