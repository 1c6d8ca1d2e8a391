"""`curfewd run` as a process: started with settings, watched through its log, asked over HTTP, ended by its pid."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

from tests.patience import PATIENCE

PROGRAM = (sys.executable, "-m", "curfew_daemon")


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would change the daemon, and *settings* on top."""
    foreign = ("CURFEW_", "PG", "NOTIFY_SOCKET", "WATCHDOG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | dict(settings)


def curfewd(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; *settings* are whole names of variables."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=clean_environment(settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


class DaemonProcess:
    """A daemon in a process of its own; a context manager that leaves none behind.

    *database_url* may be ``None``; *settings* are whole names of variables. It serves HTTP on a free port and
    writes JSON lines, which are kept as they come, together with the moment at which they were read.
    """

    def __init__(
        self,
        database_url: str | None,
        *,
        program: Sequence[str] = (*PROGRAM, "run"),
        stderr: int = subprocess.PIPE,
        **settings: str,
    ) -> None:
        defaults = {"CURFEW_HTTP_PORT": "0", "CURFEW_LOG_FORMAT": "json"}
        if database_url is not None:
            defaults["CURFEW_DATABASE_URL"] = database_url
        self.lines: list[dict[str, Any]] = []
        self.text = ""
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            program,
            env=clean_environment(defaults | settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Where the pages are served, once the log has said so."""
        return str(self.wait_for("http_listening")["url"])

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.alive:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def wait_for(self, event: str, *, occurrence: int = 1, after: int = 0, **fields: Any) -> dict[str, Any]:
        """The line of an event whose *fields* have these values, the *occurrence*-th from line *after* on.

        Waits for it; fails with the whole log if it does not come or the process ends before.
        """
        give_up = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                found = self.said(event, after=after, **fields)
                if len(found) >= occurrence:
                    return found[occurrence - 1]
                reading = self._reader.is_alive()
                assert reading, f"ended without {event} {fields}:\n{self.text}"
                assert time.monotonic() < give_up, f"never said {event} {fields}:\n{self.text}"
                self._changed.wait(0.5)

    def said(self, event: str, *, after: int = 0, **fields: Any) -> list[dict[str, Any]]:
        """The lines of an event so far whose *fields* have these values."""
        return [
            line
            for line in self.lines[after:]
            if line["event"] == event and all(line.get(name) == value for name, value in fields.items())
        ]

    def wait_up(self) -> None:
        """Return once it has said that the database lets it enforce."""
        self.wait_for("database_state_changed", new="up")

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text of a page."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return int(response.status), response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_page(self, path: str, status: int, words: str = "") -> str:
        """The text of a page once it has this status and holds these words."""
        give_up = time.monotonic() + PATIENCE
        while True:
            found, text = self.get(path)
            if found == status and words in text:
                return text
            assert time.monotonic() < give_up, f"{path} stays at {found}: {text}"
            time.sleep(0.02)

    def metric(self, sample: str) -> float:
        """The value of a sample, with its labels as on the page."""
        match = re.search(rf"^{re.escape(sample)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        assert match, f"no sample {sample}"
        return float(match[1])

    def wait_sample(self, sample: str, least: float) -> None:
        """Return once a sample has reached a value."""
        give_up = time.monotonic() + PATIENCE
        while self.metric(sample) < least:
            assert time.monotonic() < give_up, f"{sample} stays below {least}"
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait_exit(self) -> int:
        """The exit code, once the process has ended and its log is read to the end."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def stop(self) -> int:
        """Ask it to stop; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_exit()

    def _read(self, stream: IO[str] | None) -> None:
        for line in stream or ():
            with self._changed:
                self.text += line
                # What is no JSON (a traceback of the interpreter, say) fails whoever waits, with the text.
                self.lines.append(json.loads(line) if line.startswith("{") else {"event": "", "text": line})
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
