"""What a purge may be asked for, and whose turn it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from curfew_store import InvalidValue, WrongType
from curfew_store.retention import purge, turn_key
from curfew_store.schema import tables_in

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("limit", [1, 2, 1_000_000])
def test_limits_that_are_accepted(limit: int) -> None:
    """From one row to a million."""
    assert callable(purge(tables_in("public"), NOW, limit=limit))


@pytest.mark.parametrize(
    ("limit", "error", "says"),
    [
        (0, InvalidValue, "between 1 and 1,000,000, got 0"),
        (-1, InvalidValue, "got -1"),
        (1_000_001, InvalidValue, "got 1000001"),
        (True, WrongType, "an int, got bool"),
        (1.0, WrongType, "an int, got float"),
        (None, WrongType, "an int, got NoneType"),
    ],
)
def test_limits_that_are_refused(limit: Any, error: type[Exception], says: str) -> None:
    """Before any statement is sent."""
    with pytest.raises(error, match=says) as raised:
        purge(tables_in("public"), NOW, limit=limit)
    assert vars(raised.value)["parameter"] == "limit"


def test_a_naive_moment_is_refused() -> None:
    """As a deadline is, and under its own name."""
    with pytest.raises(InvalidValue, match="before: is naive"):
        purge(tables_in("public"), datetime(2030, 1, 1), limit=1)  # noqa: DTZ001


def test_releases_take_turns() -> None:
    """The key of the lock is the same in each, one for each schema, and a number of 64 bits with a sign."""
    assert turn_key("public") == 4770556512067122494
    assert turn_key("other") == 1002468901580168938
    assert all(-(1 << 63) <= turn_key(f"schema {number}") < 1 << 63 for number in range(50))
