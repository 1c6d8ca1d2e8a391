"""Connections that fail, callers whose transaction is broken, and what `is_transient` says of them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy.exc

from curfew_store import is_transient
from curfew_store.errors import sqlstate_of
from tests.integration.contract.facade import Facade, OpenFacade
from tests.integration.contract.rows import FLOW, Rows


def killed(caller: Any, rows: Rows) -> None:
    """End the server's side of a connection, and wait until it has gone."""
    pid = caller.sql("SELECT pg_backend_pid()")[0][0]
    rows.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)


@pytest.mark.contract("Z-4", "X-7")
def test_a_lost_joined_connection(facade: Facade, rows: Rows) -> None:
    """A connection that the server has ended gives a transient error; a new one does the work."""
    run_id = rows.insert("active")
    with facade.begin() as caller:
        killed(caller, rows)
        with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
            facade.store.request_cancel(run_id, connection=caller.handle)
        assert is_transient(raised.value)
        caller.rollback()
    assert facade.store.request_cancel(run_id) is True


@pytest.mark.contract("Z-4", "Z-5")
def test_a_lost_pooled_connection(open_facade: OpenFacade, rows: Rows) -> None:
    """A stale connection in the pool is one transient error, not retried in secret; the next call has a new one."""
    facade, run_id = open_facade(pool_size=1, max_overflow=0), rows.insert("active")
    with facade.begin() as caller:
        pid = caller.sql("SELECT pg_backend_pid()")[0][0]
    rows.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
    with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
        facade.store.request_cancel(run_id)
    assert is_transient(raised.value)
    assert facade.store.request_cancel(run_id) is True
    facade.close()


@pytest.mark.contract("Z-4")
def test_an_exhausted_pool_is_transient(open_facade: OpenFacade) -> None:
    """No connection to be had in time is worth a retry."""
    facade = open_facade(pool_size=1, max_overflow=0, pool_timeout=0.01)
    with facade.begin():
        with pytest.raises(sqlalchemy.exc.TimeoutError) as raised:
            facade.store.get_run_control(uuid4())
        assert is_transient(raised.value)
    facade.close()


@pytest.mark.contract("Z-4")
def test_no_server_is_transient(facade: Facade, rows: Rows, open_facade: OpenFacade) -> None:
    """A server that cannot be reached is worth a retry."""
    unreachable = open_facade(connect_args={"host": "127.0.0.1", "port": "1", "connect_timeout": "2"})
    with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
        unreachable.store.get_run_control(uuid4())
    assert is_transient(raised.value)
    unreachable.close()


@pytest.mark.contract("Z-2", "Z-3", "Z-4")
def test_a_closed_connection(facade: Facade, rows: Rows) -> None:
    """A connection that the caller has closed is an error of SQLAlchemy's that no retry cures; nothing is written."""
    run_id = rows.insert("active")
    with facade.begin() as caller:
        handle = caller.handle
    before = rows.row(run_id)
    with pytest.raises(sqlalchemy.exc.InvalidRequestError) as raised:
        facade.store.request_cancel(run_id, connection=handle)
    assert not is_transient(raised.value)
    assert rows.changed(before, run_id) == set()


@pytest.mark.contract("X-1", "Z-3", "Z-4")
def test_a_transaction_that_has_already_failed(facade: Facade, rows: Rows) -> None:
    """In an aborted transaction the server's own error arrives; after a rollback the same connection works."""
    run_id = rows.insert("active")
    with facade.begin() as caller:
        with pytest.raises(sqlalchemy.exc.DBAPIError):
            caller.sql("SELECT 1/0")
        with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
            facade.store.request_cancel(run_id, connection=caller.handle)
        assert sqlstate_of(raised.value) == "25P02"
        assert not is_transient(raised.value)
        caller.rollback()
        assert facade.store.request_cancel(run_id, connection=caller.handle) is True
        caller.commit()


@pytest.mark.contract("Z-3", "Z-4")
def test_a_read_only_session(open_facade: OpenFacade, rows: Rows) -> None:
    """Reads work; a write is refused by the server with an error that a retry does not cure."""
    facade = open_facade(connect_args={"options": "-c default_transaction_read_only=on"})
    run_id = rows.insert("active")
    assert facade.store.get_run_control(run_id) is not None
    with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
        facade.store.start_run(FLOW, "t")
    assert sqlstate_of(raised.value) == "25006"
    assert raised.value.__cause__ is raised.value.orig is not None
    assert not is_transient(raised.value)
    facade.close()
