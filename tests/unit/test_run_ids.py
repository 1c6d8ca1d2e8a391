"""The run ids that the store hands out."""

from __future__ import annotations

import time
import uuid

import pytest

from curfew_store.run_ids import new_run_id

AT = 1_900_000_000_123_000_000  # nanoseconds, a whole millisecond


def at(monkeypatch: pytest.MonkeyPatch, nanoseconds: int) -> uuid.UUID:
    """An id that is handed out at a moment."""
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds)
    return new_run_id()


@pytest.mark.contract("S-5")
def test_an_id_is_of_version_7(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds in front, then version, the fraction of the millisecond in 4096ths, and the variant."""
    made = at(monkeypatch, AT + 500_000)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == AT // 1_000_000
    assert made.int >> 64 & 0xFFF == 2048
    assert at(monkeypatch, AT + 999_999).int >> 64 & 0xFFF == 4095


def test_ids_grow_within_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that are a microsecond apart are in the order of their making, across a change of the millisecond too."""
    made = [at(monkeypatch, AT + step * 1000) for step in range(3000)]
    assert made == sorted(made)


def test_ids_of_one_moment_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the clock cannot tell apart, 62 random bits do."""
    assert len({at(monkeypatch, AT) for _ in range(1000)}) == 1000
