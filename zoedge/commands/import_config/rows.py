"""This module converts where rows come from (files, hub sets, slices), and the prompts that other tools write around them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError, UsageError, make_printable
from .source import ConfigConverter

ROW_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
SLICE = re.compile(r"(?P<split>[\w.-]+)\[\s*(?P<start>-?\d+%?)?\s*:\s*(?P<end>-?\d+%?)?\s*\]")
ALPACA_TASK = "Below is an instruction that describes a task"
ALPACA_WRITE = "Write a response that appropriately completes the request."
ALPACA_PROMPT = f"{ALPACA_TASK}. {ALPACA_WRITE}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n"
ALPACA_INPUT_PROMPT = (
    f"{ALPACA_TASK}, paired with an input that provides further context. {ALPACA_WRITE}\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ANSWER_NOTE = "a space stands before the answer and a line break ends it, where {} writes the end token"
TRAINED_NAME = re.compile(
    r"instruct|[-_]chat|[-_]it\b|qwen3|zephyr|vicuna|hermes|assistant|dolphin|orca", re.IGNORECASE
)
CHAT_TEMPLATES = {"chatml": "chatml", "llama2": "llama2", "plain": "plain"}


def train_on(s: ConfigConverter, key: str, value: object) -> None:
    """Carry the source of the training rows. UsageError: there is none."""
    if not isinstance(value, str):
        raise UsageError(f"{s.where}: no rows to train on ({key}), so there is nothing to make a recipe of.")
    s.put(key, "data.train", value)


def count_rows(s: ConfigConverter) -> int:
    """Return the number of rows in data.train; 0: they are not on this machine, or cannot be read."""
    return len(read_local_rows(s))


def read_local_rows(s: ConfigConverter) -> list[dict[str, object]]:
    """Return the fields of the rows in data.train; []: they are not on this machine, or cannot be read."""
    from ...recipe.sections import Data
    from ...scoring.rows.sets import load_rows

    data = s.out.table["data"]
    try:
        if not Path(data["train"].partition(":")[0]).expanduser().exists():
            return []
        fields = {key: data[key] for key in ("train", "fields", "format") if key in data}
        return [row.fields for row in load_rows(data["train"], "data.train", Data(**fields))[0]]
    except DataError:
        return []


def guess_task(s: ConfigConverter) -> str:
    """Return the task that fits the training rows: `lm` or `chat`; "": they are not on this machine, or neither fits."""
    from ...scoring.rows.formats import matching_formats
    from ...scoring.rows.row import Row

    rows = read_local_rows(s)
    if not rows:
        return ""
    if any(matching_formats(Row("", fields)) for fields in rows):
        return "chat"
    return "lm" if all("text" in fields for fields in rows) else ""


def put_text_task(s: ConfigConverter, key: str, given: object, field: object = None) -> None:
    """Write the task of plain text. field: the rows' field with the text, if it is not `text`."""
    s.put(key, "task", "lm", given=given)
    if isinstance(field, str) and field != "text":
        s.put(key, "task.text", field)
    s.change("(end of a text)", None, "no end token is put after a text, as other tools do")


def is_task(s: ConfigConverter, name: str) -> bool:
    """Return whether this is the task that the recipe has so far."""
    task = s.read("task")
    return (task["name"] if isinstance(task, dict) else task) == name


def convert_guessed_task(s: ConfigConverter, key: str) -> None:
    """Choose the task by the rows themselves where they are on this machine, else chat, and say so."""
    task = guess_task(s)
    if task == "lm":
        put_text_task(s, "(rows)", None)
        return
    s.put("(rows)", "task", "chat")
    if not task:
        how = "the rows are expected to be messages or completions (task: chat); for plain text, set task: lm"
        s.change(key, s.read("data.train"), how)


# -- hub sets and slices


class Split(NamedTuple):
    """A split of a data set as other tools name it.

    Attributes:
        name: such as train.
        start, end: of a slice, as written: rows (500, -100) or shares (20%); "": from the first, or to the last row.
        is_slice: whether it is one.
    """

    name: str
    start: str = ""
    end: str = ""
    is_slice: bool = False


def parse_split(s: ConfigConverter, key: str, text: object) -> Split:
    """Return the parts of a split such as `train[:20%]`. UsageError: it joins several, or is no split's name."""
    text = "train" if text is None else str(text)
    if match := SLICE.fullmatch(text.strip()):
        return Split(match["split"], match["start"] or "", match["end"] or "", True)
    if not re.fullmatch(r"[\w.-]+", text):
        shown = make_printable(text)
        raise UsageError(
            f"{s.where}: {key}: '{shown}' is not one split or one slice of it. Save these rows to a file, and name it there: "
            f"{format_save('SET', shown)}"
        )
    return Split(text)


def format_save(name: str, split: str) -> str:
    """Return the line of Python that saves a part of a hub set to a file."""
    config = "".join(f", {json.dumps(word)}" for word in name.partition(":")[2].split("/")[:-1])
    source = json.dumps(name.partition(":")[0])
    return f"datasets.load_dataset({source}{config}, split={json.dumps(split)}).to_json('rows.jsonl')"


def name_source(path: object, config: object = None, split: str = "train") -> object:
    """Return how a recipe names a split of a data set: ORG/SET, ORG/SET:SPLIT or ORG/SET:CONFIG/SPLIT, or the path as it is."""
    if not isinstance(path, str) or is_local(path) or (not config and split == "train"):
        return path
    return f"{path}:{'/'.join(filter(None, (str(config or ''), split)))}"


