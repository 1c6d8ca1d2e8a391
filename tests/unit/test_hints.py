"""Hints: what a notification says, and which of them bring the next sweep forward."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from curfew_daemon.hints import GAP, Hints
from curfew_daemon.listener import PAUSE_FIRST, PAUSE_LONGEST, pause_after
from curfew_daemon.results import ListenerState
from curfew_store import InvalidValue, WrongType
from curfew_store.deadlines import Deadline
from curfew_store.hints import Hint, channel_of, checked_horizon, parsed, wants_hint

NOW = datetime(2030, 1, 1, tzinfo=UTC)
RUN = UUID("6f0c5c5e-0000-4000-8000-00000000000a")


# What is on the wire


def test_a_payload_is_a_deadline_and_a_run() -> None:
    """Seconds of the Unix epoch to the microsecond, and the id."""
    assert parsed(f"1893456000.000001 {RUN}") == Hint(NOW + timedelta(microseconds=1), RUN)
    assert parsed(f"-1.5 {RUN}") == Hint(datetime(1969, 12, 31, 23, 59, 58, 500000, tzinfo=UTC), RUN)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "probe 17",
        "1893456000",
        "1893456000 order-17",
        f"soon {RUN}",
        f"nan {RUN}",
        f"Infinity {RUN}",
        f"1e300 {RUN}",
        f"1893456000 {RUN} {RUN} {RUN}",
        f"1893456000 {RUN}" + "0" * 8000,
    ],
    ids=lambda payload: payload[:30],
)
def test_whatever_else_is_sent_is_no_hint(payload: str) -> None:
    """Anybody may notify on the channel; nonsense is told apart and raises nothing."""
    assert parsed(payload) is None


def test_a_payload_has_eighty_characters_at_most() -> None:
    """Zeros before a number are no nonsense by themselves; so many that they do not fit are."""
    fits = f"{'0' * 33}1893456000 {RUN}"
    assert len(fits) == 80
    assert parsed(fits) == Hint(NOW, RUN)
    assert parsed("0" + fits) is None


@pytest.mark.parametrize(
    ("horizon", "seconds"),
    [
        (None, None),
        (timedelta(microseconds=1), 1e-06),
        (timedelta(seconds=1), 1.0),
        (timedelta(minutes=1), 60.0),
    ],
)
def test_horizons_that_are_accepted(horizon: timedelta | None, seconds: float | None) -> None:
    """None sends no hints; else any duration up to a minute."""
    assert checked_horizon(horizon) == seconds


@pytest.mark.parametrize(
    "horizon",
    [timedelta(0), -timedelta(microseconds=1), -timedelta(days=1), timedelta(minutes=1, microseconds=1), timedelta.max],
)
def test_horizons_that_are_refused(horizon: timedelta) -> None:
    """A horizon is positive and a minute at most; the message says so and repeats what was given."""
    with pytest.raises(InvalidValue, match="must be positive and at most 0:01:00, got") as raised:
        checked_horizon(horizon)
    assert raised.value.parameter == "notify_within"


@pytest.mark.parametrize("horizon", [1, 1.0, "1s", True])
def test_a_horizon_is_a_duration(horizon: Any) -> None:
    """A number does not say what its unit is."""
    with pytest.raises(WrongType, match=r"notify_within: expected a datetime\.timedelta or None"):
        checked_horizon(horizon)


@pytest.mark.contract("V-4")
def test_the_channel_is_named_after_the_schema() -> None:
    """Readable where it fits into the 63 bytes of a name, a digest where it does not; never two schemas on one."""
    assert channel_of("public") == "curfew.public"
    assert channel_of("s" * 56) == "curfew." + "s" * 56
    long = channel_of("s" * 57), channel_of("s" * 58), channel_of("\u00e9" * 29)
    assert all(len(name.encode()) == 47 for name in long)
    assert len(set(long)) == 3


@pytest.mark.contract("V-1")
def test_only_what_may_be_near_asks_the_database() -> None:
    """A time from now is compared at once, and beyond the horizon the statement is the ordinary one."""
    assert [wants_hint(Deadline(after=after), 1.0) for after in (0.2, 1.0, 1.1)] == [True, True, False]
    assert wants_hint(Deadline(at=NOW), 1.0)
    assert not wants_hint(Deadline(), 1.0)
    assert not wants_hint(Deadline(after=0.2), None)


# Which of them count


class Bench:
    """Hints on a clock that stands still at 100, where the database says `NOW`; the next sweep is at *planned*."""

    def __init__(self, planned: float = 101.0) -> None:
        self.clock = 100.0
        self.hints = Hints(lambda: self.clock)
        self.hints.sweep_begins()
        self.hints.sweep_ended(planned, (NOW, 100.0))

    def heard(self, seconds: float, *, slack: float = 0.0) -> bool:
        return self.hints.heard(Hint(NOW + timedelta(seconds=seconds), uuid4()), slack)

    @property
    def at(self) -> float | None:
        return None if self.hints.earliest is None else self.hints.earliest.at


def test_a_hint_brings_the_sweep_forward_to_its_deadline() -> None:
    """It counts from when the database's clock was asked, and is for the run that it names."""
    bench = Bench()
    bench.clock = 100.1
    hint = Hint(NOW + timedelta(seconds=0.25), RUN)
    assert bench.hints.heard(hint, 0.0)
    planned = bench.hints.earliest
    assert planned is not None
    assert (planned.at, planned.hint, planned.early) == (100.25, hint, True)


