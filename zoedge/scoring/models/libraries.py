"""This module imports bitsandbytes without torch's compiler, which zoedge never uses, and has the lock of the libraries."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

# transformers and accelerate exchange functions of torch and of their classes while they load, and put back what they have
# found: of two threads, the second would put back what the first had exchanged, for good
LIBRARY_LOCK = threading.RLock()


@lru_cache
def import_bitsandbytes() -> None:
    """Import bitsandbytes without torch._inductor, whose import takes about 1 s of CPU.

    The library decorates some functions with torch.compile while it is imported, which imports the compiler. zoedge compiles
    nothing: a decorator that changes nothing stands in for torch.compile meanwhile.
    """
    compile_function = torch.compile
    torch.compile = return_unchanged  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_function


def return_unchanged(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Decorate a function with nothing; with other arguments alone, return such a decorator."""
    return return_unchanged if function is None else function
