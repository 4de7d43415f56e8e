"""Templates of prompts over a row's fields, such as "{question}" or "{question:strip,lower}", with filters after a colon."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from ...errors import DataError, make_printable
from ..rows.row import Row, read_field_text


def lowercase_first_word(text: str) -> str:
    """Return the text with its first word in lower case, unless that word is "I"."""
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def causal_connective(text: str) -> str:
    """Return the word that joins a premise and its effect or cause in COPA. ValueError: the text is neither."""
    connectives = {"effect": "so", "cause": "because"}
    if text not in connectives:
        raise ValueError("is not effect or cause")
    return connectives[text]


# what the templates of MeZO (arXiv 2305.17333, App. E.2) and LM-BFF (arXiv 2012.15723) do with a field
FILTERS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lower": str.lower,
    "capital": lambda text: text[:1].upper() + text[1:],
    "uncapital": lowercase_first_word,
    "lower_first": lambda text: text[:1].lower() + text[1:],  # which LM-BFF calls sentl
    "asked": lambda text: text if text.endswith("?") else text + "?",
    "unended": lambda text: text.rstrip().removesuffix("."),
    "drop_last": lambda text: text[:-1],  # which LM-BFF calls sent-: a full stop or any other character
    "connective": causal_connective,
    "bullets": lambda text: text.replace("@highlight\n", "- "),
}


class TemplatePiece(NamedTuple):
    """A piece of a template: some text, and the field that follows it. name: None where no field follows."""

    literal: str
    name: str | None
    filters: tuple[str, ...]


@lru_cache
def parse_template(template: str, option: str = "prompt") -> tuple[TemplatePiece, ...]:
    """Return the pieces of a template.

    option: the recipe's key that holds it, which begins the message. ValueError("option: why"): the braces do not match,
    or a field's name or a filter is not valid, or there is no field.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as e:
        raise ValueError(f"{option}: {str(e).lower()}. Write fields as {{text}}, and a brace itself twice") from None
    usage = f"{option}: write fields as {{text}}; at least one"
    pieces = []
    for literal, name, spec, conversion in parsed:
        filters = tuple(spec.split(",")) if spec else ()
        if name is not None and (not name.isidentifier() or conversion):
            raise ValueError(usage)
        if not FILTERS.keys() >= set(filters):
            raise ValueError(f"{usage}. What follows a colon is a filter: {', '.join(FILTERS)}")
        pieces.append(TemplatePiece(literal, name, filters))
    if not any(piece.name for piece in pieces):
        raise ValueError(usage)
    return tuple(pieces)


def template_fields(template: str) -> list[str]:
    """Return the names of the fields in a template, each once."""
    return list(dict.fromkeys(piece.name for piece in parse_template(template) if piece.name is not None))


def render_template(template: str, row: Row) -> str:
    """Return the template with a row's fields filled in.

    DataError: a field is missing or empty, or a filter does not take its text.
    """
    texts = []
    for literal, name, filters in parse_template(template):
        texts.append(literal)
        if name is not None:
            text = read_field_text(row, name)
            for word in filters:
                try:
                    text = FILTERS[word](text)
                except ValueError as e:
                    raise DataError(
                        f'{row.where}: field "{make_printable(name)}": "{make_printable(text)}" {e}.'
                    ) from None
            texts.append(text)
    return "".join(texts)
