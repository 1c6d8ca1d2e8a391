"""What the status page shows of the table: plain SELECTs, each on an index and each bounded.

None takes a row lock, so what a claim passes over because somebody holds it is seen here. The reads of the table
go along the index of armed deadlines in its own order (ORDER BY, not a count of all that matches), which keeps the
planner on it whatever the statistics say.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Double,
    Integer,
    Select,
    bindparam,
    extract,
    func,
    literal_column,
    select,
)

from curfew_store.schema import Tables, armed, as_utc, due

__all__ = [
    "DueMinute",
    "OverdueRun",
    "due_per_minute_statement",
    "longest_overdue_statement",
]


@dataclass(frozen=True, slots=True)
class DueMinute:
    """How many runs fall due within one minute; a capped count stopped at its bound."""

    count: int
    capped: bool


def due_per_minute_statement(tables: Tables) -> Select[Any]:
    """How many runs fall due in each minute from 0 to ``:last``, counted up to ``:per_minute``: a walk for each.

    The first minute begins now, and a deadline at the edge of two belongs to the earlier. One walk over the whole hour
    with one bound would cost as much and could leave the later minutes unseen. Among 100,000 runs it takes 1 to 17 ms
    (PostgreSQL 15), by whichever way the planner reads the index.
    """
    controls = tables.controls
    series = (
        func.generate_series(literal_column("0"), bindparam("last", type_=Integer))
        .table_valued("minute")
        .render_derived()
    )
    begin = func.now() + series.c.minute * literal_column("interval '1 minute'")
    some = (
        select(controls.c.timeout_at_utc)
        .where(
            armed(controls),
            controls.c.timeout_at_utc > begin,
            controls.c.timeout_at_utc <= begin + literal_column("interval '1 minute'"),
        )
        .order_by(controls.c.timeout_at_utc)
        .limit(bindparam("per_minute", type_=Integer))
        .correlate(series)
        .subquery()
    )
    return (
        select(select(func.count()).select_from(some).scalar_subquery()).select_from(series).order_by(series.c.minute)
    )


@dataclass(frozen=True, slots=True)
class OverdueRun:
    """A run past its deadline that nobody has marked yet; *late* in seconds by the database's clock."""

    run_id: UUID
    flow_id: UUID
    deadline: datetime
    late: float


def longest_overdue_statement(tables: Tables) -> Select[Any]:
    """The ``:runs`` overdue runs that have waited longest, as `OverdueRun`: the first entries of the index."""
    controls = tables.controls
    # An infinite difference is an error before PostgreSQL 17; a century is as good.
    since = func.greatest(controls.c.timeout_at_utc, func.now() - literal_column("interval '100 years'"))
    return (
        select(
            controls.c.run_id,
            controls.c.flow_id,
            as_utc(controls.c.timeout_at_utc),
            extract("epoch", func.now() - since).cast(Double).label("late"),
        )
        .where(due(controls))
        .order_by(controls.c.timeout_at_utc, controls.c.run_id)
        .limit(bindparam("runs", type_=Integer))
    )
