"""What a call costs on the wire: one round trip, also where the engine or the role ask for more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from curfew_store import FlowRunControlStore, RunConfiguration, RunTimedOut
from tests.integration.contract.facade import Facade, OpenFacade
from tests.integration.contract.rows import FLOW, Rows
from tests.integration.wire import Wire

HOUR = timedelta(hours=1)
# A driver that prepares what it sees often does so in a round trip of its own, once for each connection.
USED_TO_IT = 6

Call = Callable[[FlowRunControlStore, UUID], object]
CALLS: dict[str, Call] = {
    "configure_run": lambda store, _: store.configure_run(uuid4(), FLOW, "t", timeout=HOUR),
    "configure_runs": lambda store, _: store.configure_runs([RunConfiguration(uuid4(), FLOW, "t", timeout=HOUR)]),
    "start_run": lambda store, _: store.start_run(FLOW, "t", uuid4().hex, timeout=HOUR),
    "start_run without a key": lambda store, _: store.start_run(FLOW, "t", timeout=HOUR),
    "get_run_control": lambda store, run_id: store.get_run_control(run_id),
    "ensure_may_run": lambda store, run_id: store.ensure_may_run(run_id),
    "heartbeat": lambda store, run_id: store.heartbeat(run_id, timeout=HOUR),
    "extend_deadline": lambda store, run_id: store.extend_deadline(run_id, timeout=HOUR),
    "request_cancel": lambda store, _: store.request_cancel(uuid4()),
    "complete_run": lambda store, _: store.complete_run(uuid4()),
    "find": lambda store, _: store.find_run_id_by_idempotency_key(FLOW, "t", "k"),
    "try_register": lambda store, _: store.try_register_idempotency_key(FLOW, "t", uuid4().hex, uuid4()),
}


def wired(open_facade: OpenFacade, **options: Any) -> tuple[Facade, Wire]:
    """A façade with one connection that is open and used to its calls, and the wire of it."""
    facade = open_facade(pool_size=1, max_overflow=0, **options)
    wire = Wire(facade.engine)
    facade.store.get_run_control(uuid4())
    return facade, wire


def round_trips(facade: Facade, wire: Wire, call: Call, run_id: UUID) -> int:
    """How many a call takes that has been made before."""
    for _ in range(USED_TO_IT):
        call(facade.store, run_id)
    return wire.round_trips(lambda: call(facade.store, run_id))


@pytest.mark.contract("X-3", "X-8")
def test_a_call_is_one_round_trip(open_facade: OpenFacade, rows: Rows) -> None:
    """Every call that has nothing to find out sends one statement, which commits by itself, and nothing else."""
    facade, wire = wired(open_facade)
    run_id = rows.insert("active")
    costs = {name: round_trips(facade, wire, call, run_id) for name, call in CALLS.items()}
    assert costs == dict.fromkeys(CALLS, 1)
    facade.close()


@pytest.mark.contract("X-3", "X-8")
@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "AUTOCOMMIT"])
def test_the_level_of_the_engine_costs_nothing(open_facade: OpenFacade, rows: Rows, level: str) -> None:
    """An engine's own isolation level is set aside without a word to the server, and is back for its next user."""
    facade, wire = wired(open_facade, isolation_level=level)
    assert round_trips(facade, wire, CALLS["start_run"], rows.insert("active")) == 1
    with facade.begin() as caller:
        told = caller.sql("SHOW transaction_isolation")[0][0].upper()
        assert told == ("READ COMMITTED" if level == "AUTOCOMMIT" else level)
    facade.close()


@pytest.mark.contract("X-3", "X-8")
@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_a_role_with_another_default_pays_for_it(open_facade: OpenFacade, rows: Rows, level: str) -> None:
    """Where a session would not be READ COMMITTED by itself, BEGIN says it: three round trips."""
    options = f"-c default_transaction_isolation={level}".replace(" read", r"\ read")
    facade, wire = wired(open_facade, connect_args={"options": options})
    run_id = rows.insert("active")
    assert round_trips(facade, wire, CALLS["configure_run"], run_id) == 3
    sent = [said for direction, said in wire.messages(lambda: facade.store.heartbeat(run_id, timeout=HOUR))]
    assert any("BEGIN ISOLATION LEVEL READ COMMITTED" in said for said in sent)
    facade.close()


