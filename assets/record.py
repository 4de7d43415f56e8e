"""Record real terminal output: commands in a pseudo-terminal of 80 columns, with the second at which each piece came."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

COLUMNS, ROWS = 80, 40
SESSION = [
    ["finetune", "quickstart"],
    ["generate", "runs/quickstart", "-p", "A film that made me smile. It was"],
    ["verify", "runs/quickstart", "--replay"],
]


def record_command(words: list[str], folder: Path) -> dict[str, Any]:
    """Run one zoedge command in a folder and return what a terminal would have received.

    Args:
        words: what stands after `zoedge`.
        folder: the working folder.

    Returns:
        {"words", "seconds": how long the command ran, "pieces": [[second, text], ...]}.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONUTF8": "1"}
    begin, pieces = time.monotonic(), list[tuple[float, str]]()
    command = [sys.executable, "-P", "-m", "zoedge", *words]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    rest = b""
    while piece := read_piece(ours):
        rest += piece
        whole = rest.decode("utf-8", errors="ignore")  # a character may be cut at the end of a piece
        pieces.append((round(time.monotonic() - begin, 3), whole))
        rest = rest[len(whole.encode()) :]
    os.close(ours)
    if code := process.wait():
        sys.exit(f"zoedge {' '.join(words)} ended with exit code {code}")
    return {"words": words, "seconds": round(time.monotonic() - begin, 1), "pieces": pieces}


def read_piece(descriptor: int) -> bytes:
    """Return the next bytes of a pseudo-terminal, none where its program has ended."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux answers EIO when the last writer has closed it
        return b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder for the run and session.json")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    session = [record_command(words, folder) for words in SESSION]
    (folder / "session.json").write_text(json.dumps(session), encoding="utf-8")


if __name__ == "__main__":
    main()
