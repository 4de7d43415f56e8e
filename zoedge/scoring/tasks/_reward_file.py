"""This module finds, imports and calls the Python function of a user's that rewards outputs.

Nothing of a file runs before it is known to lie below the current folder, and whatever its code raises, even SystemExit,
ends in a sentence.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import machinery
from importlib.machinery import BuiltinImporter, FileFinder, FrozenImporter
from pathlib import Path
from types import FrameType
from typing import Any

from ...errors import DataError, ZoedgeError, make_printable

# the kinds of files that Python imports from a folder, in its order
LOADERS: list[Any] = [
    (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
    (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES),
    (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
]


@lru_cache
def load_function(objective: str) -> Callable[[list[Any], list[str]], Any]:
    """Return the user's function, which must be defined in a Python file below the current folder.

    Nothing else is imported, so that a log from a stranger that names os:system, say, runs nothing. DataError: there is no
    such file or function, it lies elsewhere, or the file cannot be imported.
    """
    name, _, attribute = objective.partition(":")
    current_folder = Path.cwd().resolve()
    sys.path.insert(0, str(current_folder))
    try:
        check_file(name, current_folder)
        with guard_call(f"{name} cannot be imported from here"):
            module = importlib.import_module(name)
            function = getattr(module, attribute, None)
    finally:
        sys.path.remove(str(current_folder))
    if not callable(function):
        raise DataError(f"task.objective: the module {name} has no function '{attribute}'.")
    return function


def check_file(name: str, folder: Path) -> None:
    """Prove, without running anything, that importing a module runs files below a folder alone.

    DataError: there is no such file, it or a package around it leads elsewhere, or the name means another module.
    """
    file = folder.joinpath(*name.split(".")).with_suffix(".py")
    if not file.is_file():
        raise DataError(
            f"task.objective: there is no {name.replace('.', '/')}.py in {folder}, where {name} is looked for."
        )
    taken = DataError(f"task.objective: the name {name} is taken by another module. Call the file otherwise.")
    path, words = str(folder), name.split(".")
    importlib.invalidate_caches()  # the file may be younger than the list of files that Python remembers
    for i in range(len(words)):
        full = ".".join(words[: i + 1])
        loaded = getattr(sys.modules.get(full), "__file__", None)
        spec = FileFinder(path, *LOADERS).find_spec(full)
        if spec is None or BuiltinImporter.find_spec(full) or FrozenImporter.find_spec(full):
            raise taken
        for place in {loaded, spec.origin} - {None}:
            if not Path(str(place)).resolve().is_relative_to(folder):
                if place == loaded:
                    raise taken
                raise DataError(
                    f"task.objective: {place} leads to {Path(str(place)).resolve()}, outside of {folder}: only files below the "
                    "current folder run."
                )
        if i == len(words) - 1 and Path(str(spec.origin)) != file:
            raise taken
        path = next(iter(spec.submodule_search_locations or ()), "")


@contextmanager
def guard_call(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises meanwhile into a DataError that begins with `what`.

    SystemExit and KeyboardInterrupt are no exception to that, unless a signal has come: what that raises passes.
    """
    came: list[int] = []
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # Python runs handlers there alone
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {int(n): handler for n in numbers if callable(handler := signal.getsignal(n))}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        handlers[number](number, frame)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    except ZoedgeError:
        raise
    except BaseException as e:
        if came:
            raise
        raise DataError(f"task.objective: {what}: {describe_exception(e)}.") from e
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def describe_exception(error: BaseException) -> str:
    """Return the type and the text of an error, which may be of a class whose text cannot be made."""
    try:
        text = make_printable(str(error)).rstrip(".")
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
