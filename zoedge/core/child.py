"""This module starts every child process of zoedge.

A child runs the same Python and the same zoedge as its parent, and nothing from the user's current folder: a file `torch.py`
or `json.py` that lies there is never imported. A signal that ends the parent ends the child first. A child that fails is one
sentence, `ChildFailed`, with the child's exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import ZoedgeError, make_printable

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
STDERR = 2  # as a child's `output`: where this process writes its messages
REASON_LIMIT = 300  # characters of a child's last line that are shown


class ChildFailed(ZoedgeError):
    """A child process ended with an error, was killed, ran too long, or gave no answer.

    Attributes:
        reason: the last line that it wrote to standard error, or how it ended.
        exit_code: its own; 128 + N for signal N.
    """

    def __init__(self, purpose: str, returncode: int, reason: str):
        super().__init__(f"{purpose} ended ({returncode}): {reason}")
        self.reason = reason
        self.exit_code = shell_exit_code(returncode) or ZoedgeError.exit_code


def shell_exit_code(returncode: int) -> int:
    """Return the exit code that a shell gives to a process: 128 + N for one that signal N killed (subprocess says -N)."""
    return returncode if returncode >= 0 else 128 - returncode


def python_command(words: Sequence[str]) -> list[str]:
    """Return the command that runs this Python with `words`. -P keeps the current folder from being imported from."""
    return [sys.executable, "-P", *words]


def child_environment() -> dict[str, str]:
    """Return this process's environment, in which this zoedge is the one that is found.

    An empty entry of PYTHONPATH would mean the current folder, and is left out.
    """
    entries = [str(PACKAGE_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, entries))}


@dataclass
class ChildRunner:
    """Run child processes one at a time and pass SIGINT and SIGTERM on to the one that is running.

    signal: the last one that came, or 0.
    """

    child: subprocess.Popen[bytes] | None = None
    signal: int = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, and pass it on to the child that is running."""
        self.signal = number
        if self.child is not None:
            self.child.send_signal(number)

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start Python with `words`. options: those of subprocess.Popen."""
        self.child = subprocess.Popen(python_command(words), env=child_environment(), **options)
        if self.signal:  # it came while the child was being started
            self.child.send_signal(self.signal)
        return self.child

    def run_zoedge(self, words: Sequence[str]) -> int:
        """Run a command of zoedge that prints where this process prints, and return its exit code (-N: signal N).

        The child has a process group of its own, so that Ctrl-C in a terminal reaches it once, from here: a second one
        would end it in the middle of a step.
        """
        if self.signal:
            return -self.signal
        return self.start(["-m", "zoedge", *words], stdin=subprocess.DEVNULL, process_group=0).wait()


@contextmanager
def forward_signals() -> Iterator[ChildRunner]:
    """Give a runner that gets SIGINT and SIGTERM while the block runs. Ignored signals (nohup, `&`) stay ignored."""
    runner = ChildRunner()
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python lets only the main thread handle signals
    former = {number: signal.signal(number, runner) for number in numbers}
    try:
        yield runner
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run_python(
    words: Sequence[str],
    purpose: str,
    text: str | None = None,
    output: int = subprocess.PIPE,
    timeout: float | None = None,
) -> str:
    """Run Python with `words` in a child process and return what it wrote to standard output.

    Args:
        words: the arguments of Python, such as ["-m", "pip", "download"].
        purpose: the subject of the sentence that says that it failed.
        text: its standard input; None: that of this process.
        output: a file descriptor for its standard output, of which "" is returned then.
        timeout: seconds after which it is killed.

    Raises:
        ChildFailed: its exit code was not 0, or it ran too long.
    """
    with forward_signals() as runner:
        stdin = None if text is None else subprocess.PIPE
        process = runner.start(words, stdin=stdin, stdout=output, stderr=subprocess.PIPE)
        with process:
            try:
                out, err = process.communicate(None if text is None else text.encode(), timeout)
                reason = last_line(err) or describe_end(process.returncode)
            except subprocess.TimeoutExpired:
                process.kill()
                out, _ = process.communicate()
                reason = f"it took more than {timeout:g} s"
            except BaseException:
                process.kill()
                raise
    if runner.signal:  # the child has ended; now whoever handled the signal before gets it
        signal.raise_signal(runner.signal)
    if process.returncode:
        raise ChildFailed(purpose, process.returncode, reason)
    return (out or b"").decode(errors="replace")


def last_line(written: bytes) -> str:
    """Return the last line that is not blank, as it may be printed; "" if there is none."""
    lines = [line for line in written.decode(errors="replace").splitlines() if line.strip()]
    return make_printable(lines[-1].strip(), REASON_LIMIT) if lines else ""


def describe_end(returncode: int) -> str:
    """Return how a process ended that wrote nothing: killed by SIGKILL, or exit code 1."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


def ask_python(words: Sequence[str], purpose: str, question: Any, timeout: float | None = None) -> Any:
    """Run Python with `words`, give it `question` as JSON, and return the JSON of the last line that it writes.

    The libraries that a child loads may write lines before. ChildFailed: it failed, or the last line is no JSON.
    """
    out = run_python(words, purpose, json.dumps(question), timeout=timeout)
    lines = out.splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        raise ChildFailed(purpose, 0, "it gave no answer") from None


def answer_parent(function: Callable[[Any], Any]) -> int:
    """Do a child's half of `ask_python`: read the question, write what `function` makes of it, and return the exit code.

    The sentence of a ZoedgeError goes to standard error, and its exit code is returned.
    """
    try:
        answer = function(json.load(sys.stdin))
    except ZoedgeError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code
    sys.stdout.write(f"{json.dumps(answer)}\n")
    return 0
