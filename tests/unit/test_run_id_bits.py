"""Every bit of a run id is where RFC 9562 puts it, with a clock and a source of randomness that are known."""

from __future__ import annotations

import os
import time
from uuid import UUID

import pytest

from curfew_store.run_ids import new_run_id


def _made(monkeypatch: pytest.MonkeyPatch, *, milliseconds: int, nanoseconds: int = 0, random: int = 0) -> UUID:
    monkeypatch.setattr(time, "time_ns", lambda: milliseconds * 1_000_000 + nanoseconds)
    monkeypatch.setattr(os, "urandom", lambda size: random.to_bytes(size, "big"))
    return new_run_id()


@pytest.mark.contract("S-5")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"milliseconds": 0}, "00000000-0000-7000-8000-000000000000"),
        ({"milliseconds": 1}, "00000000-0001-7000-8000-000000000000"),
        ({"milliseconds": (1 << 48) - 1}, "ffffffff-ffff-7000-8000-000000000000"),
        # The year 10889: the field is full and begins again, and the version stays where it is.
        ({"milliseconds": 1 << 48}, "00000000-0000-7000-8000-000000000000"),
        ({"milliseconds": (1 << 49) + 5}, "00000000-0005-7000-8000-000000000000"),
        ({"milliseconds": 0, "nanoseconds": 245}, "00000000-0000-7001-8000-000000000000"),
        ({"milliseconds": 0, "nanoseconds": 999_999}, "00000000-0000-7fff-8000-000000000000"),
        ({"milliseconds": 0, "random": (1 << 64) - 1}, "00000000-0000-7000-bfff-ffffffffffff"),
        ({"milliseconds": 0, "random": 1 << 63}, "00000000-0000-7000-a000-000000000000"),
        ({"milliseconds": 0, "random": 0b100}, "00000000-0000-7000-8000-000000000001"),
    ],
)
def test_each_field_has_its_bits(monkeypatch: pytest.MonkeyPatch, given: dict[str, int], expected: str) -> None:
    """Time, version, fraction, variant and 62 of the 64 random bits that were asked for."""
    assert _made(monkeypatch, **given) == UUID(expected)
