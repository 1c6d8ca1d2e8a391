"""What the log says of marks: a line for each sweep that marked something, but one a second while they follow closely.

At 2,000 deadlines a second there are hundreds of sweeps a second; a line for each would be gigabytes a day. A line is
held back only where another sweep is certain to come within the second and takes it along.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from curfew_daemon.results import SweepResult

__all__ = ["EVERY", "Digest", "MarkedDigest"]

EVERY: Final = 1.0
"""Seconds between two lines of sweeps that follow closely."""


@dataclass(frozen=True, slots=True)
class MarkedDigest:
    """What *sweeps* sweeps marked; *reason* and *run_ids* are those of the first. Durations are in seconds."""

    count: int
    lag_max: float | None
    duration: float
    batches: int
    sweeps: int
    run_ids: tuple[UUID, ...]
    reason: str

    @classmethod
    def of(cls, result: SweepResult) -> MarkedDigest:
        """One sweep."""
        return cls(result.marked, result.lag_max, result.duration, result.batches, 1, result.run_ids[:5], result.reason)

    def and_then(self, later: MarkedDigest) -> MarkedDigest:
        """Both together."""
        return MarkedDigest(
            self.count + later.count,
            max((lag for lag in (self.lag_max, later.lag_max) if lag is not None), default=None),
            self.duration + later.duration,
            self.batches + later.batches,
            self.sweeps + later.sweeps,
            self.run_ids,
            self.reason,
        )


class Digest:
    """Takes the results of sweeps in their order; not safe across threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at = float("-inf")
        self._held: MarkedDigest | None = None

    def swept(self, result: SweepResult) -> MarkedDigest | None:
        """What is to be said after this sweep, ``None`` for nothing (yet)."""
        if result.marked:
            this = MarkedDigest.of(result)
            self._held = this if self._held is None else self._held.and_then(this)
        now = self._clock()
        next_in = 0.0 if result.overdue_remains and result.marked else result.next_due_in
        if next_in is not None and now + next_in < self._said_at + EVERY:
            return None
        return self.flush()

    def flush(self) -> MarkedDigest | None:
        """What was held back, ``None`` for nothing; for the end, and for a sweep that failed."""
        held, self._held = self._held, None
        if held is not None:
            self._said_at = self._clock()
        return held
