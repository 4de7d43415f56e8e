"""This module computes what the points of a step share once, where nothing below the last block is trained.

All points then read the same hidden states x [S, T, H] in the last block. A projection is W x, once, and each point's term of
low rank, B A x. Where the loss reads few rows, values are not projected at all positions: attention at a row is
sum_t p_t (V x_t) = V (sum_t p_t x_t), so that x is pooled first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...core.base import HeldTerm, LowRankTerm
from .families._rows import gather_rows


@dataclass(frozen=True)
class PointProducts:
    """The products of Linear modules with inputs that all points share.

    Attributes:
        copies: the number of points, C.
        terms: what adds a term of low rank to a module's output at each point.
        weight: returns the weight [out, in] of a module.
    """

    copies: int
    terms: Mapping[nn.Module, LowRankTerm]
    weight: Callable[[nn.Linear], Tensor]

    def held(self, module: nn.Linear) -> HeldTerm | None:
        """Return the matrices of a module's term at the points that are held; None: it has none."""
        return self.terms[module].matrices() if module in self.terms else None

    def project(self, module: nn.Linear, x: Tensor) -> Tensor:
        """Return a module's output at every point for inputs [S, N, H] of all of them, [C * S, N, out]."""
        y = module.forward(x)  # without its hooks, which take the rows of each point apart
        term = self.held(module)
        if term is None:
            return y.repeat(self.copies, 1, 1)
        a, b, scale = term
        rows, rank = x.shape[0] * x.shape[1], a.shape[1]
        low = nn.functional.linear(x.reshape(rows, -1), a.reshape(-1, a.shape[-1]))
        low = low.view(rows, self.copies, rank).transpose(0, 1)
        base = y.view(1, rows, -1).expand(self.copies, -1, -1)
        out = torch.baddbmm(base, low, b.transpose(1, 2), alpha=scale)
        return out.view(self.copies * x.shape[0], x.shape[1], -1)

    def project_pooled(self, module: nn.Linear, pooled: Tensor) -> Tensor:
        """Return the values of pooled inputs, each group of heads by its own rows of the module's weight.

        pooled: [C, G, N, H], of weights that add up to 1, so that a bias is added once. The values are [C, G, N, D].
        """
        copies, groups, count, width = pooled.shape
        weight = self.weight(module).view(groups, -1, width)
        by_group = pooled.transpose(0, 1).reshape(groups, -1, width)
        values = torch.bmm(by_group, weight.transpose(1, 2)).view(groups, copies, count, -1).transpose(0, 1)
        if module.bias is not None:
            values = values + module.bias.to(values.dtype).view(groups, 1, -1)
        if (term := self.held(module)) is not None:
            a, b, scale = term
            low = torch.matmul(pooled, a[:, None].transpose(2, 3))
            up = b.reshape(copies, groups, -1, a.shape[1])
            values = values + torch.matmul(low, up.transpose(2, 3)) * scale
        return values

    def attend(self, q: Tensor, k: Tensor, x: Tensor, rows: Tensor, scale: float, values: nn.Linear) -> Tensor:
        """Return causal attention's output at the rows [S, R] of every point, [C * S, R, heads D].

        Args:
            q: the queries at these rows, [C * S, heads, R, D].
            k: the keys of all tokens, [C * S, G, T, D].
            x: what the projection of values reads, [S, T, H].
            scale: the factor of the products of queries and keys.
            values: that projection.
        """
        sequences, length, width = x.shape
        copies, heads, count, size = self.copies, *q.shape[1:]
        groups = k.shape[1]
        of_group = heads // groups * count
        scores = torch.matmul(q.reshape(-1, groups, of_group, size), k.transpose(2, 3)).mul_(scale)
        hidden = torch.arange(length, device=x.device) > rows[:, :, None]
        scores = scores.view(copies, sequences, heads, count, length).masked_fill_(hidden[:, None], -torch.inf)
        weights = scores.softmax(-1).transpose(0, 1).reshape(sequences, copies * heads * count, length)
        pooled = torch.bmm(weights, x).view(sequences, copies, groups, of_group, width)
        pooled = pooled.permute(1, 2, 0, 3, 4).reshape(copies, groups, sequences * of_group, width)
        out = self.project_pooled(values, pooled).view(copies, groups, sequences, heads // groups, count, size)
        return out.permute(0, 2, 4, 1, 3, 5).reshape(copies * sequences, count, heads * size)

    def gather(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the rows [S, R] of x [S, T, H] for every point, [C * S, R, H]."""
        return gather_rows(x, rows).repeat(self.copies, 1, 1)


def has_no_other_hooks(modules: Sequence[nn.Module], terms: Mapping[nn.Module, LowRankTerm]) -> bool:
    """Return whether there are modules, and all that is hooked to them is the term of low rank that some have."""
    plain = (not m._forward_pre_hooks and len(m._forward_hooks) == (m in terms) for m in modules)
    return bool(modules) and all(plain)


def is_cheaper(rows: int, length: int, heads: int, groups: int, size: int) -> bool:
    """Return whether pooling `rows` scored rows of a sequence of `length` tokens costs less than projecting all values.

    size: the width of a head.
    """
    return heads * rows * (length + size) < length * groups * size
