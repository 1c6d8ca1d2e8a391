"""Sweeps at their time, through whatever the database does.

`Enforcer.serve` is the body of the sweep job: it sweeps, and as long as the next wake-up is near it waits and
sweeps again by itself, so that a deadline is not met late by the scheduler's own way from thread to thread.
It never raises for the database's sake: an error drops the connection, is told once as a change of state, and
the next wake-up comes after a jittered, bounded delay.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from curfew_daemon.database import Link
from curfew_daemon.failures import is_database_error, state_of
from curfew_daemon.hints import Hints
from curfew_daemon.results import DatabaseState, SweepResult
from curfew_daemon.sweeper import Sweeper
from curfew_daemon.wait_bounds import HEALTHZ_STALENESS
from curfew_daemon.wake import Pace, Seen, Wake
from curfew_store.hints import Hint

__all__ = ["Enforcer", "Listener", "seen_by"]


GAP: Final = 0.05
"""Seconds to the next wake-up that are enough for the way through the scheduler, which takes some milliseconds."""

_LONGEST_SPARED: Final = HEALTHZ_STALENESS / 4
"""The longest poll interval, in seconds, of which a sweep may skip one."""

LONGEST_SERVICE: Final = 60.0
"""Seconds after which `Enforcer.serve` returns also where there is no such gap."""


class Listener(Protocol):
    """Who hears what the enforcer did; the composition root turns it into log lines and metrics."""

    def woke(self, reason: str) -> None:
        """A sweep begins."""

    def swept(self, result: SweepResult) -> None:
        """A sweep reached its end."""

    def progressed(self) -> None:
        """The sweep in hand has marked a batch, which is as good as its end: a drain may take minutes."""

    def sweep_failed(self, error: BaseException) -> None:
        """A sweep ended in *error*."""

    def database(self, old: DatabaseState | None, new: DatabaseState, error: BaseException | None) -> None:
        """The state of the database changed."""

    def beat(self) -> None:
        """The loop is alive."""


def seen_by(result: SweepResult) -> Seen:
    """What of a sweep's result decides the next wake-up."""
    return Seen(
        marked=result.marked,
        overdue_remains=result.overdue_remains,
        next_due_in=result.next_due_in,
        overdue_age=result.overdue_age,
        known_lag=result.known_lag,
        beaten=result.beaten,
        full_look_in=result.full_look_in,
    )


