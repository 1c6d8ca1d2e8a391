"""When to sweep next: the rules one by one, what holds for every input, and a simulated day."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curfew_daemon.metrics import WAKE_REASONS
from curfew_daemon.wake import BLOCKED_FIRST, PATIENCE, RETRY_FIRST, SLACK_FIRST, Pace, Seen, Wake, observer_pause

POLL = 1.0

durations = st.floats(min_value=0, max_value=1e9, allow_nan=False)
polls = st.floats(min_value=0.01, max_value=10)
counts = st.integers(min_value=0, max_value=10_000)
paces = st.builds(Pace, blocked=counts, failures=counts)


def after_sweep(
    pace: Pace | None = None,
    *,
    marked: int = 0,
    overdue: bool = False,
    next_due_in: float | None = None,
    overdue_age: float = 0.0,
    known_lag: float | None = None,
    beaten: bool = False,
    full_look_in: float | None = None,
) -> tuple[Pace, Wake]:
    seen = Seen(
        marked=marked,
        overdue_remains=overdue,
        next_due_in=next_due_in,
        overdue_age=overdue_age,
        known_lag=known_lag,
        beaten=beaten,
        full_look_in=full_look_in,
    )
    return (pace or Pace()).after_sweep(seen, poll_interval=POLL)


# The rules


def test_with_nothing_ahead_it_polls() -> None:
    """No deadline armed: one poll interval, and nothing is remembered."""
    assert after_sweep() == (Pace(), Wake(POLL, "poll"))


def test_a_deadline_within_the_poll_interval_is_slept_for_exactly() -> None:
    """The next deadline decides when it comes before the poll."""
    assert after_sweep(next_due_in=0.25) == (Pace(), Wake(0.25, "deadline"))


def test_a_full_look_that_is_due_before_the_poll_is_waited_for() -> None:
    """Where full looks are expensive they keep a period of their own, which the poll does not stretch."""
    assert after_sweep(full_look_in=0.4)[1] == Wake(0.4, "poll")
    assert after_sweep(full_look_in=1.4)[1] == Wake(POLL, "poll")


# The slack of a standby


def test_a_beaten_daemon_becomes_lazier_up_to_the_poll_interval() -> None:
    """Each deadline that another met doubles the slack; the next one is slept for so much longer."""
    pace, slacks = Pace(), []
    for _ in range(12):
        pace, wake = after_sweep(pace, beaten=True, next_due_in=0.1)
        slacks.append(pace.slack)
        assert wake == (Wake(0.1 + pace.slack, "deadline") if 0.1 + pace.slack <= POLL else Wake(POLL, "poll"))
    assert slacks[:4] == [SLACK_FIRST, 2 * SLACK_FIRST, 4 * SLACK_FIRST, 8 * SLACK_FIRST]
    assert slacks[-1] == POLL


def test_a_deadline_that_was_disarmed_says_nothing_about_others() -> None:
    """Nothing marked and nothing beaten leaves the slack alone."""
    assert after_sweep(Pace(slack=0.08))[0].slack == 0.08
    assert after_sweep(Pace())[0].slack == 0.0


def test_a_standby_leaves_a_run_alone_that_is_overdue_just_now_and_comes_back() -> None:
    """Within its patience a run belongs to a faster daemon; it is looked at when the slack is over."""
    pace, wake = after_sweep(Pace(slack=0.5), overdue=True, overdue_age=PATIENCE / 2, next_due_in=3.0)
    assert (pace, wake) == (Pace(slack=0.5), Wake(0.5 - PATIENCE / 2, "deadline"))


def test_patience_is_the_slack_up_to_a_bound() -> None:
    """However lazy a standby has become, a run that is overdue for longer than the bound is everybody's."""
    assert Pace(slack=PATIENCE / 2).patience == PATIENCE / 2
    assert Pace(slack=1.0).patience == PATIENCE
    assert after_sweep(Pace(slack=1.0), overdue=True, overdue_age=PATIENCE)[1] == Wake(BLOCKED_FIRST, "blocked")


def test_a_run_overdue_by_more_than_the_patience_makes_the_standby_the_active_one() -> None:
    """Whoever was faster is gone; the next deadline is slept for to the point."""
    assert after_sweep(Pace(slack=0.05), marked=1, known_lag=0.051)[0].slack == 0.0
    pace, _ = after_sweep(Pace(slack=0.5), marked=1, known_lag=PATIENCE + 0.01)
    assert pace.slack == 0.0
    assert after_sweep(pace, next_due_in=0.2)[1] == Wake(0.2, "deadline")


def test_marking_within_the_slack_keeps_it() -> None:
    """A standby that happened to mark a run in time has learned nothing about the others."""
    assert after_sweep(Pace(slack=0.5), marked=1, known_lag=PATIENCE)[0].slack == 0.5


