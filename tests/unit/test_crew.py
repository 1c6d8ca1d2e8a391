"""What a crew does when the machine has nothing left for it, and how far batches are narrowed; no database."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import pytest

from curfew_daemon.crew import Crew
from curfew_daemon.passes import LARGEST_BATCH, _Pace


def test_without_a_thread_left_the_sweep_goes_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is told, nothing is waited for, and the next backlog tries again."""
    told: list[Exception] = []
    nothing: Any = object()  # never reached
    crew = Crew([nothing, nothing], nothing, told.append)

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for times in (2, 4):
        crew.call(datetime.now().astimezone())
        assert [str(error) for error in told] == ["can't start new thread"] * times
        assert crew.finish(lambda: None).marked == 0


def test_a_batch_that_took_too_long_is_quartered_and_grows_again() -> None:
    """Doubled up to half of what failed, then by an eighth with each full batch; smaller ones prove nothing."""
    pace = _Pace()
    pace.in_time(500)
    assert pace.most == LARGEST_BATCH
    pace.too_slow(2000)
    assert pace.most == 500
    pace.in_time(100)
    assert pace.most == 500
    assert grown(pace, 3) == [1000, 1125, 1265]


def test_a_server_that_stood_still_is_soon_sent_whole_batches_again() -> None:
    """However many batches in a row it did not answer, a few that it does bring back half of the first."""
    pace = _Pace()
    for _ in range(10):
        pace.too_slow(min(500, pace.most))
    assert pace.most == 1
    assert grown(pace, 9) == [2, 4, 8, 16, 32, 64, 128, 250, 281]


def grown(pace: _Pace, batches: int) -> list[int]:
    """The bound after each of so many full batches."""
    bounds = []
    for _ in range(batches):
        pace.in_time(pace.most)
        bounds.append(pace.most)
    return bounds
