"""`extend_deadline`, `heartbeat`, `reopen_run` and `complete_run`: how a deadline moves, and when it does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from curfew_store import UNSET, FlowRunControlRecord, FlowRunControlStore, RunState
from tests.integration.contract.rows import Rows

HOUR = timedelta(hours=1)
PAST = datetime(2020, 2, 29, 12, tzinfo=UTC)
FUTURE = datetime(2040, 2, 29, 12, tzinfo=UTC)


def record_of(store: FlowRunControlStore, run_id: UUID) -> FlowRunControlRecord:
    """The record of a run that is known to exist."""
    record = store.get_run_control(run_id)
    assert record is not None
    return record


def left(store: FlowRunControlStore, rows: Rows, run_id: UUID) -> timedelta:
    """The time until the deadline, by the database's clock."""
    deadline = record_of(store, run_id).timeout_at_utc
    assert deadline is not None
    now: datetime = rows.sql("SELECT clock_timestamp()")[0][0]
    return deadline - now


@pytest.mark.contract("L-1")
@pytest.mark.parametrize("moment", [PAST, FUTURE])
@pytest.mark.parametrize("state", ["active", "overdue", "timed_out"])
def test_extend_takes_any_moment(store: FlowRunControlStore, rows: Rows, state: str, moment: datetime) -> None:
    """Earlier or later, also in the past: the deadline is the given one and the run is active."""
    run_id = rows.insert(state)
    assert store.extend_deadline(run_id, moment) is True
    record = record_of(store, run_id)
    assert (record.timeout_at_utc, record.state) == (moment, RunState.ACTIVE)


@pytest.mark.contract("L-2", "A-3", "Z-2")
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((FUTURE,), {"timeout": HOUR}),
        ((None,), {"timeout": None}),
        ((None,), {"timeout": HOUR}),
        ((FUTURE,), {"timeout": None}),
        ((UNSET,), {"timeout": UNSET}),
    ],
)
def test_extend_wants_exactly_one_parameter(
    store: FlowRunControlStore, rows: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Neither or both parameters, an explicit None counted as given, is a ValueError that writes nothing."""
    run_id = rows.insert("timed_out")
    before = rows.row(run_id)
    with pytest.raises(ValueError, match="only one"):
        store.extend_deadline(run_id, *args, **kwargs)
    assert rows.changed(before, run_id) == set()


@pytest.mark.contract("L-2")
def test_an_explicit_none_clears_either_way(store: FlowRunControlStore, rows: Rows) -> None:
    """None as the moment and None as the timeout both clear the deadline."""
    first, second = rows.insert("active"), rows.insert("active")
    assert store.extend_deadline(first, None) is True
    assert store.extend_deadline(second, timeout=None) is True
    assert record_of(store, first).timeout_at_utc is record_of(store, second).timeout_at_utc is None


@pytest.mark.contract("L-3", "L-4", "M-3")
@pytest.mark.parametrize("cancelled_first", [False, True])
def test_extend_takes_back_a_mark_but_not_a_cancel(
    store: FlowRunControlStore, rows: Rows, cancelled_first: bool
) -> None:
    """After the store's own mark, extend clears what the mark set; a user's cancel from before stays."""
    run_id = rows.insert("active")
    if cancelled_first:
        store.request_cancel(run_id, "by a user")
    cancelled_at = record_of(store, run_id).cancel_requested_at_utc
    store.mark_timed_out(run_id)
    assert store.extend_deadline(run_id, timeout=HOUR) is True
    record = record_of(store, run_id)
    assert record.timed_out_at_utc is None
    assert (record.cancel_requested, record.cancel_requested_at_utc) == (cancelled_first, cancelled_at)
    assert record.cancel_reason == ("by a user" if cancelled_first else None)
    assert record.state is (RunState.CANCEL_REQUESTED if cancelled_first else RunState.ACTIVE)


@pytest.mark.contract("H-1", "A-1")
def test_heartbeat_moves_the_deadline_to_now_plus_timeout(store: FlowRunControlStore, rows: Rows) -> None:
    """A heartbeat that reaches further than the deadline sets it to the time of the call plus the timeout."""
    run_id = rows.insert("active")
    assert store.heartbeat(run_id, timeout=3 * HOUR) is True
    assert 3 * HOUR - timedelta(seconds=5) < left(store, rows, run_id) <= 3 * HOUR


@pytest.mark.contract("H-1")
def test_heartbeat_never_shortens(store: FlowRunControlStore, rows: Rows) -> None:
    """A heartbeat that reaches less far says that it renewed and leaves the later deadline, an infinite one too."""
    run_id, endless = rows.insert("active"), rows.insert("active", timeout_at_utc="'infinity'")
    before = record_of(store, run_id).timeout_at_utc
    assert store.heartbeat(run_id, timeout=timedelta(seconds=1)) is True
    assert store.heartbeat(endless, timeout=HOUR) is True
    assert record_of(store, run_id).timeout_at_utc == before
    assert rows.sql("SELECT timeout_at_utc = 'infinity' FROM flow_run_controls WHERE run_id = :run", run=endless) == [
        (True,)
    ]


@pytest.mark.contract("O-1", "A-3")
@pytest.mark.parametrize("kwargs", [{}, {"timeout_at_utc": FUTURE}, {"timeout": HOUR}])
def test_a_reopened_run_starts_afresh(store: FlowRunControlStore, rows: Rows, kwargs: dict[str, Any]) -> None:
    """Reopening clears every latch, and the deadline is the given one or none, never the old one."""
    run_id = rows.insert("completed_after_cancel")
    assert store.reopen_run(run_id, **kwargs) is True
    record = record_of(store, run_id)
    assert (record.state, record.cancel_requested, record.cancel_reason) == (RunState.ACTIVE, False, None)
    assert record.cancel_requested_at_utc is record.timed_out_at_utc is record.completed_at_utc is None
    if "timeout" in kwargs:
        assert HOUR - timedelta(seconds=5) < left(store, rows, run_id) <= HOUR
    else:
        assert record.timeout_at_utc == kwargs.get("timeout_at_utc")
    assert store.reopen_run(run_id, FUTURE) is False


@pytest.mark.contract("D-1", "D-3", "X-7")
def test_a_repeated_completion_reads_as_completed(store: FlowRunControlStore, rows: Rows) -> None:
    """The second completion says no, and the record tells the caller that its first one had won."""
    run_id = rows.insert("overdue")
    assert store.complete_run(run_id) is True
    assert store.complete_run(run_id) is False
    assert record_of(store, run_id).state is RunState.COMPLETED
