"""`zoedge chat`: the prompt that asks a trained model for an answer to a user's line."""

from __future__ import annotations

from ..run.trained import Trained
from ..scoring.tasks.chat import Chat, render_question


def build_prompt(trained: Trained, text: str) -> tuple[str, bool]:
    """Return the prompt that asks for an answer to a text, and whether the tokenizer's own tokens are still missing.

    A run that learnt to chat keeps the format that it learnt; another has the tokenizer's chat template, or plain text.
    """
    task, tokenizer = trained.recipe.task, trained.base.tokenizer
    own = Chat() if isinstance(tokenizer.chat_template, str) else None
    form = task if isinstance(task, Chat) else own
    return (text, True) if form is None else (render_question(form.source(tokenizer), text, tokenizer), False)
