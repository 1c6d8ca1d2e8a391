"""The loop around the sweep: when it sweeps again by itself, what it does with failures, how it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest

from curfew_daemon import enforcer as enforcer_module
from curfew_daemon.database import Link
from curfew_daemon.enforcer import GAP, Enforcer
from curfew_daemon.failures import DatabaseRefusal
from curfew_daemon.results import DatabaseState, SweepResult
from curfew_daemon.sweeper import Sweeper
from curfew_daemon.wake import BLOCKED_FIRST, Wake
from curfew_store.hints import Hint
from tests.integration.sessions import eventually

Step = SweepResult | Exception | Callable[[], SweepResult]


NOW = datetime(2030, 1, 1, tzinfo=UTC)


def swept(marked: int = 0, *, next_due_in: float | None = None, overdue: bool = False) -> SweepResult:
    return SweepResult("poll", marked, 1, 2, 0.001, (), None, next_due_in, overdue)


def looked(**found: Any) -> SweepResult:
    """As `swept`, by a sweep that has asked the database's clock just now, when it was `NOW`."""
    return replace(swept(**found), seen=(NOW, time.monotonic()))


def hint_in(seconds: float) -> Hint:
    return Hint(NOW + timedelta(seconds=seconds), uuid4())


class Bench:
    """An enforcer whose sweeps play a script, and a diary of what it told."""

    def __init__(self, *script: Step, poll_interval: float = 60.0, reconnect_max: float = 1.0) -> None:
        self.script = list(script)
        self.woken: list[str] = []
        self.slacks: list[float] = []
        self.states: list[tuple[DatabaseState | None, DatabaseState, str]] = []
        self.results: list[SweepResult] = []
        self.errors: list[BaseException] = []
        self.beats = self.drops = self.progress = 0
        self.closed = self.cancelled = False
        self.expected: list[Hint] = []
        self.roused = threading.Event()
        self.poll_interval = poll_interval
        self.enforcer = Enforcer(
            cast("Sweeper", self),
            cast("Link", self),
            self,
            poll_interval=lambda: self.poll_interval,
            reconnect_max=lambda: reconnect_max,
            rouse=self.roused.set,
        )

    # As the sweeper.
    def expect(self, hint: Hint, _due_at: float) -> None:
        self.expected.append(hint)

    def run_once(self, reason: str, *, slack: float = 0.0) -> SweepResult:
        self.slacks.append(slack)
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step() if callable(step) else step

    # As the link.
    def drop(self) -> None:
        self.drops += 1

    def close(self) -> None:
        self.closed = True

    def cancel(self) -> None:
        self.cancelled = True

    def crew_ends_within(self, seconds: float) -> bool:
        return seconds > 1

    # As the listener.
    def woke(self, reason: str) -> None:
        self.woken.append(reason)

    def swept(self, result: SweepResult) -> None:
        self.results.append(result)

    def sweep_failed(self, error: BaseException) -> None:
        self.errors.append(error)

    def progressed(self) -> None:
        self.progress += 1

    def database(self, old: DatabaseState | None, new: DatabaseState, error: BaseException | None) -> None:
        self.states.append((old, new, str(error or "")))

    def beat(self) -> None:
        self.beats += 1


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(20)
    return not thread.is_alive()


def test_a_sweep_with_nothing_near_returns_until_the_poll() -> None:
    """Nothing ahead: one sweep, then the caller waits for a poll interval."""
    bench = Bench(swept())
    assert bench.enforcer.serve() == Wake(60.0, "poll")
    assert bench.woken == ["start"]
    assert bench.results == [swept()]
    assert bench.states == [(None, DatabaseState.UP, "")]


def test_a_near_deadline_is_waited_for_without_leaving() -> None:
    """It sleeps until the deadline itself, sweeps for it, and goes on; the reason is told each time."""
    bench = Bench(swept(next_due_in=0.02), swept(3, overdue=True), swept())
    began = time.monotonic()
    assert bench.enforcer.serve().reason == "poll"
    assert time.monotonic() - began >= 0.02
    assert bench.woken == ["start", "deadline", "more"]


def test_the_reason_to_wake_survives_between_two_runs() -> None:
    """What the first run decided to wait for is what the second sweeps for."""
    bench = Bench(swept(), swept())
    bench.enforcer.serve()
    bench.enforcer.serve()
    assert bench.woken == ["start", "poll"]


def test_a_reason_of_the_callers_own_comes_first() -> None:
    """A caller that knows better why it wakes says so."""
    bench = Bench(swept())
    bench.enforcer.serve("reload")
    assert bench.woken == ["reload"]


