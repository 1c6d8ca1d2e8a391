"""When each job is due, measured on the monotonic clock.

APScheduler runs the jobs, and would also time them, but by the wall clock: set back by eight seconds, a job of
every second pauses for nine. So `Pacer` decides when a job is due and pokes the scheduler to run it now. A wake-up
that arrives while the job runs is kept in a flag and honoured when the run ends; the scheduler would drop it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["Pacer"]

LONGEST_SLEEP: Final = 1.0
_NEVER: Final = float("inf")


@dataclass(slots=True)
class _Job:
    due_at: float
    running: bool = False
    woken: bool = False


class Pacer:
    """Keeps the due times of named jobs; *poke* has the scheduler run one now, *changed* wakes who sleeps on it.

    Safe across threads. A job is poked once and then counts as running until `ended` is called for it.
    """

    def __init__(
        self,
        poke: Callable[[str], None],
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poke = poke
        self._changed = changed
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        """A job that is due at once."""
        with self._lock:
            self._jobs[name] = _Job(self._clock())

    def wake(self, name: str) -> None:
        """Run a job now, or once more when the run in hand ends."""
        with self._lock:
            job = self._jobs[name]
            job.woken = job.running
            job.due_at = min(job.due_at, self._clock())
        self._changed()

    def postpone(self, name: str, due_at: float) -> None:
        """Have a job that waits run no sooner than *due_at* on the clock; no job that runs or has been woken."""
        with self._lock:
            job = self._jobs[name]
            if not job.running and job.due_at > self._clock():
                job.due_at = max(job.due_at, due_at)

    def ended(self, name: str, delay: float) -> None:
        """A run ended; the next is due after *delay* seconds, or now if a wake-up came meanwhile."""
        with self._lock:
            job = self._jobs[name]
            job.due_at = self._clock() + (0.0 if job.woken else delay)
            job.running = job.woken = False
        self._changed()

    def run_due(self) -> float:
        """Poke every job that is due; returns how long to sleep, in seconds, at most `LONGEST_SLEEP`."""
        with self._lock:
            now = self._clock()
            due = [name for name, job in self._jobs.items() if not job.running and job.due_at <= now]
            for name in due:
                self._jobs[name].running = True
            idle = [job.due_at for job in self._jobs.values() if not job.running]
        for name in due:
            self._poke(name)
        return max(0.0, min(min(idle, default=_NEVER) - now, LONGEST_SLEEP))

    def idle(self, name: str) -> bool:
        """Whether no run of the job is in hand."""
        with self._lock:
            return not self._jobs[name].running
