"""When to sweep next, and how long to wait after a failure: decisions only, on plain numbers.

The module knows no database, scheduler, log or metric, so that it can be simulated. Every duration is in
seconds; the caller measures waits on a monotonic clock, since a wall clock may be stepped.

Rules, in the order in which they are applied:

- Overdue runs remain and something was marked: sweep again at once, more became due meanwhile.
- A standby leaves a run alone that has become overdue just now, and comes back when its slack is over.
- Overdue runs remain and nothing could be marked: somebody holds the rows. Look again soon, then less and
  less often, up to the poll interval. Meanwhile the next deadline counts all the same.
- Otherwise sleep until the next deadline or for one poll interval, whichever is sooner.
- A deadline is slept for until it passes, plus the slack.
- After a failure wait a random part of a doubling delay, so that a fleet does not return in step. A large fleet has a
  time to spread its attempts over: each daemon takes a random moment of it and then attempts once in each such time,
  so that the fleet's attempts come evenly.

Of many daemons on one database none leads. One that expected a run and found it marked by another becomes a lazier
standby: its slack doubles, up to the poll interval. A run that was disarmed meanwhile says nothing. One that marks a
run which it knew of, overdue by more than its patience, gives the slack up: whoever was faster is gone. The slack
decides how long a standby sleeps; its patience, never more than a tenth of a second, what it leaves alone while it
is awake, so that of many standbys the first to look helps where one daemon is gone or not enough. With the active
one dead a deadline is met at most one poll interval late, and a standby costs next to nothing. What counts as
expected and known is decided in `rivals`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["BLOCKED_FIRST", "PATIENCE", "RETRY_FIRST", "SLACK_FIRST", "Pace", "Seen", "Wake", "observer_pause"]

BLOCKED_FIRST: Final = 0.005
"""First delay before overdue rows that others hold are looked at again."""

RETRY_FIRST: Final = 0.1
"""Upper bound of the first delay after a failure."""

SLACK_FIRST: Final = 0.005
"""Slack after the first deadline that another daemon met."""

PATIENCE: Final = 0.1
"""A run overdue for longer than this needs help, however lazy the daemon that sees it: nobody is faster any more,
or one daemon is not enough."""

_MOST_DOUBLINGS: Final = 30


@dataclass(frozen=True, slots=True)
class Wake:
    """The next wake-up: after *delay* seconds, for *reason* (one of ``deadline poll more blocked retry``)."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a sweep saw, as far as it matters for the next wake-up.

    *next_due_in* counts from now and belongs to a deadline in the future. *overdue_remains* says that armed runs
    are due and were not marked, the earliest for *overdue_age*. *known_lag* is the largest lag among the runs that
    were *marked* and that an earlier sweep knew of. *beaten* says that a run which it expected had been marked by
    another daemon. Both come from `rivals.Rivals`.
    *full_look_in* is when the scan wants to look behind its mark, if that is before the next poll.
    """

    marked: int = 0
    overdue_remains: bool = False
    next_due_in: float | None = None
    overdue_age: float = 0.0
    known_lag: float | None = None
    beaten: bool = False
    full_look_in: float | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """What of the past matters for the next wake-up: blocked or failed sweeps in a row, and the slack."""

    blocked: int = 0
    failures: int = 0
    slack: float = 0.0

    @property
    def patience(self) -> float:
        """How long a run may be overdue and still be left to a faster daemon."""
        return min(self.slack, PATIENCE)

    def after_sweep(self, seen: Seen, *, poll_interval: float) -> tuple[Pace, Wake]:
        """The wake-up after a sweep that reached the database."""
        slack = min(self._slack_after(seen), poll_interval)
        if seen.overdue_remains and seen.marked:
            return Pace(slack=slack), Wake(0.0, "more")
        waits = [Wake(poll_interval, "poll")]
        if seen.full_look_in is not None:
            waits.append(Wake(seen.full_look_in, "poll"))
        if seen.next_due_in is not None:
            waits.append(Wake(max(0.0, seen.next_due_in) + slack, "deadline"))
        blocked = 0
        if seen.overdue_remains and seen.overdue_age < min(slack, PATIENCE):
            waits.append(Wake(slack - seen.overdue_age, "deadline"))
        elif seen.overdue_remains:
            waits.append(Wake(_doubled(BLOCKED_FIRST, self.blocked), "blocked"))
            blocked = self.blocked + 1
        # Of equal waits the later in the list is the better reason.
        soonest = min(reversed(waits), key=lambda wake: wake.delay)
        return Pace(blocked=blocked, slack=slack), soonest

    def _slack_after(self, seen: Seen) -> float:
        late = 0.0 if seen.known_lag is None else seen.known_lag
        if late > PATIENCE:
            return 0.0  # also if beaten: daemons that only poll share the work out, and are late all of them
        if seen.beaten:
            return max(SLACK_FIRST, 2 * self.slack)
        return 0.0 if late > self.slack else self.slack

    def after_failure(self, *, longest: float, chance: float, spread: float = 0.0) -> tuple[Pace, Wake]:
        """The wake-up after a sweep that failed; *chance* is a random number from 0 to 1.

        The delay lies between half of a doubling bound and all of it, and never exceeds *longest*. With a *spread*
        the first is at least a random part of that, and each further one all of it: more chance there would bunch
        what the first one has scattered evenly.
        """
        bound = min(longest, _doubled(RETRY_FIRST, self.failures))
        delay = max(bound * (1 + chance) / 2, spread if self.failures else spread * chance)
        # Nothing is known of the others any more, so the slack is given up.
        return replace(self, failures=self.failures + 1, slack=0.0), Wake(delay, "retry")


def observer_pause(spread: float, chance: float) -> float:
    """How long after the sweep's connection the one for the gauges may be dialled; *chance* as in `after_failure`.

    It takes twice the spread, since it comes on top of the sweeps' attempts: a fleet that dialled both at once would
    make twice as many.
    """
    return 2 * spread * chance


def _doubled(first: float, times: int) -> float:
    return float(first * 2 ** min(times, _MOST_DOUBLINGS))
