"""A stream for log lines that is never worth dying or waiting for."""

import os
import select
from threading import Lock
from typing import TextIO

_PIPE_BUF = 4096  # a pipe that polls as writable takes this much without blocking
_PATIENCE_MS = 50


class LogStream:
    """Writes whole lines in order. A line that cannot be written is counted in `dropped`; nothing is raised.

    A reader that does not keep up costs 50 ms once; until it reads again, lines are dropped without waiting, so
    that a full pipe delays no deadline. A line that was torn by this is ended before the next one starts.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.dropped = 0
        self._stream = stream
        self._lock = Lock()
        self._torn = False
        self._stalled = False

    def write(self, line: str) -> None:
        """Writes `line` and a line feed, or counts it as dropped."""
        # Bounded: a signal's handler may have interrupted the very thread that holds the lock.
        if not self._lock.acquire(timeout=2 * _PATIENCE_MS / 1000):
            self.dropped += 1
            return
        try:
            self._write(line)
        except (OSError, ValueError):  # a broken or full pipe, a full disk; a closed stream
            self.dropped += 1
        finally:
            self._lock.release()

    def _write(self, line: str) -> None:
        if self._stream is None:  # the process was started with standard error closed
            raise ValueError("no stream")
        encoding = self._stream.encoding or "utf-8"
        data = ("\n" * self._torn + line + "\n").encode(encoding, "backslashreplace")
        try:
            descriptor = self._stream.fileno()
        except OSError:  # io.UnsupportedOperation: no file behind it
            self._stream.write(data.decode(encoding))
            self._stream.flush()
            return
        # Past the stream's own buffer, which keeps what it failed to write and fails again at exit.
        self._write_bytes(descriptor, data)

    def _write_bytes(self, descriptor: int, data: bytes) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        written = 0
        try:
            while written < len(data):
                if not poll.poll(0 if self._stalled else _PATIENCE_MS):
                    self._stalled = True
                    raise TimeoutError("the reader of the log does not keep up")
                written += os.write(descriptor, data[written : written + _PIPE_BUF])
            self._stalled = False
        finally:
            self._torn = 0 < written < len(data) or (self._torn and written == 0)
