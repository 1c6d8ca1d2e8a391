"""Replays interleavings of the model on a real PostgreSQL, step by step, and compares after every step."""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import sqlalchemy.exc
from sqlalchemy import Connection, text

from tests.model.claim_model import Model
from tests.model.claim_states import DAEMONS, PRODUCERS, Action, Call, Row, Scenario, State
from tests.model.gates import EPOCH, RUNS, UPDATE_GATE, Theatre, moment
from tests.patience import PATIENCE

FLOW: Final = UUID(int=7)

_READ: Final = """
SELECT run_id, timeout_at_utc, cancel_requested, coalesce(cancel_requested_at_utc = timed_out_at_utc, false),
    timed_out_at_utc IS NOT NULL, completed_at_utc IS NOT NULL
FROM flow_run_controls
"""
_WAITS: Final = "SELECT locktype, objid::integer FROM pg_locks WHERE pid = %s AND NOT granted"


class Mismatch(AssertionError):
    """The server did something that the model does not."""


class Actor:
    """A daemon or a producer: a session, and the call that it is in."""

    def __init__(self, theatre: Theatre, number: int) -> None:
        self.number = number
        self.conn = theatre.connection(number)
        self.pid: int = self.conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        self.conn.rollback()
        self.call: Future[Any] | None = None

    def answer(self) -> Any:
        """What the call returned, once nothing holds it."""
        assert self.call is not None
        return self.call.result(PATIENCE)


class Replay:
    """One interleaving on the real server."""

    def __init__(self, theatre: Theatre, scenario: Scenario) -> None:
        self.theatre = theatre
        self.model = Model(scenario)
        theatre.begin(scenario)
        self.actors = {number: Actor(theatre, number) for number in (*DAEMONS, *PRODUCERS)}
        self.state = scenario.begin()

    def run(self, trace: list[tuple[Action, State]]) -> None:
        """Take every step and compare; raises `Mismatch` at the first difference."""
        try:
            for number, (action, after) in enumerate(trace):
                before, self.state = self.state, after
                try:
                    self._step(action, before)
                    self._compare()
                except (Mismatch, sqlalchemy.exc.DBAPIError, AssertionError, TimeoutError) as error:
                    done = [f"{one.kind} {one.actor}" for one, _ in trace[: number + 1]]
                    raise Mismatch(f"{self.model.scenario}: {', '.join(done)}: {error}") from error
        finally:
            self._leave()

    def _step(self, action: Action, before: State) -> None:
        if action.kind == "tick":
            return
        actor = self.actors[action.actor]
        if action.kind == "crash":
            self._crash(actor)
        elif action.kind == "commit":
            actor.conn.commit()
        elif action.kind == "call":
            self._call(actor)
        elif action.kind == "snapshot":
            self._snapshot(actor)
        elif action.kind == "lock":
            self._open_gate(actor, RUNS[before.daemons[actor.number].todo[0]].int)
        else:
            self._open_gate(actor, UPDATE_GATE)

    def _crash(self, actor: Actor) -> None:
        self.theatre.onlooker.terminate(actor.pid)
        if actor.call is not None:
            actor.call.exception(PATIENCE)
        with suppress(sqlalchemy.exc.DBAPIError):
            actor.conn.invalidate()
            actor.conn.close()
        del self.actors[actor.number]

    def _call(self, actor: Actor) -> None:
        call = self.model.call(actor.number)
        actor.call = self.theatre.threads.submit(self._called, actor.conn, call)

    def _called(self, conn: Connection, call: Call) -> bool:
        store, run, deadline = self.theatre.store, RUNS[call.run], moment(call.deadline)
        if call.method == "configure":
            store.configure_run(run, FLOW, "t", None, deadline, connection=conn)
            return True
        if call.method == "extend":
            return store.extend_deadline(run, deadline, connection=conn)
        if call.method == "cancel":
            return store.request_cancel(run, "by a user", connection=conn)
        return store.complete_run(run, connection=conn)

    def _snapshot(self, actor: Actor) -> None:
        now = moment(self.state.daemons[actor.number].now)
        actor.conn.execute(text("SELECT set_config('model.now', :now, false)"), {"now": str(now)})
        actor.call = self.theatre.threads.submit(self.theatre.claim, actor.conn, self.model.scenario.limit)

    def _open_gate(self, actor: Actor, gate: int) -> None:
        self.theatre.gates.execute("SELECT pg_advisory_unlock(%s, %s)", [1000 + actor.number, gate])

    def _compare(self) -> None:
        """Where every actor stands, what its call returned, and what is committed."""
        for number, actor in self.actors.items():
            if number in DAEMONS:
                self._compare_daemon(actor)
            else:
                self._compare_producer(actor)
        found = {run: Row(*row) for run, *row in map(_as_row, self.theatre.onlooker.rows(_READ))}
        expected = {run: row for run, row in zip(RUNS, self.state.rows, strict=True) if row is not None}
        if found != expected:
            raise Mismatch(f"committed are {found}, expected {expected}")

    def _compare_daemon(self, actor: Actor) -> None:
        daemon = self.state.daemons[actor.number]
        if daemon.phase in {"ready", "ended"}:
            return
        gates = {"locking": RUNS[daemon.todo[0]].int if daemon.todo else 0, "locked": UPDATE_GATE}
        gate = gates.get(daemon.phase)
        stands = self._stands(actor)
        if stands != ([] if gate is None else [("advisory", gate)]):
            raise Mismatch(f"daemon {actor.number} should stand at gate {gate}, but waits for {stands or 'nothing'}")
        if gate is None and sorted(actor.answer()) != sorted(RUNS[run] for run in daemon.locked):
            raise Mismatch(f"daemon {actor.number} marked {actor.answer()}, expected {daemon.locked}")

    def _stands(self, actor: Actor) -> list[tuple[Any, ...]]:
        """What the claim waits for, as soon as it waits; nothing, as soon as it has ended."""
        assert actor.call is not None
        give_up = time.monotonic() + PATIENCE
        while not actor.call.done():
            waits = self.theatre.onlooker.rows(_WAITS, actor.pid)
            if waits:
                return waits
            assert time.monotonic() < give_up, f"daemon {actor.number} neither waits nor ends"
        return []

    def _compare_producer(self, actor: Actor) -> None:
        producer = self.state.producers[actor.number - PRODUCERS[0]]
        if producer.phase == "waiting":
            self._await_lock(actor)
        elif producer.phase == "called":
            answer = actor.answer()
            if answer != producer.answer:
                raise Mismatch(f"producer {actor.number} was told {answer}, expected {producer.answer}")

    def _await_lock(self, actor: Actor) -> None:
        assert actor.call is not None
        give_up = time.monotonic() + PATIENCE
        while not self.theatre.onlooker.ask("SELECT cardinality(pg_blocking_pids(%s)) > 0", actor.pid):
            if actor.call.done() or time.monotonic() > give_up:
                raise Mismatch(f"producer {actor.number} should wait, but: {actor.call}")

    def _leave(self) -> None:
        """Open every gate, end every session's transaction, keep the sessions."""
        self.theatre.gates.execute("SELECT pg_advisory_unlock_all()")
        for actor in list(self.actors.values()):
            if actor.call is not None and not actor.call.done():
                self._crash(actor)
        for number, actor in self.actors.items():
            self.theatre.give_back(number, actor.conn)


def _as_row(found: tuple[Any, ...]) -> tuple[Any, ...]:
    run, deadline, cancelled, together, marked, completed = found
    number = (deadline - EPOCH).days if deadline else 0
    kind = ("mark" if marked and together else "user") if cancelled else ""
    return run, number, kind, marked, completed
