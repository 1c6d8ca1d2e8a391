"""Claims and producers in steps as small as PostgreSQL's own: a model of which every interleaving can be explored.

Two daemons make one claim each: take a snapshot, lock the candidates one by one (passing over what others hold, and
judging a row that changed on its newest version), mark what was locked, commit. Two producers make one call each in a
transaction: call (which may wait for a row), commit. The clock ticks once. Daemons and producers may crash anywhere.
States are values, so an explorer can hash them; `Model.successors` is the whole of the semantics.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from tests.model.claim_states import (
    DAEMONS,
    PRODUCERS,
    SHIPPED,
    Action,
    Call,
    Daemon,
    Hold,
    Producer,
    Row,
    Rules,
    Scenario,
    State,
    changed,
    marked,
    wanted,
)

_NEXT_OF_DAEMON: Final = {"ready": "snapshot", "locking": "lock", "locked": "mark", "marked": "commit"}
_NEXT_OF_PRODUCER: Final = {"ready": "call", "called": "commit"}


class Model:
    """The steps of one scenario under some rules."""

    def __init__(self, scenario: Scenario, rules: Rules = SHIPPED) -> None:
        self.scenario = scenario
        self.rules = rules

    def actions(self, state: State) -> Iterator[Action]:
        """What may happen next."""
        if state.clock == 1:
            yield Action("tick")
        for actor, daemon in zip(DAEMONS, state.daemons, strict=True):
            if daemon.phase in _NEXT_OF_DAEMON and not self.waits(state, actor):
                yield Action(_NEXT_OF_DAEMON[daemon.phase], actor)
            if daemon.phase in {"locking", "locked", "marked"}:
                yield Action("crash", actor)
        for actor, producer in zip(PRODUCERS, state.producers, strict=True):
            if producer.phase in _NEXT_OF_PRODUCER:
                yield Action(_NEXT_OF_PRODUCER[producer.phase], actor)
            if producer.phase in {"waiting", "called"}:
                yield Action("crash", actor)

    def waits(self, state: State, actor: int) -> bool:
        """Whether a claim stands before a row that somebody else holds and cannot go on: never, if it skips."""
        daemon = state.daemons[actor]
        if self.rules.skips_locked or daemon.phase != "locking":
            return False
        hold = state.held[daemon.todo[0]]
        return hold is not None and hold.actor != actor

    def successors(self, state: State, action: Action) -> list[State]:
        """The states that a step may lead to: one, or two where the server chooses who wakes first."""
        kind, actor = action
        if kind == "tick":
            return [state._replace(clock=2)]
        if kind == "snapshot":
            return [self._snapshot(state, actor)]
        if kind == "lock":
            return [self._lock(state, actor)]
        if kind == "mark":
            return [self._mark(state, actor)]
        if kind == "call":
            return [self._called(state, actor)]
        return self._ended(state, actor, commit=kind == "commit")

    def _snapshot(self, state: State, actor: int) -> State:
        now = state.clock if self.rules.database_clock else state.clock + 1
        due = [(row.deadline, run) for run, row in enumerate(state.rows) if row and self.rules.due(row, now)]
        todo = tuple(run for _, run in sorted(due))
        return _with_daemon(state, actor, Daemon("locking" if todo else "marked", now, state.clock, todo))

    def _lock(self, state: State, actor: int) -> State:
        daemon = state.daemons[actor]
        run, todo, locked = daemon.todo[0], daemon.todo[1:], daemon.locked
        hold = state.held[run]
        if hold is None:
            # The lock stays even where the newest version is found not to be due.
            state = _with_hold(state, run, Hold(actor))
            if not self.rules.rechecks or self.rules.due(state.rows[run], daemon.now):
                locked += (run,)
        if len(locked) == self.scenario.limit and self.rules.keeps_limit:
            todo = ()
        phase = "locking" if todo else ("locked" if locked else "marked")
        return _with_daemon(state, actor, daemon._replace(phase=phase, todo=todo, locked=locked))

    def _mark(self, state: State, actor: int) -> State:
        for run in state.daemons[actor].locked:
            hold, row = state.held[run], state.rows[run]
            assert hold is not None
            state = _with_hold(state, run, hold._replace(version=marked(row or Row(0))))
        return _with_daemon(state, actor, state.daemons[actor]._replace(phase="marked"))

    def _called(self, state: State, actor: int, *, waited: bool = False) -> State:
        call = self.call(actor)
        row, hold = state.rows[call.run], state.held[call.run]
        wants = wanted(call, row)
        if not wants and not waited:  # judged on the snapshot: no lock is asked for
            return _with_producer(state, actor, Producer("called", answer=False))
        if hold is not None:
            state = _with_hold(state, call.run, hold._replace(waiting=(*hold.waiting, actor)))
            return _with_producer(state, actor, Producer("waiting"))
        # Who waited has locked the newest version before it is judged, and keeps the lock whatever the verdict.
        state = _with_hold(state, call.run, Hold(actor, changed(call, row) if wants else None))
        return _with_producer(state, actor, Producer("called", answer=wants))

    def call(self, actor: int) -> Call:
        """What a producer calls."""
        return self.scenario.calls[actor - len(DAEMONS)]

    def _ended(self, state: State, actor: int, *, commit: bool) -> list[State]:
        """The end of a transaction; those that waited for its rows go on."""
        orders: list[list[tuple[int, ...]]] = []
        rows, held = list(state.rows), list(state.held)
        for run, hold in enumerate(held):
            if hold is not None and hold.actor == actor:
                new_version = commit and hold.version is not None
                if new_version:
                    rows[run] = hold.version
                held[run] = None
                orders.append(self._orders(hold.waiting, new_version=new_version))
            elif hold is not None and actor in hold.waiting:
                held[run] = hold._replace(waiting=tuple(other for other in hold.waiting if other != actor))
        state = state._replace(rows=tuple(rows), held=tuple(held))
        if actor in DAEMONS:
            state = _with_daemon(state, actor, Daemon("ended"))
        else:
            state = _with_producer(state, actor, Producer("ended"))
        return [self._woken(state, order) for order in itertools.product(*orders)]

    def _orders(self, waiting: tuple[int, ...], *, new_version: bool) -> list[tuple[int, ...]]:
        """In which orders they may wake.

        Updates queue for a version of the row; they race for the next one where there is one, and an insert waits
        for the transaction and not for the row.
        """
        if len(waiting) > 1 and (new_version or any(self.call(actor).method == "configure" for actor in waiting)):
            return [waiting, waiting[::-1]]
        return [waiting]

    def _woken(self, state: State, orders: tuple[tuple[int, ...], ...]) -> State:
        for order in orders:
            for actor in order:
                state = self._called(state, actor, waited=True)
        return state


def _with_daemon(state: State, actor: int, daemon: Daemon) -> State:
    return state._replace(daemons=_at(state.daemons, actor, daemon))


def _with_producer(state: State, actor: int, producer: Producer) -> State:
    first, second = state.producers
    return state._replace(producers=(producer, second) if actor == PRODUCERS[0] else (first, producer))


def _with_hold(state: State, run: int, hold: Hold | None) -> State:
    return state._replace(held=(*state.held[:run], hold, *state.held[run + 1 :]))


def _at(daemons: tuple[Daemon, ...], actor: int, daemon: Daemon) -> tuple[Daemon, ...]:
    return (daemon, daemons[1]) if actor == 0 else (daemons[0], daemon)
