"""Keeps a PostgreSQL server alive exactly as long as the process that asked for it.

Run as a file (``python -I -S _supervisor.py CONFIG``), with the standard library alone, so that it is up
within milliseconds. It takes one JSON command a line on its standard input and answers each with one JSON
line. When the input ends, when the process that started it has gone (SIGKILL included) or on SIGTERM, it
stops the server and removes the working directory.

The end of the pipe alone would not do: a child that its parent forked without exec holds the pipe open. So on
Linux the parent itself is watched too, by its pidfd. PR_SET_PDEATHSIG in the parent's place would follow the
thread that started the server, not the process, and is cleared by the change of user.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = {signal.SIGTERM: 60.0, signal.SIGINT: 20.0, signal.SIGQUIT: 10.0}
"""Seconds that the server is given to follow each way of stopping, before the next harder one."""

_TICK = 0.005
_PR_SET_PDEATHSIG = 1


class Abandoned(Exception):
    """The process that asked for the server has gone, or someone asked this one to end."""


class Supervisor:
    """Obeys commands from one pipe, answers on another, and cleans up when it is abandoned.

    ``tripwires`` are file descriptors whose becoming readable means the same as the end of the commands.
    ``account`` is the (uid, gid) that the server runs as; ``None`` is the caller's own.
    """

    def __init__(
        self,
        commands: int,
        replies: int,
        directory: Path,
        account: tuple[int, int] | None = None,
        tripwires: Sequence[int] = (),
    ) -> None:
        self._commands = commands
        self._replies = replies
        self._directory = directory
        self._as_account: dict[str, Any] = {}
        if account is not None:
            self._as_account = {"user": account[0], "group": account[1], "extra_groups": []}
        self._poll = select.poll()
        for descriptor in (commands, *tripwires):
            self._poll.register(descriptor, select.POLLIN | select.POLLHUP)
        self._received = b""
        self._server: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Obey until abandoned; when it returns, the server has stopped and the directory has gone."""
        try:
            while True:
                command = self._next_command()
                answer = json.dumps(self._obey(command)).encode() + b"\n"
                os.write(self._replies, answer)
        except (Abandoned, BrokenPipeError):
            pass
        finally:
            self._stop(signal.SIGINT)
            self._remove_directory()

    def _next_command(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            self._listen(None)
        line, _, self._received = self._received.partition(b"\n")
        command: dict[str, Any] = json.loads(line)
        return command

    def _listen(self, seconds: float | None) -> None:
        """Wait for input for so long (``None``: for ever); raises `Abandoned` when nobody is there."""
        for descriptor, _ in self._poll.poll(None if seconds is None else seconds * 1000):
            received = os.read(self._commands, 65536) if descriptor == self._commands else b""
            if not received:
                raise Abandoned
            self._received += received

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            match command["do"]:
                case "run":
                    return self._run(command["argv"])
                case "start":
                    return self._start(command["argv"], Path(command["data_dir"]), command["timeout"])
                case "stop":
                    return self._stop(signal.Signals[command["signal"]])
                case unknown:
                    return {"error": f"unknown command {unknown!r}"}
        except OSError as error:
            return {"error": str(error)}

    def _run(self, argv: list[str]) -> dict[str, Any]:
        """Run a program to its end; answers its exit status and the last of its output."""
        output = self._directory / "output"
        with output.open("wb") as sink:
            child = self._spawn(argv, sink.fileno())
        try:
            while child.poll() is None:
                self._listen(_TICK)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return {"status": child.returncode, "output": output.read_text(errors="replace")[-4000:]}

    def _spawn(self, argv: list[str], output: int, *, mortal: bool = False) -> subprocess.Popen[bytes]:
        # A process group of its own: what signals the supervisor's group leaves the order of the end to us.
        return subprocess.Popen(  # noqa: S603 - the programs that our own caller names
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            process_group=0,
            preexec_fn=_end_with_the_supervisor() if mortal else None,  # noqa: PLW1509 - one thread only
            **self._as_account,
        )

    def _start(self, argv: list[str], data_dir: Path, timeout: float) -> dict[str, Any]:
        """Start the server; answers once it accepts connections, has ended, or ``timeout`` seconds pass."""
        if self._server is not None and self._server.poll() is None:
            return {"error": "the server is running already"}
        with (self._directory / "server.log").open("ab") as log:
            self._server = self._spawn(argv, log.fileno(), mortal=True)
        deadline = time.monotonic() + timeout
        while self._server.poll() is None:
            if _is_ready(data_dir, self._server.pid):
                return {"pid": self._server.pid}
            if time.monotonic() > deadline:
                self._stop(signal.SIGQUIT)
                return {"error": f"it was not ready within {timeout:g} s"}
            self._listen(_TICK)
        return {"error": f"it ended with status {self._server.returncode}"}

    def _stop(self, first: signal.Signals) -> dict[str, Any]:
        """Stop the server, harder with each bound that passes; answers its exit status when it has gone."""
        if self._server is None:
            return {"status": None}
        harder = list(PATIENCE)[list(PATIENCE).index(first) :]
        for how in harder:
            if self._server.poll() is None:
                self._server.send_signal(how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._server.wait(PATIENCE[how])
        if self._server.poll() is None:
            self._server.kill()
        return {"status": self._server.wait()}

    def _remove_directory(self) -> None:
        # A server that was killed may leave a child that still writes for a moment.
        for _ in range(100):  # pragma: no branch - ends by return
            shutil.rmtree(self._directory, ignore_errors=True)
            if not self._directory.exists():
                return
            time.sleep(_TICK)  # pragma: no cover - only where a child of the server still writes


def _is_ready(data_dir: Path, pid: int) -> bool:
    """The eighth line of postmaster.pid is the server's state, the first its pid (miscadmin.h, pidfile.h)."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _end_with_the_supervisor() -> Any:
    """A second line of defence, against SIGKILL of the supervisor itself; Linux only."""
    if not sys.platform.startswith("linux"):  # pragma: no cover - no such call elsewhere
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT))


def _watch_parent(parent: int) -> list[int]:  # pragma: no cover - in a process of its own, outside coverage
    """A descriptor that becomes readable when the parent has gone, where the platform has such a thing."""
    try:
        watched = [os.pidfd_open(parent)]
    except (AttributeError, OSError):
        watched = []  # neither on macOS nor in some sandboxes: the pipe alone must do
    if os.getppid() != parent:  # gone already, and the number may be another process's by now
        watched.append(os.open(os.devnull, os.O_RDONLY))  # always readable
    return watched


def _watch_signals() -> int:  # pragma: no cover - in a process of its own, outside coverage
    """A descriptor that becomes readable when this process is asked to end."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for request in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(request, lambda *_: None)  # the wake-up descriptor does the work
    return readable


def main() -> None:  # pragma: no cover - in a process of its own, outside coverage
    """Read the configuration from the first argument and serve standard input and output."""
    config = json.loads(sys.argv[1])
    account = tuple(config["account"]) if config["account"] else None
    tripwires = [*_watch_parent(config["parent"]), _watch_signals()]
    Supervisor(0, 1, Path(config["directory"]), account, tripwires).run()


if __name__ == "__main__":  # pragma: no cover
    main()
