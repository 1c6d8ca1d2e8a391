"""The rules of the state machine: every call of the store, by any session, in any order.

Longer than other modules since it has a rule for each method and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from curfew_store import RunCancelled, RunCompleted, RunConfiguration, RunState, RunTimedOut
from tests.model.reference import NOW, RENEWAL, RENEWED, Call, Key, Row, Session, normal
from tests.model.sessions import Stage
from tests.model.two_sides import TwoSides

FLOW: Final = UUID("6f0c5c5e-0000-4000-8000-00000000000a")
SESSIONS: Final = ("a", "b", "c")
POOL: Final = [UUID(int=0x6F0C5C5E_0000_4000_8000_000000000100 + n) for n in range(3)]
PAST: Final = [datetime(2020, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
FUTURE: Final = [datetime(2090, 1, day, tzinfo=UTC) for day in (1, 2)]
KEYS: Final = ["k", " K ", "other"]
REASONS: Final = [None, "", "first", "second"]

# Anything but a session's letter is a call in a transaction of its own.
sessions = st.sampled_from([*SESSIONS, *SESSIONS, "own", "own"])
runs = st.sampled_from(POOL)
deadlines = st.sampled_from([None, *PAST, *PAST, *FUTURE])
keys = st.sampled_from(KEYS)
reasons = st.sampled_from(REASONS)


# Calls that change a run, with what they take besides session and run.
CHANGES: Final[dict[str, Callable[[datetime | None], tuple[Any, ...]]]] = {
    "configure_run": lambda deadline: (None, deadline),
    "start_run": lambda deadline: (None, deadline),
    "extend_deadline": lambda deadline: (deadline,),
    "reopen_run": lambda deadline: (deadline,),
    "heartbeat": lambda _: (True,),
    "complete_run": lambda _: (),
    "request_cancel": lambda _: ("contended",),
    "mark_timed_out": lambda _: (None,),
}


class StoreMachine(RuleBasedStateMachine):
    """One example: an empty database, and some steps."""

    stage: ClassVar[Stage]
    counts: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.both = TwoSides(self.stage, self.counts)

    # Transactions.

    @initialize(given=st.tuples(*[deadlines for _ in POOL]), begun=st.sampled_from([0, 2, 3]))
    def begin(self, given: tuple[datetime | None, ...], begun: int) -> None:
        """Runs that are there already, and transactions that are open."""
        for run, deadline in zip(POOL, given, strict=True):
            self.configure_run("own", run, None, deadline)
        for session in SESSIONS[:begun]:
            self.both.begin(session)

    @rule(session=st.sampled_from(SESSIONS), commit=st.sampled_from([True, True, False]))
    def end(self, session: Session, commit: bool) -> None:
        """End a transaction, and with it the wait of whoever waits for it; the session begins its next one."""
        if session not in self.both.open:
            self.both.begin(session)
        elif not self.both.blocked(session):
            self.both.end(session, commit=commit)
            self.both.begin(session)

    @rule(session=st.sampled_from(SESSIONS))
    def commit(self, session: Session) -> None:
        """Commit, if there is something to commit: locks would pile up."""
        self.end(session, commit=True)

    # Calls of producers, in a transaction or of their own.

    @rule(session=sessions, run=runs, key=st.sampled_from([None, *KEYS]), deadline=deadlines)
    def configure_run(self, session: Session, run: UUID, key: str | None, deadline: datetime | None) -> None:
        """Configure a run anew."""
        given = Row(FLOW, "t", key, deadline)
        self.both.call(
            "configure_run",
            session,
            lambda me: self.both.model.configure(me, run, given),
            run,
            FLOW,
            "t",
            key,
            deadline,
        )

    @rule(session=sessions, chosen=st.lists(runs, unique=True, max_size=4), deadline=deadlines)
    def configure_runs(self, session: Session, chosen: list[UUID], deadline: datetime | None) -> None:
        """Configure several at once, where nobody holds one of them."""
        me = self.both.session(session)
        if any(self.both.model.held_rows.get(run, (me,))[0] != me for run in chosen):
            return
        given = Row(FLOW, "many", None, deadline)

        def expected(me: Session) -> Call[None]:
            for run in chosen:
                yield from self.both.model.configure(me, run, given)

        wanted = [RunConfiguration(run, FLOW, "many", None, deadline) for run in chosen]
        self.both.call("configure_runs", session, expected, wanted)

    @rule(session=sessions, run=st.none() | runs, key=st.none() | keys, deadline=deadlines)
    def start_run(self, session: Session, run: UUID | None, key: str | None, deadline: datetime | None) -> None:
        """Start a run: under an id of the pool, or under one that nobody knows."""
        chosen = UUID(int=POOL[-1].int + 1000 + self.both.number()) if run is None else run
        record = Row(FLOW, "T ", key, deadline)
        held = None if key is None else self.both.model.held_keys.get((FLOW, "t", normal(key)))
        if run is not None and held and held[0] != self.both.session(session):
            return  # it could come to wait a second time, for somebody who then waits for it
        self.both.call(
            "start_run",
            session,
            lambda me: self.both.model.start(me, chosen, record),
            FLOW,
            "T ",
            key,
            run_id=chosen,
            timeout_at_utc=deadline,
        )

    @rule(session=sessions, run=runs, key=keys)
    def try_register_idempotency_key(self, session: Session, run: UUID, key: str) -> None:
        """Register a key for a run, known or not."""
        name: Key = (FLOW, "t", normal(key))
        self.both.call(
            "try_register_idempotency_key",
            session,
            lambda me: self.both.model.register(me, name, run),
            FLOW,
            "t",
            key,
            run,
        )

    @rule(session=sessions, run=runs, reason=reasons)
    def request_cancel(self, session: Session, run: UUID, reason: str | None) -> None:
        """Ask for a cancel."""
        token = self.both.number()
        self.both.call(
            "request_cancel", session, lambda me: self.both.model.cancel(me, token, run, reason), run, reason
        )

    @rule(session=sessions, run=runs, reason=reasons)
    def mark_timed_out(self, session: Session, run: UUID, reason: str | None) -> None:
        """Mark by hand."""
        token = self.both.number()
        self.both.call("mark_timed_out", session, lambda me: self.both.model.mark(me, token, run, reason), run, reason)

    @rule(session=sessions, run=runs)
    def complete_run(self, session: Session, run: UUID) -> None:
        """Complete."""
        token = self.both.number()
        self.both.call("complete_run", session, lambda me: self.both.model.complete(me, token, run), run)

    @rule(session=sessions, run=runs, deadline=deadlines)
    def extend_deadline(self, session: Session, run: UUID, deadline: datetime | None) -> None:
        """Extend, shorten or clear."""
        self.both.call("extend_deadline", session, lambda me: self.both.model.extend(me, run, deadline), run, deadline)

    @rule(session=sessions, run=runs, by_far=st.booleans())
    def heartbeat(self, session: Session, run: UUID, by_far: bool) -> None:
        """Renew, beyond every deadline here or by too little to matter."""
        timeout = RENEWAL if by_far else timedelta(hours=1)
        self.both.call(
            "heartbeat", session, lambda me: self.both.model.renew(me, run, by_far=by_far), run, timeout=timeout
        )

    @rule(session=sessions, run=runs, deadline=deadlines)
    def reopen_run(self, session: Session, run: UUID, deadline: datetime | None) -> None:
        """Retry an ended run."""
        self.both.call("reopen_run", session, lambda me: self.both.model.reopen(me, run, deadline), run, deadline)

    @rule(
        run=runs,
        ways=st.lists(st.sampled_from(sorted(CHANGES)), min_size=2, max_size=2),
        by=st.lists(sessions, min_size=2, max_size=2),
        deadline=deadlines,
    )
    def contend(self, run: UUID, ways: list[str], by: list[Session], deadline: datetime | None) -> None:
        """Two changes of one run, by two sessions: if the first keeps the row, the second waits."""
        for change, session in zip(ways, by, strict=True):
            getattr(self, change)(session, run, *CHANGES[change](deadline))

    # Calls that never wait.

    @rule(session=sessions, run=runs, key=keys)
    def read(self, session: Session, run: UUID, key: str) -> None:
        """Read a record and a key, as the session sees them."""
        me = self.both.session(session)
        self.counts["get_run_control, find_run_id_by_idempotency_key"] += 1
        joined = self.both.joined(me)
        self.both.compare(run, self.both.model.row(me, run), self.stage.store.get_run_control(run, **joined))
        found = self.stage.store.find_run_id_by_idempotency_key(FLOW, " T", key, **joined)
        assert found == self.both.model.find(me, (FLOW, "t", normal(key)))

    @rule(session=sessions, limit=st.sampled_from([1, 2, 3, 10]), behind=st.none() | st.sampled_from(PAST))
    def claim(self, session: Session, limit: int, behind: datetime | None) -> None:
        """Claim as a daemon does; in a transaction it keeps its locks while others act."""
        me, after = self.both.session(session), None if behind is None else (behind, POOL[0])
        self.counts["claim"] += 1
        expected = self.both.model.claim(me, self.both.number(), limit, after)
        assert self.stage.claim(self.both.open.get(me), limit, after) == expected
        self.both.done(me)

    @rule(run=runs)
    def ensure_may_run(self, run: UUID) -> None:
        """Ask as a step does."""
        self.counts["ensure_may_run"] += 1
        me = self.both.session("own")
        expected = self.both.model.ask(me, self.both.number(), run)
        assert _asked(self.stage.store.ensure_may_run, run) == expected
        self.both.done(me)

    @precondition(lambda self: self.both.quiet)
    @rule()
    def purge(self) -> None:
        """Delete all that has ended."""
        self.counts["purge"] += 1
        expected = self.both.model.purge()
        assert self.stage.store.purge(NOW, limit=1000) == expected

    @rule()
    def look_ahead(self) -> None:
        """Look for the next deadline and the earliest overdue one."""
        self.counts["look_ahead"] += 1
        armed = sorted((row.deadline, run) for run, row in self.both.model.rows.items() if row.active and row.deadline)
        overdue = [deadline for deadline, _ in armed if deadline <= NOW]
        ahead = [run for deadline, run in armed if NOW < deadline < RENEWED]
        seen = self.stage.look_ahead()
        assert seen.earliest_overdue == (overdue[0] if overdue else None)
        if ahead or not armed or armed[-1][0] <= NOW:
            assert seen.next_run_id == (ahead[0] if ahead else None)
            assert (seen.next_due_in is None) == (not ahead)

    # After every step.

    @invariant()
    def the_tables_hold_what_the_reference_holds(self) -> None:
        """Every committed row and key, and nothing else."""
        self.both.compare_tables()

    def teardown(self) -> None:
        """Roll back what is open."""
        self.both.end_all()


def _asked(ensure_may_run: Callable[[UUID], Any], run: UUID) -> RunState | None:
    try:
        record = ensure_may_run(run)
    except RunTimedOut:
        return RunState.TIMED_OUT
    except RunCompleted:
        return RunState.COMPLETED
    except RunCancelled:
        return RunState.CANCEL_REQUESTED
    return None if record is None else RunState.ACTIVE
