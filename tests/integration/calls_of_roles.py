"""Every call that a role may make, as one function each: the store's methods and the daemon's commands.

Each brings the rows that it needs and checks that it has done its work, by every way through the code that sends
another statement.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy import Engine
from sqlalchemy.pool import QueuePool

from curfew_daemon.check import Level, examine
from curfew_daemon.links import make_link
from curfew_daemon.observer import Observer
from curfew_daemon.once import sweep_until_done
from curfew_daemon.plan import planned
from curfew_daemon.purge_once import purge_until_done
from curfew_daemon.sweeper import Sweeper
from curfew_store import FlowRunControlStore, RunTimedOut, StartedRun
from curfew_store.errors import sqlstate_of
from curfew_store.records import RunConfiguration
from curfew_store.schema import tables_in
from tests.integration.contract.rows import FLOW, Rows
from tests.integration.deployed_roles import engine_at
from tests.integration.settings import settings_for

HOUR = timedelta(hours=1)
Call = Callable[[str, Rows], None]


class Denied(Exception):
    """The server, or `curfewd check`, found a right missing."""


StoreCall = Callable[[FlowRunControlStore, Rows], object]


def _start_run(store: FlowRunControlStore, rows: Rows) -> object:
    """Every way through it: without a key, with a new one, with one that is taken, with a run that has its record."""
    key = uuid4().hex
    first = store.start_run(FLOW, "t", key, timeout=HOUR)
    own = rows.insert()
    rows.sql("UPDATE flow_run_controls SET trigger_key = 't', idempotency_key = 'gone' WHERE run_id = :run", run=own)
    return (
        not store.start_run(FLOW, "t", timeout=HOUR).duplicate
        and store.start_run(FLOW, "t", key) == StartedRun(first.run_id, duplicate=True)
        and store.start_run(FLOW, "t", "gone", run_id=own) == StartedRun(own, duplicate=True)
    )


def _ensure_may_run(store: FlowRunControlStore, rows: Rows) -> object:
    """A run that may go on, and one whose deadline has lapsed, which is marked."""
    lapsed = rows.insert("overdue")
    with pytest.raises(RunTimedOut):
        store.ensure_may_run(lapsed)
    marked = rows.row(lapsed)
    return store.ensure_may_run(rows.insert()) and marked and marked["timed_out_at_utc"]


def _purge(store: FlowRunControlStore, rows: Rows) -> object:
    """An ended run with its key, and a key that points to nothing."""
    rows.insert_key(rows.insert("completed"), uuid4().hex)
    rows.insert_key(uuid4(), uuid4().hex, created="now() - interval '1 hour'")
    return store.purge(datetime.now(UTC), limit=1000) >= 2


def _configured(store: FlowRunControlStore, rows: Rows) -> object:
    run = rows.insert()
    store.configure_run(run, FLOW, "t", "k", timeout=HOUR)
    return rows.row(run)["trigger_key"] == "t"  # type: ignore[index]


def _configured_many(store: FlowRunControlStore, rows: Rows) -> object:
    run = rows.insert()
    store.configure_runs([RunConfiguration(run, FLOW, "t", "k", timeout=HOUR)])
    return rows.row(run)["trigger_key"] == "t"  # type: ignore[index]


def _found(store: FlowRunControlStore, rows: Rows) -> object:
    rows.insert_key(run := uuid4(), key := uuid4().hex)
    return store.find_run_id_by_idempotency_key(FLOW, "trigger", key) == run


STORE_CALLS: dict[str, StoreCall] = {
    "configure_run": _configured,
    "configure_runs": _configured_many,
    "start_run": _start_run,
    "find_run_id_by_idempotency_key": _found,
    "try_register_idempotency_key": lambda store, _: store.try_register_idempotency_key(
        FLOW, "t", uuid4().hex, uuid4()
    ),
    "get_run_control": lambda store, rows: store.get_run_control(rows.insert()),
    "request_cancel": lambda store, rows: store.request_cancel(rows.insert()),
    "mark_timed_out": lambda store, rows: store.mark_timed_out(rows.insert()),
    "extend_deadline": lambda store, rows: store.extend_deadline(rows.insert("timed_out"), timeout=HOUR),
    "reopen_run": lambda store, rows: store.reopen_run(rows.insert("completed"), timeout=HOUR),
    "ensure_may_run": _ensure_may_run,
    "heartbeat": lambda store, rows: store.heartbeat(rows.insert(), timeout=HOUR),
    "complete_run": lambda store, rows: store.complete_run(rows.insert()),
    "purge": _purge,
}


_ENGINES: dict[str, Engine] = {}


def _pooled(conninfo: str) -> Engine:
    """An engine that stays connected: a thousand calls are tried."""
    return _ENGINES.setdefault(conninfo, engine_at(conninfo, QueuePool))


def _of_store(call: StoreCall) -> Call:
    def called(conninfo: str, rows: Rows) -> None:
        assert call(FlowRunControlStore(_pooled(conninfo)), rows), "the call did nothing"

    return called


def _run(conninfo: str, rows: Rows) -> None:
    """What the daemon does for ever: the sweep, and the observation beside it."""
    settings = settings_for(conninfo)
    tables = tables_in("public")
    rows.insert("overdue")
    link = make_link(lambda: settings, statement_timeout=5)
    try:
        sweeper = Sweeper(tables, link.connection, batch_size=lambda: 10, on_batch=lambda _: None)
        assert sweeper.run_once().marked == 1
        reading = Observer(tables, link).run_once(runs=True)
        assert (reading.gauges.overdue, reading.error) == (0, None)
    finally:
        link.close()


def _once(conninfo: str, rows: Rows) -> None:
    rows.insert("overdue")
    assert sweep_until_done(settings_for(conninfo), patience=0).marked == 1


def _plan(conninfo: str, rows: Rows) -> None:
    rows.insert("active", timeout_at_utc="now() + interval '5 minutes'")
    assert planned(settings_for(conninfo), HOUR)[0]


def _purged_old(conninfo: str, rows: Rows) -> None:
    """As `curfewd purge` and the purge of `curfewd run` do: ended runs with their keys, and orphaned keys."""
    old = "now() - interval '2 hours'"
    rows.insert_key(rows.insert("completed", completed_at_utc=old), uuid4().hex)
    rows.insert_key(uuid4(), uuid4().hex, created=old)
    deleted = purge_until_done(settings_for(conninfo), HOUR).deleted
    assert (deleted.runs, deleted.keys, deleted.orphaned_keys) == (1, 1, 1)


def _check(conninfo: str, _rows: Rows) -> None:
    topics = {"database", "schema", "rights", "claim", "keys"}
    found = [each for each in examine(settings_for(conninfo)) if each.topic in topics and each.level is not Level.OK]
    if found:
        said = "; ".join(each.message for each in found)
        assert "lacks" in said or "permission denied" in said, said
        raise Denied(said)


CALLS: dict[str, Call] = {name: _of_store(call) for name, call in STORE_CALLS.items()} | {
    "curfewd run": _run,
    "curfewd once": _once,
    "curfewd plan": _plan,
    "curfewd check": _check,
    "curfewd purge": _purged_old,
}


def is_allowed(call: Call, conninfo: str, rows: Rows) -> bool:
    """Whether a call does its work; any failure but a missing right is the test's."""
    try:
        call(conninfo, rows)
    except Denied:
        return False
    except (sqlalchemy.exc.ProgrammingError, psycopg.errors.InsufficientPrivilege) as error:
        if sqlstate_of(error) != "42501":
            raise
        return False
    finally:
        rows.sql("DELETE FROM flow_run_controls")
        rows.sql("DELETE FROM flow_idempotency_keys")
    return True


def disconnect() -> None:
    """Give up the connections that were kept."""
    while _ENGINES:
        _ENGINES.popitem()[1].dispose()
