"""`purge`: what is old enough to go, what goes with it, and what stays."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from curfew_store import FlowRunControlStore
from tests.integration.contract.facade import Facade
from tests.integration.contract.rows import FLOW, Rows

# Everything of these tests happens in years of their own, so that other rows of the module are never old enough.
CUT = datetime(2001, 6, 1, tzinfo=UTC)
BEFORE = "timestamptz '2001-05-31 23:59:59.999999+00'"
AT = "timestamptz '2001-06-01 00:00:00+00'"

ENDS = {
    "completed": {"completed_at_utc": BEFORE},
    "timed_out": {"timed_out_at_utc": BEFORE, "cancel_requested_at_utc": BEFORE},
    "cancelled": {"cancel_requested_at_utc": BEFORE},
}


@pytest.fixture(autouse=True)
def nothing_old(rows: Rows) -> None:
    """Start each test without rows that a purge could take."""
    rows.sql("TRUNCATE flow_run_controls, flow_idempotency_keys")


def insert_with_key(rows: Rows, state: str, **columns: str) -> UUID:
    """A run with a registered key; the key is old."""
    run_id = rows.insert(state, **columns)
    rows.insert_key(run_id, f"key-{run_id}", created=BEFORE)
    return run_id


@pytest.mark.contract("P-1", "P-3")
@pytest.mark.parametrize("state", ENDS)
def test_ended_runs_go_with_their_keys(store: FlowRunControlStore, rows: Rows, state: str) -> None:
    """A run that ended before the moment is deleted with all its keys, and only runs are counted for it."""
    run_id = insert_with_key(rows, state, **ENDS[state])
    rows.insert_key(run_id, "another key of the run")
    assert store.purge(CUT, limit=10) == 1
    assert rows.row(run_id) is None
    assert rows.keys_of(run_id) == []
    assert store.purge(CUT, limit=10) == 0


@pytest.mark.contract("P-4")
def test_what_has_not_ended_before_the_moment_stays(store: FlowRunControlStore, rows: Rows) -> None:
    """Runs that ended at the moment or later, or have not ended at all, keep their rows and their old keys."""
    old = {"timeout_at_utc": BEFORE, "created_at_utc": BEFORE}
    for state, end in ENDS.items():
        insert_with_key(rows, state, **old | dict.fromkeys(end, AT))
    for state in ("active", "disarmed", "overdue"):
        insert_with_key(rows, state, **old)
    # A stamp alone is no cancel.
    insert_with_key(rows, "active", **old, cancel_requested_at_utc=BEFORE)
    before = rows.everything()
    assert store.purge(CUT, limit=100) == 0
    assert rows.everything() == before


@pytest.mark.contract("P-2", "P-4")
def test_orphaned_keys_go(store: FlowRunControlStore, rows: Rows) -> None:
    """A key older than the moment whose run has no record is deleted; a younger one, or one with a record, stays."""
    orphan, young, owned = uuid4(), uuid4(), insert_with_key(rows, "active")
    rows.insert_key(orphan, "orphan", created=BEFORE)
    rows.insert_key(young, "young", created=AT)
    assert store.purge(CUT, limit=10) == 1
    assert [len(rows.keys_of(run_id)) for run_id in (orphan, young, owned)] == [0, 1, 1]
    assert store.find_run_id_by_idempotency_key(FLOW, "trigger", "orphan") is None


@pytest.mark.contract("P-1", "P-2", "P-3")
def test_the_limit_counts_runs_and_orphans_together(store: FlowRunControlStore, rows: Rows) -> None:
    """Runs go first, orphaned keys fill what is left of the limit, and repeated calls get to the end."""
    runs = [insert_with_key(rows, "completed", completed_at_utc=BEFORE) for _ in range(5)]
    for n in range(4):
        rows.insert_key(uuid4(), f"orphan {n}", created=BEFORE)
    assert store.purge(CUT, limit=3) == 3
    assert sum(rows.row(run_id) is not None for run_id in runs) == 2
    assert store.purge(CUT, limit=4) == 4
    assert rows.sql("SELECT count(*) FROM flow_run_controls") == [(0,)]
    assert rows.sql("SELECT count(*) FROM flow_idempotency_keys") == [(2,)]
    assert store.purge(CUT, limit=4) == 2
    assert store.purge(CUT, limit=4) == 0


@pytest.mark.contract("P-4")
def test_rows_in_use_are_passed_over(store: FlowRunControlStore, rows: Rows) -> None:
    """A run that another session holds is neither waited for nor deleted; the rest goes."""
    held, free = (insert_with_key(rows, "completed", completed_at_utc=BEFORE) for _ in range(2))
    with rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=held):
        assert store.purge(CUT, limit=10) == 1
    assert rows.row(free) is None
    assert rows.row(held) is not None
    assert len(rows.keys_of(held)) == 1


@pytest.mark.contract("P-4", "O-1")
def test_a_reopened_run_survives(facade: Facade, rows: Rows) -> None:
    """A run that was reopened and not yet committed is not deleted under the hands of whoever reopened it."""
    run_id = insert_with_key(rows, "completed", completed_at_utc=BEFORE)
    with facade.begin() as caller:
        assert facade.store.reopen_run(run_id, connection=caller.handle) is True
        assert facade.store.purge(CUT, limit=10) == 0
        caller.commit()
    assert facade.store.purge(CUT, limit=10) == 0
    assert rows.row(run_id) is not None


@pytest.mark.contract("S-2", "P-1")
def test_a_purged_key_is_free(store: FlowRunControlStore, rows: Rows) -> None:
    """The key of a purged run starts another run."""
    first = store.start_run(FLOW, "trigger", "reused")
    rows.sql(f"UPDATE flow_run_controls SET completed_at_utc = {BEFORE} WHERE run_id = :run", run=first.run_id)
    assert store.purge(CUT, limit=10) == 1
    second = store.start_run(FLOW, "trigger", "reused")
    assert second.duplicate is False
    assert second.run_id != first.run_id
