"""Claims against each other and against producers: what committed first wins, and no mark is given twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from curfew_store import FlowRunControlStore, RunState, RunTimedOut, is_transient
from curfew_store.enforcement import claim_overdue
from curfew_store.records import ClaimedRun
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration import audit
from tests.integration.roles import engine_as, new_role
from tests.integration.sessions import in_background, onlooker, together

TABLES = tables_in("public")
FLOW = uuid4()
PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2090, 1, 1, tzinfo=UTC)

Change = Callable[[FlowRunControlStore, UUID, Connection], object]

DISARMING: dict[str, Change] = {
    "extended": lambda store, run, conn: store.extend_deadline(run, FUTURE, connection=conn),
    "cleared": lambda store, run, conn: store.extend_deadline(run, None, connection=conn),
    "cancelled": lambda store, run, conn: store.request_cancel(run, "by a user", connection=conn),
    "completed": lambda store, run, conn: store.complete_run(run, connection=conn),
    "configured anew": lambda store, run, conn: store.configure_run(run, FLOW, "t", connection=conn),
    "marked by hand": lambda store, run, conn: store.mark_timed_out(run, "by hand", connection=conn),
    "deleted": lambda _store, run, conn: conn.exec_driver_sql(f"DELETE FROM flow_run_controls WHERE run_id = '{run}'"),
}


@pytest.fixture
def store(database: Database) -> FlowRunControlStore:
    """A producer's store."""
    return FlowRunControlStore(database.engine)


@pytest.fixture
def due(store: FlowRunControlStore) -> list[UUID]:
    """Overdue runs in the order in which a claim takes them: one for each change, and one at either end."""
    deadlines = [PAST + timedelta(days=n) for n in range(len(DISARMING) + 2)]
    return [store.start_run(FLOW, "t", timeout_at_utc=deadline).run_id for deadline in deadlines]


def _engine(database: Database, options: str) -> Engine:
    return create_engine(database.url, poolclass=NullPool, connect_args={"options": f"-c lock_timeout=20s {options}"})


def _claim(engine: Engine, limit: int) -> list[ClaimedRun]:
    with engine.connect() as conn:
        return list(claim_overdue(conn.execution_options(isolation_level="AUTOCOMMIT"), TABLES, limit=limit))


def _disarm(store: FlowRunControlStore, runs: list[UUID], conn: Connection) -> None:
    """Each way to disarm a run, each on a run of its own."""
    for change, run in zip(DISARMING.values(), runs, strict=True):
        change(store, run, conn)


def _rows(database: Database, runs: list[UUID]) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.conninfo) as conn:
        sql = "SELECT xmin, c::text FROM flow_run_controls c WHERE run_id = ANY(%s) ORDER BY run_id"
        return conn.execute(sql, [runs]).fetchall()


# A policy that waits when it is asked about the first run holds the shipped statement between its snapshot and
# its locks, whatever its plan: rows are scanned before they are locked.
_GATE = """
CREATE FUNCTION passes_gate(run_id uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF run_id = '{first}' THEN PERFORM pg_advisory_xact_lock_shared(42); END IF;
    RETURN true;
END $$;
ALTER TABLE flow_run_controls ENABLE ROW LEVEL SECURITY;
CREATE POLICY gate ON flow_run_controls USING (passes_gate(run_id));
GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
"""


@pytest.fixture
def gated(database: Database, due: list[UUID]) -> Iterator[str]:
    """A role whose claims stop at the gate; producers are superusers, whom no policy stops."""
    with new_role(database, "daemon") as role:
        with psycopg.connect(database.conninfo, autocommit=True) as conn:
            conn.execute(_GATE.format(first=due[0], role=role).encode())
        yield role


@contextmanager
def _claim_stopped_at_gate(
    database: Database, role: str, options: str = ""
) -> Iterator[Callable[[], list[ClaimedRun]]]:
    """A claim of two runs that has its snapshot and no lock yet; the given call lets it finish."""
    with psycopg.connect(database.conninfo, autocommit=True) as gate, onlooker(database.conninfo) as admin:
        gate.execute("SELECT pg_advisory_lock(42)")
        engine = engine_as(role, database, f"-c lock_timeout=20s {options}")
        with in_background(partial(_claim, engine, 2)) as claim:
            try:
                admin.await_waiters(1)

                def finish() -> list[ClaimedRun]:
                    gate.execute("SELECT pg_advisory_unlock(42)")
                    return claim.result()

                yield finish
            finally:
                gate.close()


@pytest.mark.contract("E-3", "E-5", "E-9")
def test_runs_changed_between_snapshot_and_lock_are_left_alone(
    database: Database, store: FlowRunControlStore, gated: str, due: list[UUID]
) -> None:
    """What committed after the claim's snapshot and before its lock stands, and the limit fills from the rest."""
    first, *changed, last = due
    with _claim_stopped_at_gate(database, gated) as finish:
        with database.engine.begin() as conn:
            _disarm(store, changed, conn)
        before = _rows(database, changed)
        assert [run.run_id for run in finish()] == [first, last]
    assert _rows(database, changed) == before


