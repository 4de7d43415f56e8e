"""This module reads YAML strictly (no anchors, tags or duplicate keys), and keeps the line and column of every value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError, make_printable

MAX_FILE_BYTES = 64 << 10  # of a recipe
MAX_DEPTH = 16  # levels of tables and lists inside one another

Position = tuple[int, int]  # line, column, from 1; (0, 0) is a key=value

KeyPath = tuple[Any, ...]

Positions = dict[KeyPath, Position]


# -- YAML, strictly


class StrictLoader(yaml.SafeLoader):
    """A loader that reads YAML 1.2's floats and booleans, and refuses anchors, aliases, tags and more than MAX_DEPTH levels."""

    def __init__(self, text: str, where: str):
        super().__init__(text)
        self.where, self.depth = where, 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node. UsageError: it has an anchor, an alias or a tag, or lies too deep."""
        event: Any = self.peek_event()
        at = f"{self.where}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UsageError(f"{at}: anchors and aliases are not read. Write the value out.")
        if getattr(event, "tag", None):
            raise UsageError(f"{at}: the tag {make_printable(event.tag)} is not read. Remove it.")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UsageError(f"{at}: nested more than {MAX_DEPTH} deep.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class StrictDumper(yaml.SafeDumper):
    """A dumper that quotes each text which StrictLoader would read as another type, and never writes an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: a value that occurs twice is written twice."""
        return True

    def represent_str(self, data: str) -> Any:
        """Write a text, in double quotes if it has characters that cannot be printed."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


# without it, PyYAML writes U+0085 and U+2028 in quotes that read them as a space
StrictDumper.add_representer(str, StrictDumper.represent_str)


NULL_TAG = "tag:yaml.org,2002:null"
BOOL_TAG = "tag:yaml.org,2002:bool"
INT_TAG = "tag:yaml.org,2002:int"
FLOAT_TAG = "tag:yaml.org,2002:float"

SCALAR_PATTERNS = (  # 012 is neither octal nor a number: it is a text, and is refused where a number is wanted
    (NULL_TAG, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (BOOL_TAG, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (INT_TAG, r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (FLOAT_TAG, r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+0123456789.")),
    (FLOAT_TAG, r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
)
StrictLoader.yaml_implicit_resolvers = {}
for tag, regexp, first in SCALAR_PATTERNS:
    for kind in (StrictLoader, StrictDumper):
        kind.add_implicit_resolver(tag, re.compile(f"^(?:{regexp})$"), first)


def read_yaml(text: str, where: str) -> tuple[Any, Positions]:
    """Return the value of strict YAML, and the line and column of each key path. UsageError: file:line:column and why."""
    marks: Positions = {}
    try:
        loader = StrictLoader(text, where)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as e:
        mark, what = e.problem_mark or e.context_mark, e.problem or e.context or "?"
        what = f"{e.context} {what}" if what.startswith("but ") else what
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UsageError(f"{where}{at}: not valid YAML: {make_printable(what)}.") from None
    except yaml.reader.ReaderError as e:
        line, column = text.count("\n", 0, e.position) + 1, e.position - text.rfind("\n", 0, e.position)
        raise UsageError(f"{where}:{line}:{column}: the character U+{ord(text[e.position]):04X} is not read.") from None
    return (construct_value(node, (), marks, where) if node is not None else None), marks


def construct_value(node: Any, path: KeyPath, marks: Positions, where: str) -> Any:
    """Return the value of a node, and note in `marks` where each key path stands.

    UsageError: a key is no word, stands twice, or a text is no valid Unicode.
    """
    position = (node.start_mark.line + 1, node.start_mark.column + 1)
    marks.setdefault(path, position)
    if isinstance(node, yaml.SequenceNode):
        return [construct_value(n, (*path, i), marks, where) for i, n in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        table: dict[str, Any] = {}
        for k, v in node.value:
            at = (k.start_mark.line + 1, k.start_mark.column + 1)
            if not isinstance(k, yaml.ScalarNode):
                raise UsageError(f"{where}:{at[0]}:{at[1]}: a key must be a word.")
            check_surrogates(k.value, where, at)
            if k.value in table:
                raise UsageError(f"{where}:{at[0]}:{at[1]}: '{make_printable(k.value)}' stands twice. Remove one.")
            marks[(*path, k.value)] = at
            table[k.value] = construct_value(v, (*path, k.value), marks, where)
        return table
    value: str = node.value
    if node.tag == NULL_TAG:
        return None
    if node.tag == BOOL_TAG:
        return value.lower() == "true"
    if node.tag == INT_TAG and len(value) < 1000:  # Python refuses to read (and to print) much longer ones
        return int(value)
    if node.tag in (INT_TAG, FLOAT_TAG):
        return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return check_surrogates(value, where, position)


def check_surrogates(text: str, where: str, at: Position) -> str:
    """Return a text. UsageError: it holds half a character."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"{where}:{at[0]}:{at[1]}: half a character (a lone surrogate). Write it whole.")
    return text


def read_text_file(path: Path) -> str:
    """Return the text of a recipe's file, which is UTF-8 and has at most MAX_FILE_BYTES."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        text = raw.decode("utf-8-sig") if len(raw) <= MAX_FILE_BYTES else ""
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror}.") from None
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}:{raw.count(10, 0, e.start) + 1}: not UTF-8 text (byte {e.start}).") from None
    if len(raw) > MAX_FILE_BYTES:
        raise UsageError(f"{path}: larger than {MAX_FILE_BYTES >> 10} KiB: not a recipe.")
    return text
