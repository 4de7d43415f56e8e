"""`zoedge generate` and `zoedge chat`: let a trained model answer. No data is read."""

from __future__ import annotations

from dataclasses import replace

from ..run.trained import Trained
from ..scoring.rows.row import Row
from ..scoring.tasks.chat import Chat, render_question


def build_prompt(trained: Trained, text: str) -> tuple[str, bool]:
    """Return the prompt that asks for an answer to a text, and whether the tokenizer's own tokens are still missing.

    A run that learnt to chat keeps the format that it learnt; another has the tokenizer's chat template, or plain text.
    """
    task, tokenizer = trained.recipe.task, trained.base.tokenizer
    own = Chat() if isinstance(tokenizer.chat_template, str) else None
    form = task if isinstance(task, Chat) else own
    return (text, True) if form is None else (render_question(form.source(tokenizer), text, tokenizer), False)


def choose_option(trained: Trained, prompt: str) -> str:
    """Return the prompt with its likeliest option, and the probability of each. A model that fills masks gets a mask."""
    learnt = trained.recipe.task
    form = "{prompt}{mask}." if learnt.head == "MaskedLM" else "{prompt}"
    task = replace(learnt, prompt=form, label="label", objective="loss")  # a reward of one's own may not be here
    row = Row("the prompt", {"prompt": prompt, "label": next(iter(task.options))})
    examples, _ = task.encode([row], trained.base.tokenizer, trained.limit, "error")
    outputs = task.over(examples, 0, 1).outputs(trained.base, examples.collate([0]), 1)
    shares = outputs[0, 0].softmax(-1).tolist()
    ranked = sorted(zip(shares, task.options.values()), reverse=True)
    return f"{prompt}{ranked[0][1]}   ({', '.join(f'{word.strip()} {100 * share:.1f} %' for share, word in ranked)})"
