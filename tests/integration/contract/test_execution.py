"""How a statement of a call's own reaches the driver: who sees it on the way, and what becomes of its errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy import ClauseElement, event

from curfew_store import FlowRunControlStore, RunConfiguration, is_transient
from curfew_store.errors import sqlstate_of
from tests.integration.contract.facade import OpenFacade
from tests.integration.contract.rows import FLOW, Rows

HOUR = timedelta(hours=1)

Call = Callable[[FlowRunControlStore, UUID], object]
CALLS: dict[str, Call] = {
    "configure_run": lambda store, _: store.configure_run(uuid4(), FLOW, "t", timeout=HOUR),
    "configure_runs": lambda store, _: store.configure_runs([RunConfiguration(uuid4(), FLOW, "t", timeout=HOUR)]),
    "start_run": lambda store, _: store.start_run(FLOW, "t", uuid4().hex, timeout=HOUR),
    "start_run again": lambda store, run_id: store.start_run(FLOW, "t", f"key of {run_id}"),
    "start_run without a key": lambda store, _: store.start_run(FLOW, "t", timeout=HOUR),
    "get_run_control": lambda store, run_id: store.get_run_control(run_id),
    "ensure_may_run": lambda store, run_id: store.ensure_may_run(run_id),
    "heartbeat": lambda store, run_id: store.heartbeat(run_id, timeout=HOUR),
    "extend_deadline": lambda store, run_id: store.extend_deadline(run_id, timeout=HOUR),
    "reopen_run": lambda store, run_id: store.reopen_run(run_id, timeout=HOUR),
    "request_cancel": lambda store, _: store.request_cancel(uuid4()),
    "mark_timed_out": lambda store, _: store.mark_timed_out(uuid4()),
    "complete_run": lambda store, _: store.complete_run(uuid4()),
    "find": lambda store, _: store.find_run_id_by_idempotency_key(FLOW, "t", "k"),
    "try_register": lambda store, run_id: store.try_register_idempotency_key(FLOW, "t", uuid4().hex, run_id),
}


@pytest.mark.contract("X-8")
def test_a_listener_sees_every_statement(open_facade: OpenFacade, rows: Rows) -> None:
    """Whoever traces an engine sees the statements of each call, with their parameters, before and after."""
    facade, run_id = open_facade(), rows.insert("active")
    seen: dict[str, list[str]] = {"before_cursor_execute": [], "after_cursor_execute": []}
    for stage, found in seen.items():
        event.listen(facade.engine, stage, lambda *args, found=found: found.append(args[2]))
    before, after = seen.values()
    for name, call in CALLS.items():
        before.clear()
        after.clear()
        call(facade.store, run_id)
        assert before == after, name
        assert any("flow_" in statement for statement in before), name
    facade.close()


@pytest.mark.contract("X-8")
def test_a_listener_that_comes_later(open_facade: OpenFacade, rows: Rows) -> None:
    """A listener added to an engine at work sees the next call, may change its statement, and hears of its commit."""
    facade, run_id = open_facade(), rows.insert("active")
    heard: list[Any] = []
    assert facade.store.heartbeat(run_id, timeout=HOUR) is True

    def impossible(*args: Any) -> tuple[str, Any]:
        return args[2] + " AND false", args[3]

    event.listen(facade.engine, "before_cursor_execute", impossible, retval=True)
    event.listen(facade.engine, "commit", heard.append)
    assert facade.store.complete_run(run_id) is False
    assert len(heard) == 1
    facade.close()


@pytest.mark.contract("X-8")
def test_statements_are_logged_where_that_is_asked_for(
    open_facade: OpenFacade, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """With SQLAlchemy's logger at INFO a call's statement is in the log."""
    with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
        facade, run_id = open_facade(), rows.insert("active")
        facade.store.heartbeat(run_id, timeout=HOUR)
    assert any('UPDATE "public".flow_run_controls' in record.message for record in caplog.records)
    facade.close()


@pytest.mark.contract("Z-3", "Z-4")
@pytest.mark.parametrize("hidden", [False, True])
def test_an_error_is_sqlalchemys_with_its_cause(open_facade: OpenFacade, rows: Rows, hidden: bool) -> None:
    """A server's error is SQLAlchemy's, with the driver's as cause and the statement; parameters can be hidden."""
    options = "-c default_transaction_read_only=on"
    facade = open_facade(connect_args={"options": options}, hide_parameters=hidden)
    told: list[Any] = []
    event.listen(facade.engine, "handle_error", lambda context: told.append(context.original_exception))
    run_id = rows.insert("active")
    with pytest.raises(sqlalchemy.exc.InternalError) as raised:
        facade.store.complete_run(run_id)
    error = raised.value
    assert isinstance(error.orig, psycopg.errors.ReadOnlySqlTransaction)
    assert error.__cause__ is error.orig
    assert error.statement is not None
    assert error.statement.startswith('UPDATE "public".flow_run_controls')
    assert (str(run_id) in str(error)) is not hidden
    assert not error.connection_invalidated
    assert told == [error.orig]
    facade.close()


