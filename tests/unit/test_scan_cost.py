"""From which cost on a full look is made less often."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from curfew_daemon.scan import LowWaterMark


@pytest.mark.parametrize(("milliseconds", "period"), [(1, 1.0), (10, 1.0), (11, 1.5), (100, 1.5)])
def test_a_full_look_of_more_than_ten_milliseconds_is_made_less_often(milliseconds: int, period: float) -> None:
    """Up to ten milliseconds it comes with every poll; beyond, every second and a half."""
    mark = LowWaterMark(lambda: 1.0, clock=lambda: 100.0)
    mark.learned(now=datetime(2030, 1, 1, tzinfo=UTC), earliest_overdue=None, full=True, duration=milliseconds / 1000)
    assert mark.period == period
