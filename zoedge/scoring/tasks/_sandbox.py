"""This script renders chat templates in a process of its own, as a template is a stranger's program that may never end.

It reads JSON {template, words, chats, tools, seconds, bytes, text} on standard input, and writes a list on standard output,
with {texts: [{text, answers: [[begin, end], ...]}]} or {error} for each chat. Jinja's sandbox keeps a template away from
Python. Limits on CPU time, memory and text end a template that loops or swells. There is no strftime_now, because the training
data would change with the date.
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


class Renderer:
    """Renders one chat with a template.

    Attributes:
        template: the template.
        messages: the chat's messages, without the mark of what is not trained on.
        trained: whether each is trained on, if it is an answer.
        more: the special tokens and the tools by name, which the template is given too.
    """

    def __init__(self, template: Template, chat: list[dict[str, Any]], tools: Any, words: dict[str, str]):
        self.template, self.more = template, {"tools": tools, **words}
        self.trained = [message.get("train", True) for message in chat]
        self.messages = [{key: value for key, value in message.items() if key != "train"} for message in chat]

    def render(self, messages: list[dict[str, Any]], ask: bool = False) -> str:
        """Return the text of some messages. ask: with what asks for an answer at its end."""
        return self.template.render(messages=messages, add_generation_prompt=ask, **self.more)

    def find_answer(self, i: int) -> tuple[str, int, int]:
        """Return the text of the chat up to answer i, and where in it the answer begins and ends.

        An answer is what follows the text that the template writes to ask for it. Where that text is another than the one
        before the answer (a template may ask with a tag of its own), the answer begins where its content stands.
        ValueError: it cannot be found, or the template leaves a part of it out.
        """
        before, text = self.render(self.messages[:i], ask=True), self.render(self.messages[: i + 1])
        begin = len(before)
        if not text.startswith(before):
            marked = self.render([*self.messages[:i], self.messages[i] | {"content": MARK}])
            begin = marked.find(MARK)
            if begin < 0 or not text.startswith(marked[:begin]):
                refuse_template(
                    "where an answer begins cannot be found. Set task.format: chatml, or end rows after their first answer"
                )
        end = len(text.rstrip())
        self.check_answer(self.messages[i], text[begin:end], i)
        return text, begin, end

    def check_answer(self, message: dict[str, Any], written: str, i: int) -> None:
        """Refuse a template that leaves out a part of an answer. written: the answer as the template writes it."""
        names = [call["function"]["name"] for call in message.get("tool_calls", ())]
        parts = {"content": message["content"], "reasoning": message.get("reasoning_content", "")}
        parts |= {f"call of {name}": name for name in names}
        for name, part in parts.items():
            if squash(part) not in squash(written):
                refuse_template(
                    f"it leaves out the {name} of turn {i + 1}, or a part of it, which would not be trained on. Take it "
                    "out of the row, or set task.format to a template that writes it"
                )

    def check_rest(self, whole: str) -> None:
        """Refuse a template that leaves out a system message, a question, or a tool. whole: the whole chat's text."""
        written = squash(whole)
        for i, message in enumerate(self.messages):
            if message["role"] in ("system", "user") and squash(message["content"]) not in written:
                refuse_template(
                    f"it leaves out the {message['role']} message of turn {i + 1}. Take it out of the row, or set "
                    "task.format to a template that writes it"
                )
        for tool in self.more["tools"] or ():
            if squash(tool["function"]["name"]) not in written:
                refuse_template(
                    f"it leaves out the tool {tool['function']['name']}. Take the tools out of the row, or set task.format "
                    "to a template that writes them"
                )

    def render_texts(self) -> list[dict[str, Any]]:
        """Return {text, answers: [begin, end] of each} of one text with all answers, or of a text for each answer.

        There are several where the template writes earlier turns otherwise once more follow: each answer is then trained on
        in the text that the model will see when it gives it.
        """
        whole = self.render(self.messages)
        self.check_rest(whole)
        places = [i for i, message in enumerate(self.messages) if message["role"] == "assistant" and self.trained[i]]
        answers = [self.find_answer(i) for i in places]
        if all(whole.startswith(text[:end]) for text, _, end in answers):
            return [{"text": whole, "answers": [[begin, end] for _, begin, end in answers]}]
        return [{"text": text, "answers": [[begin, end]]} for text, begin, end in answers]


MARK = "\ue000zoedge\ue001"  # stands in an answer's place, in characters for private use


def squash(text: str) -> str:
    """Return a text without white space, which templates trim."""
    return "".join(text.split())


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
    for chat, tools in zip(given["chats"], given["tools"]):
        try:
            answer: dict[str, Any] = {"texts": Renderer(template, chat, tools, given["words"]).render_texts()}
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
