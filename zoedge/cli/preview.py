"""The command line of `zoedge preview`."""

from __future__ import annotations

import json as json_
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import typer

from . import app
from .arguments import OverridesArgument, RecipeArgument

BAR_EIGHTHS = "▏▎▍▌▋▊▉█"


@app.command()
def preview(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    count: Annotated[int, typer.Option("-n", min=0, max=1000, help="So many rows are shown.")] = 3,
    plain: Annotated[bool, typer.Option("--plain", help="Put scored tokens in [brackets] instead of colours.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every token's number.")] = False,
) -> None:
    """Show rows as training will see them: text, scored tokens, lengths, what is cut. Loads no weights."""
    from ..commands.preview import build_preview
    from ..recipe.reading import read_recipe

    shown = build_preview(read_recipe(recipe, overrides), count)
    if json:
        typer.echo(json_.dumps({"quantiles": shown.quantiles(), **asdict(shown)}))
        return
    coloured = not plain and sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    for line in [*format_rows(shown, coloured), *format_statistics(shown)]:
        typer.echo(line)


def format_rows(preview: Any, coloured: bool) -> list[str]:
    """Return the lines of the rows: where each comes from, its sequences, and the right one among several."""
    from ..errors import make_printable

    lines = []
    for row in preview.rows:
        label = f"  {make_printable(row.label)}" if row.label else ""
        lines.append(colour_text(f"{make_printable(row.where)}{label}", "1", coloured))
        for i, sequence in enumerate(row.sequences):
            mark = ("* " if i == row.right else "  ") if len(row.sequences) > 1 else ""
            text = "".join(format_spans(sequence.pieces, coloured))
            options = " | ".join(escape_text(option).strip() for option in sequence.options)
            chosen = colour_text(f"   of {options}", "2", coloured) if options else ""
            lines += [mark + line for line in (text + chosen).split("\n")]
        lines.append("")
    return lines


def format_spans(pieces: Any, coloured: bool) -> Iterator[str]:
    """Yield a row's text: the context dim and scored tokens bright, or without colours each scored token in brackets."""
    for kind, group in groupby(pieces, key=lambda piece: piece.kind):
        texts = [escape_text(piece.text) for piece in group]
        if kind == "scored" and not coloured:
            texts = [f"[{text}]" for text in texts]
        yield colour_text("".join(texts), {"scored": "1;32", "special": "2;36"}.get(kind, "2"), coloured)


def escape_text(text: str) -> str:
    """Return a text with a sign at each line break, and other control characters escaped: they may command a terminal."""
    return "".join("⏎\n" if c == "\n" else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def colour_text(text: str, code: str, coloured: bool) -> str:
    """Return a text in a colour of the terminal, line by line. code: the numbers of an SGR sequence."""
    return "\n".join(f"\x1b[{code}m{part}\x1b[0m" if part else "" for part in text.split("\n")) if coloured else text


def format_statistics(preview: Any) -> list[str]:
    """Return the lines of the training set's lengths, and of what is lost or looks wrong."""
    from ..errors import make_printable

    sizes = ", ".join(f"{n:,} {which}" for which, n in preview.sizes.items())
    lines = [f"rows     {sizes}; task {preview.task}"]
    if preview.labels:
        lines.append("labels   " + ", ".join(f"{make_printable(k)} {n:,}" for k, n in preview.labels.items()))
    quantiles = "  ".join(f"{name} {n:,}" for name, n in preview.quantiles().items())
    each = preview.scored / max(1, len(preview.lengths))
    lines.append(f"tokens   {quantiles}  (limit {preview.limit:,}); {each:.1f} scored a sequence")
    return [*lines, *format_histogram(preview.histogram()), *format_warnings(preview)]


def format_histogram(bins: list[tuple[int, int, int]]) -> Iterator[str]:
    """Yield a line with a bar for each (first length, last length, sequences)."""
    most, width = max(n for _, _, n in bins), max(len(f"{last:,}") for _, last, _ in bins)
    for first, last, n in bins:
        eighths = round(8 * 30 * n / most)
        bar = "█" * (eighths // 8) + (BAR_EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")
        yield f"         {first:>{width},} - {last:>{width},}  {bar or ('▏' if n else ''):30}  {n:,}"


def format_warnings(preview: Any) -> Iterator[str]:
    """Yield a line for each thing that is lost or looks wrong."""
    for which, counts in preview.counts.items():
        yield from (f"note     {n:,} {which} rows {what}" for what, n in counts.items() if n)
    if preview.double:
        reason = "The template or the text has one already; the tokenizer puts another before it."
        yield f"warning  double BOS: {preview.double:,} rows begin with it twice. {reason}"
    if preview.unscored:
        yield f"warning  {preview.unscored:,} rows have no scored token: they teach nothing. Raise data.max_length."
    if preview.unknown:
        yield f"warning  {preview.unknown:,} tokens are unknown to the tokenizer: is it this model's?"
