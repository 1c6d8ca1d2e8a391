"""How the process lives and ends: signals, the service manager, exit codes. Standard library only."""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from enum import Enum, IntEnum, auto
from types import FrameType, TracebackType
from typing import Self


class Exit(IntEnum):
    """The exit codes of every command; a second stop signal ends the process with 128 + its number instead."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """A code with the sentence that documents it."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "Done; for `run`, stopped as asked."
    FAILURE = 1, "Something failed, or `check` found something: the message says what."
    USAGE = 2, "The command line is not understood."
    SETTINGS = 3, "A setting is missing, unknown or out of range: the message names the variable."
    DATABASE = (
        4,
        "The database cannot be reached or refuses (`once`, `plan`, `purge`, `check`, `migrate`; `run` waits).",
    )
    SCHEMA = (
        5,
        "The schema is missing, too old, or too new for this release: the message says what to run (`run` waits).",
    )
    UPSTREAM_ENGINE = 6, "Another engine's `flow_runs` stands beside the controls: `run`, `once` and `purge` refuse."
    PORT_TAKEN = 7, "The address for HTTP cannot be used: taken, not permitted or unknown."
    MISSING_EXTRA = 8, "The `daemon` extra is not installed: the message holds the install line."


def exit_table() -> str:
    """The exit codes as a Markdown table, for the operator's guide."""
    rows = ["| Code | Name | Meaning |", "|---|---|---|"]
    rows += [f"| {code.value} | `{code.name}` | {code.meaning} |" for code in Exit]
    return "\n".join(rows) + "\n"


class Heartbeat:
    """When the loop last showed that it is alive. Beaten by the loop, read by `/healthz`; safe across threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        """The loop is alive now."""
        self._last = self._clock()

    def age(self) -> float:
        """Seconds since the last beat, or since the start before the first; wall clock steps do not matter."""
        return self._clock() - self._last


class Notifier:
    """Tells systemd how the service is, by the sd_notify protocol, where `NOTIFY_SOCKET` names a socket.

    Every method says whether the message was handed over, never raises and waits at most 0.2 s; without a
    service manager they do nothing. `WATCHDOG_USEC` is heeded unless `WATCHDOG_PID` is another process.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL of Linux' abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        watched = usec.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog_interval = int(usec) / 1e6 if watched and int(usec) > 0 else None
        self._next_watchdog = float("-inf")
        self._status = ""

    def ready(self, status: str) -> bool:
        """The loop runs; also what ends a reload."""
        return self._send("READY=1", self._with(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`; the same text again is not sent."""
        line = self._with(text)
        return line != self._status and self._send(line)

    def reloading(self) -> bool:
        """Settings are being read again; `ready` must follow."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str = "stopping") -> bool:
        """The service is going down."""
        return self._send("STOPPING=1", self._with(status))

    def watchdog(self) -> bool:
        """The loop is alive. Sent at most four times per watchdog interval, however often it is called."""
        if self.watchdog_interval is None or self._clock() < self._next_watchdog:
            return False
        self._next_watchdog = self._clock() + self.watchdog_interval / 4
        return self._send("WATCHDOG=1")

    @staticmethod
    def _with(status: str) -> str:
        # A line break would start another assignment.
        return "STATUS=" + "".join(each if each.isprintable() else " " for each in status)[:200]

    def _send(self, *assignments: str) -> bool:
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
                datagram.settimeout(0.2)
                datagram.sendto("\n".join(assignments).encode("utf-8", "replace"), self._address)
        except (OSError, ValueError):  # nobody listens; a path too long or with a NUL
            return False
        for line in assignments:
            if line.startswith("STATUS="):
                self._status = line
        return True


class Action(Enum):
    """Why a wait ended."""

    STOP = auto()
    RELOAD = auto()
    WOKEN = auto()
    TIMEOUT = auto()


class Signals:
    """SIGTERM, SIGINT and SIGHUP as things that a wait returns. A context manager for the main thread.

    The first SIGTERM or SIGINT asks to stop, and every wait from then on returns `STOP` at once; the second
    one ends the process there and then. The former handlers are back after the block.
    """

    def __init__(
        self,
        *,
        exit_now: Callable[[int], object] = os._exit,
        on_second: Callable[[str], object] = lambda _name: None,
    ) -> None:
        self._exit_now = exit_now
        self._on_second = on_second
        self._stop: signal.Signals | None = None
        self._reload = False
        self._woken = False
        self._former: dict[signal.Signals, signal._HANDLER] = {}
        self._former_wakeup = -1

    @property
    def stop_signal(self) -> str | None:
        """The name of the signal that asked to stop, None before it."""
        return None if self._stop is None else self._stop.name

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # Without it a signal that another thread receives would not end the main thread's wait.
        self._former_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum, handler in (
            (signal.SIGTERM, self._on_stop),
            (signal.SIGINT, self._on_stop),
            (signal.SIGHUP, self._on_reload),
        ):
            self._former[signum] = signal.signal(signum, handler)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for signum, handler in self._former.items():
            # None: a handler that was not installed from Python, which cannot be put back.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._former_wakeup)
        self._writer.close()
        self._reader.close()

    def wake(self) -> None:
        """Ends the wait, or the next one, with `WOKEN`. For any thread; wakes that come together count once."""
        # OSError: so many wakes are unread that one more would change nothing, or the block has ended.
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def wait(self, timeout: float | None) -> Action:
        """Waits in the main thread for a signal or a wake, at most `timeout` seconds of the monotonic clock.

        Never returns `TIMEOUT` early; `None` waits without end. Several reasons at once come in the order of
        `Action`, one per call, and none is lost.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._read()
            if (action := self._take()) is not None:
                return action
            remaining = 3600.0 if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                return Action.TIMEOUT
            # select and not poll: microseconds instead of milliseconds.
            select.select([self._reader], [], [], min(remaining, 3600.0))

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self._reader.recv(4096):
                self._woken = self._woken or b"\0" in data  # signals write their number, never 0

    def _take(self) -> Action | None:
        if self._stop is not None:
            return Action.STOP
        if self._reload:
            self._reload = False
            return Action.RELOAD
        if self._woken:
            self._woken = False
            return Action.WOKEN
        return None

    def _on_stop(self, signum: int, _frame: FrameType | None) -> None:
        if self._stop is None:
            self._stop = signal.Signals(signum)
            return
        try:
            self._on_second(signal.Signals(signum).name)
        finally:
            self._exit_now(128 + signum)

    def _on_reload(self, _signum: int, _frame: FrameType | None) -> None:
        self._reload = True
