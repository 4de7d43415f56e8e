"""Renders chat templates, run as a program of its own: a template is a program of a stranger's, and may loop or swell.

Reads JSON {template, words, chats, seconds, bytes, text} on standard input, writes [{text, answers: [[begin, end], ...]} or
{error}] on standard output. Jinja's sandbox keeps a template from Python; the limits on CPU time, memory and text end it. There
is no strftime_now: what is trained on would change with the date.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from typing import Any


def refuse_template(text: str) -> None:
    raise ValueError(text)


def render_chat(template: Any, chat: list[dict[str, str]], words: dict[str, str]) -> dict[str, Any]:
    """A chat's text, and where in it the assistant's answers stand: what asking for each leaves unsaid."""

    def text(count: int, ask: bool) -> str:
        return template.render(messages=chat[:count], add_generation_prompt=ask, **words)

    whole, answers = text(len(chat), False), []
    for i, message in enumerate(chat):
        if message["role"] == "assistant":
            before, after = text(i, True), text(i + 1, False)
            if not after.startswith(before) or not whole.startswith(after.rstrip()):
                refuse_template("what it writes before an answer is not what it asks for the answer with")
            answers.append([len(before), len(after.rstrip())])
    return {"text": whole, "answers": answers}


def lower_limit(what: int, wanted: int) -> None:
    """No limit is raised: a container may have set a lower one."""
    hard = resource.getrlimit(what)[1]
    least = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(what, (least, least))


def main() -> None:
    given = json.load(sys.stdin)
    lower_limit(resource.RLIMIT_CPU, given["seconds"])
    lower_limit(resource.RLIMIT_AS, given["bytes"])
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda x, **_: json.dumps(x, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse_template
    found: list[str] = []
    left = given["text"]  # of what is written: who reads it holds it several times
    try:
        source = re.sub(
            r"({%-?\s*)generation(\s*-?%})", r"\1if true\2", given["template"]
        )  # marks of transformers' own
        template = environment.from_string(re.sub(r"({%-?\s*)endgeneration(\s*-?%})", r"\1endif\2", source))
    except Exception as e:
        print(json.dumps([{"error": f"{type(e).__name__}: {e}"}] * len(given["chats"])))
        return
    for chat in given["chats"]:
        try:
            one = render_chat(template, chat, given["words"])
        except MemoryError:
            raise
        except Exception as e:
            one = {"error": (str(e) or type(e).__name__)[:1000]}
        found.append(json.dumps(one))
        if (left := left - len(found[-1])) < 0:
            raise MemoryError
    print(f"[{','.join(found)}]")


if __name__ == "__main__":
    main()
