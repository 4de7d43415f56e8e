"""`zoedge generate`: the option that a trained model chooses after a prompt. No data is read."""

from __future__ import annotations

from dataclasses import replace

from ..run.trained import Trained
from ..scoring.rows.row import Row
from ..scoring.tasks.classify import Classify
from ..scoring.tasks.mlm import Mlm
from ..scoring.texts import encode_rows


def choose_option(trained: Trained, prompt: str) -> str:
    """Return the prompt with its likeliest option, and the probability of each. A model that fills masks gets a mask."""
    learnt = trained.recipe.task
    assert isinstance(learnt, Classify | Mlm), "only their rows have options in common"
    form = "{prompt}{mask}." if learnt.head == "MaskedLM" else "{prompt}"
    task = replace(learnt, prompt=form, label="label")
    if isinstance(task, Classify):
        task = replace(task, objective="loss")  # a reward function of the user's may not be here
    row = Row("the prompt", {"prompt": prompt, "label": next(iter(task.options))})
    base, data = trained.base, trained.recipe.data.model_copy(update={"on_overflow": "error", "on_untrainable": "stop"})
    examples, _ = encode_rows(task, [row], base.tokenizer, trained.limit, data, base.model.config.vocab_size)
    outputs = task.make_training(examples, 0, 1).outputs(trained.base, examples.collate([0]), 1)
    shares = outputs[0, 0].softmax(-1).tolist()
    ranked = sorted(zip(shares, task.options.values()), reverse=True)
    return f"{prompt}{ranked[0][1]}   ({', '.join(f'{word.strip()} {100 * share:.1f} %' for share, word in ranked)})"
