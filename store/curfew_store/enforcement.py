"""The daemon's half of the store: claim overdue runs, look ahead, and judge a single run.

The claim is one statement, meant for autocommit: one round trip, and the server commits without the
client being alive. Its shape carries these reasons:

- The CTE is MATERIALIZED, so its LIMIT holds; a subselect under IN may be run again by a nested loop and
  then locks more rows than asked for.
- ``FOR NO KEY UPDATE SKIP LOCKED`` decides: a row that changed between snapshot and lock is judged again
  on its newest version, a row that somebody holds is passed over, and the LIMIT still fills.
- The UPDATE repeats the predicate inside a CASE, for engines whose SKIP LOCKED is weaker. Repeated plainly
  it offers the planner the partial index for the join as well: on never-analysed statistics that cost
  6 s per batch of 500, against 7 ms like this (PostgreSQL 15, 100,000 due rows).
- The ids reach the UPDATE as an array, not by a join: on an analysed table of moderate size the planner joins
  by hashing the whole table (16 ms per batch of 500 at 100,000 rows), an array it looks up by the key (5 ms).
- ``now()`` rather than ``clock_timestamp()``: a volatile function cannot be an index condition.
- It returns plain numbers and text. A backlog is marked at the pace of the client that reads the answers: ready
  UUIDs and times cost it 2.4 ms per batch of 500, these 0.9 ms, and a drain reads but a few of them.

The reasons that stand beside the statements make this module longer than most.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Select,
    Text,
    Uuid,
    all_,
    any_,
    bindparam,
    case,
    extract,
    false,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import psycopg

from curfew_store import keys
from curfew_store.errors import RunCancelled, RunCompleted, RunTimedOut
from curfew_store.execution import rows_read, rows_written
from curfew_store.operations import Operation, WritesOnce, control_record
from curfew_store.records import (
    ClaimedBatch,
    ClaimedRun,
    FlowRunControlRecord,
    LookAhead,
    RunState,
    ScanStart,
    moment,
)
from curfew_store.schema import TIMESTAMPTZ, Tables, armed, control_columns, due
from curfew_store.statements import timed_out_fields

__all__ = [
    "OVERDUE_REASON",
    "claim_overdue",
    "claim_statement",
    "compile_statements",
    "ensure_may_run",
    "first_due",
    "look_ahead",
]

OVERDUE_REASON: Final = "Run exceeded its timeout deadline."


def claim_overdue(
    conn: Connection,
    tables: Tables,
    *,
    limit: int,
    after: ClaimedRun | ScanStart | None = None,
    skipping: Sequence[UUID] = (),
) -> ClaimedBatch:
    """Marks up to *limit* overdue runs and returns them in the order of their deadlines.

    *after* begins behind a place in the index: the last run of the batch before, or a `ScanStart`. Runs before it
    are not seen; an extended and expired one can lie there, so a drain is over only when a batch from its own
    start comes back short. *skipping* leaves runs out, whatever their deadline.
    """
    sql, constants = _claim_text(tables, continued=after is not None, skipping=bool(skipping))
    cursor = conn.exec_driver_sql(sql, constants | {"limit": limit} | _place(after, skipping)).cursor
    assert cursor is not None
    return ClaimedBatch(list(cursor.fetchall()))


def _place(after: ClaimedRun | ScanStart | None, skipping: Sequence[UUID]) -> dict[str, Any]:
    """The parameters that say where candidates begin and which are left out."""
    parameters: dict[str, Any] = {}
    if after is not None:
        parameters |= {"after_deadline": after.deadline, "after_run_id": after.run_id}
    if skipping:
        parameters["skipping"] = list(skipping)
    return parameters


def first_due(
    conn: Connection, tables: Tables, *, after: ClaimedRun | ScanStart | None = None, skipping: Sequence[UUID] = ()
) -> UUID | None:
    """The run that a claim with these parameters begins with; passes over what others hold, as the claim does."""
    candidates = _candidates(tables, continued=after is not None, skipping=bool(skipping))
    statement = candidates.limit(literal_column("1")).with_for_update(key_share=True, skip_locked=True)
    row = conn.execute(statement, _place(after, skipping)).one_or_none()
    return None if row is None else row.run_id


@cache
def _claim_text(tables: Tables, *, continued: bool, skipping: bool) -> tuple[str, dict[str, Any]]:
    """The claim as the driver takes it, and those of its parameters that never change."""
    compiled = claim_statement(tables, continued=continued, skipping=skipping).compile(dialect=psycopg.dialect())  # type: ignore[no-untyped-call]
    return str(compiled), {name: value for name, value in compiled.params.items() if value is not None}


@cache
def claim_statement(tables: Tables, *, continued: bool, skipping: bool = False) -> Any:
    """The claim, from the start of the index or behind a place in it, of all runs or without some."""
    return _mark(tables, _candidates(tables, continued=continued, skipping=skipping))


def _candidates(tables: Tables, *, continued: bool, skipping: bool) -> Select[tuple[UUID]]:
    """Runs that are due, in the order of the index."""
    controls = tables.controls
    candidates = select(controls.c.run_id).where(due(controls))
    if continued:
        cursor = tuple_(bindparam("after_deadline", type_=TIMESTAMPTZ), bindparam("after_run_id", type_=Uuid()))
        candidates = candidates.where(tuple_(controls.c.timeout_at_utc, controls.c.run_id) > cursor)
    if skipping:
        candidates = candidates.where(controls.c.run_id != all_(bindparam("skipping", type_=ARRAY(Uuid()))))
    return candidates.order_by(controls.c.timeout_at_utc, controls.c.run_id)


def _mark(tables: Tables, candidates: Select[tuple[UUID]]) -> Any:
    """Locks up to ``:limit`` of the *candidates* and marks them."""
    controls = tables.controls
    locked = (
        candidates.limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True, key_share=True)
        .cte("due")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    still_due = case((due(controls), true()), else_=false())
    ids = func.array(select(locked.c.run_id).scalar_subquery(), type_=ARRAY(Uuid()))
    return (
        update(controls)
        .where(controls.c.run_id == any_(ids), still_due)
        .values(timed_out_fields(controls, literal(OVERDUE_REASON)))
        .returning(
            # As `ClaimedBatch` wants them. An infinite deadline is an infinite number, no error.
            _epoch(controls.c.timeout_at_utc),
            controls.c.run_id.cast(Text),
            controls.c.flow_id.cast(Text),
            _epoch(controls.c.timed_out_at_utc),
        )
    )


def _epoch(column: ColumnElement[Any]) -> ColumnElement[float]:
    """Seconds since 1970 as a double, exact to the microsecond for centuries; ``extract`` would make a numeric."""
    return func.date_part(literal_column("'epoch'"), column, type_=Double)


def look_ahead(
    conn: Connection, tables: Tables, *, since: datetime | None = None, expected: tuple[UUID, datetime] | None = None
) -> LookAhead:
    """The next deadline, and the earliest one that is overdue; one read-only statement, no locks.

    *since* begins the search for overdue runs at a moment, past index entries that are dead but may not be removed
    yet; without it the search is whole. *expected* names a run of which to say whether it has been marked, and since
    when: what marked it before that moment is not meant.
    """
    sql = _look_ahead_text(tables, partial=since is not None, expecting=expected is not None)
    given: dict[str, Any] = {} if since is None else {"since": since}
    if expected is not None:
        given["expected"], given["expected_since"] = expected
    cursor = conn.exec_driver_sql(sql, given).cursor
    assert cursor is not None
    ((next_due_in, next_run, earliest, now, took, *rest),) = cursor.fetchall()
    overdue = None if earliest is None else moment(earliest)
    return LookAhead(next_due_in, next_run, overdue, moment(now), max(0.0, took), *rest)


@cache
def _look_ahead_text(tables: Tables, *, partial: bool, expecting: bool) -> str:
    """The look ahead as the driver takes it."""
    statement = look_ahead_statement(tables, partial=partial, expecting=expecting)
    return str(statement.compile(dialect=psycopg.dialect()))  # type: ignore[no-untyped-call]


@cache
def look_ahead_statement(tables: Tables, *, partial: bool = False, expecting: bool = False) -> Any:
    """The statement of `look_ahead`."""
    controls = tables.controls
    following = (
        select(controls.c.timeout_at_utc, controls.c.run_id)
        .where(armed(controls), controls.c.timeout_at_utc > func.now())
        .order_by(controls.c.timeout_at_utc, controls.c.run_id)
        .limit(literal_column("1"))
        .subquery("following")
    )
    # Capped, since the difference to an infinite deadline is an error before PostgreSQL 17.
    capped = func.least(following.c.timeout_at_utc, func.now() + literal_column("interval '100 years'"))
    # The edge of the index and not EXISTS: on statistics that still say "much is due" the planner answers
    # EXISTS by a scan of the whole table (14 ms against 0.2 ms on 100,000 marked rows, and it grows).
    overdue = select(controls.c.timeout_at_utc).where(due(controls))
    if partial:
        overdue = overdue.where(controls.c.timeout_at_utc >= bindparam("since", type_=TIMESTAMPTZ))
    edge = overdue.order_by(controls.c.timeout_at_utc).limit(literal_column("1")).subquery("edge")
    one = select(literal_column("1")).subquery("one")
    columns = [
        case((following.c.timeout_at_utc.is_not(None), extract("epoch", capped - func.now()).cast(Double))),
        following.c.run_id,
        _epoch(edge.c.timeout_at_utc),
        _epoch(func.now()),
        # Volatile, so that it is read when all that the row is made of has been found.
        _epoch(func.clock_timestamp() - func.now()),
    ]
    if expecting:
        run = controls.alias("expected")
        wanted = run.c.run_id == bindparam("expected", type_=Uuid())
        marked = run.c.timed_out_at_utc >= bindparam("expected_since", type_=TIMESTAMPTZ)
        columns.append(select(func.coalesce(marked, false())).where(wanted).scalar_subquery())
    return select(*columns).select_from(one.outerjoin(following, true()).outerjoin(edge, true()))


def compile_statements(tables: Tables) -> None:
    """Compiles whatever a sweep may send, which takes some 15 ms: done at the start, no deadline waits for it."""
    for one, other in itertools.product((False, True), repeat=2):
        _claim_text(tables, continued=one, skipping=other)
        _look_ahead_text(tables, partial=one, expecting=other)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `ensure_may_run` found. Raised only after the transaction has been committed."""

    record: FlowRunControlRecord | None
    lapsed: bool

    def raise_if_stopped(self) -> FlowRunControlRecord | None:
        """The record of a run that may go on (``None`` where there is none), else an error by its state."""
        record = self.record
        if record is None:
            return None
        if record.state is RunState.COMPLETED:
            raise RunCompleted(record.run_id, record)
        if record.state is RunState.CANCEL_REQUESTED:
            raise RunCancelled(record.run_id, record)
        if self.lapsed or record.state is RunState.TIMED_OUT:
            raise RunTimedOut(record.run_id, record)
        return record


