"""One call on both sides: in the reference, and on real PostgreSQL.

A call that the reference says must wait is started in a thread and seen waiting for that very session; its answers
are compared once the session has ended. Two calls never wait for the same session, and no call is made that would
close a circle: there the order of waking, or the victim of the deadlock, is the server's choice and not the store's.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from curfew_store import FlowRunControlRecord, KeyContended, RunAlreadyExists
from tests.model.reference import RENEWED, Call, Reference, Row, Session
from tests.model.sessions import Stage, Transaction

Expected = Callable[[Session], Call[Any]]


@dataclass
class Waiting:
    """A call that waits: as whom, with the reference's half and the real one."""

    me: Session
    expected: Call[Any]
    future: Future[Any]


class TwoSides:
    """The reference and the real thing, in step. *counts* says how often each call was made."""

    def __init__(self, stage: Stage, counts: Counter[str]) -> None:
        self.stage = stage
        self.counts = counts
        self.model = Reference()
        self.open: dict[Session, Transaction] = {}
        self._waiting: dict[Session, Waiting] = {}  # by the session that they wait for: one each
        self._pids: dict[Session, int] = {}
        self._stamps: dict[int, datetime] = {}
        self._numbers = itertools.count(1)
        stage.clear()

    @property
    def quiet(self) -> bool:
        """Whether no call waits."""
        return not self._waiting

    def number(self) -> int:
        """A number that nothing else here has, higher than all before."""
        return next(self._numbers)

    def blocked(self, session: Session) -> bool:
        """Whether a call of the session waits."""
        return any(call.me == session for call in self._waiting.values())

    def session(self, wanted: Session) -> Session:
        """*wanted* if it has a transaction open and does not wait, else a name for one call of its own."""
        return wanted if wanted in self.open and not self.blocked(wanted) else f"own-{self.number()}"

    def joined(self, me: Session) -> dict[str, Any]:
        """What makes a method of the store join the transaction of *me*, if it has one."""
        return {"connection": self.open[me].caller.handle} if me in self.open else {}

    def begin(self, session: Session) -> None:
        """Open a transaction."""
        self.open[session] = Transaction(self.stage.facade)
        self._pids[session] = self.open[session].pid

    def end(self, session: Session, *, commit: bool) -> None:
        """End a transaction, and with it the wait of whoever waits for it."""
        self.counts["commit" if commit else "rollback"] += 1
        (self.model.commit if commit else self.model.rollback)(session)
        self.open.pop(session).end(commit=commit)
        self._wake(session)

    def end_all(self) -> None:
        """Roll every transaction back, those first that wait for nobody."""
        while self.open:
            self.end(next(session for session in self.open if not self.blocked(session)), commit=False)

    def done(self, me: Session) -> None:
        """A call has been made: one of its own has committed, a joined one goes on."""
        if me not in self.open:
            self.model.commit(me)
            self._wake(me)

    def call(self, name: str, wanted: Session, expected: Expected, *args: Any, **kw: Any) -> None:
        """Call the store's method *name* and its *expected* half, and compare the answers, now or when they come."""
        me = self.session(wanted)
        holder = self._holder(expected, me)
        if holder is not None and (holder in self._waiting or self._waits_in_the_end_for(holder, me)):
            return
        self.counts[name] += 1
        method, joined = getattr(self.stage.store, name), self.joined(me)

        def real() -> Any:
            try:
                return method(*args, **joined, **kw)
            except (RunAlreadyExists, KeyContended) as error:
                return error

        mine = self._attempts(me, expected)
        if holder is None:
            self._finish(me, mine, real())
            return
        self.counts["(of these waited)"] += 1
        assert next(mine) == holder
        future, self._pids[me] = self.stage.hold(real, self._pids[holder])
        self._waiting[holder] = Waiting(me, mine, future)

    def _holder(self, expected: Expected, me: Session) -> Session | None:
        """Whom the call would wait for, found on a copy."""
        real, self.model = self.model, self.model.copy()
        try:
            return next(self._attempts(me, expected), None)
        finally:
            self.model = real

    def _attempts(self, me: Session, expected: Expected) -> Call[Any]:
        """The reference's half of a call; one of its own is made again if it ran into another's run id."""
        try:
            answer: Any = yield from expected(me)
        except RunAlreadyExists as error:
            answer = error
        except KeyContended as error:
            self.model.rollback(me)
            answer = error
            if me not in self.open:
                answer = yield from self._attempts(me, expected)
        return answer

    def _waits_in_the_end_for(self, session: Session, me: Session) -> bool:
        ahead = {call.me: holder for holder, call in self._waiting.items()}
        while session in ahead:
            session = ahead[session]
        return session == me

    def _finish(self, me: Session, expected: Call[Any], answer: Any) -> None:
        """Compare the answers of a call that nothing holds any more."""
        try:
            holder = next(expected)
        except StopIteration as stop:
            wanted = stop.value
        else:
            raise AssertionError(f"the reference waits for {holder}, the store answered {answer!r}")
        if isinstance(wanted, Exception):
            assert (type(answer), str(answer)) == (type(wanted), str(wanted))
        else:
            assert answer == wanted
        if isinstance(wanted, KeyContended) and me in self.open:
            self.end(me, commit=False)
        else:
            self.done(me)

    def _wake(self, session: Session) -> None:
        call = self._waiting.pop(session, None)
        if call is not None:
            self._finish(call.me, call.expected, self.stage.result(call.future))

    def compare_tables(self) -> None:
        """Every committed row and key, and nothing else."""
        records = self.stage.records()
        assert records.keys() == self.model.rows.keys()
        for run, row in self.model.rows.items():
            self.compare(run, row, records[run])
        assert self.stage.keys() == self.model.keys

    def compare(self, run: UUID, row: Row | None, record: FlowRunControlRecord | None) -> None:
        """One record, field by field."""
        if row is None or record is None:
            assert (row, record) == (None, None)
            return
        assert (record.run_id, record.flow_id, record.trigger_key) == (run, row.flow, row.trigger)
        assert (record.idempotency_key, record.cancel_reason) == (row.key, row.reason)
        deadline = record.timeout_at_utc
        assert (RENEWED if deadline and deadline.year > 2500 else deadline) == row.deadline
        assert (record.cancel_requested, record.state) == (row.cancelled is not None, row.state)
        self._compare_stamp(row.cancelled, record.cancel_requested_at_utc)
        self._compare_stamp(row.timed_out, record.timed_out_at_utc)
        self._compare_stamp(row.completed, record.completed_at_utc)

    def _compare_stamp(self, token: int | None, stamp: datetime | None) -> None:
        """A token means one moment, and later calls have later moments."""
        assert (token is None) == (stamp is None)
        if token is None or stamp is None:
            return
        if token not in self._stamps:
            assert all((stamp > moment) == (token > other) for other, moment in self._stamps.items())
            self._stamps[token] = stamp
        assert self._stamps[token] == stamp
