"""A headless Chromium, driven over its own debugging protocol through a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE

CHROMIUM = Path("/usr/bin/chromium")

# The browser speaks its protocol on file descriptors 3 and 4. They are moved out of each other's way first.
_PIPES_AS_3_AND_4 = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

Parameters = dict[str, Any]


class BrowserError(Exception):
    """The browser refused a command, ended, or did not answer."""


class Browser:
    """One browser with one page."""

    def __init__(self, read: int, write: int) -> None:
        self._read = read
        self._write = write
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        self.messages: list[Parameters] = []
        """Events of the page so far, oldest first."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Parameters:
        """Have a command done; its result."""
        number = next(self._numbers)
        command: Parameters = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive(time.monotonic() + PATIENCE)
            if message.get("id") != number:
                self.messages.append(message)
            elif "error" in message:
                raise BrowserError(f"{method}: {message['error']}")
            else:
                return dict(message["result"])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page; of a promise, what it comes to."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Return once an expression is true for JavaScript."""
        give_up = time.monotonic() + PATIENCE
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < give_up, f"never true: {expression}; body:\n{self.text()}"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Load a page to its end."""
        seen = len(self.messages)
        self.send("Page.navigate", url=url)
        give_up = time.monotonic() + PATIENCE
        while not any(each.get("method") == "Page.loadEventFired" for each in self.messages[seen:]):
            self.messages.append(self._receive(give_up))

    def look(self, *, width: int, scheme: str = "light", height: int = 900, scale: float = 1) -> None:
        """Choose the size of the window in CSS pixels and the reader's colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def text(self) -> str:
        """What a reader sees of the page as text."""
        return str(self.evaluate("document.body.innerText"))

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=9)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def events(self, method: str) -> list[Parameters]:
        """The parameters of every event of a kind so far."""
        self.evaluate("0")  # whatever was under way before is here now
        return [each["params"] for each in self.messages if each.get("method") == method]

    def _receive(self, give_up: float) -> Parameters:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, give_up - time.monotonic()))
            piece = os.read(self._read, 1 << 20) if ready else b""
            if not piece:
                raise BrowserError("the browser does not answer" if not ready else "the browser has ended")
            self._rest += piece
        line, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(line))


@contextlib.contextmanager
def browser(*arguments: str) -> Iterator[Browser]:
    """A browser of its own with an empty profile; it has ended when the block is left."""
    with tempfile.TemporaryDirectory(prefix="curfewd-browser-") as profile, contextlib.ExitStack() as stack:
        (their_read, our_write), (our_read, their_write) = os.pipe(), os.pipe()
        for each in (our_read, our_write):
            stack.callback(os.close, each)
        process = subprocess.Popen(
            [sys.executable, "-c", _PIPES_AS_3_AND_4, str(their_read), str(their_write), *_command(profile, arguments)],
            pass_fds=(their_read, their_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": profile},
        )
        os.close(their_read)
        os.close(their_write)
        stack.callback(_end, process.wait, process.kill)
        opened = Browser(our_read, our_write)
        yield opened
        opened._session = None
        with contextlib.suppress(BrowserError, OSError):
            opened.send("Browser.close")


def _command(profile: str, arguments: Sequence[str]) -> list[str]:
    return [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",  # which the browser demands of root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--hide-scrollbars",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        *arguments,
    ]


def _end(wait: Callable[[float], int], kill: Callable[[], None]) -> None:
    try:
        wait(10)
    except subprocess.TimeoutExpired:
        kill()
        wait(10)
