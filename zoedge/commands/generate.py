"""`zoedge generate` and `zoedge chat`: load a trained model and let it answer."""

from __future__ import annotations

from typing import Any


def rebuild_run(run: str, at: str | None) -> tuple[Any, Any, int]:
    """(bench, log, steps) of a run: the base loaded anew, the space moved to where it is after so many steps."""
    from ..core import engine
    from ..run import folder, identity, setup

    journal = folder.open_any_log(run)
    steps = folder.resolve_step(journal, at)
    recipe = identity.recipe_from_header(journal.header, run)
    bench = setup.Bench.build(recipe)
    identity.check_same_base(journal.header, bench.header(), run)
    for _ in engine.play(bench.run(journal), steps):
        pass
    return bench, journal, steps


def build_prompt(bench: Any, text: str) -> tuple[str, bool]:
    """(the prompt that asks for an answer to a text, whether it is plain). A run that learnt to chat keeps its format."""
    from ..scoring.tasks.chat import Chat, render_question

    task, tokenizer = bench.recipe.task, bench.base.tokenizer
    own = Chat() if isinstance(tokenizer.chat_template, str) else None
    form = task if isinstance(task, Chat) else own
    return (text, True) if form is None else (render_question(form.source(tokenizer), text, tokenizer), False)


def choose_option(bench: Any, prompt: str) -> str:
    """The most likely option after a prompt, and the probability of each. A mask is put there where the model fills one."""
    from dataclasses import replace

    from ..scoring.rows.row import Row

    mask = bench.recipe.task.head == "MaskedLM"
    task = replace(bench.recipe.task, prompt="{prompt}{mask}." if mask else "{prompt}", label="label")
    row = Row("the prompt", {"prompt": prompt, "label": next(iter(task.options))})
    examples, _ = task.encode([row], bench.base.tokenizer, bench.limit, "error")
    shares = bench.task.outputs(bench.base, examples.collate([0]), 1)[0, 0].softmax(-1).tolist()
    ranked = sorted(zip(shares, task.options.values()), reverse=True)
    return f"{prompt}{ranked[0][1]}   ({', '.join(f'{word.strip()} {100 * share:.1f} %' for share, word in ranked)})"
