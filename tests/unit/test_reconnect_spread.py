"""A fleet comes back after an outage: how many connect in a second, and how soon the first one is there."""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, field

import pytest

from curfew_daemon.config import Settings
from curfew_daemon.wake import Pace, observer_pause

LARGE_FLEET = 200
RECOMMENDED = 0.06 * LARGE_FLEET
"""What the description of ``CURFEW_RECONNECT_SPREAD`` recommends."""
MOST_PER_SECOND = 50
POLL = 1.0


@dataclass
class Return:
    """What a simulated fleet did: each connect it attempted, and when each daemon could sweep again."""

    connects: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)

    @property
    def most_per_second(self) -> int:
        """The most connects within any second."""
        moments = sorted(self.connects)
        return max(bisect_right(moments, moment + 1.0) - number for number, moment in enumerate(moments))


def outage(daemons: int, lasts: float, seed: int, *, spread: float) -> Return:
    """Each daemon loses its connection at its next sweep, attempts until the database is back, then opens a second."""
    chance, result = random.Random(seed), Return()
    for _ in range(daemons):
        now, pace = chance.uniform(0, POLL), Pace()
        while True:
            pace, wake = pace.after_failure(longest=1.0, chance=chance.random(), spread=spread)
            now += wake.delay
            result.connects.append(now)
            if now >= lasts:
                break
        result.back.append(now)
        result.connects.append(now + observer_pause(spread, chance.random()))
    return result


@pytest.mark.parametrize("lasts", [0.0, 0.3, 3.0, 45.0])
def test_two_hundred_daemons_make_at_most_fifty_connects_in_any_second(lasts: float) -> None:
    """With the spread recommended for them: both connections of each, whenever in an outage one looks."""
    for seed in range(10):
        fleet = outage(LARGE_FLEET, lasts, seed, spread=RECOMMENDED)
        assert fleet.most_per_second <= MOST_PER_SECOND, seed


@pytest.mark.parametrize("lasts", [0.3, 3.0, 45.0])
def test_the_first_of_a_spread_fleet_is_back_within_a_second(lasts: float) -> None:
    """Deadlines need one daemon: the fleet attempts so often that one is back at once, and all within the spread."""
    for seed in range(10):
        fleet = outage(LARGE_FLEET, lasts, seed, spread=RECOMMENDED)
        assert min(fleet.back) - lasts < 1.0, seed
        assert max(fleet.back) - lasts <= RECOMMENDED + POLL, seed


@pytest.mark.parametrize("lasts", [0.3, 3.0, 45.0])
def test_at_the_default_each_daemon_is_back_within_a_second(lasts: float) -> None:
    """Every one of fifty has its next attempt within the longest pause, so the two seconds hold for any of them."""
    for seed in range(10):
        fleet = outage(50, lasts, seed, spread=0.0)
        assert max(fleet.back) - lasts <= POLL + 1.0 if lasts < POLL else max(fleet.back) - lasts <= 1.0, seed


def test_without_the_spread_two_hundred_would_storm() -> None:
    """The simulation sees what the setting is for: at the default the same fleet makes far more than that."""
    assert outage(LARGE_FLEET, 3.0, 1, spread=0.0).most_per_second > 3 * MOST_PER_SECOND


def test_the_first_pause_is_random_and_the_others_are_not() -> None:
    """A random phase first, then one attempt in each spread; never sooner than a lone daemon would come back."""
    first, early = Pace().after_failure(longest=1.0, chance=0.25, spread=8.0)
    assert early.delay == 2.0
    assert {first.after_failure(longest=1.0, chance=each, spread=8.0)[1].delay for each in (0.0, 0.5, 1.0)} == {8.0}
    assert Pace().after_failure(longest=1.0, chance=0.0, spread=8.0)[1].delay == 0.05


def test_the_recommendation_is_one_that_the_settings_accept() -> None:
    """Both of what the description names are values of the setting, and it says so itself."""
    assert Settings(reconnect_spread=RECOMMENDED).reconnect_spread == 12.0
    described = Settings.model_fields["reconnect_spread"].description
    assert described is not None
    assert "0.06 for each daemon" in described
