"""The pictures and the words of the page: every mark inside its plot, every number readable."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from curfew_daemon.status import charts, wording
from curfew_daemon.status.history import Lags, Minute
from curfew_store.status_queries import DueMinute

NOTHING = Minute(0, Lags(None, None, None))
HOUR = 3600.0


def plain(text: str) -> str:
    """A text with ordinary spaces."""
    return text.replace("\u202f", " ")


def minute(median: float, greatest: float, marked: int = 1) -> Minute:
    """A minute in which runs were marked."""
    return Minute(marked, Lags(median, greatest, greatest))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1.0, "0.0 ms"), (0.0, "0.0 ms"), (0.00184, "1.8 ms"), (0.00996, "10 ms"), (0.182, "182 ms"),
        (0.9994, "999 ms"), (0.9996, "1.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (59.94, "60 s"), (59.96, "1 min"),
        (252.0, "4 min 12 s"), (3599.6, "1 h"), (12_000.0, "3 h 20 min"), (90_000.0, "1 d 1 h"),
        (400 * 86400.0, "400 d"), (100 * 365.25 * 86400, "over 100 years"),
    ],
)  # fmt: skip
def test_durations_are_words(seconds: float, words: str) -> None:
    """Two digits or more below a minute, two units at most above, and nothing beyond a person's grasp."""
    assert plain(wording.duration(seconds)) == words


def test_ages_are_whole_seconds() -> None:
    """What ticks each second shows no fractions."""
    assert [plain(wording.ago(each)) for each in (0.9, 1.9, 75.0)] == ["just now", "1 s ago", "1 min 15 s ago"]
    assert [plain(wording.ahead(each)) for each in (-3.0, 0.9, 2.6)] == ["now", "now", "in 2 s"]
    assert plain(wording.whole(-5)) == "0 s"


def test_counts_say_that_they_were_capped() -> None:
    """In words where there is room, by a plus where there is none."""
    assert [wording.count(10_000), wording.count(10_000, True)] == ["10,000", "more than 10,000"]
    assert [wording.brief_count(10_000), wording.brief_count(10_000, True)] == ["10,000", "10,000+"]
    assert wording.clock_time(datetime(2031, 5, 14, 9, 26, 53, 999999, tzinfo=UTC)) == "2031-05-14 09:26:53"


@pytest.mark.parametrize("greatest", [0.0, 0.0002, 0.004, 1.9, 300.0, 3e9])
def test_every_lag_is_inside_the_plot(greatest: float) -> None:
    """Whatever its size; and no two labels of the scale are on top of each other."""
    chart = charts.lags([minute(greatest / 3, greatest)] * 60, 2.0, HOUR)
    for mark in chart.marks:
        assert mark.x >= 0
        assert mark.x + mark.width <= 100
        assert 0 <= mark.y <= 100
        assert mark.height >= 0
        assert mark.y + mark.height <= 100.01
        assert mark.tick is not None
    assert chart.threshold is not None
    assert 0 < chart.threshold < 100
    heights = sorted(line.y for line in chart.grid)
    assert all(later - earlier >= 11 for earlier, later in itertools.pairwise(heights))


def test_a_late_minute_is_told_apart() -> None:
    """By its kind and by standing above the dashed line."""
    chart = charts.lags([NOTHING, minute(0.002, 0.004), minute(0.002, 5.0)], 2.0, HOUR)
    assert [mark.kind for mark in chart.marks] == ["", "late"]
    assert chart.threshold is not None
    assert chart.marks[1].y < chart.threshold < chart.marks[0].y
    assert plain(chart.marks[0].words) == "1 min ago: median 2.0 ms, greatest 4.0 ms"
    assert plain(chart.description) == "Greatest lag in the last hour: 5.0 s."


def test_counts_keep_their_proportion() -> None:
    """Twice as many stand twice as high, none leaves no mark, and one in many is still seen."""
    chart = charts.timed_out([minute(0.1, 0.1, count) for count in (10, 20, 0, 40)], HOUR)
    assert [round(mark.height / chart.marks[0].height, 1) for mark in chart.marks] == [1, 2, 4]
    assert [line.label for line in chart.grid] == ["40", "20"]
    assert chart.description == "70 in the last hour, at most 40 in a minute: this minute."
    rare = charts.timed_out([minute(0.1, 0.1, count) for count in (1, 90_000)], HOUR)
    assert rare.marks[0].height == 1.5
    assert rare.grid[0].label == "100,000"


def test_what_comes_is_told_by_the_minute() -> None:
    """The first minute begins now."""
    chart = charts.falls_due([DueMinute(4, False), DueMinute(0, False), DueMinute(9, False)])
    assert [mark.words for mark in chart.marks] == ["within a minute: 4 due", "in 2 min: 9 due"]
    assert chart.description == "13 in the next hour. At most 9 in a minute: in 2 min."
    assert charts.falls_due([DueMinute(0, False)]).description == "None in the next hour."


def test_a_minute_that_was_not_counted_to_its_end_says_so() -> None:
    """In its mark, in its kind and in the words below."""
    chart = charts.falls_due([DueMinute(1000, True), DueMinute(10, False)])
    assert [(mark.kind, mark.words) for mark in chart.marks] == [
        ("capped", "within a minute: more than 1,000 due"),
        ("", "in 1 min: 10 due"),
    ]
    assert chart.description.startswith("more than 1,010 in the next hour. 1 of the minutes hold more than 1,000 each")


@pytest.mark.parametrize(("up_for", "width"), [(0.0, 98.33), (61.0, 96.67), (3540.0, 0.0), (HOUR, 0.0)])
def test_what_lies_before_the_start_is_not_taken_for_quiet(up_for: float, width: float) -> None:
    """It is shaded, and no sentence claims an hour that nobody has seen."""
    for chart in (charts.lags([NOTHING] * 60, 2.0, up_for), charts.timed_out([NOTHING] * 60, up_for)):
        assert chart.unseen == width
        assert ("since the start" in chart.description) is (up_for < HOUR)
