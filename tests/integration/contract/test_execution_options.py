"""Options that the caller's engine or connection has for its own queries, and connections of other drivers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, event

from curfew_store import FlowRunControlStore, InvalidValue, RunConfiguration, RunTimedOut, StartedRun
from tests.integration.contract.facade import OpenFacade
from tests.integration.contract.rows import FLOW, Rows

HOUR = timedelta(hours=1)
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
OPTIONS: dict[str, dict[str, Any]] = {
    "schema_translate_map": {"schema_translate_map": {"public": "nowhere", None: "nowhere"}},
    "yield_per": {"yield_per": 2},
    "stream_results": {"stream_results": True, "max_row_buffer": 1},
    "no_parameters": {"no_parameters": True},
    "all": {"schema_translate_map": {"public": "nowhere"}, "yield_per": 1, "preserve_rowcount": True},
}


def exercise(store: FlowRunControlStore, rows: Rows, **joined: Any) -> None:
    """Every method, with an answer that only the right table and a right count give."""
    run_id, key = uuid4(), uuid4().hex
    store.configure_run(run_id, FLOW, "t", timeout=HOUR, **joined)
    others = [uuid4() for _ in range(3)]
    store.configure_runs([RunConfiguration(other, FLOW, "t", timeout=HOUR) for other in others], **joined)
    assert store.get_run_control(others[2], **joined) is not None
    assert store.heartbeat(run_id, timeout=2 * HOUR, **joined) is True
    assert store.extend_deadline(run_id, timeout=HOUR, **joined) is True
    assert store.request_cancel(run_id, **joined) is True
    assert store.request_cancel(run_id, **joined) is False
    assert store.reopen_run(run_id, timeout=HOUR, **joined) is True
    assert store.mark_timed_out(run_id, **joined) is True
    assert store.complete_run(others[0], **joined) is True
    started = store.start_run(FLOW, "t", key, **joined)
    assert store.start_run(FLOW, "t", key, **joined) == StartedRun(started.run_id, duplicate=True)
    assert store.start_run(FLOW, "t", **joined).duplicate is False
    assert store.find_run_id_by_idempotency_key(FLOW, "t", key, **joined) == started.run_id
    assert store.try_register_idempotency_key(FLOW, "t", key, run_id, **joined) is False
    record = store.get_run_control(run_id, **joined)
    assert record is not None
    assert record.timed_out_at_utc is not None
    assert record.timed_out_at_utc.tzinfo is UTC
    for _ in range(2):
        rows.insert("completed", completed_at_utc="'2000-06-01 00:00:00+00'")
    assert store.purge(LONG_AGO, limit=10, **joined) == 2


@pytest.mark.contract("X-10")
@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_the_engine_are_not_for_the_store(open_facade: OpenFacade, rows: Rows, options: str) -> None:
    """Every method works on the store's own schema and tells what it wrote, from the verification of the schema on."""
    facade = open_facade(execution_options=OPTIONS[options])
    exercise(facade.store, rows)
    with pytest.raises(RunTimedOut):
        facade.store.ensure_may_run(rows.insert("overdue"))
    facade.close()


@pytest.mark.contract("X-10")
@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_a_joined_connection_are_not_for_the_store(
    open_facade: OpenFacade, rows: Rows, options: str
) -> None:
    """So it is on a connection that a call joins, whose options stay."""
    facade = open_facade(execution_options=OPTIONS[options])
    with facade.begin() as caller:
        before = getattr(caller.handle, "sync_connection", caller.handle).get_execution_options()
        exercise(facade.store, rows, connection=caller.handle)
        assert getattr(caller.handle, "sync_connection", caller.handle).get_execution_options() == before
        caller.commit()
    facade.close()


@pytest.mark.contract("X-10")
def test_a_transaction_that_is_open_already(open_facade: OpenFacade, rows: Rows) -> None:
    """Nor do they apply where a listener has begun the call's transaction."""
    facade = open_facade(execution_options=OPTIONS["all"])
    event.listen(facade.engine, "checkout", lambda dbapi, *_: dbapi.cursor().execute("SET LOCAL lock_timeout = '5s'"))
    exercise(facade.store, rows)
    facade.close()


@pytest.mark.contract("X-9")
def test_a_connection_of_another_driver(url: str) -> None:
    """It is refused by name, before anything is sent."""
    engine, other = create_engine(url), create_engine("sqlite://")
    with other.connect() as conn:
        with pytest.raises(InvalidValue, match=r"connection: must be for postgresql\+psycopg://, not sqlite://"):
            FlowRunControlStore(engine).get_run_control(uuid4(), connection=conn)
        assert not conn.in_transaction()
    other.dispose()
    engine.dispose()
