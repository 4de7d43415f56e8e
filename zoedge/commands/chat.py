"""`zoedge chat`: the prompt that asks a trained model for an answer to a user's line, and what ends the answer."""

from __future__ import annotations

from typing import NamedTuple

from ..run.trained import Trained
from ..scoring.tasks.chat import Chat
from ..scoring.tasks.generate import Generate


class Prompt(NamedTuple):
    """What asks for an answer.

    Attributes:
        text: the prompt.
        special: whether the tokenizer's own tokens are still to be put around it.
        end: the text before which an answer ends; "": only the model's own end.
    """

    text: str
    special: bool
    end: str


def build_prompt(trained: Trained, text: str) -> Prompt:
    """Return the prompt that asks for an answer to a text.

    A run that learnt to chat keeps the format that it learnt; another has the tokenizer's chat template, or plain text.
    """
    task, tokenizer = trained.recipe.task, trained.base.tokenizer
    own = Chat() if tokenizer.chat_template else None
    form = task if isinstance(task, Chat) else own
    if form is None:
        return Prompt(text, True, find_end(trained))
    prompt, end = form.render_question(text, tokenizer)
    return Prompt(prompt, False, end)


def find_end(trained: Trained) -> str:
    """Return the text before which an answer ends as training ended it; "": training scored no end of its own."""
    task = trained.recipe.task
    if isinstance(task, Generate):
        return "\n"
    return task.render_question("-", trained.base.tokenizer)[1] if isinstance(task, Chat) else ""