def test_of_daemons_that_all_mark_the_beaten_ones_grow_lazy() -> None:
    """Under load everybody marks something, a little late; that must not keep a whole fleet awake."""
    assert after_sweep(Pace(), marked=3, known_lag=0.002, beaten=True)[0].slack == SLACK_FIRST
    assert after_sweep(Pace(slack=0.02), marked=3, known_lag=0.03, beaten=True)[0].slack == 0.04


def test_standbys_that_share_the_work_out_by_polling_do_not_stay_standbys() -> None:
    """Each finds its expected run marked by another poller, and the runs that it marks late."""
    assert after_sweep(Pace(slack=1.0), marked=30, known_lag=0.4, beaten=True)[0].slack == 0.0


def test_a_far_deadline_does_not_postpone_the_poll() -> None:
    """A deadline behind the poll interval changes nothing: another may be configured meanwhile."""
    assert after_sweep(next_due_in=3600.0)[1] == Wake(POLL, "poll")


def test_a_deadline_at_the_very_poll_is_called_a_deadline() -> None:
    """Of two equal waits the one with something due is named, so that the claim is sent at once."""
    assert after_sweep(next_due_in=POLL)[1] == Wake(POLL, "deadline")


def test_a_deadline_that_passed_during_the_sweep_is_due_now() -> None:
    """A duration below zero is no wait at all."""
    assert after_sweep(next_due_in=-0.003)[1] == Wake(0.0, "deadline")


def test_more_due_after_marking_is_swept_at_once() -> None:
    """What became due during a drain is not made to wait, and the next deadline does not matter."""
    assert after_sweep(marked=7, overdue=True, next_due_in=0.5) == (Pace(), Wake(0.0, "more"))


def test_marking_ends_a_blocked_spell() -> None:
    """After progress the delays of a blocked sweep begin anew."""
    pace, _ = after_sweep(Pace(blocked=9), marked=1, overdue=True)
    assert after_sweep(pace, overdue=True)[1] == Wake(BLOCKED_FIRST, "blocked")


def test_held_rows_are_looked_at_less_and_less_often() -> None:
    """The delays double from the first up to the poll interval, and then it is a poll."""
    pace, wakes = Pace(), []
    for _ in range(12):
        pace, wake = after_sweep(pace, overdue=True)
        wakes.append(wake)

    doubling = [BLOCKED_FIRST * 2**n for n in range(8)]
    assert wakes == [*(Wake(delay, "blocked") for delay in doubling), *[Wake(POLL, "poll")] * 4]


def test_held_rows_do_not_hide_the_next_deadline() -> None:
    """A deadline that comes before the next look at the held rows is met."""
    assert after_sweep(Pace(blocked=6), overdue=True, next_due_in=0.1)[1] == Wake(0.1, "deadline")


def test_a_blocked_spell_ends_when_nothing_is_overdue() -> None:
    """Once the holders are gone the next spell starts with the shortest delay."""
    assert after_sweep(Pace(blocked=9))[0] == Pace()


def test_the_first_sweep_that_succeeds_ends_the_failures() -> None:
    """The delays after failures begin anew at the next outage."""
    assert after_sweep(Pace(failures=20))[0] == Pace()


