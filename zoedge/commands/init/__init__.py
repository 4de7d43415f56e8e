"""`zoedge init` writes a recipe for some rows: it guesses task, prompt, options, splits and lengths, and says why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...errors import UsageError, make_printable
from ...recipe.check import check
from ...recipe.recipe import Recipe
from ...recipe.sections import Data
from ...recipe.strict_yaml import StrictDumper
from ..preview import Preview, build_preview
from .guess import Guess, guess_task, template_name
from .options import Options, choose_options

if TYPE_CHECKING:
    from ...run.evaluate import Score
    from ...scoring.rows.row import Row

DEFAULT_MODEL = "smollm2-135m-instruct"
LONGEST = 1024  # tokens of a row that are kept, at most
LENGTH_STEP = 32  # data.max_length is a multiple of it
MOST_ROWS = 2000  # to train on: the closed-form start reads at most 2,048
MOST_TEST, MOST_VALID = 500, 200  # rows that are held out
FEWEST_ROWS = 40  # of which rows to test on are held out
ROWS_OF_LOOK = 100  # that --look scores


@dataclass
class Draft:
    """A recipe that is being made for some rows.

    Attributes:
        table: the recipe.
        notes: for each section, what the comment above it says.
        guess: what is to be learnt.
        rows: how many there are.
    """

    table: dict[str, Any]
    notes: dict[str, list[str]]
    guess: Guess
    rows: int
    length: int = LONGEST
    preview: Preview | None = None
    hints: list[str] = field(default_factory=list)

    def recipe(self, name: str = "init") -> Recipe:
        """Return the checked recipe. UsageError: a mistake of the user's own prompt or label."""
        return check({**self.table, "name": name}, {}, "init")

    def dump(self, source: str) -> str:
        """Return the recipe as YAML with its comments."""
        lines = [f"# Made by `zoedge init {make_printable(source)}`. `zoedge schema --field KEY` explains a key."]
        for key, value in self.table.items():
            lines += [f"# {note}" for note in self.notes.get(key, [])]
            lines.append(dump_section(key, value))
        return "\n".join(lines) + "\n"


def dump_section(key: str, value: object) -> str:
    """Return a section of a recipe as YAML: one line where it is short, else each of its keys on a line."""
    if not isinstance(value, dict) or (len(value) < 4 and not any(isinstance(inner, dict) for inner in value.values())):
        return f"{key}: {dump_value(value)}"
    return "\n".join([f"{key}:", *(f"  {inner}: {dump_value(held)}" for inner, held in value.items())])


def dump_value(value: object) -> str:
    """Return a value as YAML in one line."""
    text = yaml.dump(
        [value], Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=1 << 20, default_flow_style=True
    )
    return text.strip()[1:-1]


def read_rows(source: str) -> list[Row]:
    """Return the rows of a file, a folder, a packaged text or a hub set. DataError: they cannot be read."""
    from ...scoring.rows.sets import load_rows

    if Path(source).suffix.lower() in (".yaml", ".yml"):
        raise UsageError(
            f"{make_printable(source)}: init takes rows. `zoedge finetune` takes a recipe, and `zoedge import-config` another "
            "tool's configuration."
        )
    return load_rows(source, "data.train", Data(train=source))[0]


def draft_recipe(source: str, model: str = DEFAULT_MODEL, label: str | None = None, prompt: str | None = None) -> Draft:
    """Return the recipe for some rows, with a preview of how the model will read them.

    Args:
        source: a file, a folder, a packaged text or a hub set.
        model: the base.
        label: the column with the label; None: it is guessed.
        prompt: the prompt; None: it is made of the columns with texts.

    Raises:
        UsageError: the label or the prompt does not fit the rows.
        DataError: the rows cannot be read, or show nothing to learn.
    """
    rows = read_rows(source)
    guess = guess_task(rows, source, label)
    draft = Draft({"version": 1, "model": {"source": model}}, {}, guess, len(rows))
    draft.table["data"] = {"train": source, **split_rows(source, len(rows)), **guess.options}
    draft.table["task"] = make_task(draft, prompt)
    draft.notes["model"] = [
        "The base: a packaged model, a folder or a hub id. It is held in 4 bits (quantization: nf4)."
    ]
    draft.notes["data"] = [f"{len(rows):,} rows; what is held out is drawn by the rows' content."]
    draft.notes["task"] = [f"{draft.guess.task}: {guess.reason}.", *draft.notes.get("task", [])]
    fit_length(draft)
    add_training(draft)
    return draft


