"""`zoedge import-config` turns another tool's configuration into a recipe, and reports what became of each of its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import UsageError, make_printable, suggest_nearest
from ...recipe.strict_yaml import StrictDumper, read_text_file, read_yaml
from .source import ConfigConverter, ImportedRecipe, flatten_keys
from .tools import TOOLS, count_keys


def read_config(path: Path) -> dict[str, Any]:
    """Return the table of a configuration file, YAML or JSON. UsageError: the file does not hold one."""
    text = read_text_file(path)
    if path.suffix.lower() == ".json":
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UsageError(f"{path}: not valid JSON: {make_printable(str(e))}.") from None
    else:
        table, _ = read_yaml(text, str(path))
    if not isinstance(table, dict) or not table:
        raise UsageError(f"{path}: not a configuration: a table of keys and values.")
    return table


def recognise_tool(table: dict[str, Any], where: str) -> str:
    """Return the tool whose keys these are. UsageError: they are no tool's, or fit two tools equally well."""
    if "version" in table and isinstance(table.get("model"), dict):
        raise UsageError(f"{where}: this is a recipe of zoedge's already: zoedge finetune {where}")
    words = {word for key, _ in flatten_keys(table) for word in key.split(".")}
    counts = {name: count_keys(table, words, tool) for name, tool in TOOLS.items()}
    best, second = sorted(counts.values(), reverse=True)[:2]
    if best < 2 or best == second:
        raise UsageError(
            f"{where}: cannot tell which tool's this is (keys: {make_printable(', '.join(map(str, table)))}). Name it: --from "
            f"{' | '.join(TOOLS)}."
        )
    return max(counts, key=counts.__getitem__)


def convert_config(table: dict[str, Any], tool: str, where: str) -> ImportedRecipe:
    """Return the recipe that a tool's configuration comes to.

    UsageError: it names no base model or no rows, or trains for what no recipe does.
    """
    if tool not in TOOLS:
        raise UsageError(
            f"--from: '{make_printable(tool)}' is not {', '.join(TOOLS)}{suggest_nearest(tool, TOOLS) or '.'}"
        )
    if tool == "llama-factory" and "model" in table and "model_name_or_path" not in table:
        tool = "llama-factory-v1"
    source = ConfigConverter(table, where, tool, TOOLS[tool].defaults)
    TOOLS[tool].convert(source)
    source.rest()
    return source.out


def dump_imported(imported: ImportedRecipe, where: str) -> str:
    """Return the recipe as YAML. Keys that it does not set have zoedge's defaults."""
    import yaml

    name = make_printable(Path(where).name)
    head = f"# From {imported.tool}'s {name} by `zoedge import-config`; `zoedge schema` has every key.\n"
    text = yaml.dump(
        imported.table, Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )
    return head + text
