"""Faults of a producer in the middle of a call: gone at each statement of each method, as if killed there."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from curfew_store.records import RunConfiguration
from tests.faults.history import Call, Client
from tests.faults.lab import Kind, Lab, Strike, Violation, now
from tests.faults.producers import FLOW
from tests.faults.protocol import Request
from tests.faults.wire import Deed, Point, Trap

__all__ = ["KINDS"]

_TRIGGER: Final = "cut"
_STATEMENTS: Final = (0, 0, 0, 0, 1, 2)  # most methods send one
_SOON: Final = timedelta(seconds=3)

_METHODS: Final[dict[str, Callable[[Client, UUID, str], Call]]] = {
    "start_run": lambda client, run, key: client.call(
        "start_run", None, FLOW, _TRIGGER, key, run_id=run, timeout=_SOON
    ),
    "configure_run": lambda client, run, key: client.call("configure_run", run, FLOW, _TRIGGER, None, timeout=_SOON),
    "configure_runs": lambda client, run, key: client.call(
        "configure_runs", None, [RunConfiguration(each, FLOW, _TRIGGER, timeout=_SOON) for each in _family(run)]
    ),
    "extend_deadline": lambda client, run, key: client.call("extend_deadline", run, timeout=_SOON),
    "heartbeat": lambda client, run, key: client.call("heartbeat", run, timeout=_SOON),
    "request_cancel": lambda client, run, key: client.call("request_cancel", run, "cut"),
    "complete_run": lambda client, run, key: client.call("complete_run", run),
    "reopen_run": lambda client, run, key: client.call("reopen_run", run, timeout=_SOON),
    "mark_timed_out": lambda client, run, key: client.call("mark_timed_out", run, "cut"),
    "ensure_may_run": lambda client, run, key: client.call("ensure_may_run", run),
}


def _family(run: UUID) -> list[UUID]:
    return [UUID(int=(run.int + step) % (1 << 128)) for step in range(3)]


def _client(lab: Lab, name: str) -> Client:
    engine = create_engine(
        lab.producer_url, poolclass=NullPool, connect_args={"application_name": name, "connect_timeout": 2}
    )
    return Client(name, engine, lab.history)


def cut_call(lab: Lab, rng: random.Random) -> Strike:
    """One call of one method loses its connection at one of its statements; nothing half-done is left, and it can
    be repeated."""
    method = rng.choice(list(_METHODS))
    at: Point = rng.choice(("parse", "unsynced", "fetch", "commit"))
    do: Deed = rng.choice(("cut", "reset"))
    number = rng.choice(_STATEMENTS)
    name = f"lab caller {rng.getrandbits(40):x}"
    run, key = uuid.UUID(int=rng.getrandbits(128), version=4), f"cut-{rng.getrandbits(64):x}"
    client = _client(lab, name)
    if method not in {"start_run", "configure_run", "configure_runs"}:
        client.call("configure_run", run, FLOW, _TRIGGER, None, timeout=_SOON)
    if method == "reopen_run":
        client.call("complete_run", run)
    began = now()
    # A call that is over sooner was not struck: then it is made again, and cut at its first.
    for which in (number, 0):
        with lab.producer_proxy.trap(Trap(at, do, name, b"flow_", meant=_nth(which))) as trap:
            _METHODS[method](client, run, key)
        if trap.victims:
            break
    else:
        raise TimeoutError(f"{method} never came to the {at} of its first statement")
    found = _half_done(lab, run, key) if method == "start_run" else ()
    again = _METHODS[method](client, run, key)
    if again.outcome == "failed":
        found += (Violation("I8", f"{method} could not be repeated after a {do} at its {at}: {again.error}"),)
    found += _half_done(lab, run, key) if method == "start_run" else ()
    did = f"{method}: {do} at {at} of statement {which + 1}"
    return Strike("F39", began, now(), did, found=found)


def _nth(number: int) -> Callable[[Request], bool]:
    seen = [0]

    def is_it(_request: Request) -> bool:
        seen[0] += 1
        return seen[0] > number

    return is_it


def _half_done(lab: Lab, run: UUID, key: str) -> tuple[Violation, ...]:
    """A key without its record, or a record without its deadline."""
    with lab.admin() as admin:
        row: tuple[Any, ...] | None = admin.execute(
            "SELECT (SELECT count(*) FROM flow_idempotency_keys WHERE run_id = %s AND idempotency_key = %s),"
            " (SELECT count(*) FROM flow_run_controls WHERE run_id = %s AND idempotency_key = %s"
            " AND timeout_at_utc IS NOT NULL)",
            (run, key, run, key),
        ).fetchone()
    assert row is not None
    keys, records = row
    return () if keys == records else (Violation("I7", f"{keys} keys and {records} records of {run} after a cut call"),)


KINDS: Final = (Kind("F39", "cut-call", "a producer cut off at each statement", cut_call),)
