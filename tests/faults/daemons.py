"""Real daemons for proofs: `python -m curfew_daemon run` as child processes that never outlive their parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

# Asks the kernel for SIGKILL when the parent ends, then becomes the daemon: the request outlives execv. It
# follows the thread that forks, so daemons are started from the main thread.
_LAUNCH = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.executable, [sys.executable, "-m", "curfew_daemon", "run"])
"""
READY_WITHIN = 90.0
"""Seconds for a start, which is no promise: on a machine with much else to do Python alone may take half a minute."""
_STOP_WITHIN = 15.0
_LOOK_EVERY = 0.05


def kept_environment() -> dict[str, str]:
    """The caller's environment without what it says about databases and daemons, which is about others.

    And daemons may write bytecode: compiling all that one imports takes four seconds of a processor, at every start.
    """
    left_out = ("CURFEW_", "PG", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


class DaemonProcess:
    """One running daemon, known in ``pg_stat_activity`` and in audits as ``curfewd <instance>``."""

    def __init__(self, instance: str, url: str, logs: Path, settings: Mapping[str, str]) -> None:
        self.instance = instance
        self.application_name = f"curfewd {instance}"
        self.log = logs / f"{instance}.log"
        kept = kept_environment()
        own = {
            "CURFEW_DATABASE_URL": url,
            "CURFEW_HTTP_PORT": "0",
            "CURFEW_INSTANCE": instance,
            "CURFEW_LOG_FORMAT": "json",
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH],
                env=kept | own | dict(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where it serves HTTP, without a slash at the end; raises `RuntimeError` before it listens."""
        address = self._address()
        if address is None:
            raise RuntimeError(f"{self.application_name} does not listen yet; its log ends with:\n{self.last_lines()}")
        return address

    def wait_until_ready(self, seconds: float = READY_WITHIN) -> None:
        """Return once ``/readyz`` says yes; raises `TimeoutError` with the end of the log if it does not."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up and self._process.poll() is None:
            if (page := self._address()) and _answers(f"{page}/readyz"):
                return
            time.sleep(_LOOK_EVERY)
        how = "is not ready" if self.exit_code is None else f"has ended with {self.exit_code}"
        raise TimeoutError(f"{self.application_name} {how}; its log ends with:\n{self.last_lines()}")

    def has_marked(self) -> bool:
        """Whether it has said that it marked a run."""
        return b'"runs_timed_out"' in self.log.read_bytes()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; ``None`` while it runs."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        self._process.send_signal(number)

    def page(self, path: str) -> str:
        """What it answers at a path; raises `OSError` where it does not."""
        with urllib.request.urlopen(f"{self._address()}{path}", timeout=2) as answer:
            return str(answer.read().decode())

    def kill(self) -> None:
        """SIGKILL; when this returns the process has gone."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM and, for one that does not end, SIGKILL; returns the exit code. May be repeated."""
        self._process.terminate()
        try:
            return self._process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def last_lines(self, lines: int = 5) -> str:
        """The end of what the daemon has logged."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _address(self) -> str | None:
        # The last line may be half written.
        for line in self.log.read_text(errors="replace").splitlines():
            if "http_listening" in line and line.endswith("}"):
                return str(json.loads(line)["url"]).rstrip("/")
        return None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
