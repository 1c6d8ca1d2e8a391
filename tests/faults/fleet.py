"""The daemons of a laboratory: started, lent to strikes one at a time, and replaced when they die."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.daemons import READY_WITHIN, DaemonProcess

__all__ = ["Ending", "Fleet"]

_LONGER_FOR_EACH = 2.0
_STOPPED_TOGETHER = 8
"""More would take the processor from each other for longer than a daemon is given to stop."""


@dataclass(frozen=True)
class Ending:
    """A daemon that is no more: its exit code, and whether a strike meant it to end."""

    instance: str
    exit_code: int
    meant: bool


class Fleet:
    """Daemons with successive names ``lab-1``, ``lab-2``, …; may be used from any thread."""

    def __init__(self, url: str, logs: Path, settings: Mapping[str, str]) -> None:
        self.url = url
        self.settings = dict(settings)
        self.endings: list[Ending] = []
        self._logs = logs
        self._lock = threading.Condition()
        self._born = 0
        self._members: list[DaemonProcess] = []
        self._lent: set[str] = set()
        self._starting: set[str] = set()
        self._waiter = ThreadPoolExecutor(4, thread_name_prefix="lab-waiter")
        # The kernel's "kill my child when I end" follows the thread that forked, so one thread forks them all.
        self._forker = ThreadPoolExecutor(1, thread_name_prefix="lab-forker")

    @property
    def members(self) -> list[DaemonProcess]:
        """The daemons that run, or should."""
        with self._lock:
            return list(self._members)

    def add(self, url: str | None = None, settings: Mapping[str, str] | None = None) -> DaemonProcess:
        """Start one more, with *settings* on top of the fleet's; it may not be ready yet."""
        with self._lock:
            self._born += 1
            instance = f"lab-{self._born}"
        own = self.settings | dict(settings or {})
        daemon = self._forker.submit(DaemonProcess, instance, url or self.url, self._logs, own).result()
        with self._lock:
            self._members.append(daemon)
            self._starting.add(instance)
        self._waiter.submit(self._await_ready, daemon)
        return daemon

    def _await_ready(self, daemon: DaemonProcess) -> None:
        # One that never becomes ready is found at the end; it must not block the strikes for ever.
        with contextlib.suppress(TimeoutError):
            daemon.wait_until_ready()
        with self._lock:
            self._starting.discard(daemon.instance)
            self._lock.notify_all()

    def wait_until_ready(self) -> None:
        """Return once every daemon says that it is ready; a large fleet that starts at once is given longer."""
        patience = READY_WITHIN + _LONGER_FOR_EACH * len(self.members)
        for daemon in self.members:
            daemon.wait_until_ready(patience)

    @contextmanager
    def borrow(self, rng: random.Random) -> Iterator[DaemonProcess]:
        """A daemon that no other strike touches; if it has died by the end, a successor is started.

        Waits until another one is there as well, and ready: somebody has to be left to meet the deadlines.
        """
        with self._lock:
            while len(free := self._free()) < 2:
                self._lock.wait(0.2)
            daemon = rng.choice(free)
            self._lent.add(daemon.instance)
        try:
            yield daemon
        finally:
            ended = daemon.exit_code is not None
            if ended:
                self.forget(daemon, meant=True)
            with self._lock:
                self._lent.discard(daemon.instance)
                self._lock.notify_all()
            if ended:
                self.add()

    def forget(self, daemon: DaemonProcess, *, meant: bool) -> None:
        """Take note of one that has ended, and start no successor."""
        with self._lock:
            self._members = [each for each in self._members if each is not daemon]
            self.endings.append(Ending(daemon.instance, daemon.exit_code or 0, meant))

    def unexpected_endings(self) -> list[Ending]:
        """The daemons that have ended though no strike meant them to."""
        with self._lock:
            dead = [each for each in self._members if each.exit_code is not None and each.instance not in self._lent]
        for daemon in dead:
            self.forget(daemon, meant=False)
        return [ending for ending in self.endings if not ending.meant]

    def stop(self) -> None:
        """Stop them all and take note of their exit codes."""
        with ThreadPoolExecutor(_STOPPED_TOGETHER, thread_name_prefix="lab-stopper") as pool:
            for daemon in self.members:
                _thaw(daemon)
                pool.submit(daemon.stop)
        for daemon in self.members:
            self.forget(daemon, meant=daemon.exit_code == 0)

    def close(self) -> None:
        """Stop what still runs; may be repeated."""
        for daemon in self.members:
            with contextlib.suppress(OSError):
                daemon.kill()
        self._waiter.shutdown()
        self._forker.shutdown()

    def _free(self) -> list[DaemonProcess]:
        taken = self._lent | self._starting
        return [each for each in self._members if each.instance not in taken and each.exit_code is None]

    def each(self, do: Callable[[DaemonProcess], None]) -> None:
        """Call *do* for every daemon that lives."""
        for daemon in self.members:
            if daemon.exit_code is None:
                do(daemon)


def _thaw(daemon: DaemonProcess) -> None:
    with contextlib.suppress(OSError):
        daemon.signal(signal.SIGCONT)