def test_delays_after_failures_double_up_to_the_longest() -> None:
    """With chance at its highest the delays are the bounds themselves."""
    pace, delays = Pace(), []
    for _ in range(6):
        pace, wake = pace.after_failure(longest=1.0, chance=1.0)
        assert wake.reason == "retry"
        delays.append(wake.delay)

    assert delays == pytest.approx([RETRY_FIRST, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_a_failure_keeps_a_blocked_spell_in_mind() -> None:
    """An outage in between does not make the sweep hammer at rows that are held."""
    assert Pace(blocked=4).after_failure(longest=1.0, chance=0.5)[0] == Pace(blocked=4, failures=1)


# What always holds


@given(pace=paces, marked=counts, overdue=st.booleans(), next_due_in=st.none() | durations, poll=polls)
def test_a_delay_is_never_negative_and_never_beyond_the_poll_interval(
    pace: Pace, marked: int, overdue: bool, next_due_in: float | None, poll: float
) -> None:
    """Whatever a sweep found, the next comes within a poll interval, for a reason that the metrics know."""
    _, wake = pace.after_sweep(
        Seen(marked=marked, overdue_remains=overdue, next_due_in=next_due_in), poll_interval=poll
    )
    assert 0 <= wake.delay <= poll
    assert wake.reason in WAKE_REASONS


@given(pace=paces, marked=counts, overdue=st.booleans(), poll=polls, share=st.floats(min_value=0, max_value=1))
def test_a_deadline_within_the_poll_interval_is_never_overslept(
    pace: Pace, marked: int, overdue: bool, poll: float, share: float
) -> None:
    """The daemon is awake when the deadline comes, also while rows are held or more is due."""
    _, wake = pace.after_sweep(
        Seen(marked=marked, overdue_remains=overdue, next_due_in=poll * share), poll_interval=poll
    )
    assert wake.delay <= poll * share


@given(blocked=counts, poll=polls)
def test_held_rows_never_make_it_spin(blocked: int, poll: float) -> None:
    """A sweep that is blocked waits at least the first delay, or a poll interval that is shorter."""
    _, wake = Pace(blocked=blocked).after_sweep(
        Seen(marked=0, overdue_remains=True, next_due_in=None), poll_interval=poll
    )
    assert min(BLOCKED_FIRST, poll) <= wake.delay <= poll


@given(
    failures=counts,
    longest=st.floats(min_value=0.1, max_value=10),
    chance=st.floats(min_value=0, max_value=1),
)
def test_a_retry_waits_between_half_and_all_of_its_bound(failures: int, longest: float, chance: float) -> None:
    """However often it failed, the delay is a part of a bound that never exceeds the longest."""
    after, wake = Pace(failures=failures).after_failure(longest=longest, chance=chance)

    bound = min(longest, RETRY_FIRST * 2 ** min(failures, 30))
    assert bound / 2 <= wake.delay <= bound <= longest
    assert after.failures == failures + 1


# A simulated day


@dataclass
class World:
    """Deadlines, configured at some moment; some rows are held by others until a later one."""

    arrivals: list[tuple[float, float, float]]  # configured at, deadline, held until
    round_trip: float = 0.001
    now: float = 0.0
    statements: int = 0
    lateness: dict[int, float] = field(default_factory=dict)

    def open(self) -> list[int]:
        """The runs that exist and are not marked."""
        return [n for n, (at, _, _) in enumerate(self.arrivals) if at <= self.now and n not in self.lateness]

    def claim(self) -> int:
        self._ask()
        due = [n for n in self.open() if self.arrivals[n][1] <= self.now and self.arrivals[n][2] <= self.now]
        for n in due:
            # From the moment at which somebody could have marked it.
            self.lateness[n] = self.now - max(self.arrivals[n][1], self.arrivals[n][2])
        return len(due)

    def look_ahead(self) -> tuple[float | None, bool]:
        self._ask()
        times = [self.arrivals[n][1] for n in self.open()]
        return min((time - self.now for time in times if time > self.now), default=None), any(
            time <= self.now for time in times
        )

    def _ask(self) -> None:
        self.now += self.round_trip
        self.statements += 1


def simulate(world: World, until: float) -> None:
    """One daemon as `Sweeper` and `Enforcer` make it: claim when something is due, look ahead, wait."""
    pace, wake = Pace(), Wake(0.0, "start")
    known: float | None = None  # the next deadline that the last look knew of
    while world.now < until:
        marked, due = 0, wake.reason in {"deadline", "more"}
        if not due:
            next_due_in, due = world.look_ahead()
            known = None if next_due_in is None else world.now + next_due_in
        while due:
            marked = world.claim()
            next_due_in, due = world.look_ahead()
            known, before = None if next_due_in is None else world.now + next_due_in, known
            if marked or before is None or before > world.now:
                break
        pace, wake = pace.after_sweep(
            Seen(marked=marked, overdue_remains=due, next_due_in=next_due_in), poll_interval=POLL
        )
        world.now += wake.delay


@pytest.mark.parametrize("seed", range(5))
def test_deadlines_configured_a_poll_interval_ahead_are_met_within_milliseconds(seed: int) -> None:
    """500 deadlines in 300 s: none is later than four round trips; the rate of statements stays in proportion."""
    chance = random.Random(seed)
    arrivals = []
    for _ in range(500):
        deadline = chance.uniform(5, 300)
        arrivals.append((deadline - chance.uniform(POLL + 0.01, 5), deadline, 0.0))
    world = World(arrivals)

    simulate(world, until=302)

    assert len(world.lateness) == 500
    assert max(world.lateness.values()) <= 4 * world.round_trip
    assert world.statements <= 300 / POLL + 2 * 500 + 10


@pytest.mark.parametrize("seed", range(5))
def test_deadlines_set_at_short_notice_are_met_within_a_poll_interval(seed: int) -> None:
    """Configured at the last moment or after it, a run waits for the poll at most."""
    chance = random.Random(seed)
    arrivals = []
    for _ in range(200):
        at = chance.uniform(0, 300)
        arrivals.append((at, at + chance.uniform(0, 0.9), 0.0))
    world = World(arrivals)

    simulate(world, until=303)

    assert len(world.lateness) == 200
    assert max(world.lateness.values()) <= POLL + 4 * world.round_trip


@pytest.mark.parametrize("seed", range(5))
def test_held_rows_neither_delay_others_nor_cost_a_storm(seed: int) -> None:
    """Rows held up to 30 s past their deadline: others stay on time, they follow within a poll interval."""
    chance = random.Random(seed)
    arrivals = []
    for n in range(200):
        deadline = chance.uniform(5, 200)
        held_until = deadline + chance.uniform(0.1, 30) if n % 4 == 0 else 0.0
        arrivals.append((deadline - 3, deadline, held_until))
    world = World(arrivals)

    simulate(world, until=240)

    free = [world.lateness[n] for n in range(200) if n % 4]
    held = [world.lateness[n] for n in range(200) if n % 4 == 0]
    assert max(free) <= 6 * world.round_trip
    assert max(held) <= POLL + 6 * world.round_trip
    # Each mark may start a new spell of doubling delays: eight looks of three statements at most.
    assert world.statements <= 240 / POLL * 3 + 200 * 8 * 3


def test_an_idle_daemon_costs_one_statement_per_poll_interval() -> None:
    """With nothing armed for an hour it asks 3,600 times, not more."""
    world = World([])
    simulate(world, until=3600)
    assert world.statements <= 3601


def test_a_database_that_is_down_is_not_asked_more_than_a_few_times_a_second() -> None:
    """Through an outage of ten minutes at most two attempts a second are made, and at least one per second."""
    chance, pace, now = random.Random(1), Pace(), 0.0
    attempts = 0
    while now <= 600:
        attempts += 1
        pace, wake = pace.after_failure(longest=1.0, chance=chance.random())
        now += wake.delay
    assert 600 <= attempts <= 1210


def test_the_first_delays_of_each_kind() -> None:
    """What a fleet on a real database was measured with: 5 ms, 100 ms and a tenth of a second."""
    assert after_sweep(overdue=True, overdue_age=1.0)[1] == Wake(0.005, "blocked")
    assert after_sweep(beaten=True)[0].slack == 0.005
    assert Pace().after_failure(longest=60.0, chance=1.0)[1] == Wake(0.1, "retry")
    assert Pace(slack=7.0).patience == 0.1


def test_half_of_a_bound_is_not_left_to_chance() -> None:
    """With chance at its lowest a retry waits for half of it."""
    assert Pace().after_failure(longest=60.0, chance=0.0)[1].delay == 0.05
    assert Pace(failures=3).after_failure(longest=60.0, chance=0.0)[1].delay == 0.4


def test_doubling_ends_before_numbers_do() -> None:
    """After a year of failures the bound is still a number, and the longest."""
    for failures in (30, 31, 100_000):
        assert Pace(failures=failures).after_failure(longest=60.0, chance=1.0)[1].delay == 60.0
    ahead = Pace(failures=100_000).after_failure(longest=1e12, chance=1.0)[1].delay
    assert ahead == 0.1 * 2**30


def test_a_run_overdue_for_all_of_the_patience_is_not_left_alone() -> None:
    """It is looked at as one that somebody holds."""
    assert after_sweep(Pace(slack=0.05), overdue=True, overdue_age=0.05)[1].reason == "blocked"
    assert after_sweep(Pace(slack=0.5), overdue=True, overdue_age=PATIENCE)[1].reason == "blocked"
    left = after_sweep(Pace(slack=0.05), overdue=True, overdue_age=0.02)[1]
    assert left.reason == "deadline"
    assert left.delay == pytest.approx(0.03)


def test_a_lag_at_the_edge_keeps_the_slack() -> None:
    """Only more than the slack, or than the patience, gives it up."""
    assert after_sweep(Pace(slack=0.05), marked=1, known_lag=0.05)[0].slack == 0.05
    assert after_sweep(Pace(slack=0.05), marked=1, known_lag=PATIENCE, beaten=True)[0].slack == 0.1
    assert after_sweep(Pace(slack=0.05), marked=1, known_lag=0.11, beaten=True)[0].slack == 0.0


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 0.0), (0.5, 10.0), (1.0, 20.0)])
def test_the_observer_comes_within_twice_the_spread(chance: float, pause: float) -> None:
    """At a random moment of it, since its attempts come on top of the sweeps'."""
    assert observer_pause(10.0, chance) == pause


def test_what_is_overdue_just_now_has_no_age() -> None:
    """Nor is anything else seen that is not said."""
    assert Seen() == Seen(0, False, None, 0.0, None, False, None)
    assert Pace(slack=0.05).after_sweep(Seen(overdue_remains=True), poll_interval=POLL)[1] == Wake(0.05, "deadline")
