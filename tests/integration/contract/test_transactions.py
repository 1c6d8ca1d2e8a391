"""Whose transaction it is: joined ones are the caller's to decide on, own ones are READ COMMITTED and short."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy.exc

from curfew_store import FlowRunControlStore, RunConfiguration, StartedRun, is_transient
from curfew_store.errors import sqlstate_of
from tests.integration.contract.facade import Facade, OpenFacade
from tests.integration.contract.rows import FLOW, Rows
from tests.patience import PATIENCE

HOUR = timedelta(hours=1)
LEVELS = ["AUTOCOMMIT", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)

# Every method that writes, on a run in a state on which it does, with the transaction to join.
Write = Callable[[FlowRunControlStore, UUID, Any], object]
WRITES: dict[str, tuple[str, Write]] = {
    "configure_run": ("active", lambda s, r, c: s.configure_run(r, FLOW, "joined", connection=c)),
    "configure_runs": ("active", lambda s, r, c: s.configure_runs([RunConfiguration(r, FLOW, "j")], connection=c)),
    "start_run": ("unknown", lambda s, r, c: s.start_run(FLOW, "t", f"key-{r}", run_id=r, connection=c)),
    "try_register": ("active", lambda s, r, c: s.try_register_idempotency_key(FLOW, "t", f"k{r}", r, connection=c)),
    "request_cancel": ("active", lambda s, r, c: s.request_cancel(r, connection=c)),
    "mark_timed_out": ("active", lambda s, r, c: s.mark_timed_out(r, connection=c)),
    "complete_run": ("active", lambda s, r, c: s.complete_run(r, connection=c)),
    "extend_deadline": ("timed_out", lambda s, r, c: s.extend_deadline(r, timeout=HOUR, connection=c)),
    "heartbeat": ("active", lambda s, r, c: s.heartbeat(r, timeout=2 * HOUR, connection=c)),
    "reopen_run": ("cancelled", lambda s, r, c: s.reopen_run(r, connection=c)),
}


@pytest.mark.contract("X-1", "X-2")
@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_caller_decides(facade: Facade, rows: Rows, method: str, level: str) -> None:
    """Others see nothing of a joined write before the caller commits, and never if it rolls back."""
    state, write = WRITES[method]
    run_id = rows.insert(state)
    untouched = rows.row(run_id), rows.keys_of(run_id)
    with facade.begin(level) as caller:
        write(facade.store, run_id, caller.handle)
        if level != "AUTOCOMMIT":
            assert (rows.row(run_id), rows.keys_of(run_id)) == untouched
            caller.rollback()
            assert (rows.row(run_id), rows.keys_of(run_id)) == untouched
            write(facade.store, run_id, caller.handle)
            caller.commit()
        assert (rows.row(run_id), rows.keys_of(run_id)) != untouched


@pytest.mark.contract("X-1", "X-2", "P-1")
@pytest.mark.parametrize("level", LEVELS)
def test_a_joined_purge_and_joined_reads(facade: Facade, rows: Rows, level: str) -> None:
    """Reads see what the caller has written and not committed; a purge is undone with the rest."""
    run_id, key = uuid4(), f"key-{uuid4()}"
    with facade.begin(level) as caller:
        joined = {"connection": caller.handle}
        facade.store.start_run(FLOW, "t", key, run_id=run_id, **joined)
        assert facade.store.get_run_control(run_id, **joined) is not None
        assert facade.store.find_run_id_by_idempotency_key(FLOW, "t", key, **joined) == run_id
        assert facade.store.start_run(FLOW, "t", key, **joined) == StartedRun(run_id, duplicate=True)
        caller.sql(
            "UPDATE flow_run_controls SET completed_at_utc = '2000-06-01 00:00:00+00' WHERE run_id = :r", r=run_id
        )
        assert facade.store.purge(LONG_AGO, limit=10, **joined) == 1
        assert facade.store.get_run_control(run_id, **joined) is None
        if level != "AUTOCOMMIT":
            caller.rollback()
            assert facade.store.get_run_control(run_id, **joined) is None


@pytest.mark.contract("X-1")
def test_the_store_neither_commits_nor_rolls_back(facade: Facade, rows: Rows) -> None:
    """A statement of the caller's before the call and the write of the store share one transaction and one fate."""
    run_id, other = rows.insert("active"), rows.insert("active")
    with facade.begin() as caller:
        caller.sql("UPDATE flow_run_controls SET cancel_reason = 'mine' WHERE run_id = :r", r=other)
        transaction = caller.sql("SELECT pg_current_xact_id()::text")
        facade.store.request_cancel(run_id, connection=caller.handle)
        with pytest.raises(ValueError, match="reason"):
            facade.store.request_cancel(run_id, "\0", connection=caller.handle)
        assert caller.sql("SELECT pg_current_xact_id()::text") == transaction
        caller.commit()
    assert (rows.row(other) or {})["cancel_reason"] == "mine"