class Enforcer:
    """Serves deadlines through *sweeper* and *link*. `nudge`, `hinted`, `stop` are for other threads.

    *poll_interval*, *reconnect_max* and *reconnect_spread* are asked each time, in seconds. *rouse* is called when a
    hint asks for an earlier call of `serve` than the one that was returned.
    """

    def __init__(
        self,
        sweeper: Sweeper,
        link: Link,
        listener: Listener,
        *,
        poll_interval: Callable[[], float],
        reconnect_max: Callable[[], float],
        reconnect_spread: Callable[[], float] = lambda: 0.0,
        rouse: Callable[[], None] = lambda: None,
    ) -> None:
        self._sweeper = sweeper
        self._link = link
        self._listener = listener
        self._poll_interval = poll_interval
        self._reconnect_max = reconnect_max
        self._reconnect_spread = reconnect_spread
        self._rouse = rouse
        self._hints = Hints()
        self._serving = False
        self._at_once = False
        self._nudged = threading.Event()
        self._stopping = threading.Event()
        self._pace = Pace()
        self._next = Wake(0.0, "start")
        self.state: DatabaseState | None = None
        self.last_success: float | None = None
        """When a sweep ended well or marked a batch, on the monotonic clock."""

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopping.is_set()

    @property
    def slack(self) -> float:
        """For how many seconds overdue runs are left to faster daemons."""
        return self._pace.slack

    def stop(self) -> None:
        """Let the statement in hand end and begin no other."""
        self._stopping.set()
        self.nudge()

    def nudge(self) -> None:
        """End the wait, if there is one, and sweep."""
        self._at_once = True
        self._nudged.set()

    def hinted(self, hint: Hint) -> bool:
        """A deadline was set; whether the next sweep comes sooner for it. Costs no statement."""
        sooner = self._hints.heard(hint, self._pace.slack)
        if sooner:
            self._nudged.set()
            if not self._serving:
                self._rouse()
        return sooner

    def progressed(self) -> None:
        """The sweep in hand has marked a batch; for the thread that serves."""
        self._succeeded()
        self._listener.progressed()

    def idle_until(self, asked: float, next_due_in: float | None) -> float | None:
        """How long the planned sweep may wait, given that somebody else's look at *asked* found nothing overdue.

        Both moments are on the monotonic clock; *next_due_in* counts from *asked*. ``None`` where the sweep shall
        come as planned: only a poll is spared, only where the look saw a whole poll interval ahead, and not where two
        poll intervals without a beat would be taken for the end of the loop.
        """
        poll_interval = self._poll_interval()
        if self._serving or self._next.reason != "poll" or self.state is not DatabaseState.UP:
            return None
        if poll_interval > _LONGEST_SPARED:
            return None
        if next_due_in is not None and next_due_in <= poll_interval:
            return None
        until = asked + poll_interval
        return until if self._hints.postponed(until, asked) else None

    def cancel(self) -> None:
        """Have the server end the statements in hand; waits two seconds at most, however many connections."""
        self._link.cancel()
        self._sweeper.cancel()

    def crew_ends_within(self, seconds: float) -> bool:
        """Wait for the further connections of a drain, which may outlast `serve`; whether they are done."""
        return self._sweeper.crew_ends_within(seconds)

    def close(self) -> None:
        """Give the connections up; only once nothing serves any more and `crew_ends_within` said so."""
        self._link.close()
        self._sweeper.close()

    def serve(self, reason: str | None = None) -> Wake:
        """Sweep, and again while the next wake-up is near: for a poll interval, and then until there is time.

        Deadlines that come closer together than `GAP` are not kept waiting for the scheduler, for `LONGEST_SERVICE` at
        most. *reason* overrides why the first sweep woke. Returns when and why to serve again.
        """
        self._serving = True
        began = time.monotonic()
        until = began + self._poll_interval()
        wake = self._next if reason is None else Wake(0.0, reason)
        if reason is None and self._hints.earliest is not None:  # roused before its time, to wait for a hint's
            wake = self._wait(wake, self._hints.sweep_at)
        while not self.stopping:
            wake = self._sweep(wake.reason)
            due_at = time.monotonic() + wake.delay
            hard_upon = wake.delay < GAP and due_at <= began + LONGEST_SERVICE
            near = wake.reason not in {"poll", "retry"} and (due_at <= until or hard_upon)
            hint = self._hints.earliest
            if not near and (hint is None or hint.at > until):
                self._next = wake
                break
            wake = self._wait(wake, due_at)
        self._serving = False
        # Looked at last: a hint that is heard from here on rouses.
        hint = self._hints.earliest
        return wake if hint is None else Wake(max(0.0, hint.at - time.monotonic()), "hint")

    def _wait(self, wake: Wake, due_at: float) -> Wake:
        """Sleeps until *wake* is due, a hint is, or a nudge comes; what to sweep for then."""
        while not self._at_once:
            hint = self._hints.earliest
            at = due_at if hint is None else hint.at
            remaining = at - time.monotonic()
            if remaining <= 0:
                if hint is None:
                    return wake
                if hint.early:
                    self._sweeper.expect(hint.hint, hint.at)
                return Wake(0.0, "hint")
            self._nudged.wait(remaining)
            self._nudged.clear()
        return Wake(0.0, "hint")

    def _sweep(self, reason: str) -> Wake:
        self._listener.beat()
        self._listener.woke(reason)
        self._at_once = False
        self._hints.sweep_begins()
        try:
            result = self._sweeper.run_once(reason, slack=self._pace.patience)
            result = replace(result, slack=self._pace.slack)
        except Exception as error:  # noqa: BLE001  (whatever it is, the daemon goes on; the listener tells of it)
            self._link.drop()
            self._hints.sweep_failed()
            return self._failed(error)
        self._succeeded()
        self._listener.swept(result)
        self._pace, wake = self._pace.after_sweep(seen_by(result), poll_interval=self._poll_interval())
        self._hints.sweep_ended(time.monotonic() + wake.delay, result.seen)
        return wake

    def _succeeded(self) -> None:
        self._enter(DatabaseState.UP, None)
        self.last_success = time.monotonic()

    def _failed(self, error: Exception) -> Wake:
        self._listener.sweep_failed(error)
        if is_database_error(error) and not self.stopping:  # a statement cancelled by a stop is no state
            self._enter(state_of(error), error)
        self._listener.beat()
        self._pace, wake = self._pace.after_failure(
            longest=self._reconnect_max(),
            chance=random.random(),  # noqa: S311  (spreads reconnects, guards nothing)
            spread=self._reconnect_spread(),
        )
        return wake

    def _enter(self, state: DatabaseState, error: Exception | None) -> None:
        if state is not self.state:
            old, self.state = self.state, state
            self._listener.database(old, state, error)
