"""This module has the part of a LoRA term that is computed before the first step and then stays as it is.

It is what `start: probe` writes. A run's log holds it in the description of its space, so that replay needs neither data nor
a model for it, and every copy of the log (packed, shared, repaired) has it. Its values have 8 significant bits (bfloat16).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

MAX_RANK = 256  # of a term; a description that says more is damaged


@dataclass(frozen=True)
class FrozenTerm:
    """A term B A that is added to the output of one Linear module, and never trained.

    Attributes:
        name: the module's full name.
        a: A [rank, in] float32, whose values are bfloat16's.
        b: B [out, rank], likewise.
    """

    name: str
    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, name: str, a: Tensor, b: Tensor) -> FrozenTerm:
        """Return the term of these matrices, rounded to bfloat16."""
        return cls(name, a.bfloat16().float(), b.bfloat16().float())

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return len(self.a)

    def describe(self) -> dict[str, Any]:
        """Return the JSON from which `read` makes the same term: its module, its shape, and A then B in base 85."""
        raw = torch.cat([self.a.flatten(), self.b.flatten()]).cpu().bfloat16().view(torch.int16).numpy()
        shape = [len(self.b), self.a.shape[1], self.rank]
        return {"module": self.name, "shape": shape, "values": base64.b85encode(raw.astype("<i2").tobytes()).decode()}

    @classmethod
    def read(cls, description: Any, device: torch.device | str = "cpu") -> FrozenTerm:
        """Return the term that `describe` described. ValueError: it is no such description."""
        match description:
            case {"module": str(name), "shape": [int(out), int(wide), int(rank)], "values": str(text), **more} if (
                not more
            ):
                size = 2 * rank * (out + wide)
                if min(out, wide, rank) < 1 or rank > MAX_RANK or len(text) != -(-size * 5 // 4):
                    raise ValueError("the sizes do not fit together")
                raw = bytearray(base64.b85decode(text))
            case _:
                raise ValueError("keys or types are wrong")
        values = torch.frombuffer(raw, dtype=torch.int16).view(torch.bfloat16).float().to(device)
        if not bool(values.isfinite().all()):
            raise ValueError("a value is not finite")
        return cls(name, values[: rank * wide].view(rank, wide), values[rank * wide :].view(out, rank))

    def hook_module(self, module: nn.Module, dtype: torch.dtype, is_held: Callable[[], bool]) -> RemovableHandle:
        """Make a module add the term to its output while `is_held()`. dtype: of the base's forward."""
        down, up = self.a.to(dtype).T.contiguous(), self.b.to(dtype).T.contiguous()

        def add_term(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            if is_held():
                x = args[0].reshape(-1, args[0].shape[-1])
                y.view(-1, y.shape[-1]).addmm_(x @ down, up)  # in place: y is the base product, fresh and contiguous
            return y

        return module.register_forward_hook(add_term)
