"""Templates over a row's fields: {name}, or {name:filter,filter}, where a field needs more than to be put in its place."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from ...errors import DataError, make_printable
from ..rows.row import Row, read_field_text


def lowercase_first_word(text: str) -> str:
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def causal_connective(text: str) -> str:
    if text not in (known := {"effect": "so", "cause": "because"}):
        raise ValueError("is not effect or cause")
    return known[text]


FILTERS: dict[str, Callable[[str], str]] = {  # what MeZO's templates do (arXiv 2305.17333, App. E.2), and LM-BFF's
    "strip": str.strip,
    "lower": str.lower,
    "capital": lambda text: text[:1].upper() + text[1:],
    "uncapital": lowercase_first_word,
    "lower_first": lambda text: text[:1].lower() + text[1:],  # LM-BFF's sentl
    "asked": lambda text: text if text.endswith("?") else text + "?",
    "unended": lambda text: text.rstrip().removesuffix("."),
    "drop_last": lambda text: text[:-1],  # LM-BFF's sent-: whatever it is, a full stop or a letter
    "connective": causal_connective,
    "bullets": lambda text: text.replace("@highlight\n", "- "),
}


class TemplatePiece(NamedTuple):
    literal: str
    name: str | None
    filters: tuple[str, ...]


@lru_cache
def parse_template(template: str, option: str = "prompt") -> tuple[TemplatePiece, ...]:
    """The parts of a template. ValueError("option: why"): braces, names or filters that are none."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as e:
        raise ValueError(f"{option}: {str(e).lower()}. Write fields as {{text}}, and a brace itself twice") from None
    wanted = f"{option}: write fields as {{text}}; at least one"
    found = []
    for literal, name, spec, how in parsed:
        filters = tuple(spec.split(",")) if spec else ()
        if name is not None and (not name.isidentifier() or how):
            raise ValueError(wanted)
        if not FILTERS.keys() >= set(filters):
            raise ValueError(f"{wanted}. What follows a colon is a filter: {', '.join(FILTERS)}")
        found.append(TemplatePiece(literal, name, filters))
    if not any(piece.name for piece in found):
        raise ValueError(wanted)
    return tuple(found)


def template_fields(template: str) -> list[str]:
    """The fields that a template is made of, each once."""
    return list(dict.fromkeys(piece.name for piece in parse_template(template) if piece.name is not None))


def render_template(template: str, row: Row) -> str:
    """The template with a row's fields in it. DataError: a field that is missing, empty, or not what a filter takes."""
    found = []
    for literal, name, filters in parse_template(template):
        found.append(literal)
        if name is not None:
            text = read_field_text(row, name)
            for word in filters:
                try:
                    text = FILTERS[word](text)
                except ValueError as e:
                    raise DataError(
                        f'{row.where}: field "{make_printable(name)}": "{make_printable(text)}" {e}.'
                    ) from None
            found.append(text)
    return "".join(found)
