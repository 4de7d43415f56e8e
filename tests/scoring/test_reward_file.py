"""A user's reward: what runs, when it runs, and what becomes of everything that its code may raise."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.recipes import TINY, write_reviews

from zoedge.errors import DataError
from zoedge.log.log import Log
from zoedge.run import trust
from zoedge.scoring.sources.cache import cache_folder
from zoedge.scoring.tasks import _objective, _reward_file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in a folder with an outside; no module of either is imported yet."""
    (tmp_path / "here").mkdir()
    (tmp_path / "outside").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    _reward_file.load_function.cache_clear()
    yield tmp_path / "here"
    for name in [n for n in sys.modules if n.partition(".")[0] in ("goal", "big", "real", "beside", "pack")]:
        del sys.modules[name]
    _reward_file.load_function.cache_clear()


NOTES = [{"where": "f:1", "row": {}}, {"where": "f:2", "row": {}}]

BODIES = {
    "exit": ("sys.exit(0)", "SystemExit: 0"),
    "exit without a code": ("sys.exit()", "SystemExit"),
    "SystemExit": ("raise SystemExit('bye.')", "SystemExit: bye"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "GeneratorExit": ("raise GeneratorExit", "GeneratorExit"),
    "a BaseException of its own": ("raise type('Mine', (BaseException,), {})('x')", "Mine: x"),
    "an error without a text": ("raise type('Odd', (Exception,), {'__str__': lambda s: 1 / 0})()", "Odd"),
    "memory": ("raise MemoryError", "MemoryError"),
    "recursion": ("def f(): f()\n    f()", "RecursionError: maximum recursion depth exceeded"),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("where", ["import", "call", "iteration"])
def test_whatever_a_reward_raises_is_a_sentence(here: Path, body: str, where: str) -> None:
    code, says = BODIES[body]
    start = {
        "import": "if True:",
        "call": "def f(rows, outputs):",
        "iteration": "def f(rows, outputs):\n    yield 1.0",
    }[where]
    (here / "goal.py").write_text(f"import sys\n{start}\n    {code}\ndef g(rows, outputs): return []\n")
    what = "goal cannot be imported from here" if where == "import" else "goal:f raised"
    with pytest.raises(DataError) as e:
        _objective.compute_rewards("goal:g" if where == "import" else "goal:f", NOTES, ["", ""])
    assert str(e.value) == f"task.objective: {what}: {says}." or (body == "recursion" and says in str(e.value))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_reward_is_no_error_of_it(here: Path, number: signal.Signals) -> None:
    """And the handlers are as they were."""
    (here / "goal.py").write_text(f"import os\ndef f(rows, outputs): os.kill(os.getpid(), {int(number)})\n")

    class Came(BaseException):
        pass

    def handler(*_: Any) -> None:
        raise Came

    before = signal.signal(number, handler)
    try:
        with pytest.raises(Came):
            _objective.compute_rewards("goal:f", NOTES, ["", ""])
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_a_reward_works_in_a_thread(here: Path) -> None:
    (here / "goal.py").write_text("def f(rows, outputs): return [1, True]\n")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(_objective.compute_rewards("goal:f", NOTES, ["", ""])))
    thread.start()
    thread.join()
    assert found == [[1.0, 1.0]]


@pytest.mark.parametrize(
    "value,says",
    [
        ("1e308", "gave 1e+308 for f:1: beyond 1e+30."),
        ("-1e31", "gave -1e+31 for f:1: beyond 1e+30."),
        ("10**400", "for f:1: not a finite number."),
        ("float('-inf')", "gave -inf for f:1: not a finite number."),
        ("None", "gave None for f:1: not a finite number."),
        ("1j", "gave 1j for f:1: not a finite number."),
        ("Odd()", "gave a Odd for f:1, which cannot be read: ZeroDivisionError: division by zero."),
    ],
)
def test_a_number_that_is_none_is_a_sentence(here: Path, value: str, says: str) -> None:
    odd = "class Odd:\n    def __repr__(self): 1 / 0\n"
    (here / "goal.py").write_text(f"{odd}def f(rows, outputs): return [{value}, 0.0]\n")
    with pytest.raises(DataError) as e:
        _objective.compute_rewards("goal:f", NOTES, ["", ""])
    assert str(e.value).startswith("task.objective: goal:f gave ") and str(e.value).endswith(says)
    (here / "big.py").write_text("def f(rows, outputs): return [1e30, -10**30]\n")
    assert _objective.compute_rewards("big:f", NOTES, ["", ""]) == [1e30, -1e30]


# -- what is imported

RAN = "open('RAN', 'w')\ndef f(rows, outputs): return [0.0] * len(outputs)\n"


def link_file(here: Path, outside: Path) -> str:
    (outside / "evil.py").write_text(RAN)
    (here / "goal.py").symlink_to(outside / "evil.py")
    return "goal:f"


def link_folder(here: Path, outside: Path) -> str:
    (outside / "goal.py").write_text(RAN)
    (here / "pack").symlink_to(outside)
    return "pack.goal:f"


def link_package(here: Path, outside: Path) -> str:
    (outside / "evil.py").write_text(RAN)
    (here / "pack").mkdir()
    (here / "pack" / "__init__.py").symlink_to(outside / "evil.py")
    (here / "pack" / "goal.py").write_text("def f(rows, outputs): return []\n")
    return "pack.goal:f"


def package_before_file(here: Path, outside: Path) -> str:
    """Python would import the package, and not the file that was looked at."""
    link_package(here, outside)
    (here / "pack.py").write_text("def f(rows, outputs): return []\n")
    return "pack:f"


def library_before_file(here: Path, outside: Path) -> str:
    """Python prefers a compiled module of the same name."""
    import importlib.machinery

    (here / "goal.py").write_text("def f(rows, outputs): return []\n")
    (here / f"goal{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF")
    return "goal:f"


def built_in(here: Path, outside: Path) -> str:
    (here / "gc.py").write_text(RAN)
    return "gc:collect"


@pytest.mark.parametrize(
    "make", [link_file, link_folder, link_package, package_before_file, library_before_file, built_in]
)
def test_what_leads_elsewhere_is_refused_before_it_runs(here: Path, make: Callable[[Path, Path], str]) -> None:
    name = make(here, here.parent / "outside")
    with pytest.raises(DataError, match=r"leads to .*, outside of .*: only files below|is taken by another module"):
        _objective.compute_rewards(name, NOTES, ["", ""])
    assert not (here / "RAN").exists()


def test_files_of_the_folder_run(here: Path) -> None:
    """In a package, in a folder that is none, through a link that stays inside, and with its own imports."""
    (here / "real.py").write_text("from beside import zero\ndef f(rows, outputs): return [zero] * len(outputs)\n")
    (here / "beside.py").write_text("zero = 0.0\n")
    (here / "goal.py").symlink_to("real.py")
    (here / "pack" / "deep").mkdir(parents=True)
    (here / "pack" / "__init__.py").write_text("")
    (here / "pack" / "deep" / "goal.py").write_text("from ..two import f\n")
    (here / "pack" / "two.py").write_text("def f(rows, outputs): return [2.0] * len(outputs)\n")
    assert _objective.compute_rewards("goal:f", NOTES, ["", ""]) == [0.0, 0.0]
    assert _objective.compute_rewards("pack.deep.goal:f", NOTES, ["", ""]) == [2.0, 2.0]


# -- when


@pytest.fixture
def rewarded(here: Path, llama: Path, zoedge: Any) -> Path:
    """A finished run that was rewarded by a file of the current folder, which notes each time that it is imported."""
    write_reviews(here / "rows.jsonl")
    (here / "goal.py").write_text(
        "open('RAN', 'a').write('x')\ndef f(rows, outputs): return [float(len(o)) for o in outputs]\n"
    )
    recipe = TINY.replace("source: model", f"source: {llama}").replace(
        'prompt: "{text}', 'objective: "goal:f", prompt: "{text}'
    )
    (here / "tiny.yaml").write_text(recipe)
    done = zoedge("finetune", "tiny.yaml", "--quiet")
    assert done.code == 0, done
    (here / "RAN").unlink()
    forget()
    return here / "runs" / "tiny"


def forget() -> None:
    sys.modules.pop("goal", None)
    _reward_file.load_function.cache_clear()


def test_only_what_computes_rewards_imports_them(zoedge: Any, rewarded: Path, here: Path) -> None:
    for command in (
        "validate tiny.yaml",
        "estimate tiny.yaml",
        "preview tiny.yaml",
        "replay tiny",
        "verify tiny --against tiny.yaml --replay --adapter runs/tiny/adapter",
        "export tiny --to merged -o merged",
        "finetune tiny.yaml",
        "resume tiny",
    ):
        done = zoedge(*command.split())
        assert done.code == 0 and not (here / "RAN").exists(), (command, done)
    done = zoedge("generate", "tiny", "-p", "the film")
    assert done.code == 0 and not (here / "RAN").exists()
    assert zoedge("eval", "tiny").code == 0 and (here / "RAN").exists()


def test_the_code_of_another_machines_log_needs_a_word(zoedge: Any, rewarded: Path, here: Path) -> None:
    with Log.open(rewarded / "run.zlog") as log:
        header = log.header
        end = log.header.length + log[2].seq * log.header.slot_size
    raw = (rewarded / "run.zlog").read_bytes()
    (rewarded / "run.zlog").write_bytes(raw[:end])
    for note in cache_folder("own-logs").iterdir():
        note.unlink()
    for command in (["resume", "tiny"], ["eval", "tiny"]):
        done = zoedge(*command)
        assert (
            done.code == 2
            and "rewards by goal:f, a Python file of the current folder, and was not begun on this" in done.err
        )
        assert "Read the file first; if it may run, add --trust-code." in done.err and not (here / "RAN").exists()
    assert zoedge("eval", "tiny", "--trust-code").code == 0 and (here / "RAN").exists()
    assert not trust.log_note(header).exists()
    forget()
    assert zoedge("resume", "tiny", "--trust-code", "--quiet").code == 0
    assert (rewarded / "run.zlog").read_bytes() == raw and trust.log_note(header).exists()
    assert zoedge("eval", "tiny").code == 0  # it went on here