@pytest.mark.contract("E-3", "E-5", "E-9")
def test_runs_held_at_the_snapshot_and_free_at_the_lock_are_judged_anew(
    database: Database, store: FlowRunControlStore, gated: str, due: list[UUID]
) -> None:
    """A change that was open when the claim began and committed before its lock stands as well."""
    first, *changed, last = due
    with database.engine.connect() as conn:
        _disarm(store, changed, conn)
        with _claim_stopped_at_gate(database, gated) as finish:
            conn.commit()
            before = _rows(database, changed)
            assert [run.run_id for run in finish()] == [first, last]
    assert _rows(database, changed) == before


@pytest.mark.contract("E-3", "E-7")
def test_a_run_given_another_past_deadline_in_between_is_marked_for_that_one(
    database: Database, store: FlowRunControlStore, gated: str, due: list[UUID]
) -> None:
    """A run that is still due in its newest version is marked, once, and reported with its newest deadline."""
    with _claim_stopped_at_gate(database, gated) as finish:
        assert store.extend_deadline(due[1], PAST - timedelta(days=9))
        claimed = {run.run_id: run.deadline for run in finish()}
    assert claimed == {due[0]: PAST, due[1]: PAST - timedelta(days=9)}


@pytest.mark.contract("E-3", "E-9", "Z-4")
@pytest.mark.parametrize("level", ["repeatable\\ read", "serializable"])
def test_under_a_stricter_default_of_the_role_a_lost_race_fails_whole_and_can_be_repeated(
    database: Database, store: FlowRunControlStore, gated: str, due: list[UUID], level: str
) -> None:
    """A claim that may not look at newer versions marks nothing, says so transiently, and ends right next time."""
    options = f"-c default_transaction_isolation={level}"
    with _claim_stopped_at_gate(database, gated, options) as finish:
        assert store.request_cancel(due[1], "by a user")
        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            finish()
    assert is_transient(caught.value)
    assert [run.run_id for run in _claim(_engine(database, options), 2)] == [due[0], due[2]]


@pytest.mark.contract("E-5", "E-9")
def test_a_claim_passes_over_changes_that_are_not_committed(
    database: Database, store: FlowRunControlStore, due: list[UUID]
) -> None:
    """The changes came first: the claim neither waits for them nor marks the runs, before or after the commit."""
    first, *changed, last = due
    with database.engine.connect() as conn:
        _disarm(store, changed, conn)
        assert [run.run_id for run in _claim(database.engine, 2)] == [first, last]
        conn.commit()
    before = _rows(database, changed)
    assert _claim(database.engine, 20) == []
    assert _rows(database, changed) == before


@pytest.mark.contract("E-9", "Q-2", "D-3", "M-5", "L-3")
@pytest.mark.parametrize("claim_commits", [True, False], ids=["commits", "rolls back"])
@pytest.mark.parametrize("method", ["request_cancel", "complete_run", "mark_timed_out", "extend_deadline"])
def test_a_change_that_comes_after_the_claim_waits_for_it(
    database: Database, store: FlowRunControlStore, due: list[UUID], method: str, claim_commits: bool
) -> None:
    """The claim came first: the change waits for its end and is judged by what it then finds."""
    arguments = {"new_timeout_at_utc": FUTURE} if method == "extend_deadline" else {}
    change = partial(getattr(store, method), due[0], **arguments)
    with onlooker(database.conninfo) as admin, database.engine.connect() as claiming:
        assert len(claim_overdue(claiming, TABLES, limit=1)) == 1
        with in_background(change) as answer:
            admin.await_waiters(1)
            (claiming.commit if claim_commits else claiming.rollback)()
            changed = answer.result()
    record = store.get_run_control(due[0])
    assert record is not None
    # An extension revives the run whether or not it was marked; everything else lost to the mark.
    assert changed == (method == "extend_deadline" or not claim_commits)
    after = {
        "request_cancel": RunState.CANCEL_REQUESTED,
        "complete_run": RunState.COMPLETED,
        "mark_timed_out": RunState.TIMED_OUT,
        "extend_deadline": RunState.ACTIVE,
    }
    assert record.state is (after[method] if changed else RunState.TIMED_OUT)
    assert record.cancel_requested == (record.state in {RunState.CANCEL_REQUESTED, RunState.TIMED_OUT})


