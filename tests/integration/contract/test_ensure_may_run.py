"""`ensure_may_run`: the verdict on a step, and the mark that a lapsed deadline gets there and then."""

from __future__ import annotations

import inspect
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event

from curfew_store import (
    AsyncFlowRunControlStore,
    FlowRunControlStore,
    RunCancelled,
    RunCompleted,
    RunState,
    RunStopped,
    RunTimedOut,
)
from tests.integration.contract.facade import Facade
from tests.integration.contract.rows import Rows


@pytest.mark.contract("W-1")
@pytest.mark.parametrize("state", ["active", "disarmed"])
def test_a_run_that_may_go_on(store: FlowRunControlStore, rows: Rows, state: str) -> None:
    """The record comes back as get_run_control would give it; a run without a record passes."""
    run_id = rows.insert(state)
    assert store.ensure_may_run(run_id) == store.get_run_control(run_id)
    assert store.ensure_may_run(uuid4()) is None


@pytest.mark.contract("W-2", "Z-1")
@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ("timed_out", RunTimedOut, "timed out: Run exceeded its timeout deadline."),
        ("cancelled", RunCancelled, "was cancelled: by a user"),
        ("completed", RunCompleted, "is already completed"),
    ],
)
def test_a_run_that_has_stopped(
    store: FlowRunControlStore, rows: Rows, state: str, error: type[RunStopped], says: str
) -> None:
    """The error carries the run and its record, and says what happened; one base catches all three."""
    run_id = rows.insert(state)
    with pytest.raises(RunStopped) as raised:
        store.ensure_may_run(run_id)
    assert type(raised.value) is error
    assert (raised.value.run_id, raised.value.record) == (run_id, store.get_run_control(run_id))
    assert says in str(raised.value)


@pytest.mark.contract("W-2", "E-5")
@pytest.mark.parametrize(
    ("state", "error"), [("cancelled", RunCancelled), ("completed", RunCompleted), ("timed_out", RunTimedOut)]
)
def test_a_latch_outweighs_a_lapsed_deadline(
    store: FlowRunControlStore, rows: Rows, state: str, error: type[RunStopped]
) -> None:
    """A latched run whose deadline passed as well is judged by its latch and not written."""
    run_id = rows.insert(state, timeout_at_utc="now() - interval '1 second'")
    before = rows.row(run_id)
    with pytest.raises(error):
        store.ensure_may_run(run_id)
    assert rows.changed(before, run_id) == set()


@pytest.mark.contract("W-3", "W-5", "E-6")
def test_a_lapsed_deadline_is_latched(store: FlowRunControlStore, rows: Rows) -> None:
    """The run is marked like the daemon would, the mark is committed when the error arrives, and it is marked once."""
    run_id = rows.insert("overdue")
    with pytest.raises(RunTimedOut) as raised:
        store.ensure_may_run(run_id)
    record = raised.value.record
    assert (record.state, record.cancel_reason) == (RunState.TIMED_OUT, "Run exceeded its timeout deadline.")
    assert record.cancel_requested is True
    assert record.cancel_requested_at_utc == record.timed_out_at_utc is not None
    assert record == store.get_run_control(run_id)
    before = rows.row(run_id)
    with pytest.raises(RunTimedOut):
        store.ensure_may_run(run_id)
    assert rows.changed(before, run_id) == set()


@pytest.mark.contract("W-4")
def test_a_row_that_is_held_is_left_to_others(store: FlowRunControlStore, rows: Rows) -> None:
    """The verdict does not wait for another session's lock; the run stays unmarked and the record says so."""
    run_id = rows.insert("overdue")
    before = rows.row(run_id)
    with rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=run_id):
        with pytest.raises(RunTimedOut) as raised:
            store.ensure_may_run(run_id)
        assert raised.value.record.state is RunState.ACTIVE
    assert rows.changed(before, run_id) == set()


CHANGES = {
    "extended": ("timeout_at_utc = now() + interval '1 hour'", None),
    "disarmed": ("timeout_at_utc = NULL", None),
    "cancelled": ("cancel_requested = true, cancel_requested_at_utc = now()", RunCancelled),
    "completed": ("completed_at_utc = now()", RunCompleted),
}


@pytest.mark.contract("W-6", "E-3", "E-9")
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_changes_between_reading_and_marking(facade: Facade, rows: Rows, change: str) -> None:
    """What another session committed before the mark wins: the run is judged as it is then and not marked."""
    assignment, error = CHANGES[change]
    run_id = rows.insert("overdue")

    def before_the_mark(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "UPDATE" in statement:
            rows.sql(f"UPDATE flow_run_controls SET {assignment} WHERE run_id = :run", run=run_id)

    event.listen(facade.engine, "before_cursor_execute", before_the_mark)
    try:
        if error is None:
            assert facade.store.ensure_may_run(run_id) is not None
        else:
            with pytest.raises(error):
                facade.store.ensure_may_run(run_id)
    finally:
        event.remove(facade.engine, "before_cursor_execute", before_the_mark)
    record = facade.store.get_run_control(run_id)
    assert record is not None
    assert record.timed_out_at_utc is None


@pytest.mark.contract("W-6")
def test_a_run_that_is_deleted_between_reading_and_marking(facade: Facade, rows: Rows) -> None:
    """A run whose record has gone by the time it would be marked may run, like any run without a record."""
    run_id = rows.insert("overdue")

    def before_the_mark(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "UPDATE" in statement:
            rows.sql("DELETE FROM flow_run_controls WHERE run_id = :run", run=run_id)

    event.listen(facade.engine, "before_cursor_execute", before_the_mark)
    try:
        assert facade.store.ensure_may_run(run_id) is None
    finally:
        event.remove(facade.engine, "before_cursor_execute", before_the_mark)


@pytest.mark.contract("W-5", "X-1")
@pytest.mark.parametrize("kind", [FlowRunControlStore, AsyncFlowRunControlStore])
def test_it_alone_takes_no_connection(kind: type) -> None:
    """Every public method but ensure_may_run has a keyword `connection`, by default None."""
    methods = {name: m for name, m in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    takes = {name for name, m in methods.items() if "connection" in inspect.signature(m).parameters}
    assert methods.keys() - takes == {"ensure_may_run"}
    assert len(takes) == 13
