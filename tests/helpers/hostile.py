"""Runs commands of strangers' files under limits, and tells what they did: `python tests/helpers/hostile.py [torch]`.

A job a line on standard input, {folder, argv}; an answer a line, {code, out, err, deeds}. Each job is a fork of this
process, which has imported what it may: 512 MiB of address space more than that (without torch: 512 MiB in all), 10 s of
CPU, and a hook that ends whatever executes other code, opens a socket, starts a process or writes outside the folder.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
MEMORY, SECONDS = 512 << 20, 10
SANDBOX = str(ROOT / "zoedge" / "scoring" / "tasks" / "_sandbox.py")
TRUSTED = tuple({os.path.realpath(p) + os.sep for p in (ROOT / "zoedge", sys.prefix, sys.base_prefix)})
READABLE = (*TRUSTED, str(ROOT / "recipes") + os.sep, "/proc/", "/sys/", "/usr/", "/lib", "/dev/null", "/dev/urandom")
ALWAYS = (
    "socket.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pty.",
    "pickle.find_class",
    "webbrowser.",
    "urllib.",
)
CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "os.chown",
)
MAKERS = (
    "dataclasses.py",
    os.path.join("collections", "__init__.py"),
    "enum.py",
    "typing.py",
    "functools.py",
    "inspect.py",
)


def guard(folder: Path, deeds: int) -> None:
    """From here on, for good: what is forbidden is noted and raises."""
    own = tuple(str(p) + os.sep for p in (folder.resolve(), Path(os.environ["ZOEDGE_CACHE"]).resolve()))
    nameless = os.path.realpath(tempfile.gettempdir())  # which TemporaryFile opens for a file without a name
    draft = os.path.join(nameless, "tmp")  # of TemporaryDirectory

    def inside(path: Any, roots: tuple[str, ...], itself: bool = False) -> bool:
        """itself: what the name stands for is not followed if it is a link."""
        if isinstance(path, int):
            return True
        name = os.path.abspath(os.fsdecode(path))
        whole = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        whole = whole if itself else os.path.realpath(name)
        return (whole + os.sep).startswith(roots) or whole.startswith(draft) or whole == nameless

    def forbidden(event: str, args: tuple[Any, ...]) -> bool:
        if event.startswith(ALWAYS):
            return True
        if event == "subprocess.Popen":
            return list(args[1]) != [sys.executable, "-P", "-I", SANDBOX]
        if event == "ctypes.dlopen":
            return "/" in str(args[0]) and not str(args[0]).startswith(READABLE)
        if event in ("exec", "compile"):
            name = getattr(args[0], "co_filename", None) if event == "exec" else args[1]
            if name in ("<string>", None, "<unknown>"):
                caller = sys._getframe(2).f_code.co_filename
                return (
                    not caller.endswith(MAKERS) and not caller.startswith(TRUSTED) and not caller.startswith("<frozen")
                )
            name = os.fsdecode(name)
            return not name.startswith("<frozen") and not (os.path.realpath(name)).startswith(TRUSTED)
        if event == "open" and not isinstance(args[0], int):
            writes = (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            itself = bool((args[2] or 0) & os.O_NOFOLLOW)
            return not inside(args[0], (*own, "/dev/null") if writes else (*own, *READABLE), itself)
        if event in CHANGES:
            return not all(inside(path, own, True) for path in args if isinstance(path, (str, bytes, os.PathLike)))
        return False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if forbidden(event, args):
            os.write(deeds, f"{event} {str(args)[:300]}\n".encode(errors="replace"))
            raise PermissionError(1, f"forbidden: {event}", "a hostile file")

    sys.addaudithook(hook)


def run(folder: Path, argv: list[str], base: int, files: list[int]) -> None:
    """In the child: never returns."""
    from zoedge.cli import main

    code: Any = 99
    try:
        signal.alarm(30)  # of a pipe that nobody writes to
        os.chdir(folder)
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDONLY) if number == 0 else files[number - 1], number)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["zoedge", *argv]
        guard(folder, files[2])
        main()
        code = 0
    except SystemExit as e:
        code = e.code or 0
    except BaseException as e:
        os.write(2, f"escaped: {type(e).__name__}: {e}".encode(errors="replace"))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import zoedge.log.packed
    import zoedge.recipe.reading
    import zoedge.run.setup
    import zoedge.scoring.rows.sets

    base = 0
    if sys.argv[1:] == ["torch"]:
        import torch

        import zoedge.commands.finetune
        import zoedge.commands.verify
        from zoedge.commands.export import folder as export  # noqa: F401
        from zoedge.scoring.models import loading
        from zoedge.scoring.tasks import chat

        chat.CPU_SECONDS = 1  # of CPU for a template, 10 else
        torch.set_num_threads(1)
        loading.load_base(
            zoedge.recipe.sections.Model(source="model", quantization="none")
        )  # what is imported at the first use
        zoedge.recipe.reading.read_recipe("my.yaml")
        platform.processor()  # the standard library's, remembered: it asks `uname -p`
        gc.collect()
        gc.freeze()  # a fork need not look at, nor copy, what is imported
        base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    print(json.dumps({"base": base, "torch": "torch" in sys.modules}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        files = [os.memfd_create(name) for name in ("out", "err", "deeds")]
        child = os.fork()
        if not child:
            run(Path(job["folder"]), job["argv"], base, files)
        _, status, used = os.wait4(child, 0)
        out, err, deeds = (os.pread(fd, 1 << 20, 0).decode(errors="replace") for fd in files)
        for fd in files:
            os.close(fd)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "out": out, "err": err, "deeds": deeds, "cpu": used.ru_utime}), flush=True)


if __name__ == "__main__":
    main()
