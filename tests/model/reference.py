"""The contract of the store as a small program: what every call does, and whom it waits for.

A call is a generator: it yields the session whose end it has to wait for, and returns what the store must return or
raises what the store must raise. READ COMMITTED is all there is to it: a statement judges the newest committed
version (or its session's own), and one that would change a row which another session holds waits, then judges again.

Stamps are tokens: the number of the call that set them. The comparison learns which moment belongs to a token, so
that a stamp which should have stayed, or should equal another, shows when it does not.

One class with a method for each call, and longer than other modules for that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

from curfew_store import KeyContended, RunAlreadyExists, RunState, StartedRun
from curfew_store.enforcement import OVERDUE_REASON
from curfew_store.statements import DEFAULT_REASON

T = TypeVar("T")
Session = str
Key = tuple[UUID, str, str]
Call = Generator[Session, None, T]

NOW: Final = datetime(2050, 1, 1, tzinfo=UTC)
"""Stands for the present: deadlines here are years before it or years behind it, so no clock can blur them."""

RENEWED: Final = datetime(9000, 1, 1, tzinfo=UTC)
"""Stands for any deadline that a `RENEWAL` leaves: later than every other."""

RENEWAL: Final = timedelta(days=300_000)


@dataclass(frozen=True)
class Row:
    """A control record. *cancelled*, *timed_out* and *completed* are tokens."""

    flow: UUID
    trigger: str
    key: str | None
    deadline: datetime | None
    reason: str | None = None
    cancelled: int | None = None
    timed_out: int | None = None
    completed: int | None = None

    @property
    def state(self) -> RunState:
        """The state that the contract gives to such a record."""
        if self.timed_out is not None:
            return RunState.TIMED_OUT
        if self.completed is not None:
            return RunState.COMPLETED
        return RunState.ACTIVE if self.cancelled is None else RunState.CANCEL_REQUESTED

    @property
    def active(self) -> bool:
        """Whether the run has no latch."""
        return self.state is RunState.ACTIVE

    @property
    def due(self) -> bool:
        """Whether a claim has to mark the run."""
        return self.active and self.deadline is not None and self.deadline <= NOW

    def marked(self, token: int, reason: str | None) -> Row:
        """The record after a mark; *reason* ``None`` keeps an earlier one."""
        return replace(
            self,
            timed_out=token,
            reason=next(text for text in (reason, self.reason, DEFAULT_REASON) if text is not None),
            cancelled=token if self.cancelled is None else self.cancelled,
        )


def normal(key: str) -> str:
    """The normal form of a key, for ASCII."""
    return key.strip().lower()


def _ended(row: Row) -> bool:
    return not row.active


def _neither_timed_out_nor_completed(row: Row) -> bool:
    return row.timed_out is None and row.completed is None


@dataclass
class Reference:
    """What is committed, and what sessions hold until they end: the new version of a row, or a new key."""

    rows: dict[UUID, Row] = field(default_factory=dict)
    keys: dict[Key, UUID] = field(default_factory=dict)
    held_rows: dict[UUID, tuple[Session, Row]] = field(default_factory=dict)
    held_keys: dict[Key, tuple[Session, UUID]] = field(default_factory=dict)

    def copy(self) -> Reference:
        """Another one in the same state, to try a call on."""
        return Reference(dict(self.rows), dict(self.keys), dict(self.held_rows), dict(self.held_keys))

    def row(self, me: Session, run: UUID) -> Row | None:
        """What *me* sees of a run."""
        holder, mine = self.held_rows.get(run, (None, None))
        return mine if holder == me else self.rows.get(run)

    def find(self, me: Session, key: Key) -> UUID | None:
        """The run that holds a key, as *me* sees it."""
        holder, mine = self.held_keys.get(key, (None, None))
        return mine if holder == me else self.keys.get(key)

    def visible(self, me: Session) -> dict[UUID, Row]:
        """All rows as *me* sees them."""
        return self.rows | {run: row for run, (holder, row) in self.held_rows.items() if holder == me}

    def commit(self, me: Session) -> None:
        """Make what *me* holds visible to all."""
        self.rows |= {run: row for run, (holder, row) in self.held_rows.items() if holder == me}
        self.keys |= {key: run for key, (holder, run) in self.held_keys.items() if holder == me}
        self.rollback(me)

    def rollback(self, me: Session) -> None:
        """Let go of what *me* holds."""
        self.held_rows = {run: held for run, held in self.held_rows.items() if held[0] != me}
        self.held_keys = {key: held for key, held in self.held_keys.items() if held[0] != me}

    def _row_free(self, me: Session, run: UUID) -> Call[bool]:
        """Wait until nobody else holds the run; whether it took a wait."""
        waited = False
        while run in self.held_rows and self.held_rows[run][0] != me:
            waited = True
            yield self.held_rows[run][0]
        return waited

    def _update(
        self, me: Session, run: UUID, wanted: Callable[[Row], bool], change: Callable[[Row], Row]
    ) -> Call[bool]:
        row = self.row(me, run)
        if row is None or not wanted(row):
            return False  # judged on the snapshot: no lock is asked for
        waited = yield from self._row_free(me, run)
        row = self.row(me, run)
        if row is None:
            return False
        judged = wanted(row)
        if judged or waited:
            # Who waited has locked the newest version before judging it, and keeps the lock whatever the verdict.
            self.held_rows[run] = me, change(row) if judged else row
        return judged

    def configure(self, me: Session, run: UUID, given: Row) -> Call[None]:
        """`configure_run`: the four fields of *given*; latches stay."""
        yield from self._row_free(me, run)
        old = self.row(me, run) or given
        self.held_rows[run] = (
            me,
            replace(old, flow=given.flow, trigger=given.trigger, key=given.key, deadline=given.deadline),
        )

    def cancel(self, me: Session, token: int, run: UUID, reason: str | None) -> Call[bool]:
        """`request_cancel`."""
        return self._update(me, run, lambda r: r.active, lambda r: replace(r, cancelled=token, reason=reason))

    def mark(self, me: Session, token: int, run: UUID, reason: str | None) -> Call[bool]:
        """`mark_timed_out`."""
        return self._update(me, run, _neither_timed_out_nor_completed, lambda r: r.marked(token, reason))

    def complete(self, me: Session, token: int, run: UUID) -> Call[bool]:
        """`complete_run`."""
        return self._update(me, run, _neither_timed_out_nor_completed, lambda r: replace(r, completed=token))

    def extend(self, me: Session, run: UUID, deadline: datetime | None) -> Call[bool]:
        """`extend_deadline`; takes a timeout back, with the cancel fields that came with it."""

        def extended(row: Row) -> Row:
            if row.timed_out is not None and row.timed_out == row.cancelled:
                row = replace(row, cancelled=None, reason=None)
            return replace(row, deadline=deadline, timed_out=None)

        return self._update(me, run, lambda r: r.completed is None, extended)

    def renew(self, me: Session, run: UUID, *, by_far: bool) -> Call[bool]:
        """`heartbeat`: by a `RENEWAL`, else by too little to move any of the deadlines here."""
        return self._update(
            me,
            run,
            lambda r: r.active and r.deadline is not None and r.deadline > NOW,
            lambda r: replace(r, deadline=RENEWED if by_far else r.deadline),
        )

    def reopen(self, me: Session, run: UUID, deadline: datetime | None) -> Call[bool]:
        """`reopen_run`."""
        return self._update(me, run, _ended, lambda r: Row(r.flow, r.trigger, r.key, deadline))

    def register(self, me: Session, key: Key, run: UUID) -> Call[bool]:
        """`try_register_idempotency_key`."""
        while key in self.held_keys and self.held_keys[key][0] != me:
            yield self.held_keys[key][0]
        if self.find(me, key) is not None:
            return False
        self.held_keys[key] = me, run
        return True

    def start(self, me: Session, run: UUID, record: Row) -> Call[StartedRun]:
        """`start_run`. *run* is the caller's id, or the one that the store is about to hand out."""
        if record.key is None:
            yield from self._row_free(me, run)
            if self.row(me, run) is not None:
                return StartedRun(run, duplicate=True)
            self.held_rows[run] = me, record
            return StartedRun(run, duplicate=False)
        key = record.flow, normal(record.trigger), normal(record.key)
        if self.row(me, run) is None:
            registered = yield from self.register(me, key, run)
            if registered:
                yield from self._row_free(me, run)
                if self.row(me, run) is not None:
                    raise KeyContended(1)  # the violation takes the whole transaction with it
                self.held_rows[run] = me, record
                return StartedRun(run, duplicate=False)
        winner = self.find(me, key)
        if winner is not None:
            return StartedRun(winner, duplicate=True)
        existing = self.row(me, run)
        assert existing is not None
        theirs = existing.key is not None and (existing.flow, normal(existing.trigger), normal(existing.key))
        if theirs != key:
            raise RunAlreadyExists(run)
        return StartedRun(run, duplicate=True)

    def claim(
        self, me: Session, token: int, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[tuple[UUID, datetime]]:
        """A claim of up to *limit* due runs behind *after* that nobody else holds, in order. Never waits."""
        due = sorted((row.deadline, run) for run, row in self.visible(me).items() if row.due and row.deadline)
        free = [
            (deadline, run)
            for deadline, run in due
            if self.held_rows.get(run, (me, None))[0] == me and (after is None or (deadline, run) > after)
        ]
        for _, run in free[:limit]:
            self.held_rows[run] = me, self.visible(me)[run].marked(token, OVERDUE_REASON)
        return [(run, deadline) for deadline, run in free[:limit]]

    def ask(self, me: Session, token: int, run: UUID) -> RunState | None:
        """`ensure_may_run`: the state to be raised, or ``ACTIVE``, or ``None`` for a run without a record."""
        row = self.rows.get(run)
        if row is None or not row.due:
            return None if row is None else row.state
        if run not in self.held_rows:
            self.held_rows[run] = me, row.marked(token, OVERDUE_REASON)
        return RunState.TIMED_OUT

    def purge(self) -> int:
        """`purge` of everything that has ended and is not held, with keys that then point nowhere; in one go."""
        gone = {run for run, row in self.rows.items() if _ended(row) and run not in self.held_rows}
        theirs = {key for key, run in self.keys.items() if run in gone}
        orphans = {key for key, run in self.keys.items() if run not in self.rows}
        self.rows = {run: row for run, row in self.rows.items() if run not in gone}
        self.keys = {key: run for key, run in self.keys.items() if key not in theirs | orphans}
        return len(gone) + len(orphans)