def test_a_hint_of_what_the_planned_sweep_meets_changes_nothing() -> None:
    """That sweep looks ahead from there."""
    bench = Bench(planned=100.2)
    assert not bench.heard(0.2)
    assert not bench.heard(5.0)
    assert bench.at is None


def test_of_many_the_earliest_is_kept() -> None:
    """A burst is one sweep: only what is earlier than all before it counts."""
    bench = Bench()
    sooner = [bench.heard(0.9 - 0.0001 * (n % 100)) for n in range(10_000)]
    assert sum(sooner) == 100
    assert bench.at == pytest.approx(100.9 - 0.0099)


def test_a_standby_adds_its_slack_and_a_lazy_one_sleeps_on() -> None:
    """Whoever is faster has that long; where that is after the next poll, the hint is not needed."""
    bench = Bench()
    assert bench.heard(0.2, slack=0.1)
    assert bench.at == pytest.approx(100.3)
    assert not Bench().heard(0.2, slack=0.9)


def test_a_deadline_that_has_passed_is_swept_for_at_once_but_for_a_gap() -> None:
    """After the end of a sweep there is a least time, so that nobody can make a daemon spin."""
    bench = Bench()
    assert bench.heard(-5.0)
    assert bench.at == 100.0 + GAP
    assert bench.hints.earliest is not None
    assert not bench.hints.earliest.early


def test_what_is_heard_before_a_sweep_is_seen_by_it_and_what_comes_during_it_is_kept() -> None:
    """The sweep's look may have been before the commit of the second."""
    bench = Bench()
    assert bench.heard(0.5)
    bench.hints.sweep_begins()
    assert bench.at is None
    assert bench.hints.sweep_at == math.inf
    assert bench.heard(0.7)
    bench.hints.sweep_ended(100.9, (NOW, 100.0))
    assert bench.at == pytest.approx(100.7)


def test_what_came_during_a_sweep_is_forgotten_if_the_next_one_meets_it() -> None:
    """The look of that sweep has found an earlier deadline."""
    bench = Bench()
    bench.hints.sweep_begins()
    assert bench.heard(0.7)
    bench.hints.sweep_ended(100.6, (NOW, 100.0))
    assert bench.at is None


def test_no_hint_shortens_the_pause_after_a_failure() -> None:
    """While the database refuses, its clients keep to the pace of their retries; a good sweep ends that."""
    bench = Bench()
    assert bench.heard(0.5)
    bench.hints.sweep_failed()
    assert bench.at is None
    assert not bench.heard(-5.0)
    bench.hints.sweep_ended(101.0, None)
    assert bench.heard(0.5)


def test_before_the_first_sweep_there_is_nothing_to_bring_forward() -> None:
    """It comes at once anyway, and nothing is known of the database's clock."""
    hints = Hints()
    assert not hints.heard(Hint(NOW, RUN), 0.0)
    hints.sweep_begins()
    assert not hints.heard(Hint(NOW, RUN), 0.0)


# When it connects again


def test_pauses_double_up_to_their_bound_and_are_jittered() -> None:
    """From half a second on; a silent channel is tried less and less often."""
    for state, longest in PAUSE_LONGEST.items():
        bounds = [pause_after(n, state, 1.0) for n in range(1, 40)]
        assert bounds[:3] == [PAUSE_FIRST, 2 * PAUSE_FIRST, 4 * PAUSE_FIRST]
        assert bounds[-1] == max(bounds) == longest
        assert [pause_after(n, state, 0.0) for n in range(1, 40)] == [bound / 2 for bound in bounds]
    assert PAUSE_LONGEST[ListenerState.SILENT] > PAUSE_LONGEST[ListenerState.UNREACHABLE]


# When a poll is spared


def test_a_sweep_that_is_put_off_counts_from_its_new_moment() -> None:
    """A hint for the time between is heeded; one for after it is left to the look ahead."""
    bench = Bench(planned=101.0)
    assert bench.hints.postponed(102.0, asked=100.0)
    assert bench.hints.sweep_at == 102.0
    assert not bench.hints.heard(Hint(NOW + timedelta(seconds=2.1), RUN), 0.0)
    assert bench.hints.heard(Hint(NOW + timedelta(seconds=1.5), RUN), 0.0)


def test_no_sweep_is_put_off_behind_a_hint() -> None:
    """Neither behind one that waits, nor after one which the look that found nothing may not have seen."""
    bench = Bench(planned=101.0)
    bench.clock = 100.2
    assert not bench.hints.heard(Hint(NOW + timedelta(seconds=1.5), RUN), 0.0)
    assert not bench.hints.postponed(102.0, asked=100.2)
    assert bench.hints.sweep_at == 101.0
    assert bench.hints.postponed(102.0, asked=100.3)
    assert bench.hints.heard(Hint(NOW + timedelta(seconds=1.5), RUN), 0.0)
    bench.clock = 100.4
    assert not bench.hints.postponed(102.5, asked=100.5)


def test_neither_a_sweep_in_hand_nor_a_pause_after_a_failure_is_put_off() -> None:
    """There is no planned moment then."""
    bench = Bench()
    bench.hints.sweep_begins()
    assert not bench.hints.postponed(200.0, asked=150.0)
    bench.hints.sweep_failed()
    assert not bench.hints.postponed(200.0, asked=150.0)


def test_a_sweep_is_never_brought_forward_by_being_put_off() -> None:
    """The later of the two moments counts."""
    bench = Bench(planned=101.0)
    assert bench.hints.postponed(100.5, asked=100.1)
    assert bench.hints.sweep_at == 101.0