@pytest.mark.contract("X-1")
def test_a_savepoint_of_the_caller(facade: Facade, rows: Rows) -> None:
    """What the store wrote behind a savepoint goes with it, and what it wrote before stays."""
    kept, undone = rows.insert("active"), rows.insert("active")
    before = rows.row(undone)
    with facade.begin() as caller:
        assert facade.store.complete_run(kept, connection=caller.handle) is True
        caller.sql("SAVEPOINT here")
        assert facade.store.complete_run(undone, connection=caller.handle) is True
        caller.sql("ROLLBACK TO here")
        caller.commit()
    assert (rows.row(kept) or {})["completed_at_utc"] is not None
    assert rows.changed(before, undone) == set()


@pytest.mark.contract("X-1")
def test_an_orm_session_is_joined(facade: Facade) -> None:
    """`session.connection()` is a connection to join; the session's commit commits the run."""
    started = facade.commit_in_orm_session(lambda store: store.start_run, FLOW, "orm")
    record = facade.store.get_run_control(started.run_id)
    assert record is not None
    assert record.trigger_key == "orm"


@pytest.mark.contract("X-3")
@pytest.mark.parametrize("default", ["role", "engine", "autocommit"])
def test_own_transactions_are_read_committed(open_facade: OpenFacade, rows: Rows, default: str) -> None:
    """A call without a connection runs at READ COMMITTED and is committed, whatever role and engine default to."""
    options: dict[str, dict[str, Any]] = {
        "role": {"connect_args": {"options": "-c default_transaction_isolation=serializable"}},
        "engine": {"isolation_level": "SERIALIZABLE"},
        "autocommit": {"isolation_level": "AUTOCOMMIT"},
    }
    facade, run_id = open_facade(**options[default]), rows.insert("active")
    rows.sql(
        "CREATE OR REPLACE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.cancel_reason := current_setting('transaction_isolation'); RETURN NEW; END $$"
    )
    rows.sql(
        f"CREATE TRIGGER tell BEFORE UPDATE ON flow_run_controls FOR EACH ROW WHEN (NEW.run_id = '{run_id}') "
        "EXECUTE FUNCTION tell()"
    )
    try:
        assert facade.store.request_cancel(run_id) is True
    finally:
        rows.sql("DROP FUNCTION tell CASCADE")
        facade.close()
    assert (rows.row(run_id) or {})["cancel_reason"] == "read committed"


@pytest.mark.contract("X-4", "Z-3", "Z-4")
@pytest.mark.parametrize("method", ["request_cancel", "mark_timed_out", "complete_run", "heartbeat", "configure_run"])
@pytest.mark.parametrize("level", LEVELS[2:])
def test_a_lost_race_is_transient(facade: Facade, rows: Rows, level: str, method: str) -> None:
    """A row that changed after the caller's snapshot is a 40001; the repeated transaction succeeds."""
    run_id, write = rows.insert("active"), WRITES[method][1]
    with facade.begin(level) as caller:
        caller.sql("SELECT 1 FROM flow_run_controls LIMIT 1")
        facade.store.extend_deadline(run_id, timeout=HOUR)
        with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
            write(facade.store, run_id, caller.handle)
        assert sqlstate_of(raised.value) == "40001"
        assert is_transient(raised.value)
        assert raised.value.__cause__ is raised.value.orig
        caller.rollback()
        assert write(facade.store, run_id, caller.handle) is not False
        caller.commit()


