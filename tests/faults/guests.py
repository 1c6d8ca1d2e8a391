"""Daemons that a strike starts for itself, beside the fleet, in circumstances that no fleet has."""

from __future__ import annotations

import fcntl
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from tests.faults.daemons import _LAUNCH, kept_environment
from tests.faults.lab import Lab

__all__ = ["Guest", "Output", "guest"]

Output = Literal["nowhere", "closed", "full pipe"]
"""Where its standard output and error lead: to /dev/null, to nothing at all, or to a pipe that nobody reads."""

_NUMBERS: Final = itertools.count(1)
_PIPE_BYTES: Final = 4096  # the smallest that Linux makes


@dataclass(frozen=True)
class Guest:
    """One such daemon; named as those of the fleet are, but not in it, and nobody reads its log."""

    instance: str
    process: subprocess.Popen[bytes]

    @property
    def application_name(self) -> str:
        """Its name in ``pg_stat_activity``."""
        return f"curfewd {self.instance}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; ``None`` while it runs."""
        return self.process.poll()


@contextmanager
def guest(lab: Lab, output: Output, settings: Mapping[str, str] | None = None) -> Iterator[Guest]:
    """A daemon on the lab's database for the length of a block; it is killed at the end. Call from one thread."""
    instance = f"guest-{next(_NUMBERS)}"
    kept = kept_environment()
    own = {
        "CURFEW_DATABASE_URL": lab.fleet.url,
        "CURFEW_HTTP_PORT": "0",
        "CURFEW_INSTANCE": instance,
        "CURFEW_LOG_FORMAT": "json",
    }
    sink, unread = _sink(output)
    # With nothing at 1 and 2, the shell's own redirections close them in the child and nowhere else.
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh"] if output == "closed" else []
    try:
        process = subprocess.Popen(
            [*closed, sys.executable, "-c", _LAUNCH],
            env=kept | own | dict(settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    finally:
        os.close(sink)
    try:
        yield Guest(instance, process)
    finally:
        process.kill()
        process.wait()
        if unread is not None:
            os.close(unread)


def _sink(output: Output) -> tuple[int, int | None]:
    """What the daemon writes into, and what has to stay open for it, unread."""
    if output != "full pipe":
        return os.open(os.devnull, os.O_WRONLY), None
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    os.write(writer, b"x" * _PIPE_BYTES)
    return writer, reader
