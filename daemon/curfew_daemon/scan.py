"""Where the search for overdue runs begins: a low-water mark, and how often to look behind it.

An index entry of a run that was marked stays in place until no transaction can see the run's old version. One
forgotten transaction keeps every entry since, and a search from the start walks them all: 38.7 ms after 500,000
marks, against 0.13 ms from a mark (PostgreSQL 15). So between sweeps the search begins at a mark, which never lies
above the earliest run that is overdue, nor above the database's clock less a margin. What is written behind the
mark all the same (a deadline in the past, a transaction that committed late) is found by a full look, every poll
interval, or every `EXPENSIVE_PERIOD` where it costs more than `EXPENSIVE`.

Knows no database; all durations are in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

__all__ = ["EXPENSIVE", "EXPENSIVE_PERIOD", "MARGIN", "LowWaterMark"]

MARGIN: Final = timedelta(seconds=0.5)
"""How far the mark stays behind the database's clock: commits that come this late are seen by every look."""

EXPENSIVE: Final = 0.01
"""A full look that takes longer than this is not repeated at every poll."""

EXPENSIVE_PERIOD: Final = 1.5
"""With the look's own duration and a wake-up, what becomes due behind the mark is still marked within 2 s."""

_FIRST_YEAR: Final = 2000
_STEP: Final = timedelta(microseconds=1)


class LowWaterMark:
    """Decides for each look whether it is full, and keeps the mark from what the looks have learned."""

    def __init__(self, poll_interval: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._poll_interval = poll_interval
        self._clock = clock
        self._since: datetime | None = None
        self._last_now: datetime | None = None
        self._full_due = 0.0
        self._expensive = False

    @property
    def since(self) -> datetime | None:
        """Where a claim may begin; ``None`` is the start of the index."""
        return self._since

    @property
    def period(self) -> float:
        """The time between two full looks."""
        return max(self._poll_interval(), EXPENSIVE_PERIOD) if self._expensive else self._poll_interval()

    @property
    def full_look_in(self) -> float | None:
        """When the next full look is due, if it falls between two polls; else the next poll does it."""
        return max(0.0, self._full_due - self._clock()) if self._expensive else None

    def look_from(self) -> datetime | None:
        """Where the next look begins; ``None`` makes it full."""
        return None if self._clock() >= self._full_due else self._since

    def reset(self) -> None:
        """Nothing is known any more: another connection, perhaps another server."""
        self._since = self._last_now = None
        self._full_due = 0.0

    def learned(self, *, now: datetime, earliest_overdue: datetime | None, full: bool, duration: float) -> None:
        """A look that began at *now*, by the database's clock, found this; it took the server *duration*."""
        if self._last_now is not None and now <= self._last_now:
            self.reset()  # the clock was stepped back: deadlines that had passed may lie ahead again
            return
        self._last_now = now
        if full:
            self._expensive = duration > EXPENSIVE
            # A poll comes a little early or late; it shall not have to come twice.
            self._full_due = self._clock() + self.period * (1.0 if self._expensive else 0.9)
        mark = now - MARGIN
        if earliest_overdue is not None:
            if earliest_overdue.year < _FIRST_YEAR:
                self._since = None  # not written through the store; no mark below it can be expressed for sure
                return
            mark = min(mark, earliest_overdue - _STEP)
        if full or (self._since is not None and mark > self._since):
            self._since = mark
