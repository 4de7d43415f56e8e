"""zoedge: fine-tune large language models where memory ends, with forward passes only.

    outcome = zoedge.finetune("recipe.yaml", "train.steps=1000")
    tensors = zoedge.replay(outcome.folder).tensors
    optimizer = zoedge.optim.ZerothOrder(module.named_parameters(), lr=1e-3)

What these need is imported when they are first used: importing the package takes milliseconds.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands.finetune import finetune as finetune
    from .commands.replay import replay as replay
    from .errors import ZoedgeError as ZoedgeError

__version__ = "0.1.0"
__all__ = ["ZoedgeError", "__version__", "errors", "finetune", "optim", "replay"]
_HOMES = {"finetune": "commands.finetune", "replay": "commands.replay", "ZoedgeError": "errors"}


# documented names of modules that have moved: `from zoedge.sources import resolve_text` goes on working
_MOVED = {"train": "run.signals", "display": "run.display", "sources": "scoring.sources.resolve"}


class _Alias(ModuleType):
    """A module under its former name; it is imported when something of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        module = import_module(f".{_MOVED[self.__name__.rpartition('.')[2]]}", __name__)
        if name not in vars(module):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return vars(module)[name]


for _old in _MOVED:
    sys.modules[f"{__name__}.{_old}"] = _Alias(f"{__name__}.{_old}")


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return sys.modules[f"{__name__}.{name}"]
    if name in ("optim", "errors"):
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return vars(import_module(f".{_HOMES[name]}", __name__))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