@pytest.mark.contract("W-6")
def test_a_run_extended_while_a_step_asks_for_it_may_go_on(
    database: Database, store: FlowRunControlStore, due: list[UUID]
) -> None:
    """Between the reading of a lapsed run and its marking the deadline moved: the step may run."""
    asking = create_engine(database.url, poolclass=NullPool)

    def extend(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("WITH"):
            assert store.extend_deadline(due[0], FUTURE)

    event.listen(asking, "before_cursor_execute", extend)
    record = FlowRunControlStore(asking).ensure_may_run(due[0])
    assert record is not None
    assert (record.state, record.timeout_at_utc) == (RunState.ACTIVE, FUTURE)


@pytest.mark.contract("W-3", "E-7")
def test_a_step_and_a_claim_mark_one_run_once(database: Database, due: list[UUID]) -> None:
    """Steps that ask and daemons that claim at once: the run is marked once, and every step is stopped."""
    audit.install(database.engine)
    engine = create_engine(database.url, pool_size=16)
    store = FlowRunControlStore(engine)

    def ask() -> None:
        with pytest.raises(RunTimedOut):
            store.ensure_may_run(due[0])

    works: list[Callable[[], object]] = [ask, partial(_claim, engine, 20)]
    together(works * 8)
    engine.dispose()
    found = audit.findings(database.conninfo)
    assert (found.marks, found.runs, found.broken_promises) == (len(due), len(due), 0)


@pytest.mark.contract("E-1", "E-7")
def test_many_claimers_mark_every_due_run_exactly_once(database: Database) -> None:
    """Six daemons on 1,500 overdue runs: no run is marked or returned twice, no statement exceeds its limit."""
    audit.install(database.engine)
    with psycopg.connect(database.conninfo) as conn:
        conn.execute(
            "INSERT INTO flow_run_controls (run_id, timeout_at_utc) SELECT gen_random_uuid(), "
            "now() - interval '1 hour' + (n % 100) * interval '1 second' FROM generate_series(1, 1500) n"
        )

    def drain() -> list[list[ClaimedRun]]:
        batches: list[list[ClaimedRun]] = []
        with database.engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            while batch := list(claim_overdue(conn, TABLES, limit=37)):
                batches.append(batch)
        return batches

    batches = [batch for drained in together([drain] * 6) for batch in drained]
    claimed = [run.run_id for batch in batches for run in batch]
    assert len(claimed) == len(set(claimed)) == 1500
    assert max(map(len, batches)) == 37
    found = audit.findings(database.conninfo)
    assert (found.marks, found.runs, found.broken_promises, found.largest_statement) == (1500, 1500, 0, 37)


def changes_of(store: FlowRunControlStore, deadline: Callable[..., datetime]) -> list[Callable[[UUID], object]]:
    """What a producer may do to a run, *deadline* giving the past and future times."""
    return [
        lambda run: store.request_cancel(run, "by a user"),
        store.complete_run,
        lambda run: store.extend_deadline(run, deadline(past=False)),
        lambda run: store.extend_deadline(run, deadline(past=True)),
        lambda run: store.reopen_run(run, deadline(past=True)),
        lambda run: store.configure_run(run, FLOW, "t", None, deadline(past=True)),
        lambda run: store.heartbeat(run, timeout=timedelta(days=1)),
    ]


@pytest.mark.contract("E-3", "E-7", "E-8", "E-9")
def test_no_mark_ever_falls_on_a_version_that_was_not_due(database: Database) -> None:
    """Four producers against four claimers on the same few runs: each mark replaced a due, unlatched version."""
    audit.install(database.engine)
    engine = create_engine(database.url, pool_size=8, connect_args={"options": "-c lock_timeout=20s"})
    store = FlowRunControlStore(engine)
    runs = [uuid4() for _ in range(60)]
    armings = count()

    def deadline(*, past: bool) -> datetime:
        # No two armings share a deadline, so that a second mark for one of them shows.
        return (PAST if past else FUTURE) + timedelta(milliseconds=next(armings))

    actions = changes_of(store, deadline)

    def produce(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(250):
            chance.choice(actions)(chance.choice(runs))

    def claim() -> None:
        with engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            for _ in range(250):
                claim_overdue(conn, TABLES, limit=20)

    for run in runs:
        store.configure_run(run, FLOW, "t", None, deadline(past=True))
    producers: list[Callable[[], None]] = [partial(produce, seed) for seed in range(4)]
    together([*producers, *[claim] * 4])
    claim()
    engine.dispose()
    found = audit.findings(database.conninfo)
    assert found.marks > len(runs)
    assert found.largest_statement <= 20
    assert (found.early, found.on_latched_runs, found.twice_for_one_arming) == (0, 0, 0)
    with psycopg.connect(database.conninfo) as conn:
        left = conn.execute(
            "SELECT count(*) FROM flow_run_controls WHERE timeout_at_utc <= now() "
            "AND NOT cancel_requested AND completed_at_utc IS NULL AND timed_out_at_utc IS NULL"
        ).fetchall()
    assert left == [(0,)]
