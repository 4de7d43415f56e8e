"""This module guesses from rows what is to be learnt from them: the task, and the columns of its prompt and its answer."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import DataError, UsageError, make_printable, suggest_nearest
from ...scoring.rows.formats import ANSWER_NAMES, QUESTION_NAMES, guess_key, has_all_keys, matching_formats
from ...scoring.rows.row import Row, value_as_text

LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "category",
    "department",
    "topic",
    "intent",
    "sentiment",
    "emotion",
    "target",
    "tag",
    "type",
    "kind",
    "answer",
    "output",
    "completion",
)
MOST_LABELS = 40  # different values of a column that is taken for a label
LONGEST_LABEL = 60  # characters
ROWS_PER_LABEL = 3  # a label's mean number of rows, at least
ROWS_LOOKED_AT = 2000
FILLED_SHARE = 0.95  # of the rows that have a text in a column of texts


@dataclass
class Guess:
    """What is to be learnt from some rows.

    Attributes:
        task: classify, choose, chat or lm.
        reason: why, as a sentence.
        texts: the columns of the prompt, in order, or that of the plain text.
        label: the column with the label, or with the right candidate; "": the task has none.
        labels: the different labels, the commonest first.
        choices: the columns with the candidates.
        options: settings of `data` that the rows need (fields, format, without).
    """

    task: str
    reason: str
    texts: list[str] = field(default_factory=list)
    label: str = ""
    labels: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def guess_task(rows: Sequence[Row], source: str, label: str | None = None) -> Guess:
    """Return what is to be learnt from the rows.

    Args:
        source: what messages call them.
        label: the column with the label, where the user names it.

    Raises:
        UsageError: no row has the column `label`.
        DataError: the rows show nothing that could be learnt.
    """
    rows = rows[:ROWS_LOOKED_AT]
    columns = list(dict.fromkeys(key for row in rows for key in row.fields))
    if label is not None and label not in columns:
        raise UsageError(f"--label: no row has '{make_printable(label)}'{suggest_nearest(label, columns) or '.'}")
    if label is None and {"chosen", "rejected"} <= set(columns):
        return guess_preference(rows, columns)
    found = label or find_label(rows, columns)
    if label is None and not found and all(matching_formats(row) for row in rows):
        return guess_chat(rows)
    if lists := [key for key in columns if all(is_list_of_texts(row.fields.get(key)) for row in rows)]:
        right = found or guess_key([key for key in columns if key not in lists], ("label", *ANSWER_NAMES))
        texts = find_texts(rows, [key for key in columns if key not in (lists[0], right)])
        return Guess("choose", f"{lists[0]} is a list of candidates in every row", texts, right, choices=lists[:1])
    texts = find_texts(rows, [key for key in columns if key != found])
    if found and texts:
        labels = count_labels(rows, found)
        reason = f"{found} has {len(labels)} different values in {len(rows):,} rows"
        return Guess("classify", reason, texts, found, labels, options=leave_out_gaps(rows, [*texts, found]))
    return guess_texts(rows, texts, source)


def guess_preference(rows: Sequence[Row], columns: list[str]) -> Guess:
    """Return the choice between a better and a worse answer. DataError: they are conversations."""
    if not all(isinstance(row.fields.get(key), str) for row in rows for key in ("chosen", "rejected")):
        raise DataError(
            f"{rows[0].where}: chosen and rejected are no texts: write the last answers of these conversations as texts, and "
            "what stands before them as `prompt`."
        )
    texts = find_texts(rows, [key for key in columns if key not in ("chosen", "rejected")])
    if not texts:
        raise DataError(f"{rows[0].where}: chosen and rejected, and no text that they answer. Add a column `prompt`.")
    reason = "each row has a better answer (chosen) and a worse one (rejected)"
    return Guess("choose", reason, texts[-1:], "chosen", choices=["chosen", "rejected"])


def guess_chat(rows: Sequence[Row]) -> Guess:
    """Return the task of conversations."""
    kinds = matching_formats(rows[0])
    options = {"format": kinds[0]} if any(len(matching_formats(row)) > 1 for row in rows) else {}
    return Guess("chat", f"the rows are conversations ({kinds[0]})", options=options)


def guess_texts(rows: Sequence[Row], texts: list[str], source: str) -> Guess:
    """Return the task of rows without a label: questions and answers, or plain text. DataError: they have no text."""
    if not texts:
        raise DataError(
            f"{source}: no column of texts in all rows. Each row needs a text, and a label or an answer beside it, such as "
            '{"text": "My invoice is wrong.", "label": "billing"}.'
        )
    if len(texts) == 1:
        return Guess("lm", "there is one column of texts, and no label", texts, options=leave_out_gaps(rows, texts))
    question = guess_key(texts, QUESTION_NAMES)
    answer = guess_key([key for key in texts if key != question], ANSWER_NAMES)
    options = {"fields": {"prompt": question, "completion": answer}, **leave_out_gaps(rows, [question, answer])}
    return Guess("chat", f"{question} is a question, and {answer} its answer", options=options)


def leave_out_gaps(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, Any]:
    """Return the setting of `data` that leaves out rows in which one of these columns is empty; {}: there are none."""
    gaps = [key for key in columns if any(not value_as_text(row.fields.get(key)).strip() for row in rows)]
    return {"without": dict.fromkeys(gaps, "")} if gaps else {}


# -- columns


def find_label(rows: Sequence[Row], columns: list[str]) -> str:
    """Return the column that is most likely a label: by its name, else the one with the fewest values; "": there is none."""
    candidates = [key for key in columns if is_label(rows, key)]
    named = [key for name in LABEL_NAMES for key in candidates if key.lower() == name]
    named += [key for name in LABEL_NAMES[:9] for key in candidates if name in key.lower()]
    is_chat = all(any(has_all_keys(row, kind) for kind in ("messages", "sharegpt")) for row in rows)
    if named or is_chat or len(columns) < 2:
        return named[0] if named and not is_chat else ""
    return min(candidates, key=lambda key: len(count_labels(rows, key)), default="")


def is_label(rows: Sequence[Row], key: str) -> bool:
    """Return whether a column has few different short values, each in several rows on average."""
    values = [row.fields.get(key) for row in rows]
    if any(isinstance(value, (list, dict)) or (isinstance(value, float) and value % 1) for value in values):
        return False
    texts = {value_as_text(value).strip() for value in values} - {""}
    if not 2 <= len(texts) <= min(MOST_LABELS, len(rows) / ROWS_PER_LABEL):
        return False
    return max(map(len, texts)) <= LONGEST_LABEL


def count_labels(rows: Sequence[Row], key: str) -> list[str]:
    """Return the different values of a column as texts, numbers in order and words with the commonest first."""
    counts: dict[str, int] = {}
    for row in rows:
        if (text := value_as_text(row.fields.get(key))).strip():
            counts[text] = counts.get(text, 0) + 1
    is_number = all(text.lstrip("-").isdigit() for text in counts)
    return sorted(counts, key=lambda text: (int(text) if is_number else -counts[text], text))


def find_texts(rows: Sequence[Row], columns: list[str]) -> list[str]:
    """Return the columns with a text in nearly every row that are read as language: no numbers, no names of rows."""
    texts = []
    for key in columns:
        values = [row.fields.get(key) for row in rows]
        filled = [value for value in values if isinstance(value, str) and value.strip()]
        if len(filled) >= FILLED_SHARE * len(rows) and all(isinstance(value, (str, type(None))) for value in values):
            texts.append(key)
    read = [key for key in texts if any(" " in str(row.fields.get(key) or "").strip() for row in rows)]
    return read or [key for key in texts if not re.fullmatch(r"(?i).*\bid|uuid|url|hash|date", key)]


def is_list_of_texts(value: object) -> bool:
    """Return whether a value is a list of several texts."""
    return isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) and item.strip() for item in value)


def template_name(column: str, taken: Sequence[str] = ()) -> str:
    """Return a name that a prompt may have for a column: the column's own where it is a word, else one made of it."""
    if column.isidentifier() and not keyword.iskeyword(column):
        return column
    name = re.sub(r"\W+", "_", column.lower()).strip("_")
    name = name if name.isidentifier() and not keyword.iskeyword(name) else f"field_{name}"
    while name in taken:
        name += "_"
    return name
