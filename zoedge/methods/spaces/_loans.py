"""This module lends parameters to modules for one forward. `back` puts their own ones back, also when the forward raised."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ParameterLoans:
    """The parameters that are lent at present.

    `lend(module, name)` returns the value of a parameter for the next forward; None: the module keeps its own.
    """

    def __init__(self, lend: Callable[[nn.Module, str], Tensor | None]):
        self.lend = lend
        self.out: list[tuple[nn.Module, str, nn.Parameter]] = []

    def attach(self, module: nn.Module) -> None:
        """Make the module ask for loans before every forward, and give them back after it."""
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after)

    def _before(self, module: nn.Module, args: object) -> None:
        for name, own in list(module._parameters.items()):
            if own is not None and (value := self.lend(module, name)) is not None:
                self.out.append((module, name, own))
                module._parameters[name] = nn.Parameter(value, requires_grad=False)

    def _after(self, module: nn.Module, args: object, y: object) -> None:
        self.back()

    def back(self) -> None:
        """Put everything back. Modules with parameters contain no others, so all of it belongs to the one that just ran."""
        while self.out:
            module, name, own = self.out.pop()
            module._parameters[name] = own