def ensure_may_run(tables: Tables, run_id: UUID) -> Operation[Verdict]:
    """Reads a run and latches it there and then if its deadline has lapsed and nobody holds the row."""
    read, mark = _judging(tables)
    this = {"given_run_id": keys.checked_run_id(run_id)}

    def judge(conn: Connection) -> Verdict:
        verdict = _verdict(rows_read(conn, read, this))
        if verdict.lapsed:
            rows_written(conn, mark, {"limit": 1, **this})
            # Read again: the run may have been extended, or marked by somebody else, or be held locked.
            verdict = _verdict(rows_read(conn, read, this))
        return verdict

    return WritesOnce(judge)


def _verdict(rows: Sequence[Any]) -> Verdict:
    if not rows:
        return Verdict(None, lapsed=False)
    *columns, lapsed = rows[0]
    return Verdict(control_record(*columns), lapsed=bool(lapsed))


@cache
def _judging(tables: Tables) -> tuple[Any, Any]:
    """What reads a run and whether its deadline has lapsed, and what marks it."""
    controls = tables.controls
    this = controls.c.run_id == bindparam("given_run_id", type_=Uuid())
    read = select(*control_columns(controls), due(controls).label("lapsed")).where(this)
    return read, _mark(tables, select(controls.c.run_id).where(this, due(controls)))