def split_rows(source: str, count: int) -> dict[str, Any]:
    """Return the rows to hold out, as settings of `data`: none where a folder has files of them."""
    from ...scoring.sources.resolve import find_split_file

    table: dict[str, Any] = {}
    left = count
    if find_split_file(source, "valid") is None and count > 7:
        table["valid"] = {"split": min(MOST_VALID, max(2, count // 8))}
        left -= table["valid"]["split"]
    if find_split_file(source, "test") is None and count >= FEWEST_ROWS:
        table["test"] = {"split": min(MOST_TEST, count // 5)}
        left -= table["test"]["split"]
    return table | ({"limit": MOST_ROWS} if left > MOST_ROWS else {})


def make_task(draft: Draft, prompt: str | None) -> dict[str, Any]:
    """Return the recipe's task, and note what its prompt and options are made of."""
    guess, data = draft.guess, draft.table["data"]
    if guess.task == "chat":
        if prompt is not None:
            raise UsageError(
                "--prompt goes with rows that have a label or candidates: conversations have a chat template."
            )
        draft.notes["task"] = chat_notes(draft)
        return {"name": "chat", **({} if has_template(draft) else {"format": "chatml"})}
    names = {column: template_name(column) for column in (*guess.texts, *guess.choices)}
    renamed = {name: column for column, name in names.items() if name != column}
    if renamed:
        data["fields"] = {**data.get("fields", {}), **renamed}
    if guess.task == "lm":
        text = names[guess.texts[0]]
        return {"name": "lm", **({"text": text} if text != "text" else {})}
    parts = "\n".join(
        f"{{{names[c]}}}" if len(guess.texts) == 1 else f"{c.capitalize()}: {{{names[c]}}}" for c in guess.texts
    )
    if guess.task == "choose":
        task = {"name": "choose", "prompt": prompt or parts, "option": " {choice}", "label": guess.label}
        return task | {"choices": [names[c] for c in guess.choices]}
    options = choose_options(guess.labels, load_tokenizer(draft))
    draft.notes["task"] = option_notes(options)
    ending = f"{guess.label.replace('_', ' ').capitalize()}:"
    legend = options.legend.replace("{", "{{").replace("}", "}}")
    whole = prompt or f"{parts}\n{legend}{ending}"
    classify: dict[str, Any] = {"name": "classify", "prompt": whole, "options": options.words}
    return classify | ({"label": guess.label} if guess.label != "label" else {})


def chat_notes(draft: Draft) -> list[str]:
    """Return what the comment above the task of conversations says."""
    if has_template(draft):
        return ["The tokenizer's own chat template writes the turns, and the assistant's answers are scored."]
    return ["The base has no chat template: chatml writes the turns, and the assistant's answers are scored."]


def option_notes(options: Options) -> list[str]:
    """Return what the comment above the options says."""
    if options.legend:
        return ["The labels have no words of one token each: letters stand for them, which the prompt explains."]
    if any(word.strip().lower() != label.strip().lower() for label, word in options.words.items()):
        return ["Each option is a short word for its label that follows the prompt: see that they mean the labels."]
    return ["Each option is the word for its label that follows the prompt."]


def load_tokenizer(draft: Draft) -> Any:
    """Return the tokenizer of the draft's model, which is fetched if it is not here."""
    from ...scoring.models import loading
    from ...scoring.sources.resolve import resolve_model

    return loading.load_tokenizer(resolve_model(draft.table["model"]["source"]))


def has_template(draft: Draft) -> bool:
    """Return whether the model's tokenizer has a chat template."""
    return bool(load_tokenizer(draft).chat_template)


# -- lengths, steps, time


def fit_length(draft: Draft) -> None:
    """Set data.max_length to what the rows need, and keep the preview that told it. DataError: a row cannot be encoded."""
    data = draft.table["data"]
    data |= {"max_length": LONGEST, "on_overflow": "truncate"}
    draft.preview = preview = build_preview(draft.recipe(), 3)
    longest = preview.quantiles()["max"]
    data["max_length"] = min(LONGEST, -(-(longest + 8) // LENGTH_STEP) * LENGTH_STEP)
    if draft.guess.task == "chat" and data["max_length"] < LONGEST:
        data["on_overflow"] = "drop"
    how = "left out" if data["on_overflow"] == "drop" else "cut from the left, so that the end stays"
    draft.notes["data"].append(f"The longest row to train on has {longest:,} tokens; rows over max_length are {how}.")


def add_training(draft: Draft) -> None:
    """Set how long the run is where nothing else decides it, and note what does."""
    recipe = draft.recipe()
    if draft.guess.task == "lm":
        draft.table["train"] = {"steps": 1000}
        draft.notes["train"] = ["More steps learn more; each is two forward passes of a batch."]
        return
    draft.table["train"] = {"steps": recipe.train.steps}
    draft.notes["train"] = [
        "The run begins with a closed form from one pass over the rows (space.start: probe), which learns most.",
        "No learning rate is to be found: `zoedge finetune FILE --dry-run` shows what follows from this recipe.",
    ]


def predict_time(recipe: Recipe) -> float:
    """Return the predicted seconds of the run, from products timed on this machine. DataError: it cannot be predicted."""
    from ..estimate import fit
    from ..estimate.time import estimate_seconds

    seconds = estimate_seconds(fit.make_plan(recipe))
    return sum(value for name, value in seconds.items() if name != "step")


def score_base(recipe: Recipe) -> Score:
    """Return what the base reaches before any training, on at most ROWS_OF_LOOK held-out rows. It loads the model."""
    from ...run.evaluate import EmptySpace, evaluate
    from ...run.setup import Measuring

    measuring = Measuring.build(recipe)
    texts = measuring.texts
    examples = texts.test or texts.valid or texts.train
    few = examples.head(ROWS_OF_LOOK)
    return evaluate(EmptySpace(), measuring.task, measuring.base, few, recipe.eval.calibrate)
