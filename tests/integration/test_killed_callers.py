"""A producer killed at each statement of each call: all of the call is there or nothing, and it can be made again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args
from uuid import UUID, uuid4

import psycopg
import pytest

from curfew_store import AsyncFlowRunControlStore, FlowRunControlStore
from curfew_store.embedded import EmbeddedPostgres
from tests.faults.protocol import Request
from tests.faults.wire import Point, Trap, Wire
from tests.integration.killed_callers import CALLS, FACADES, FLOW, NAME, Call, Producer, sibling
from tests.integration.sessions import eventually
from tests.patience import PATIENCE

POINTS: tuple[Point, ...] = ("parse", "unsynced", "commit")
"""Before the server has the statement, while it executes it, and once it has committed but not said so."""

_RUNS = {
    "active": "now() + interval '1 hour', NULL",
    "lapsed": "now() - interval '1 minute', NULL",
    "ended": "now() + interval '1 hour', now()",
    "old": "now() - interval '2 days', now() - interval '2 days'",
}
_SHAPE = """
SELECT (SELECT count(*) FROM flow_idempotency_keys WHERE run_id = id),
    control.run_id IS NOT NULL, round(extract(epoch FROM timeout_at_utc - now()) / 1800)::int,
    cancel_requested, cancel_reason, cancel_requested_at_utc IS NOT NULL, timed_out_at_utc IS NOT NULL,
    completed_at_utc IS NOT NULL
FROM unnest(%s::uuid[]) WITH ORDINALITY AS given (id, place)
LEFT JOIN flow_run_controls AS control ON control.run_id = id ORDER BY place
"""


@pytest.fixture
def admin(tcp: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    """A connection that looks at empty tables past the proxy."""
    with psycopg.connect(tcp.url(), autocommit=True) as conn:
        conn.execute("TRUNCATE flow_run_controls, flow_idempotency_keys")
        yield conn


@pytest.mark.parametrize("facade", FACADES)
@pytest.mark.parametrize("name", CALLS)
def test_nothing_half_done_is_left(
    tcp: EmbeddedPostgres, admin: psycopg.Connection[Any], facade: str, name: str
) -> None:
    """Before its first statement nothing is there, after its last commit all; made again it ends as if unbroken."""
    call = CALLS[name]
    with Wire(tcp.port) as wire:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{wire.port}/postgres"
        run = made(admin, call)
        statements, whole = unbroken(wire, admin, url, facade, call, run)
        assert statements >= 1
        for number in range(statements):
            for point in POINTS:
                run = made(admin, call)
                before = shape(admin, run)
                killed(wire, url, facade, call, run, point, number)
                eventually(lambda: no_session_is_left(admin), "the server has seen that its client is gone")
                found = shape(admin, run)
                assert found in (before, whole), f"{point} of statement {number + 1} of {statements}"
                if point == "parse" and number == 0:
                    assert found == before
                if point == "commit" and number == statements - 1:
                    assert found == whole
                _, again = unbroken(wire, admin, url, facade, call, run)
                assert again == whole, f"repeated after {point} of statement {number + 1}"


def test_no_method_is_left_out() -> None:
    """Whatever the store can be asked is killed here."""
    for facade in (FlowRunControlStore, AsyncFlowRunControlStore):
        public = {name for name, _ in inspect.getmembers(facade, inspect.isfunction) if not name.startswith("_")}
        assert {call.method for call in CALLS.values()} == public
    assert set(POINTS) <= set(get_args(Point))


def made(admin: psycopg.Connection[Any], call: Call) -> UUID:
    """A run that stands as the call wants it, with a key if it is an old one."""
    run = uuid4()
    if call.shape != "none":
        admin.execute(
            "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc, completed_at_utc) "
            f"VALUES (%s, %s, 'kill', {_RUNS[call.shape]})",
            (run, FLOW),
        )
    if call.shape == "old":
        admin.execute("INSERT INTO flow_idempotency_keys VALUES (%s, 'kill', %s, %s)", (FLOW, str(run), run))
    return run


def shape(admin: psycopg.Connection[Any], run: UUID) -> list[tuple[Any, ...]]:
    """What is written of the run and of its sibling."""
    return admin.execute(_SHAPE, ([run, sibling(run)],)).fetchall()


def no_session_is_left(admin: psycopg.Connection[Any]) -> bool:
    """Whether the server has ended the sessions of all producers."""
    row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (NAME,)).fetchone()
    return row == (0,)


def unbroken(
    wire: Wire, admin: psycopg.Connection[Any], url: str, facade: str, call: Call, run: UUID
) -> tuple[int, list[tuple[Any, ...]]]:
    """How many statements the call sends and how it leaves the run, with nobody in its way."""
    requests: list[bytes] = []
    with Producer(url, facade, call, run) as producer, wire.trap(Trap("parse", "cut", NAME, meant=_noted(requests))):
        producer.begin()
        producer.finished()
    return len(requests), shape(admin, run)


def killed(wire: Wire, url: str, facade: str, call: Call, run: UUID, point: Point, number: int) -> None:
    """The call of a process that dies at *point* of its statement *number*."""
    seen = iter(range(number + 1))
    trap = Trap(point, "black hole", NAME, meant=lambda _request: next(seen, number) == number)
    with Producer(url, facade, call, run) as producer, wire.trap(trap):
        producer.begin()
        assert trap.wait(PATIENCE), f"{call.method} never came to {point} of statement {number + 1}"
        producer.kill()


def _noted(requests: list[bytes]) -> Any:
    def never(request: Request) -> bool:
        requests.append(request.sql)
        return False

    return never
