"""The hour in memory: bounded, by the minute, and right about percentiles."""

from __future__ import annotations

import random
import statistics

import pytest

from curfew_daemon.status.history import MINUTES, History


def test_an_hour_without_a_mark() -> None:
    """Sixty minutes of nothing, with no lag at all rather than a lag of nought."""
    minutes = History().minutes(12_345.0)
    assert len(minutes) == MINUTES
    assert {(minute.marked, minute.lags.median, minute.lags.greatest) for minute in minutes} == {(0, None, None)}


def test_each_minute_keeps_its_own() -> None:
    """Oldest first; the running minute is the last, and a minute is sixty seconds of the clock."""
    history = History()
    history.add(600.0, 2, [0.001, 0.004])
    history.add(659.9, 1, [0.5])
    history.add(660.0, 3, [0.002] * 3)
    minutes = history.minutes(660.0)
    assert [minute.marked for minute in minutes[-3:]] == [0, 3, 3]
    assert [minute.lags.greatest for minute in minutes[-2:]] == [0.5, 0.002]


def test_what_is_older_than_an_hour_is_forgotten() -> None:
    """Neither shown nor kept, however long the daemon runs."""
    history = History()
    for minute in range(500):
        history.add(minute * 60.0, 1, [0.001])
    assert len(history._slots) == MINUTES
    assert history.total(499 * 60.0).marked == MINUTES
    assert history.total(499 * 60.0 + 30 * 60).marked == 30
    assert history.total(499 * 60.0 + 3600).marked == 0


def test_the_size_does_not_depend_on_what_is_marked() -> None:
    """A minute of ten thousand different lags holds no more than its buckets."""
    history = History()
    lags = [10 ** random.Random(place).uniform(-7, 9) for place in range(10_000)]
    history.add(0.0, len(lags), lags)
    assert len(history._slots[0].places) <= 202


@pytest.mark.parametrize("scale", [0.0005, 0.003, 0.2, 40.0, 5000.0])
def test_percentiles_are_within_six_percent(scale: float) -> None:
    """Median and 99th percentile against those of the values themselves, the greatest exact, over several minutes."""
    source = random.Random(3)
    lags = [scale * source.lognormvariate(0, 0.6) for _ in range(3000)]
    history = History()
    for minute in range(3):
        history.add(minute * 60.0, 1000, lags[minute * 1000 : (minute + 1) * 1000])
    total = history.total(120.0).lags
    assert total.median == pytest.approx(statistics.median(lags), rel=0.06)
    assert total.p99 == pytest.approx(statistics.quantiles(lags, n=100)[98], rel=0.08)
    assert total.greatest == max(lags)


def test_a_percentile_never_exceeds_the_greatest() -> None:
    """Also of lags below and beyond the buckets, of negative ones, and of a single one."""
    for lags in ([-0.5], [0.0], [0.00001], [0.001], [3e9], [0.001, 3e9]):
        history = History()
        history.add(0.0, len(lags), lags)
        found = history.total(0.0).lags
        assert found.median is not None
        assert found.p99 is not None
        assert found.greatest == max(lags)
        assert found.median <= found.p99 <= found.greatest


def test_marks_without_a_lag_count() -> None:
    """Runs whose deadline has no lag are marked all the same."""
    history = History()
    history.add(0.0, 4, [])
    assert history.total(0.0).marked == 4
    assert history.total(0.0).lags.greatest is None