def test_it_comes_back_within_about_a_poll_interval() -> None:
    """Where deadlines leave a gap the caller hears from it again, however soon the next one always is."""
    bench = Bench(*[swept(next_due_in=GAP + 0.01)] * 100, poll_interval=0.2)
    wake = bench.enforcer.serve()
    assert wake.reason == "deadline"
    assert GAP <= wake.delay <= GAP + 0.01
    assert 2 <= len(bench.woken) <= 5


def test_deadlines_hard_upon_each_other_do_not_wait_for_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no gap between them it serves on past the poll interval, for the longest service at most."""
    monkeypatch.setattr(enforcer_module, "LONGEST_SERVICE", 0.5)
    bench = Bench(*[swept(next_due_in=0.01)] * 1000, poll_interval=0.02)
    began = time.monotonic()
    wake = bench.enforcer.serve()
    assert time.monotonic() - began >= 0.4
    assert wake.reason == "deadline"
    assert 3 <= len(bench.woken) <= 60


def test_rows_that_others_hold_are_looked_at_again_with_growing_delays() -> None:
    """A blocked sweep backs off; the next one that is free ends it."""
    bench = Bench(*[swept(overdue=True)] * 4, swept())
    began = time.monotonic()
    bench.enforcer.serve()
    assert bench.woken == ["start", "blocked", "blocked", "blocked", "blocked"]
    assert time.monotonic() - began >= BLOCKED_FIRST * (1 + 2 + 4 + 8)


def test_a_nudge_ends_the_wait() -> None:
    """A hint that something is due is followed at once and called a hint."""
    bench = Bench(swept(next_due_in=50.0), swept())
    thread = in_thread(bench.enforcer.serve)
    eventually(lambda: bench.results, "it has swept")
    bench.enforcer.nudge()
    assert ended(thread)
    assert bench.woken == ["start", "hint"]


def test_a_nudge_during_a_sweep_is_not_lost() -> None:
    """The sweep in hand may have looked already, so the wait after it ends at once."""

    def nudged() -> SweepResult:
        bench.enforcer.nudge()
        return swept(next_due_in=50.0)

    bench = Bench(nudged, swept())
    assert ended(in_thread(bench.enforcer.serve))
    assert bench.woken == ["start", "hint"]


def test_a_hint_ends_the_wait_at_its_deadline() -> None:
    """It is slept for like a deadline that was looked at; the sweep is told of the run, the caller of nothing."""
    bench = Bench(looked, looked)
    bench.script[0] = lambda: looked(next_due_in=50.0)
    thread = in_thread(bench.enforcer.serve)
    eventually(lambda: bench.results, "it has swept")
    began, hint = time.monotonic(), hint_in(0.1)
    eventually(lambda: bench.enforcer.hinted(hint), "its sweep has ended, and now it waits")
    assert not bench.enforcer.hinted(hint_in(20.0))
    assert ended(thread)
    assert time.monotonic() - began >= 0.05
    assert bench.woken == ["start", "hint"]
    assert bench.expected == [hint]
    assert not bench.roused.is_set()


def test_a_hint_during_a_sweep_is_waited_for_after_it() -> None:
    """The look of the sweep in hand may have been too early for it; the poll is not what is waited for then."""

    def hinted() -> SweepResult:
        assert bench.enforcer.hinted(hint_in(0.05))
        return looked()

    bench = Bench(looked, hinted, looked)
    bench.enforcer.serve()
    assert bench.enforcer.serve().reason == "poll"
    assert bench.woken == ["start", "poll", "hint"]


def test_between_two_runs_a_hint_rouses_the_caller_who_then_waits_for_it() -> None:
    """The next run begins before its time, and sweeps at that of the hint and not before."""
    bench = Bench(looked, looked)
    bench.enforcer.serve()
    began = time.monotonic()
    assert bench.enforcer.hinted(hint_in(0.1))
    assert bench.roused.is_set()
    assert bench.enforcer.serve() == Wake(60.0, "poll")
    assert time.monotonic() - began >= 0.05
    assert bench.woken == ["start", "hint"]


def test_a_hint_beyond_the_run_is_when_to_come_back() -> None:
    """A run lasts for about a poll interval; what is hinted after it is the next run's."""

    def hinted() -> SweepResult:
        bench.poll_interval = 5.0
        assert bench.enforcer.hinted(hint_in(2.0))
        return looked()

    bench = Bench(looked, hinted, poll_interval=0.2)
    bench.enforcer.serve()
    wake = bench.enforcer.serve()
    assert wake.reason == "hint"
    assert 1.0 < wake.delay <= 2.0


def test_a_hint_of_a_passed_deadline_is_swept_for_and_says_nothing_of_rivals() -> None:
    """Whoever configured it was late; no daemon was."""
    bench = Bench(looked, looked)
    bench.enforcer.serve()
    assert bench.enforcer.hinted(hint_in(-5.0))
    bench.enforcer.serve()
    assert bench.woken == ["start", "hint"]
    assert bench.expected == []


