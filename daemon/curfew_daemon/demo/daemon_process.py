"""The real daemon, ``curfewd run``, as a child of the demo: started, listened to, and never left behind."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from curfew_daemon.demo.options import DemoFailed

__all__ = ["DaemonProcess"]

_LEASH = Path(__file__).with_name("_leash.py")
_KEPT_LINES = 15
_START_TIMEOUT = 30.0


class DaemonProcess:
    """Starts the daemon with *settings* (``CURFEW_*`` variables) and nothing else that it would heed.

    They are given in the environment, so no password shows in a list of processes. *libpq* lets the ``PG*``
    variables through too. The daemon ends with this process, however that ends. Its log goes to a pipe.
    """

    def __init__(self, settings: Mapping[str, str], *, libpq: bool) -> None:
        self.url = ""
        """Where its pages are; known once `wait_until_ready` has returned."""
        self._log: deque[str] = deque(maxlen=_KEPT_LINES)
        self._told = threading.Condition()
        self._database_up = False
        self._ended = False
        self._leash = subprocess.Popen(  # noqa: S603 - our own program
            [
                *(sys.executable, "-I", "-S", str(_LEASH), str(os.getpid())),
                *(sys.executable, "-m", "curfew_daemon", "run"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(settings, libpq=libpq),
            start_new_session=True,  # Ctrl-C is the demo's to act on
        )
        self._reader = threading.Thread(target=self._read, name="demo-daemon-log", daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Return once the daemon serves its pages and has been let in by the database; else `DemoFailed`."""
        give_up = time.monotonic() + _START_TIMEOUT
        with self._told:
            while not (self.url and self._database_up):
                if self._ended:
                    raise self._failure("ended while it was starting")
                if not self._told.wait(give_up - time.monotonic()):
                    raise self._failure(f"was not ready within {_START_TIMEOUT:.0f} s")

    def check(self) -> None:
        """Raise `DemoFailed`, with the last lines of the log, if the daemon has ended."""
        if self._leash.poll() is None and not self._ended:
            return
        # The end of the log and the end of the process come one after the other, in either order.
        code = self._leash.wait()
        self._reader.join(1.0)
        raise self._failure(f"ended by itself with exit code {code}")

    def count_of_marks(self) -> int | None:
        """How many runs the daemon says it has marked, by its own ``/metrics``; ``None`` without an answer."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=2)
        try:
            connection.request("GET", "/metrics", headers={"Accept": "text/plain"})
            page = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        for line in page.splitlines():
            if line.startswith("curfew_runs_timed_out_total "):
                return round(float(line.split()[1]))
        return None

    def stop(self) -> None:
        """Stop the daemon as SIGTERM does; when this returns, it has ended."""
        assert self._leash.stdin is not None
        assert self._leash.stdout is not None
        self._leash.stdin.close()
        self._leash.wait()
        self._reader.join(5.0)
        self._leash.stdout.close()

    def _read(self) -> None:
        assert self._leash.stdout is not None
        for line in self._leash.stdout:
            self._take(line.decode(errors="replace").rstrip())
        with self._told:
            self._ended = True
            self._told.notify_all()

    def _take(self, line: str) -> None:
        with self._told:
            self._log.append(line)
            try:
                event = json.loads(line)
            except ValueError:
                return  # a traceback of the interpreter, say; it is shown if the daemon ends
            if not isinstance(event, dict):
                return
            if event.get("event") == "http_listening":
                self.url = str(event["url"])
            elif event.get("event") == "database_state_changed":
                self._database_up = event.get("new") == "up"
            self._told.notify_all()

    def _failure(self, what: str) -> DemoFailed:
        log = "\n".join(f"  {line}" for line in list(self._log)) or "  (it wrote nothing)"
        return DemoFailed(f"the daemon {what}. The last lines of its log:\n{log}")


def _environment(settings: Mapping[str, str], *, libpq: bool) -> dict[str, str]:
    """The environment of this process without what would change the daemon, and with *settings*."""
    foreign = ("CURFEW_", "NOTIFY_SOCKET", "WATCHDOG_") if libpq else ("CURFEW_", "NOTIFY_SOCKET", "WATCHDOG_", "PG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | dict(settings)
