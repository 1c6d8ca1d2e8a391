"""What holds of a fleet in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.simulation import page
from tests.simulation.daemon import Habits
from tests.simulation.database import Costs, Spell
from tests.simulation.fleet import Experiment, Load, Outcome, run
from tests.simulation.table import ArmedRuns, DatabaseClock

POLL = 1.0
SLACK = 0.05
"""What statements and a database of two cores may add to a lag."""


def marked_all(outcome: Outcome) -> bool:
    return len(outcome.lags) == outcome.expected > 0


@pytest.mark.parametrize("rate", [100, 1000, 4000])
def test_ten_daemons_cost_less_than_one_and_a_half(rate: int) -> None:
    """Statements per deadline, the polls of nine standbys included."""
    experiment = Experiment("one", 1, Load(rate), seconds=1000 / rate + 1, settle=2.0)
    one = run(experiment, 1)
    ten = run(replace(experiment, name="ten", daemons=10), 1)
    assert marked_all(one)
    assert marked_all(ten)
    assert ten.per_deadline < 1.5 * one.per_deadline
    assert ten.lag(0.99) < 2 * one.lag(0.99) + 0.005


@pytest.mark.parametrize("daemons", [2, 10])
@pytest.mark.parametrize("seed", [1, 2])
def test_failover_costs_at_most_a_poll_interval(daemons: int, seed: int) -> None:
    """The active daemon is killed, and again its successor; afterwards one leads again."""
    kills = (7.0,) if daemons == 2 else (7.0, 9.5)
    outcome = run(Experiment("kills", daemons, Load(100), seconds=7.0, settle=6.0, kills=kills), seed)
    assert marked_all(outcome)
    assert outcome.lag(1.0) <= POLL + SLACK
    after = [lag for could, lag in outcome.tally.lags if could > kills[-1] + 2 * POLL]
    assert max(after) < SLACK
    assert outcome.slacks.count(0.0) == 1


def test_no_daemon_starves_when_one_is_not_enough() -> None:
    """Where a single daemon falls behind for ever, a second and a third join it and the lag stays bounded."""
    costs = Costs(look=0.02, claim=0.1, mark=0.001, commit=0.01, cores=8)
    habits = Habits(batch_size=100)
    experiment = Experiment("behind", 1, Load(1000), seconds=5.0, settle=3.0, costs=costs, habits=habits)
    alone = run(experiment, 1)
    three = run(replace(experiment, daemons=3), 1)
    assert not marked_all(alone)
    assert marked_all(three)
    assert three.lag(1.0) < POLL
    assert len(three.tally.by_daemon) == 3
    assert min(three.tally.by_daemon.values()) > 0.1 * len(three.lags)


@pytest.mark.parametrize("step", [-3.0, 3.0, 3600.0])
def test_a_step_of_the_databases_clock_does_no_harm(step: float) -> None:
    """Forward, what becomes due is drained at once; back, every run is on time by the clock as it then is."""
    outcome = run(Experiment("step", 3, Load(100), seconds=6.5, settle=4.0, steps=((5.0, step),)), 1)
    assert marked_all(outcome)
    assert outcome.lag(1.0) < SLACK


def test_after_an_outage_a_fleet_comes_back_on_time() -> None:
    """Three seconds down: what is overdue is marked within the longest pause, and then one daemon leads again."""
    outcome = run(Experiment("outage", 10, Load(100), seconds=8.0, settle=5.0, spells=(Spell(6.0, 9.0, down=True),)), 1)
    assert marked_all(outcome)
    assert outcome.lag(1.0) <= POLL + SLACK
    assert outcome.slacks.count(0.0) == 1


def test_late_commits_and_locked_rows_do_not_wake_the_fleet() -> None:
    """They tell nothing of other daemons, so standbys stay lazy; each such run is marked within two seconds."""
    quiet = run(Experiment("quiet", 10, Load(100), seconds=5.0, settle=6.0), 1)
    late = run(Experiment("late", 10, Load(100, late=0.1), seconds=5.0, settle=6.0), 1)
    assert marked_all(late)
    assert late.lag(1.0) < 2.0
    assert late.per_deadline < 1.5 * quiet.per_deadline
    held = Load(100, held=0.02)
    one, ten = (run(Experiment("held", daemons, held, seconds=5.0, settle=6.0), 1) for daemons in (1, 10))
    assert ten.lag(1.0) < 2.0
    assert ten.per_deadline < 1.5 * one.per_deadline


def test_a_slow_spell_delays_by_its_own_length() -> None:
    """Commits that stall for half a second are waited out; nobody marks twice, nobody forgets."""
    spells = (Spell(6.0, 6.5, factor=4.0, stall=0.5),)
    outcome = run(Experiment("stall", 10, Load(100), seconds=4.0, settle=5.0, spells=spells), 1)
    assert marked_all(outcome)
    assert outcome.lag(1.0) < 0.5 + 0.5 + 2 * SLACK


def test_the_same_seed_tells_the_same_story() -> None:
    """To the last digit; another seed tells another."""
    experiment = Experiment("seeds", 3, Load(50), seconds=2.0, settle=3.0)
    first, again, other = (run(experiment, seed) for seed in (1, 1, 2))
    assert (first.lags, first.statements) == (again.lags, again.statements)
    assert first.lags != other.lags


def test_an_idle_fleet_asks_once_per_poll_interval_each() -> None:
    """No deadline in ten seconds: ten statements of each daemon, and none of them a claim."""
    outcome = run(Experiment("idle", 7, Load(0), seconds=10.0, settle=2.0), 1)
    assert 7 * 9 <= outcome.statements <= 7 * 11
    assert outcome.tally.claims == 0
    assert math.isnan(outcome.lag(0.5))


# The model itself


def test_a_locked_row_is_passed_over_and_seen_by_a_look() -> None:
    """As SKIP LOCKED and a plain SELECT do."""
    runs = ArmedRuns()
    for number in range(4):
        runs.arm((float(number), number))
    first = runs.lock_due(2.5, 2.5, 2, None)
    assert first == [(0.0, 0), (1.0, 1)]
    assert runs.lock_due(2.5, 2.5, 2, None) == [(2.0, 2)]
    assert runs.edges(2.5, None) == ((0.0, 0), (3.0, 3))
    runs.release(first, marked=True)
    assert runs.edges(2.5, None) == ((2.0, 2), (3.0, 3))
    assert runs.edges(2.5, 2.4) == (None, (3.0, 3))


def test_a_run_armed_behind_others_takes_its_place_in_the_index() -> None:
    """A deadline in the past is the first of all, also where everything before has been marked."""
    runs = ArmedRuns()
    runs.arm((5.0, 0))
    runs.release(runs.lock_due(6.0, 6.0, 9, None), marked=True)
    runs.arm((7.0, 1))
    runs.arm((1.0, 2))
    assert runs.edges(6.0, None) == ((1.0, 2), (7.0, 1))
    assert runs.lock_due(6.0, 6.0, 9, (2.0, -1)) == []


@pytest.mark.parametrize(
    ("deadline", "moment", "since"),
    [(5.0, 8.0, 5.0), (9.0, 12.5, 12.0), (5.0, 12.0, 5.0), (11.0, 15.0, 14.0), (20.0, 30.0, 23.0)],
)
def test_a_step_back_makes_due_what_was_due_already_only_later(deadline: float, moment: float, since: float) -> None:
    """A clock that goes three seconds back at ten: what was due before may have to become due again."""
    assert DatabaseClock([(10.0, -3.0)]).due_since(deadline, moment) == since


def test_a_step_forward_makes_due_what_it_jumped_over() -> None:
    """From the moment of the step, not from the deadline."""
    clock = DatabaseClock([(10.0, 3.0)])
    assert clock.at(9.0) == 9.0
    assert clock.at(10.0) == 13.0
    assert clock.due_since(12.0, 11.0) == 10.0
    assert clock.due_since(14.0, 11.5) == 11.0


def test_the_page_shows_what_the_command_shows() -> None:
    """A part of the table, run again; `python -m tests.simulation --write` brings the page up to date."""
    shown = page.shown_table()
    for row in page.SAMPLED:
        assert page.line(row, run(row, page.SEED)) in shown, row.name