def test_no_hint_disturbs_the_retries_of_an_outage() -> None:
    """While the database is away hints change nothing."""
    bench = Bench(looked, psycopg.OperationalError("gone"), looked)
    bench.enforcer.serve()
    assert bench.enforcer.serve().reason == "retry"
    assert not bench.enforcer.hinted(hint_in(-5.0))
    assert not bench.roused.is_set()


def test_a_nudge_outweighs_a_hint() -> None:
    """Asked to sweep at once, it does so although a hint waits for its time."""
    bench = Bench(looked, looked)
    bench.enforcer.serve()
    assert bench.enforcer.hinted(hint_in(50.0))
    bench.enforcer.nudge()
    assert bench.enforcer.serve().reason == "poll"
    assert bench.expected == []


def test_a_stop_ends_the_wait_without_a_further_sweep() -> None:
    """From a stop on no sweep begins, even with a deadline ahead."""
    bench = Bench(swept(next_due_in=50.0), swept())
    thread = in_thread(bench.enforcer.serve)
    eventually(lambda: bench.results, "it has swept")
    bench.enforcer.stop()
    assert ended(thread)
    assert bench.enforcer.stopping
    assert bench.woken == ["start"]


def test_a_stop_during_a_sweep_lets_it_end_and_begins_no_other() -> None:
    """The result of the sweep in hand is still told."""

    def stopped() -> SweepResult:
        bench.enforcer.stop()
        return swept(5, overdue=True)

    bench = Bench(stopped, swept())
    bench.enforcer.serve()
    assert bench.woken == ["start"]
    assert bench.results[0].marked == 5


def test_a_stop_before_the_run_sweeps_nothing() -> None:
    """A run that was asked for before the stop and begins after it touches no database."""
    bench = Bench(swept())
    bench.enforcer.stop()
    bench.enforcer.serve()
    assert bench.woken == []


def test_an_outage_is_told_once_and_retried_with_growing_jittered_delays() -> None:
    """Each failure drops the connection; only a change of state is told; delays stay within their bounds."""
    down = psycopg.OperationalError("connection refused")
    bench = Bench(*[down] * 6, swept(), reconnect_max=0.8)
    delays = [bench.enforcer.serve().delay for _ in range(6)]
    bench.enforcer.serve()

    bounds = [0.1, 0.2, 0.4, 0.8, 0.8, 0.8]
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    assert len(set(delays)) > 3  # jitter
    assert bench.drops == 6
    assert bench.errors == [down] * 6
    assert bench.woken == ["start", *["retry"] * 6]
    assert bench.states == [
        (None, DatabaseState.UNREACHABLE, "connection refused"),
        (DatabaseState.UNREACHABLE, DatabaseState.UP, ""),
    ]


def test_one_trouble_after_another_is_told_each_time() -> None:
    """A change from one bad state to the next is a change."""
    standby = DatabaseRefusal(DatabaseState.STANDBY, "a standby")
    bench = Bench(psycopg.OperationalError("gone"), standby, standby)
    for _ in range(3):
        bench.enforcer.serve()
    assert [(old, new) for old, new, _ in bench.states] == [
        (None, DatabaseState.UNREACHABLE),
        (DatabaseState.UNREACHABLE, DatabaseState.STANDBY),
    ]
    assert bench.enforcer.state is DatabaseState.STANDBY


def test_a_defect_of_ours_does_not_end_the_loop_nor_blame_the_database() -> None:
    """Any error is told, the connection is dropped, and the next sweep comes as after a failure."""
    bench = Bench(swept(), ZeroDivisionError("oops"), swept())
    wakes = [bench.enforcer.serve() for _ in range(3)]
    assert [wake.reason for wake in wakes] == ["poll", "retry", "poll"]
    assert [type(error) for error in bench.errors] == [ZeroDivisionError]
    assert bench.drops == 1
    assert bench.enforcer.state is DatabaseState.UP


def test_a_statement_that_a_stop_cancelled_changes_no_state() -> None:
    """The cancelled statement is the daemon's own doing and says nothing of the database."""

    def cancelled() -> SweepResult:
        bench.enforcer.stop()
        raise psycopg.errors.QueryCanceled("canceling statement due to user request")

    bench = Bench(swept(), cancelled)
    bench.enforcer.serve()
    bench.enforcer.serve()
    assert bench.states == [(None, DatabaseState.UP, "")]


def test_every_sweep_and_every_failure_beats() -> None:
    """An outage keeps the loop alive in the eyes of a watchdog."""
    bench = Bench(*[psycopg.OperationalError("gone")] * 5)
    for n in range(1, 6):
        bench.enforcer.serve()
        assert bench.beats == 2 * n


def test_settings_in_force_are_asked_each_time() -> None:
    """A poll interval changed by a reload counts from the next sweep on."""
    bench = Bench(swept(), swept())
    bench.enforcer.serve()
    bench.poll_interval = 0.5
    assert bench.enforcer.serve() == Wake(0.5, "poll")


