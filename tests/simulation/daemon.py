"""A modelled daemon: the order of its statements is `Sweeper`'s, every decision is the daemon's own code.

`Pace` says when to sweep next and with how much slack, `Rivals` what the sweep tells of other daemons, `LowWaterMark`
where each search begins. Only what carries a request to the database and back is modelled. Left out are hints and
the further connections with which a daemon marks a deep backlog. `tests/unit/test_simulation_fidelity.py` holds
the order of the statements against the real `Sweeper`.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from curfew_daemon.passes import FIRST_BATCH
from curfew_daemon.rivals import Rivals
from curfew_daemon.scan import LowWaterMark
from curfew_daemon.sweeper import DUE_FOR_SURE
from curfew_daemon.wake import Pace, Seen, Wake
from tests.simulation.clockwork import Clockwork, Process, Sleep
from tests.simulation.database import Claim, Claimed, Down, Look, Looked
from tests.simulation.table import Place

_EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
Steps = Generator[Any, Any, Any]


def moment_of(seconds: float) -> datetime:
    """A time of the database's clock as `LowWaterMark` takes it."""
    return _EPOCH + timedelta(seconds=seconds)


def seconds_of(moment: datetime) -> float:
    """The other way."""
    return (moment - _EPOCH).total_seconds()


@dataclass(frozen=True)
class Habits:
    """What daemons have in common, in seconds. *think* is spent in the daemon after each answer."""

    poll_interval: float = 1.0
    batch_size: int = 2000
    think: float = 0.0002
    oversleep: float = 0.0001
    reconnect_max: float = 1.0
    reconnect: float = 0.01


class _Marked(NamedTuple):
    """A run as `Rivals` takes it."""

    run_id: int
    deadline: datetime


@dataclass
class _Sweep:
    """What one sweep has found so far."""

    marked: int = 0


@dataclass
class Daemon:
    """One daemon; `life` is its process."""

    number: int
    clockwork: Clockwork
    habits: Habits
    chance: random.Random
    pace: Pace = field(default_factory=Pace)
    _due_at: float | None = None
    _rivals: Rivals[int] = field(default_factory=Rivals)

    def __post_init__(self) -> None:
        self._mark = LowWaterMark(lambda: self.habits.poll_interval, lambda: self.clockwork.now)

    def life(self) -> Process:
        """Sweep, wait as `Pace` says, for ever."""
        wake = Wake(0.0, "start")
        while True:
            try:
                seen = yield from self._sweep(wake.reason)
            except Down:
                self.pace, wake = self.pace.after_failure(
                    longest=self.habits.reconnect_max, chance=self.chance.random()
                )
                yield Sleep(self.habits.reconnect)
                self._mark.reset()
                self._rivals.forget()
            else:
                self.pace, wake = self.pace.after_sweep(seen, poll_interval=self.habits.poll_interval)
            late = self.chance.expovariate(1 / self.habits.oversleep) if wake.delay > 0 else 0.0
            yield Sleep(wake.delay + late)

    def _sweep(self, reason: str) -> Steps:
        sweep, look = _Sweep(), None
        patience = self.pace.patience
        self._rivals.begin()
        if reason not in DUE_FOR_SURE or patience:
            look = yield from self._look()
        while look is None or (look.overdue is not None and look.now - look.overdue[0] >= patience):
            known = self._due_at
            yield from self._drain(sweep)
            look = yield from self._look()
            if sweep.marked or known is None or known > self.clockwork.now:
                break
        ahead = None if look.following is None else look.following[0] - look.now
        return Seen(
            marked=sweep.marked,
            overdue_remains=look.overdue is not None,
            next_due_in=None if ahead is None else ahead - (self.clockwork.now - self._asked),
            overdue_age=0.0 if look.overdue is None else look.now - look.overdue[0],
            known_lag=self._rivals.known_lag,
            beaten=self._rivals.beaten,
            full_look_in=self._mark.full_look_in,
        )

    def _look(self) -> Steps:
        since, self._asked = self._mark.look_from(), self.clockwork.now
        expected = self._rivals.expected
        look: Looked = yield Look(
            None if since is None else seconds_of(since),
            None if expected is None else (expected[0], seconds_of(expected[1])),
        )
        now, overdue = moment_of(look.now), None if look.overdue is None else moment_of(look.overdue[0])
        duration = self.clockwork.now - self._asked
        self._mark.learned(now=now, earliest_overdue=overdue, full=since is None, duration=duration)
        ahead = None if look.following is None else look.following[0] - look.now
        self._rivals.looked(
            now=now,
            earliest_overdue=overdue,
            next_run=None if look.following is None else look.following[1],
            next_due_in=ahead,
            expected_marked=look.expected_marked,
        )
        self._due_at = None if ahead is None else self._asked + ahead
        yield Sleep(self._thinking())
        return look

    def _drain(self, sweep: _Sweep) -> Steps:
        batches = 2
        while batches > 1:
            since = self._mark.since
            after: Place | None = None if since is None else (seconds_of(since), -1)
            batches, full = 0, True
            while full:
                sent, limit = self.clockwork.now, min(self.habits.batch_size, FIRST_BATCH << batches)
                claimed: Claimed = yield Claim(limit, after)
                batches += 1
                full = len(claimed.places) == limit
                if claimed.places:
                    after = claimed.places[-1]
                    sweep.marked += len(claimed.places)
                    self._rivals.claimed(
                        [_Marked(number, moment_of(deadline)) for deadline, number in claimed.places],
                        stamp=moment_of(claimed.now),
                        round_trip=self.clockwork.now - sent,
                        full=full,
                    )
                yield Sleep(self._thinking())

    def _thinking(self) -> float:
        return self.habits.think * (0.5 + self.chance.expovariate(2.0))
