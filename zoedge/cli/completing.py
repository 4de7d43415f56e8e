"""What the shell's tab key completes: names of recipes and runs, and keys of key=value. Nothing heavy is imported here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

KEYS_FILE = Path(__file__).parents[1] / "recipe" / "keys.json"  # recipe.schema writes it, and needs pydantic


def complete_recipes(incomplete: str) -> Iterator[str]:
    """Yield the shipped recipes, and .yaml files in the folder that is being typed."""
    from ..recipe.reading import list_shipped

    yield from sorted(path.stem for path in list_shipped() if path.stem.startswith(incomplete))
    yield from complete_yaml_files(incomplete)


def complete_yaml_files(incomplete: str) -> Iterator[str]:
    """Yield .yaml files in the folder that is being typed, and folders."""
    yield from complete_paths(incomplete, (".yaml", ".yml"))


def complete_runs(incomplete: str) -> Iterator[str]:
    """Yield the names of runs under runs/, and folders on the way to a run elsewhere."""
    yield from sorted(p.parent.name for p in Path("runs").glob("*/run.zlog") if p.parent.name.startswith(incomplete))
    yield from (path for path in complete_paths(incomplete, ()) if "/" in incomplete)


def complete_parents(incomplete: str) -> Iterator[str]:
    """Yield what --from takes: the runs under runs/, each at its best step and at its last."""
    yield from (f"{run}@{step}" for run in complete_runs(incomplete.partition("@")[0]) for step in ("best", "last"))


def complete_shared(incomplete: str) -> Iterator[str]:
    """Yield .zoe files in the folder that is being typed, and folders."""
    yield from complete_paths(incomplete, (".zoe",))


def complete_rows(incomplete: str) -> Iterator[str]:
    """Yield packaged texts, files of rows in the folder that is being typed, and folders."""
    from ..scoring.sources.catalog import PACKAGED_TEXTS

    yield from (name for name in PACKAGED_TEXTS if name.startswith(incomplete))
    yield from complete_paths(incomplete, (".jsonl", ".json", ".csv", ".parquet", ".txt"))


def complete_experiments(incomplete: str) -> Iterator[str]:
    """Yield the lab's experiments, each of which is a file."""
    files = sorted((Path(__file__).parents[1] / "lab").glob("[!_]*.py"))
    yield from (path.stem for path in files if path.stem.startswith(incomplete))


def complete_values(*values: str) -> Callable[[str], Iterator[str]]:
    """Return what completes an option that has few values."""

    def complete(incomplete: str) -> Iterator[str]:
        yield from (value for value in values if value.startswith(incomplete))

    return complete


def complete_paths(incomplete: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Yield files of some endings whose path begins with what is typed, and folders on the way to them."""
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if str(path).startswith(incomplete) and not path.name.startswith("."):
            if path.is_dir():
                yield f"{path}/"
            elif path.suffix in endings:
                yield str(path)


def complete_keys(incomplete: str) -> Iterator[str]:
    """Yield every key of a recipe."""
    yield from (key for key in list_keys() if key.startswith(incomplete))


def complete_overrides(incomplete: str) -> Iterator[str]:
    """Yield keys of a recipe with their equals sign; after the sign, the words of a part."""
    from ..core.parts import PART_FOLDERS, list_words

    key, equals, value = incomplete.partition("=")
    if equals:
        kind = key.removesuffix(".name")
        yield from (
            f"{key}={word}"
            for word in (list_words(PART_FOLDERS[kind]) if kind in PART_FOLDERS else ())
            if word.startswith(value)
        )
        return
    yield from (f"{one}=" for one in list_keys() if one.startswith(incomplete))


def list_keys() -> list[str]:
    """Return every key that can be set, dotted, from the file that `make docs` writes: the parts' classes need torch."""
    keys: list[str] = json.loads(KEYS_FILE.read_text(encoding="utf-8"))
    return keys
