"""When to sweep next, and how long to wait after a failure: decisions only, on plain numbers.

The module knows no database, scheduler, log or metric, so that it can be simulated. Every duration is in
seconds; the caller measures waits on a monotonic clock, since a wall clock may be stepped.

Rules, in the order in which they are applied:

- Overdue runs remain and something was marked: sweep again at once, more became due meanwhile.
- Overdue runs remain and nothing could be marked: somebody holds the rows. Look again soon, then less and
  less often, up to the poll interval. Meanwhile the next deadline counts all the same.
- Otherwise sleep until the next deadline or for one poll interval, whichever is sooner.
- After a failure wait a random part of a doubling delay, so that a fleet does not return in step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["BLOCKED_FIRST", "RETRY_FIRST", "Pace", "Wake"]

BLOCKED_FIRST: Final = 0.005
"""First delay before overdue rows that others hold are looked at again."""

RETRY_FIRST: Final = 0.1
"""Upper bound of the first delay after a failure."""

_MOST_DOUBLINGS: Final = 30


@dataclass(frozen=True, slots=True)
class Wake:
    """The next wake-up: after *delay* seconds, for *reason* (one of ``deadline poll more blocked retry``)."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Pace:
    """What of the past matters for the next wake-up: how often in a row a sweep was blocked, or failed."""

    blocked: int = 0
    failures: int = 0

    def after_sweep(
        self, *, marked: int, overdue_remains: bool, next_due_in: float | None, poll_interval: float
    ) -> tuple[Pace, Wake]:
        """The wake-up after a sweep that reached the database.

        *next_due_in* counts from the moment that the sweep asked, and belongs to a deadline in the future;
        *overdue_remains* says that armed runs are due and were not marked.
        """
        if overdue_remains and marked:
            return Pace(), Wake(0.0, "more")
        waits = [Wake(poll_interval, "poll")]
        if next_due_in is not None:
            waits.append(Wake(max(0.0, next_due_in), "deadline"))
        if overdue_remains:
            waits.append(Wake(_doubled(BLOCKED_FIRST, self.blocked), "blocked"))
        # Of equal waits the later in the list is the better reason.
        soonest = min(reversed(waits), key=lambda wake: wake.delay)
        return Pace(blocked=self.blocked + 1 if overdue_remains else 0), soonest

    def after_failure(self, *, longest: float, chance: float) -> tuple[Pace, Wake]:
        """The wake-up after a sweep that failed; *chance* is a random number from 0 to 1.

        The delay lies between half of a doubling bound and all of it, and never exceeds *longest*.
        """
        bound = min(longest, _doubled(RETRY_FIRST, self.failures))
        return replace(self, failures=self.failures + 1), Wake(bound * (1 + chance) / 2, "retry")


def _doubled(first: float, times: int) -> float:
    return float(first * 2 ** min(times, _MOST_DOUBLINGS))
