"""``notify_within``: who is told of a deadline, when, and that the others are left in peace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from curfew_store import FlowRunControlStore, RunConfiguration
from curfew_store.hints import Hint, channel_of, parsed
from curfew_store.migrate import upgrade
from tests.integration.contract.facade import Facade, OpenFacade
from tests.integration.contract.rows import FLOW, Rows

HORIZON = timedelta(seconds=20)
NEAR = timedelta(seconds=10)
FAR = timedelta(seconds=40)


class Ear:
    """A session that listens."""

    def __init__(self, conninfo: str, schema: str) -> None:
        self._conn = psycopg.connect(conninfo, autocommit=True)
        self._channel = channel_of(schema)
        self._conn.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(self._channel)))

    def heard(self) -> list[Hint]:
        """What was notified since the last time, in order; every commit before the call is in it."""
        self._conn.execute("SELECT pg_notify(%s, 'end')", [self._channel])
        payloads: list[str] = []
        for notify in self._conn.notifies(timeout=20):
            if notify.payload == "end":
                break
            payloads.append(notify.payload)
        hints = [parsed(payload) for payload in payloads]
        return [hint for hint in hints if hint is not None]

    def close(self) -> None:
        self._conn.close()


def conninfo_of(url: str) -> str:
    return url.replace("+psycopg", "")


@pytest.fixture
def ear(url: str) -> Iterator[Ear]:
    listening = Ear(conninfo_of(url), "public")
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def hinting(open_facade: OpenFacade) -> Facade:
    """A façade whose store notifies."""
    return open_facade(notify_within=HORIZON)


Setter = Callable[[FlowRunControlStore, Rows, dict[str, Any]], UUID]


def _configured(store: FlowRunControlStore, _rows: Rows, when: dict[str, Any]) -> UUID:
    run = uuid4()
    store.configure_run(run, FLOW, "t", "k", **when)
    return run


def _configured_again(store: FlowRunControlStore, rows: Rows, when: dict[str, Any]) -> UUID:
    run = rows.insert("active")
    store.configure_run(run, FLOW, "t", "k", **when)
    return run


def _one_of_many(store: FlowRunControlStore, _rows: Rows, when: dict[str, Any]) -> UUID:
    run = uuid4()
    store.configure_runs(
        [RunConfiguration(uuid4(), FLOW, "t"), RunConfiguration(run, FLOW, "t", **when)],
    )
    return run


def _started(store: FlowRunControlStore, _rows: Rows, when: dict[str, Any]) -> UUID:
    return store.start_run(FLOW, "t", **when).run_id


def _started_with_a_key(store: FlowRunControlStore, _rows: Rows, when: dict[str, Any]) -> UUID:
    return store.start_run(FLOW, "t", uuid4().hex, **when).run_id


def _extended(store: FlowRunControlStore, rows: Rows, when: dict[str, Any]) -> UUID:
    run = rows.insert("active")
    moved = {"new_timeout_at_utc" if name == "timeout_at_utc" else name: value for name, value in when.items()}
    assert store.extend_deadline(run, **moved) is True
    return run


def _reopened(store: FlowRunControlStore, rows: Rows, when: dict[str, Any]) -> UUID:
    run = rows.insert("timed_out")
    assert store.reopen_run(run, **when) is True
    return run


SETTERS: list[Setter] = [
    _configured,
    _configured_again,
    _one_of_many,
    _started,
    _started_with_a_key,
    _extended,
    _reopened,
]


def after(timeout: timedelta) -> dict[str, Any]:
    return {"timeout": timeout}


def at(timeout: timedelta) -> dict[str, Any]:
    return {"timeout_at_utc": datetime.now(UTC) + timeout}


@pytest.mark.contract("V-1", "V-2", "V-4")
@pytest.mark.parametrize("given", [after, at])
@pytest.mark.parametrize("setter", SETTERS)
def test_a_near_deadline_is_told_and_a_far_one_is_not(
    hinting: Facade, rows: Rows, ear: Ear, setter: Setter, given: Callable[[timedelta], dict[str, Any]]
) -> None:
    """Each method that sets a deadline: one hint, of run and deadline as written; none beyond the horizon."""
    near = setter(hinting.store, rows, given(NEAR))
    setter(hinting.store, rows, given(FAR))
    (hint,) = ear.heard()
    written = rows.sql("SELECT timeout_at_utc FROM flow_run_controls WHERE run_id = :run", run=near)[0][0]
    assert (hint.run_id, hint.deadline) == (near, written)


@pytest.mark.contract("V-1")
def test_a_deadline_in_the_past_is_near(hinting: Facade, rows: Rows, ear: Ear) -> None:
    """What is due at once is worth a hint more than anything else."""
    run = _configured(hinting.store, rows, at(-timedelta(days=1)))
    assert [hint.run_id for hint in ear.heard()] == [run]


@pytest.mark.contract("V-1")
@pytest.mark.parametrize("given", [after, at])
@pytest.mark.parametrize("setter", SETTERS)
def test_a_store_that_was_not_asked_to_tells_nobody(
    facade: Facade, rows: Rows, ear: Ear, setter: Setter, given: Callable[[timedelta], dict[str, Any]]
) -> None:
    """Without ``notify_within`` no statement notifies."""
    setter(facade.store, rows, given(NEAR))
    assert ear.heard() == []


@pytest.mark.contract("V-1")
def test_what_sets_no_deadline_tells_nobody(hinting: Facade, rows: Rows, ear: Ear) -> None:
    """Disarming, a duplicate, an unknown run, and every call that brings no deadline nearer."""
    store, run = hinting.store, rows.insert("active")
    key = uuid4().hex
    store.start_run(FLOW, "t", key)
    assert store.start_run(FLOW, "t", key, timeout=NEAR).duplicate
    assert store.start_run(FLOW, "t", run_id=run, timeout=NEAR).duplicate
    store.configure_run(run, FLOW, "t")
    store.configure_runs([RunConfiguration(run, FLOW, "t")])
    store.configure_runs([])
    assert not store.extend_deadline(uuid4(), timeout=NEAR)
    assert store.extend_deadline(run, None)
    assert not store.reopen_run(run, timeout=NEAR)
    overdue_soon = rows.insert(timeout_at_utc="now() + interval '5 seconds'")
    assert store.heartbeat(overdue_soon, timeout=NEAR)
    assert store.request_cancel(run)
    assert store.mark_timed_out(run)
    assert store.reopen_run(run)
    assert store.complete_run(run)
    assert ear.heard() == []


@pytest.mark.contract("V-3")
def test_a_hint_comes_with_the_commit_and_never_without(hinting: Facade, rows: Rows, ear: Ear) -> None:
    """In the caller's transaction nothing is told before its commit, and nothing of what was rolled back."""
    kept, dropped = uuid4(), uuid4()
    with hinting.begin() as caller:
        hinting.store.configure_run(dropped, FLOW, "t", timeout=NEAR, connection=caller.handle)
        caller.rollback()
    with hinting.begin() as caller:
        hinting.store.configure_run(kept, FLOW, "t", timeout=NEAR, connection=caller.handle)
        assert ear.heard() == []
        caller.commit()
    assert [hint.run_id for hint in ear.heard()] == [kept]


