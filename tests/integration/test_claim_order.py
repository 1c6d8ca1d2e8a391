"""The order in which a claim takes its runs, whatever way the planner finds them."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from curfew_store import FlowRunControlStore
from curfew_store.enforcement import claim_overdue, first_due, look_ahead
from curfew_store.schema import tables_in
from tests.conftest import Database

FLOW = UUID(int=7)
PAST = datetime(2020, 1, 1, tzinfo=UTC)
# Most of the order of insertion is not that of the ids.
RUNS = [UUID(int=n) for n in (9, 3, 7, 1, 5)]
# A table this small, without its index: what is left is a scan and, if the statement asks for an order, a sort.
NO_INDEX = "-c enable_indexscan=off -c enable_indexonlyscan=off -c enable_bitmapscan=off"


@pytest.mark.contract("E-1")
@pytest.mark.parametrize("options", ["", NO_INDEX], ids=["by the index", "by a sort"])
def test_runs_with_one_deadline_are_taken_in_the_order_of_their_ids(database: Database, options: str) -> None:
    """A batch ends within a deadline, the next one continues behind its last run, and none is taken out of turn."""
    store = FlowRunControlStore(database.engine)
    for run in RUNS:
        store.configure_run(run, FLOW, "t", None, PAST)
    engine = create_engine(database.url, poolclass=NullPool, connect_args={"options": options})
    with engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        first = claim_overdue(conn, tables_in("public"), limit=2)
        second = claim_overdue(conn, tables_in("public"), limit=2, after=first[-1])
        rest = claim_overdue(conn, tables_in("public"), limit=9)
    assert [[run.run_id.int for run in batch] for batch in (first, second, rest)] == [[1, 3], [5, 7], [9]]


def test_a_claim_behind_a_run_does_not_take_that_run(database: Database) -> None:
    """The cursor stands behind its run, also where that one has been armed again with the deadline that it had."""
    store = FlowRunControlStore(database.engine)
    for run in RUNS:
        store.configure_run(run, FLOW, "t", None, PAST)
    with database.engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        first = claim_overdue(conn, tables_in("public"), limit=3)
        assert store.extend_deadline(first[-1].run_id, PAST)
        behind = claim_overdue(conn, tables_in("public"), limit=9, after=first[-1])
        again = claim_overdue(conn, tables_in("public"), limit=9)
    assert [[run.run_id.int for run in batch] for batch in (behind, again)] == [[7, 9], [5]]


def test_runs_that_a_claim_is_to_leave_out_are_left_out(database: Database) -> None:
    """They take nothing from the limit either, and the first of the others is what such a claim begins with."""
    store = FlowRunControlStore(database.engine)
    for run in RUNS:
        store.configure_run(run, FLOW, "t", None, PAST)
    left_out = [UUID(int=1), UUID(int=5)]
    with database.engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        assert first_due(conn, tables_in("public")) == UUID(int=1)
        assert first_due(conn, tables_in("public"), skipping=left_out) == UUID(int=3)
        claimed = claim_overdue(conn, tables_in("public"), limit=2, skipping=left_out)
        assert [run.run_id.int for run in claimed] == [3, 7]
        assert first_due(conn, tables_in("public"), after=claimed[-1], skipping=left_out) == UUID(int=9)
        behind = claim_overdue(conn, tables_in("public"), limit=9, after=claimed[0], skipping=left_out[1:])
        assert [run.run_id.int for run in behind] == [9]
    records = [store.get_run_control(run) for run in RUNS]
    assert {record.run_id.int for record in records if record and record.timed_out_at_utc is None} == {1, 5}


def test_of_runs_with_one_deadline_ahead_the_look_names_the_first(database: Database) -> None:
    """Which run a daemon expects next does not depend on how the planner finds it."""
    store = FlowRunControlStore(database.engine)
    for run in RUNS:
        store.configure_run(run, FLOW, "t", None, datetime(2090, 1, 1, tzinfo=UTC))
    engine = create_engine(database.url, poolclass=NullPool, connect_args={"options": NO_INDEX})
    with engine.connect() as conn:
        assert look_ahead(conn, tables_in("public")).next_run_id == UUID(int=1)