@pytest.mark.contract("Z-4", "Z-5")
def test_a_lost_connection_spoils_no_second_call(open_facade: OpenFacade, rows: Rows) -> None:
    """One call that finds the server gone is enough for the pool to give up all connections of that time."""
    facade, run_id = open_facade(pool_size=2, max_overflow=0), rows.insert("active")
    with facade.begin() as one, facade.begin() as other:
        pids = [caller.sql("SELECT pg_backend_pid()")[0][0] for caller in (one, other)]
    for _ in pids:  # the pool hands them out in turn, and each is used to the store then
        facade.store.get_run_control(run_id)
    for pid in pids:
        rows.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
    with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
        facade.store.get_run_control(run_id)
    assert raised.value.connection_invalidated
    assert is_transient(raised.value)
    assert facade.store.complete_run(run_id) is True
    facade.close()


@pytest.mark.contract("X-6", "Z-4")
def test_an_error_leaves_a_usable_connection(open_facade: OpenFacade, rows: Rows) -> None:
    """After a statement that failed for its own sake the same connection serves the next call."""
    facade = open_facade(pool_size=1, max_overflow=0, connect_args={"options": "-c lock_timeout=50ms"})
    run_id = rows.insert("active")
    made: list[Any] = []
    event.listen(facade.engine, "connect", lambda dbapi, _record: made.append(dbapi))
    with rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=run_id):
        with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
            facade.store.complete_run(run_id)
        assert sqlstate_of(raised.value) == "55P03"
    assert facade.store.complete_run(run_id) is True
    assert len(made) == 1
    facade.close()


@pytest.mark.parametrize("joined", [False, True])
def test_no_statement_is_built_for_a_call(
    open_facade: OpenFacade, rows: Rows, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    """Once each has been made, repeated calls compile nothing, whatever their parameters and connections."""
    facade, run_id = open_facade(), rows.insert("active")
    calls = {name: call for name, call in CALLS.items() if not (joined and name == "ensure_may_run")}

    def make_all() -> None:
        for call in calls.values():
            if not joined:
                call(facade.store, run_id)
                continue
            with facade.begin() as caller:
                call(_Joined(facade.store, caller.handle), run_id)  # type: ignore[arg-type]
                caller.commit()

    make_all()
    compiled: list[str] = []
    compile_ = ClauseElement._compiler

    def counted(self: ClauseElement, *args: Any, **kwargs: Any) -> Any:
        compiled.append(repr(self))
        return compile_(self, *args, **kwargs)

    monkeypatch.setattr(ClauseElement, "_compiler", counted)
    for _ in range(3):
        make_all()
    assert compiled == []
    facade.close()


class _Joined:
    """A store each of whose calls joins a connection."""

    def __init__(self, store: FlowRunControlStore, handle: Any) -> None:
        self._store = store
        self._handle = handle

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: getattr(self._store, name)(*args, **kwargs, connection=self._handle)
