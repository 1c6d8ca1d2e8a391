"""Which of the deadlines that a daemon hears of bring its next sweep forward.

A hint moves the next sweep only if that would come too late, and it never causes one of its own: a burst of thousands
is kept as the earliest of them, and what is due after it is learned by the sweep's look ahead. A standby adds its
slack, so that a lazy one, whose next poll comes as early, stays asleep. Nothing here decides about runs: a hint that
is lost, late or a lie costs a look or a poll interval.

Knows no database; moments are on the monotonic clock, in seconds. Safe across threads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from curfew_store.hints import Hint

__all__ = ["GAP", "Hints", "Planned"]

GAP: Final = 0.002
"""Least time from the end of a sweep to one that a hint asks for: at most 500 of them a second, whoever notifies."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A hint and when to sweep for it; *early* says that it was heard before its deadline."""

    at: float
    hint: Hint
    early: bool = True


class Hints:
    """Holds the earliest hint that the planned sweep would miss; told of each sweep's beginning and end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._earliest: Planned | None = None
        self._no_sooner = 0.0
        self._heard_at = -math.inf
        # Nothing comes before a sweep that is due at once, or before one that waits out a failure.
        self.sweep_at = -math.inf
        """When the next sweep is planned; plus infinity while one is in hand."""
        self._seen: tuple[datetime, float] | None = None

    @property
    def earliest(self) -> Planned | None:
        """The hint to sweep for before `sweep_at`, if there is one."""
        return self._earliest

    def heard(self, hint: Hint, slack: float) -> bool:
        """Takes a hint; whether it brings the next sweep forward. *slack* is what a standby adds, in seconds."""
        with self._lock:
            self._heard_at = self._clock()
            if self._seen is None:
                return False
            now, asked = self._seen
            due_at = asked + (hint.deadline - now).total_seconds()
            at = max(due_at + slack, self._no_sooner)
            if at >= (self.sweep_at if self._earliest is None else self._earliest.at):
                return False
            self._earliest = Planned(at, hint, early=due_at > self._clock())
            return True

    def sweep_begins(self) -> None:
        """A sweep begins: it sees what the hints so far tell of; later ones are kept for after it."""
        with self._lock:
            self._earliest = None
            self.sweep_at = math.inf

    def sweep_ended(self, next_at: float, seen: tuple[datetime, float] | None) -> None:
        """It ended well, the next one is planned for *next_at*.

        *seen* are the database's clock and the monotonic clock when it was asked, which relate the two.
        """
        with self._lock:
            self.sweep_at = next_at
            self._seen = seen or self._seen
            self._no_sooner = self._clock() + GAP
            if self._earliest is not None and self._earliest.at >= next_at:
                self._earliest = None

    def postponed(self, next_at: float, asked: float) -> bool:
        """Whether the planned sweep may wait until *next_at*, since a look at *asked* found nothing before that.

        Not if a hint came after the look was sent: it may tell of a run that the look did not see.
        """
        with self._lock:
            if self._earliest is not None or self._heard_at >= asked or not math.isfinite(self.sweep_at):
                return False
            self.sweep_at = max(self.sweep_at, next_at)
            return True

    def sweep_failed(self) -> None:
        """It failed: no hint shortens the pause before the next attempt."""
        with self._lock:
            self._earliest = None
            self.sweep_at = -math.inf
