"""When the machine itself stood still: a process that has nothing to do but to wake up, and a file that is synced.

On a small machine that is shared with others nobody may get to run for a second, or no byte may reach the disk. What
is late by that is not the product's fault. The process that measures knows neither daemons nor servers, so a
daemon that sleeps, hangs or waits excuses nothing.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from types import TracebackType
from typing import IO, Final, Self

__all__ = ["LEAST", "Stalls"]

LEAST: Final = 0.1
"""Seconds that a standstill lasts at least; what is shorter belongs to the life of any process."""

# Its standard input ends with whoever started it.
_METER: Final = """
import os, select, sys, tempfile, threading, time
least = float(sys.argv[1])

def note(began, ended):
    lasted = ended - began
    if lasted >= least:
        now = time.time_ns() // 1000
        sys.stdout.write(f"{now - int(lasted * 1e6)} {now}\\n")
        sys.stdout.flush()

def sync():
    with tempfile.TemporaryFile() as file:
        while True:
            os.pwrite(file.fileno(), b"x" * 512, 0)
            began = time.monotonic()
            os.fdatasync(file.fileno())
            note(began, time.monotonic())
            time.sleep(0.2)

threading.Thread(target=sync, daemon=True).start()
due = time.monotonic() + 0.05
print("measuring", flush=True)
while True:
    if select.select([sys.stdin], [], [], 0.05)[0]:
        os._exit(0)
    woke = time.monotonic()
    note(due, woke)
    due = woke + 0.05  # one reading for both: no moment lies between two turns
"""


class Stalls:
    """Measures for the length of a block; `spans` may be read at any time."""

    def __init__(self, least: float = LEAST) -> None:
        self._spans: list[tuple[int, int]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _METER, str(least)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name="lab-stalls", daemon=True)

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    @property
    def pid(self) -> int:
        """The process that measures."""
        return self._process.pid

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """From when to when nothing ran or nothing was synced, in microseconds since 1970."""
        return tuple(self._spans)

    def _read(self, said: IO[bytes]) -> None:
        with said:
            for line in said:
                begin, end = line.split()
                self._spans.append((int(begin), int(end)))