def test_a_batch_that_was_marked_is_a_success_before_its_sweep_ends() -> None:
    """After an outage a drain may take minutes: the database is up from its first batch on, told once."""

    def draining() -> SweepResult:
        bench.enforcer.progressed()
        assert bench.enforcer.state is DatabaseState.UP
        assert bench.enforcer.last_success is not None
        bench.enforcer.progressed()
        assert not bench.results
        return swept(4)

    bench = Bench(psycopg.OperationalError("gone"), draining)
    bench.enforcer.serve()
    bench.enforcer.serve()
    assert [new for _, new, _ in bench.states] == [DatabaseState.UNREACHABLE, DatabaseState.UP]
    assert (bench.progress, len(bench.results)) == (2, 1)


def test_a_sweep_that_fails_after_a_batch_is_a_failure() -> None:
    """What holds is what was learned last."""

    def broken() -> SweepResult:
        bench.enforcer.progressed()
        raise psycopg.OperationalError("gone")

    bench = Bench(broken)
    assert bench.enforcer.serve().reason == "retry"
    assert [new for _, new, _ in bench.states] == [DatabaseState.UP, DatabaseState.UNREACHABLE]


def test_the_last_success_is_remembered_for_readiness() -> None:
    """A sweep that failed at once is none; on the monotonic clock."""
    bench = Bench(psycopg.OperationalError("gone"), swept())
    bench.enforcer.serve()
    assert bench.enforcer.last_success is None
    before = time.monotonic()
    bench.enforcer.serve()
    assert bench.enforcer.last_success == pytest.approx(before, abs=20)


def test_the_connection_is_its_to_cancel_and_to_close() -> None:
    """At the end of the process the statement in hand is cancelled and the connection given up."""
    bench = Bench()
    bench.enforcer.cancel()
    bench.enforcer.close()
    assert bench.cancelled
    assert bench.closed
    assert [bench.enforcer.crew_ends_within(seconds) for seconds in (0.5, 1.5)] == [False, True]


# When the observer's look spares a poll


def test_a_poll_is_spared_by_a_look_that_found_nothing() -> None:
    """The next sweep then comes a poll interval after the look was sent."""
    bench = Bench(looked(), poll_interval=1.0)
    assert bench.enforcer.serve().reason == "poll"
    asked = time.monotonic()
    assert bench.enforcer.idle_until(asked, None) == asked + 1.0
    assert bench.enforcer.idle_until(asked, 1.1) == asked + 1.0


def test_no_poll_is_spared_ahead_of_a_deadline_that_the_look_saw() -> None:
    """Within a poll interval it is the sweep's to learn of it."""
    bench = Bench(looked(), poll_interval=1.0)
    bench.enforcer.serve()
    assert bench.enforcer.idle_until(time.monotonic(), 1.0) is None


def test_no_poll_is_spared_after_a_hint() -> None:
    """The look may have been sent before the run was there."""
    bench = Bench(looked(), poll_interval=1.0)
    bench.enforcer.serve()
    asked = time.monotonic()
    bench.enforcer.hinted(hint_in(30))
    assert bench.enforcer.idle_until(asked, None) is None


@pytest.mark.parametrize("reason", ["deadline", "blocked", "retry", "hint"])
def test_only_a_poll_is_spared(reason: str) -> None:
    """Not the wake-up for a deadline, for rows that others hold, after a failure, or for a hint."""
    bench = Bench(looked(), poll_interval=1.0)
    bench.enforcer.serve()
    bench.enforcer._next = Wake(0.5, reason)
    assert bench.enforcer.idle_until(time.monotonic(), None) is None


def test_no_poll_is_spared_while_a_sweep_is_in_hand_or_the_database_is_away() -> None:
    """Whoever looked may have looked elsewhere, or too early."""
    found: list[float | None] = []

    def meanwhile() -> SweepResult:
        found.append(bench.enforcer.idle_until(time.monotonic(), None))
        return looked()

    bench = Bench(looked(), meanwhile, looked(), poll_interval=1.0)
    bench.enforcer.serve()
    bench.enforcer.serve()
    bench.enforcer.serve()
    assert bench.enforcer.idle_until(time.monotonic(), None) is not None
    bench.enforcer.state = DatabaseState.UNREACHABLE
    found.append(bench.enforcer.idle_until(time.monotonic(), None))
    assert found == [None, None]


def test_no_poll_is_spared_where_the_silence_would_be_taken_for_the_end() -> None:
    """Two of the longest poll intervals without a beat are too many for who watches the loop."""
    bench = Bench(looked(), poll_interval=7.6)
    bench.enforcer.serve()
    assert bench.enforcer.idle_until(time.monotonic(), None) is None