@pytest.mark.contract("V-2")
def test_many_at_once_are_told_as_the_earliest(hinting: Facade, rows: Rows, ear: Ear) -> None:
    """One hint for one statement, whatever the number of its runs: the others are found by looking ahead."""
    runs = [RunConfiguration(uuid4(), FLOW, "t", timeout=NEAR + n * timedelta(seconds=1)) for n in range(5)]
    hinting.store.configure_runs([*reversed(runs), RunConfiguration(uuid4(), FLOW, "t", timeout=FAR)])
    assert [hint.run_id for hint in ear.heard()] == [runs[0].run_id]


@pytest.mark.contract("V-1")
def test_near_is_decided_by_the_databases_clock(hinting: Facade, ear: Ear) -> None:
    """A moment is compared with the server's now and no other: in an old transaction too, it is the statement's."""
    with hinting.begin() as caller:
        deadline = caller.sql("SELECT now() + interval '20.2 seconds'")[0][0]
        early, late = uuid4(), uuid4()
        hinting.store.configure_run(early, FLOW, "t", timeout_at_utc=deadline, connection=caller.handle)
        caller.sql("SELECT pg_sleep(0.4)")
        hinting.store.configure_run(late, FLOW, "t", timeout_at_utc=deadline, connection=caller.handle)
        caller.commit()
    assert late in [hint.run_id for hint in ear.heard()]


@pytest.mark.contract("V-5")
def test_hints_need_no_right_beyond_those_of_the_calls(open_facade: OpenFacade, rows: Rows, ear: Ear) -> None:
    """A role that holds exactly the columns of these calls makes them with hints as without."""
    rows.sql("DROP ROLE IF EXISTS hint_producer")
    configured = "run_id, flow_id, trigger_key, idempotency_key, timeout_at_utc"
    latches = "cancel_requested, cancel_reason, cancel_requested_at_utc, timed_out_at_utc"
    for statement in (
        "CREATE ROLE hint_producer",
        "GRANT SELECT ON curfew_schema_version TO hint_producer",
        f"GRANT SELECT ({configured}), INSERT ({configured}) ON flow_run_controls TO hint_producer",
        f"GRANT UPDATE ({configured.removeprefix('run_id, ')}, {latches}) ON flow_run_controls TO hint_producer",
        f"GRANT SELECT ({latches}, completed_at_utc) ON flow_run_controls TO hint_producer",
        "GRANT UPDATE (completed_at_utc) ON flow_run_controls TO hint_producer",
    ):
        rows.sql(statement)
    try:
        facade = open_facade(notify_within=HORIZON, connect_args={"options": "-c role=hint_producer"})
        told = [
            setter(facade.store, rows, given(NEAR))
            for setter in (_configured, _one_of_many, _extended, _reopened)
            for given in (after, at)
        ]
        facade.close()
        assert [hint.run_id for hint in ear.heard()] == told
    finally:
        rows.sql("DROP OWNED BY hint_producer")
        rows.sql("DROP ROLE hint_producer")


@pytest.mark.contract("V-4")
@pytest.mark.parametrize("schema", ["of %s 'others' \"x\"", "\u00e9" * 31])
def test_each_schema_has_a_channel_of_its_own(open_facade: OpenFacade, url: str, rows: Rows, schema: str) -> None:
    """Whatever PostgreSQL takes as the name of a schema, its hints are heard there and nowhere else."""
    facade = open_facade(schema, notify_within=HORIZON)
    upgrade(facade.engine if not hasattr(facade, "async_engine") else rows.engine, schema=schema)
    here, elsewhere = Ear(conninfo_of(url), schema), Ear(conninfo_of(url), "public")
    run = _configured(facade.store, rows, after(NEAR))
    assert [hint.run_id for hint in here.heard()] == [run]
    assert elsewhere.heard() == []
    here.close()
    elsewhere.close()
    facade.close()
