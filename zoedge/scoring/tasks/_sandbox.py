"""This script renders chat templates in a process of its own, as a template is a stranger's program that may never end.

It reads JSON {template, words, chats, seconds, bytes, text} on standard input, and writes a list on standard output, with
{text, answers: [[begin, end], ...]} or {error} for each chat. Jinja's sandbox keeps a template away from Python. Limits on
CPU time, memory and text end a template that loops or swells. There is no strftime_now, because the training data would
change with the date.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def refuse_template(text: str) -> None:
    """Raise ValueError with a sentence about the template or the chat. Templates call it as raise_exception."""
    raise ValueError(text)


def render_chat(template: Template, chat: list[dict[str, str]], words: dict[str, str]) -> dict[str, Any]:
    """Return {text, answers: [begin, end] of each}: a chat's text, and where in it the assistant's answers stand.

    An answer is what follows the text that the template writes to ask for it. words: the special tokens by name.
    ValueError: the text that asks for an answer is not the beginning of the text with the answer.
    """

    def render(count: int, ask: bool) -> str:
        return template.render(messages=chat[:count], add_generation_prompt=ask, **words)

    whole, answers = render(len(chat), False), []
    for i, message in enumerate(chat):
        if message["role"] == "assistant":
            before, after = render(i, True), render(i + 1, False)
            if not after.startswith(before) or not whole.startswith(after.rstrip()):
                refuse_template("with add_generation_prompt it must write exactly what it writes before an answer")
            answers.append([len(before), len(after.rstrip())])
    return {"text": whole, "answers": answers}


def lower_limit(what: int, wanted: int) -> None:
    """Set a limit of this process (resource.RLIMIT_...), unless it is lower already, as it may be in a container."""
    hard = resource.getrlimit(what)[1]
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(what, (limit, limit))


def main() -> None:
    """Render the chats that standard input names."""
    given = json.load(sys.stdin)
    lower_limit(resource.RLIMIT_CPU, given["seconds"])
    lower_limit(resource.RLIMIT_AS, given["bytes"])
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda x, **_: json.dumps(x, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse_template
    answers: list[str] = []
    left = given["text"]  # characters of output: the parent process holds them several times
    try:
        # {% generation %} is a block that only transformers knows; it marks answers
        source = re.sub(r"({%-?\s*)generation(\s*-?%})", r"\1if true\2", given["template"])
        template = environment.from_string(re.sub(r"({%-?\s*)endgeneration(\s*-?%})", r"\1endif\2", source))
    except Exception as e:
        print(json.dumps([{"error": f"{type(e).__name__}: {e}"}] * len(given["chats"])))
        return
    for chat in given["chats"]:
        try:
            answer = render_chat(template, chat, given["words"])
        except MemoryError:
            raise
        except Exception as e:
            answer = {"error": (str(e) or type(e).__name__)[:1000]}
        answers.append(json.dumps(answer))
        left -= len(answers[-1])
        if left < 0:
            raise MemoryError
    print(f"[{','.join(answers)}]")


if __name__ == "__main__":
    main()
