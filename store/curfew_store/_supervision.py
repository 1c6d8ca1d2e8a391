"""The starting process's end of the pipes to `curfew_store._supervisor`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from curfew_store._postgres_binaries import Account, EmbeddedPostgresError

_PROGRAM = Path(__file__).with_name("_supervisor.py")


class Supervision:
    """A supervisor process that owns ``directory`` and removes it at the end; for use by any thread."""

    def __init__(self, directory: Path, account: Account | None) -> None:
        config = {"directory": str(directory), "account": account, "parent": os.getpid()}
        # As a file and without site-packages it starts in a tenth of the time. Its own session: Ctrl-C is
        # ours to act on. Python's pipes are close-on-exec, so no other child holds this one open.
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", str(_PROGRAM), json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._finalizer = weakref.finalize(self, _release, self._process)

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    def call(self, **command: Any) -> dict[str, Any]:
        """Send one command and return its answer; raises `EmbeddedPostgresError` if it failed."""
        if os.getpid() != self._owner:
            raise EmbeddedPostgresError("only the process that started the server can command it, not a fork")
        with self._lock:
            if not self._finalizer.alive:
                raise EmbeddedPostgresError("the server has been stopped")
            answer = self._exchange(command)
        if "error" in answer:
            raise EmbeddedPostgresError(answer["error"])
        return answer

    def _exchange(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:
            self.close()  # the answer to an interrupted exchange would be taken for that of the next
            raise
        if not line:
            self.close()
            raise EmbeddedPostgresError("the server's supervisor has ended, and the server with it")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Stop the server and remove the directory; does nothing when repeated.

        In a fork it only gives up the fork's end of the pipe.
        """
        self._finalizer()


def _release(process: subprocess.Popen[bytes]) -> None:
    # In a fork, the process is nobody's child: the wait returns at once and nothing is stopped.
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()
    process.stdout.close()


def _environment() -> dict[str, str]:
    """The caller's environment without what would change the server: libpq's and the locale's variables."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}