def is_local(path: str) -> bool:
    """Return whether a source is a file or a folder of this machine, or named as a file is."""
    return path.lower().endswith(ROW_ENDINGS) or Path(path).expanduser().exists()


def convert_slice(s: ConfigConverter, key: str, split: Split) -> None:
    """Carry a slice of the training rows as data.limit. UsageError: how many rows it has is not known here."""
    if not split.is_slice:
        return
    text = f"{split.name}[{split.start}:{split.end}]"
    start, end = split.start or "0", split.end
    count = 0
    if start in ("0", "0%") and end.isdigit():
        count = int(end)
    elif total := len(read_local_rows(s)):
        first, last = (
            round(total * int(w[:-1]) / 100) if w.endswith("%") else int(w) for w in (start, end or str(total))
        )
        count = len(range(total)[first:last])
    if not count:
        source = str(s.read("data.train"))
        raise UsageError(
            f"{s.where}: {key}: {text} is a part of a set that is not on this machine, and a recipe names whole splits. "
            f"Save that part to a file, and name it there: {format_save(source, text)}"
        )
    s.put(key, "data.limit", count, f"{count:,} rows, drawn by their content and not in the file's order", text)


def convert_splits(
    s: ConfigConverter, train_key: str, valid_key: str, train: Split, valid: Split, held_out: object
) -> None:
    """Carry a slice to train on and a split or slice of validation rows; the training rows are written already.

    Where both are shares of one split, the second its end, that share is held out by content: {split: 0.05} for [95%:].

    held_out: the source of the validation rows' split. UsageError: what a slice takes is not known here.
    """
    if not valid.is_slice:
        s.put(valid_key, "data.valid", held_out)
        convert_slice(s, train_key, train)
        return
    head = int(train.end[:-1]) if train.end.endswith("%") and train.start in ("", "0", "0%") else 0
    tail = int(valid.start[:-1]) % 100 if valid.start.endswith("%") and valid.end in ("", "100%") else 0
    if train.name != valid.name or not 0 < head <= tail:
        convert_slice(s, valid_key, valid)
        convert_slice(s, train_key, train)
        return
    share = round(1 - tail / 100, 4)
    how = f"{share:g} of the rows are held out, drawn by their content and not from the end of the file"
    if head < tail:
        how += f"; all others are trained on, where {s.out.tool} leaves {tail - head} % of them out"
    s.put(valid_key, "data.valid.split", share, how, f"{valid.name}[{valid.start}:{valid.end}]")
    s.out.carried.append((train_key, "the rows that are not held out"))


# -- prompts


def has_template(base: str) -> bool:
    """Return whether a base brings a chat template: told by its files where it is a folder, else by its name."""
    from ...scoring.sources.catalog import PACKAGED_MODELS

    folder = Path(base).expanduser()
    if not folder.is_dir():
        return base in PACKAGED_MODELS or bool(TRAINED_NAME.search(base))
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    return (folder / "chat_template.jinja").exists() or (isinstance(config, dict) and bool(config.get("chat_template")))


def convert_alpaca(s: ConfigConverter, key: str, given: object) -> None:
    """Carry rows of instruction, input and output: as answers to Alpaca's own prompt, or as a chat.

    Alpaca has a prompt for rows with an input and one for those without, and a recipe has one prompt. So a chat stands in
    where the base has a template and the rows are of both kinds, or are not on this machine.
    """
    rows = read_local_rows(s)
    with_input = [bool(fields.get("input")) for fields in rows]
    is_mixed = not rows or any(with_input) != all(with_input)
    if is_mixed and has_template(s.out.table["model"]["source"]):
        s.put(key, "task", "chat", given=given)
        s.put(key, "data.format", "alpaca", given=given)
        how = "the instruction is a user's turn of the chat template; Alpaca's own prompt is not used"
        s.change(key, given, how)
        return
    prompt = ALPACA_INPUT_PROMPT if is_mixed or all(with_input) else ALPACA_PROMPT
    s.put(key, "task", {"name": "generate", "prompt": prompt, "answer": "output"}, given=given)
    s.change(key, given, ANSWER_NOTE.format(s.out.tool))
    if is_mixed:
        how = (
            "Alpaca's prompt for rows with an input; it has another for rows without, and a recipe has one prompt: leave "
            "such rows out (data.without: {input: ''}), or train on them apart, without {input} in task.prompt"
        )
        s.change("(input)", None, how)


def convert_template(s: ConfigConverter, *keys: str) -> None:
    """Carry the chat template: one that is built into zoedge, a file, or the tokenizer's own."""
    is_chat = is_task(s, "chat")
    for key in keys:
        if (value := s.take(key)) is None:
            continue
        if not is_chat:
            s.lose(key, "the task has a text or a prompt of its own, and no template", value)
        elif str(value) in CHAT_TEMPLATES:
            s.put(key, "task.format", CHAT_TEMPLATES[str(value)], given=value)
        elif value == "tokenizer_default":
            s.out.carried.append((key, "task.format: own"))
        elif value == "jinja":
            s.change(key, value, "write the template to a file, and name it: task.format: FILE.jinja")
        elif isinstance(value, str) and value.endswith(".jinja"):
            s.put(key, "task.format", value)
        else:
            how = "the tokenizer's own chat template is used (task.format: own); if the base has none, set chatml"
            s.change(key, value, how)


def convert_template_text(s: ConfigConverter, key: str) -> None:
    """Carry a chat template that is written out in the configuration, or a file of one."""
    if (text := s.take(key)) is None:
        return
    if isinstance(text, str) and text.endswith(".jinja"):
        s.put(key, "task.format", text)
    else:
        s.change(key, text, "write the template to a file, and name it: task.format: FILE.jinja")