@pytest.mark.contract("X-4", "S-2")
@pytest.mark.parametrize("level", LEVELS[2:])
def test_a_key_lost_to_another_is_transient(facade: Facade, level: str) -> None:
    """A key that somebody committed after the caller's snapshot is a 40001; repeated, it is a duplicate."""
    key = f"key-{uuid4()}"
    with facade.begin(level) as caller:
        caller.sql("SELECT 1 FROM flow_run_controls LIMIT 1")
        winner = facade.store.start_run(FLOW, "t", key)
        with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
            facade.store.start_run(FLOW, "t", key, connection=caller.handle)
        assert is_transient(raised.value)
        caller.rollback()
        again = facade.store.start_run(FLOW, "t", key, connection=caller.handle)
        assert again == StartedRun(winner.run_id, duplicate=True)


@pytest.mark.contract("X-4", "I-1")
@pytest.mark.parametrize("level", LEVELS[2:])
def test_racing_for_a_key_with_open_snapshots(facade: Facade, rows: Rows, level: str) -> None:
    """Two callers at a high level with one key: the one that waited gets a 40001 when the other commits."""
    key = f"key-{uuid4()}"
    with facade.begin(level) as one, facade.begin(level) as two, ThreadPoolExecutor(1) as pool:
        two.sql("SELECT 1 FROM flow_idempotency_keys LIMIT 1")
        assert facade.store.try_register_idempotency_key(FLOW, "t", key, uuid4(), connection=one.handle) is True
        register = facade.store.try_register_idempotency_key
        waiting = pool.submit(register, FLOW, "t", key, uuid4(), connection=two.handle)
        rows.wait_until_blocked()
        one.commit()
        with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
            waiting.result(timeout=PATIENCE)
        assert is_transient(raised.value)
        two.rollback()
        assert facade.store.try_register_idempotency_key(FLOW, "t", key, uuid4(), connection=two.handle) is False


@pytest.mark.contract("X-6", "Z-4")
@pytest.mark.parametrize("method", ["start_run", "try_register", "configure_run", "complete_run"])
def test_lock_timeout_bounds_the_wait(open_facade: OpenFacade, rows: Rows, method: str) -> None:
    """A producer's open transaction is waited for as long as the session's lock_timeout says, then it is transient."""
    patient, state, write = open_facade(), *WRITES[method]
    hasty = open_facade(connect_args={"options": "-c lock_timeout=50ms"})
    run_id = rows.insert(state)
    with patient.begin() as holder:
        write(patient.store, run_id, holder.handle)
        with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
            write(hasty.store, run_id, None)
        assert sqlstate_of(raised.value) == "55P03"
        assert is_transient(raised.value)
        holder.rollback()
    assert write(hasty.store, run_id, None) is not False
    patient.close()
    hasty.close()


@pytest.mark.contract("X-7")
@pytest.mark.parametrize("method", WRITES)
def test_every_method_may_be_repeated(store: FlowRunControlStore, rows: Rows, method: str) -> None:
    """After an unknown outcome the same call again raises nothing and leaves the run where the first one put it."""
    state, write = WRITES[method]
    run_id = rows.insert(state)
    write(store, run_id, None)
    first = store.get_run_control(run_id)
    write(store, run_id, None)
    second = store.get_run_control(run_id)
    assert first is not None
    assert second is not None
    assert (first.state, first.cancel_reason, first.timed_out_at_utc) == (
        second.state,
        second.cancel_reason,
        second.timed_out_at_utc,
    )