@pytest.mark.contract("X-3", "X-8")
def test_what_a_listener_sets_for_the_transaction_is_in_force(open_facade: OpenFacade, rows: Rows) -> None:
    """`SET LOCAL` by a listener for `begin` governs the write, which costs BEGIN, COMMIT and what is set."""
    facade, wire = wired(open_facade)
    local = ["SET LOCAL lock_timeout = '5s'"]
    event.listen(facade.engine, "begin", lambda conn: conn.exec_driver_sql(local[0]))
    run_id = rows.insert("active")
    for call in (CALLS["heartbeat"], CALLS["configure_run"], CALLS["start_run"], CALLS["ensure_may_run"]):
        assert round_trips(facade, wire, call, run_id) == 4
    before = rows.row(run_id)
    local[0] = "SET LOCAL transaction_read_only = on"
    with pytest.raises(DBAPIError, match="read-only transaction"):
        facade.store.heartbeat(run_id, timeout=2 * HOUR)
    assert rows.changed(before, run_id) == set()
    facade.close()


@pytest.mark.contract("X-8")
def test_a_ping_before_each_use_is_a_second_round_trip(open_facade: OpenFacade, rows: Rows) -> None:
    """`pool_pre_ping` asks the server whether it is there, as it does for everybody."""
    facade, wire = wired(open_facade, pool_pre_ping=True)
    assert round_trips(facade, wire, CALLS["configure_run"], rows.insert("active")) == 2
    facade.close()


@pytest.mark.contract("X-1")
def test_a_joined_call_adds_one_round_trip(open_facade: OpenFacade) -> None:
    """In the caller's transaction a call is its statement alone."""
    facade, wire = wired(open_facade)
    with facade.begin() as caller:

        def call() -> None:
            facade.store.configure_run(uuid4(), FLOW, "t", timeout=HOUR, connection=caller.handle)

        for _ in range(USED_TO_IT):
            call()
        assert wire.round_trips(call) == 1
        caller.rollback()
    facade.close()


@pytest.mark.contract("X-8")
def test_the_next_user_of_the_connection_gets_transactions(open_facade: OpenFacade, rows: Rows) -> None:
    """After a call the pooled connection is as it was: what its next user rolls back is undone."""
    facade, _ = wired(open_facade)
    run_id = rows.insert("active")
    facade.store.heartbeat(run_id, timeout=HOUR)
    before = rows.row(run_id)
    with facade.begin() as caller:
        caller.sql("UPDATE flow_run_controls SET trigger_key = 'changed' WHERE run_id = :r", r=run_id)
        caller.rollback()
    assert rows.changed(before, run_id) == set()
    facade.close()


@pytest.mark.contract("X-8")
def test_what_the_first_calls_pay(open_facade: OpenFacade) -> None:
    """On a new connection it is asked for its default, for a new store the schema is verified; the sixth prepares."""
    facade = open_facade(pool_size=1, max_overflow=0)
    wire = Wire(facade.engine)
    with facade.begin() as caller:
        caller.sql("SELECT 1")
    costs = [wire.round_trips(lambda: facade.store.heartbeat(uuid4(), timeout=HOUR)) for _ in range(7)]
    assert costs == [4, 1, 1, 1, 1, 2, 1]
    facade.close()


@pytest.mark.contract("S-2", "S-4", "W-3", "X-8")
def test_what_a_call_pays_that_has_to_find_out(open_facade: OpenFacade, rows: Rows) -> None:
    """A taken key is looked up; a run id that has a record is read too; a lapsed deadline is marked and read again."""
    facade, wire = wired(open_facade)
    store, key, run_id = facade.store, uuid4().hex, rows.insert("active", idempotency_key="'the key'")

    def settled(call: Callable[[], object]) -> int:
        for _ in range(USED_TO_IT):
            call()
        return wire.round_trips(call)

    store.start_run(FLOW, "t", key)
    assert settled(lambda: store.start_run(FLOW, "t", key)) == 2
    assert settled(lambda: store.start_run(FLOW, "Trigger", "the key", run_id=run_id)) == 3
    overdue = [rows.insert("overdue") for _ in range(USED_TO_IT + 1)]

    def stopped() -> None:
        with pytest.raises(RunTimedOut):
            store.ensure_may_run(overdue.pop())

    assert settled(stopped) == 3
    assert overdue == []
    facade.close()
