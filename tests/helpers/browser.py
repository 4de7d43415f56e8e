"""A headless Chromium that opens a page and says what it saw, over the pipes of the DevTools protocol: nothing to install
but the browser (Debian: apt-get install chromium)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


def found() -> str | None:
    """The browser's path: ZOEDGE_CHROMIUM, else whichever is on the PATH."""
    return os.environ.get("ZOEDGE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Seen(NamedTuple):
    """complaints: errors and warnings of the console. requests: addresses asked for, but for the page's own."""

    value: Any
    complaints: list[str]
    requests: list[str]
    picture: bytes


class Browser:
    """Use as a context manager."""

    def __init__(self, program: str, folder: Path):
        ours, theirs = os.pipe(), os.pipe()  # what we read, what the browser reads
        fds = {3: theirs[0], 4: ours[1]}
        high = {place: fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for place, fd in fds.items()}
        args = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
            f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip

        def place() -> None:
            for number, fd in high.items():
                os.dup2(fd, number)

        self.process = subprocess.Popen(
            args,
            preexec_fn=place,  # noqa: PLW1509 - no thread of ours is running
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (*fds.values(), *high.values()):
            os.close(fd)
        self.incoming, self.outgoing = ours[0], theirs[1]
        self.buffer, self.number, self.events = b"", 0, list[dict[str, Any]]()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.incoming)
        os.close(self.outgoing)

    def receive(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.incoming], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self.incoming, 1 << 20) if ready else b""
            if not piece:
                raise TimeoutError("the browser does not answer")
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.outgoing, json.dumps(message).encode() + b"\0")
        while (answer := self.receive(60)).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def see(self, page: Path, width: int, height: int, script: str, dark: bool = False, whole: bool = False) -> Seen:
        """The page at that size, and what a script gives there. whole: the picture is of all of it."""
        self.events.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

        def ask(method: str, **params: Any) -> dict[str, Any]:
            return self.call(method, session, **params)

        for domain in ("Page", "Runtime", "Log", "Network"):
            ask(f"{domain}.enable")
        ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        ask("Emulation.setEmulatedMedia", features=[scheme])
        address = page.resolve().as_uri()
        ask("Page.navigate", url=address)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.receive(60))
        answer = ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        picture = ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        complaints, requests = [], []
        for event in self.events:
            match event.get("method"), event.get("params"):
                case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded", params:
                    complaints.append(json.dumps(params)[:400])
                case "Network.requestWillBeSent", {"request": {"url": url}} if url != address:
                    requests.append(url)
        self.call("Target.closeTarget", targetId=target)
        return Seen(answer["result"].get("value"), complaints, requests, base64.b64decode(picture))
