"""`configure_run` and `configure_runs`: what they write, what they leave, and that a batch is all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy.exc

from curfew_store import FlowRunControlStore, RunConfiguration, RunState
from curfew_store.enforcement import claim_overdue
from curfew_store.schema import tables_in
from tests.integration.contract.rows import FLOW, OTHER_FLOW, Rows
from tests.patience import PATIENCE

MOMENT = datetime(2031, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
PAST = datetime(2020, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.contract("C-1", "K-5", "F-5")
def test_a_new_run_is_recorded_as_given(store: FlowRunControlStore) -> None:
    """The record holds the four fields as they were given and no latch; the call returns nothing."""
    run_id = uuid4()
    result: Any = store.configure_run(run_id, FLOW, " Nightly ", " Key-A ", MOMENT)  # type: ignore[func-returns-value]
    assert result is None
    record = store.get_run_control(run_id)
    assert record is not None
    assert (record.run_id, record.flow_id, record.trigger_key) == (run_id, FLOW, " Nightly ")
    assert (record.idempotency_key, record.timeout_at_utc) == (" Key-A ", MOMENT)
    assert (record.cancel_requested, record.cancel_reason, record.cancel_requested_at_utc) == (False, None, None)
    assert (record.timed_out_at_utc, record.completed_at_utc, record.state) == (None, None, RunState.ACTIVE)


@pytest.mark.contract("C-5")
def test_configure_registers_no_key(store: FlowRunControlStore, rows: Rows) -> None:
    """The idempotency key goes into the record alone."""
    run_id = uuid4()
    store.configure_run(run_id, FLOW, "trigger", "not registered")
    store.configure_runs([RunConfiguration(other := uuid4(), FLOW, "trigger", "not registered either")])
    assert rows.keys_of(run_id) == rows.keys_of(other) == []
    assert store.find_run_id_by_idempotency_key(FLOW, "trigger", "not registered") is None


@pytest.mark.contract("C-3")
def test_configure_without_a_deadline_disarms(store: FlowRunControlStore, rows: Rows) -> None:
    """A second call that names no deadline clears that of the first."""
    run_id = rows.insert("active")
    store.configure_run(run_id, FLOW, "Trigger")
    record = store.get_run_control(run_id)
    assert record is not None
    assert record.timeout_at_utc is None


@pytest.mark.contract("C-4", "E-5")
@pytest.mark.parametrize("state", ["cancelled", "timed_out", "completed"])
def test_configure_arms_nothing_on_a_latched_run(store: FlowRunControlStore, rows: Rows, state: str) -> None:
    """A claim leaves a latched run alone, also when it was given a deadline that has passed."""
    latched, armed = rows.insert(state), rows.insert("disarmed")
    store.configure_run(latched, FLOW, "Trigger", timeout_at_utc=PAST)
    store.configure_run(armed, FLOW, "Trigger", timeout_at_utc=PAST)
    before = rows.row(latched)
    with rows.engine.connect() as connection:
        marked = {run.run_id for run in claim_overdue(connection, tables_in("public"), limit=1000)}
    assert armed in marked
    assert latched not in marked
    assert rows.changed(before, latched) == set()


@pytest.mark.contract("B-1", "A-1")
def test_a_batch_takes_both_kinds_of_deadline(store: FlowRunControlStore, rows: Rows) -> None:
    """A moment, a time from now and no deadline stand side by side; an existing run keeps its latches."""
    at, after, none, latched = uuid4(), uuid4(), uuid4(), rows.insert("cancelled")
    before = rows.row(latched)
    store.configure_runs(
        RunConfiguration(run_id, OTHER_FLOW, "Batch", key, moment, timeout)
        for run_id, key, moment, timeout in [
            (at, "K1", MOMENT, None),
            (after, None, None, HOUR),
            (none, "K3", None, None),
            (latched, None, None, None),
        ]
    )
    assert rows.changed(before, latched) == {"flow_id", "trigger_key", "timeout_at_utc"}
    records = [store.get_run_control(run_id) for run_id in (at, after, none)]
    assert [(r.trigger_key, r.idempotency_key) for r in records if r] == [
        ("Batch", "K1"),
        ("Batch", None),
        ("Batch", "K3"),
    ]
    assert records[0] is not None
    assert records[0].timeout_at_utc == MOMENT
    assert records[1] is not None
    assert records[1].timeout_at_utc is not None
    assert abs(records[1].timeout_at_utc - records[1].created_at_utc - HOUR) < timedelta(seconds=5)
    assert records[2] is not None
    assert records[2].timeout_at_utc is None


@pytest.mark.contract("B-1")
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_a_batch_of_any_size(store: FlowRunControlStore, rows: Rows, count: int) -> None:
    """None, one and a thousand runs are each configured in one call."""
    flow = uuid4()
    store.configure_runs([RunConfiguration(uuid4(), flow, "Batch", timeout=HOUR) for _ in range(count)])
    written = rows.sql("SELECT count(*), count(timeout_at_utc) FROM flow_run_controls WHERE flow_id = :flow", flow=flow)
    assert written == [(count, count)]


NIL = UUID(int=0)
BAD_RUNS: dict[str, tuple[type[Exception], Callable[[UUID], Any]]] = {
    "a repeated run id": (ValueError, lambda first: RunConfiguration(first, FLOW, "Batch")),
    "a naive deadline": (ValueError, lambda _: RunConfiguration(uuid4(), FLOW, "Batch", None, datetime(2030, 1, 1))),  # noqa: DTZ001
    "two deadlines": (ValueError, lambda _: RunConfiguration(uuid4(), FLOW, "Batch", None, MOMENT, HOUR)),
    "the nil run id": (ValueError, lambda _: RunConfiguration(NIL, FLOW, "Batch")),
    "a blank key": (ValueError, lambda _: RunConfiguration(uuid4(), FLOW, "Batch", "  ")),
    "no configuration": (TypeError, lambda _: (uuid4(), FLOW, "Batch")),
    "a run id as text": (TypeError, lambda _: RunConfiguration(str(uuid4()), FLOW, "Batch")),  # type: ignore[arg-type]
}


@pytest.mark.contract("B-2", "B-3", "Z-2")
@pytest.mark.parametrize("case", BAD_RUNS)
def test_one_bad_run_spoils_the_batch(store: FlowRunControlStore, rows: Rows, case: str) -> None:
    """Nothing of a batch is written when one of its runs is refused."""
    error, bad = BAD_RUNS[case]
    first = uuid4()
    before = rows.everything()
    with pytest.raises(error):
        store.configure_runs([RunConfiguration(first, FLOW, "Batch"), bad(first)])
    assert rows.everything() == before


@pytest.mark.contract("B-2", "Z-3")
def test_a_failure_of_the_database_spoils_the_batch(store: FlowRunControlStore, rows: Rows) -> None:
    """When the database refuses one row, none of the batch is there, and the error arrives with its cause."""
    rows.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.trigger_key = 'refused' THEN RAISE 'refused'; END IF; RETURN NEW; END $$"
    )
    rows.sql("CREATE TRIGGER refuse BEFORE INSERT ON flow_run_controls FOR EACH ROW EXECUTE FUNCTION refuse()")
    flow = uuid4()
    runs = [RunConfiguration(uuid4(), flow, "refused" if n == 7 else "accepted") for n in range(10)]
    try:
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="refused") as raised:
            store.configure_runs(runs)
    finally:
        rows.sql("DROP FUNCTION refuse CASCADE")
    assert raised.value.__cause__ is raised.value.orig is not None
    assert rows.sql("SELECT count(*) FROM flow_run_controls WHERE flow_id = :flow", flow=flow) == [(0,)]


@pytest.mark.contract("B-4")
def test_batches_that_share_runs_do_not_deadlock(store: FlowRunControlStore, rows: Rows) -> None:
    """Two batches over the same runs in opposite order both succeed: rows are locked in the order of their ids."""
    ids = sorted(uuid4() for _ in range(50))
    store.configure_runs([RunConfiguration(run_id, FLOW, "Batch") for run_id in ids])
    lock = "SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE"
    with rows.held(lock, run=ids[25]) as holder, ThreadPoolExecutor(2) as pool:
        upwards = pool.submit(store.configure_runs, [RunConfiguration(r, FLOW, "up", timeout=HOUR) for r in ids])
        rows.wait_until_blocked(1)
        downwards = pool.submit(store.configure_runs, [RunConfiguration(r, FLOW, "down") for r in reversed(ids)])
        rows.wait_until_blocked(2)
        holder.commit()
        upwards.result(timeout=PATIENCE)
        downwards.result(timeout=PATIENCE)
    final = rows.sql("SELECT DISTINCT trigger_key FROM flow_run_controls WHERE run_id = ANY(:ids)", ids=ids)
    assert final == [("down",)]
