"""What a daemon reads of the table from time to time: its gauges and what its status page shows, in one statement.

One round trip, since an idle daemon costs little else; plain SELECTs that take no row lock, so what SKIP LOCKED hides
from a claim is seen here. Each part is bounded by itself. Where the whole takes too long all the same, the gauges can
be asked for alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import ARRAY, Connection, Double, Integer, Row, Select, bindparam, case, extract, func, select
from sqlalchemy import literal_column as literal

from curfew_store.daemon_sessions import DaemonSessions, daemon_sessions_statement
from curfew_store.inspection import upstream_engine
from curfew_store.schema import Tables, armed, due
from curfew_store.status_queries import DueMinute, OverdueRun, due_per_minute_statement, longest_overdue_statement

__all__ = ["Gauges", "Observed", "Page", "PageBounds", "observe", "observe_statement"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gauges:
    """Counts stop at a bound; ``*_capped`` says that one did. Durations are in seconds."""

    overdue: int
    overdue_capped: bool
    oldest_overdue_age: float | None
    armed: int
    armed_capped: bool
    next_due_in: float | None


@dataclass(frozen=True, slots=True)
class PageBounds:
    """How much the status page shows; what has a bound of 0 is not even read.

    The next *minutes*, each counted up to *per_minute*; the *runs* that are overdue for longest; the first *daemons*.
    """

    minutes: int
    per_minute: int
    runs: int
    daemons: int


@dataclass(frozen=True, slots=True)
class Page:
    """What the status page shows beyond the gauges."""

    falls_due: tuple[DueMinute, ...]
    overdue: tuple[OverdueRun, ...]
    daemons: tuple[DaemonSessions, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """One look. *upstream_engine*: FlowOrchestrator's own table of runs stands beside the controls."""

    upstream_engine: bool
    gauges: Gauges
    page: Page | None


def observe(conn: Connection, tables: Tables, *, bound: int, page: PageBounds | None = None) -> Observed:
    """How many armed runs are overdue and how many still to come, each counted up to *bound*, and what *page* wants."""
    given: dict[str, Any] = {"bound": bound + 1}
    if page is not None:
        given |= {"last": page.minutes - 1, "per_minute": page.per_minute + 1}
        given |= {"runs": page.runs, "daemons": page.daemons}
    row = conn.execute(observe_statement(tables, page=page is not None), given).one()
    return Observed(
        upstream_engine=row.upstream_engine,
        gauges=Gauges(
            overdue=min(row.overdue, bound),
            overdue_capped=row.overdue > bound,
            oldest_overdue_age=row.age,
            armed=min(row.armed, bound),
            armed_capped=row.armed > bound,
            next_due_in=row.next_due_in,
        ),
        page=None if page is None else _page(row, page),
    )


@cache
def observe_statement(tables: Tables, *, page: bool) -> Select[Any]:
    """The statement of `observe`."""
    statement = select(upstream_engine(tables).label("upstream_engine"), *_gauges(tables))
    if not page:
        return statement
    per_minute = func.array(due_per_minute_statement(tables).scalar_subquery(), type_=ARRAY(Integer))
    overdue, overdue_columns = _gathered(longest_overdue_statement(tables), "overdue_runs")
    sessions, session_columns = _gathered(daemon_sessions_statement(), "sessions")
    columns = [per_minute.label("per_minute"), *overdue_columns, *session_columns]
    return statement.add_columns(*columns).select_from(overdue.join(sessions, literal("true")))


def _gauges(tables: Tables) -> list[Any]:
    controls = tables.controls
    still_to_come = (armed(controls), controls.c.timeout_at_utc > func.now())

    def count(*conditions: Any) -> Any:
        some: Select[Any] = select(literal("1")).select_from(controls).where(*conditions)
        # In the order of the index, which keeps the planner on it.
        some = some.order_by(controls.c.timeout_at_utc).limit(bindparam("bound", type_=Integer))
        return select(func.count()).select_from(some.subquery()).scalar_subquery()

    def edge(*conditions: Any) -> Any:
        first = select(controls.c.timeout_at_utc).where(*conditions).order_by(controls.c.timeout_at_utc)
        return first.limit(literal("1")).scalar_subquery()

    def seconds(later: Any, earlier: Any) -> Any:
        # Infinite times have no difference before PostgreSQL 17; a century is as good.
        near = func.now() - literal("interval '100 years'")
        far = func.now() + literal("interval '100 years'")
        return extract("epoch", func.least(later, far) - func.greatest(earlier, near)).cast(Double)

    oldest = edge(due(controls))
    following = edge(*still_to_come)
    return [
        count(due(controls)).label("overdue"),
        case((oldest.is_not(None), seconds(func.now(), oldest))).label("age"),
        count(*still_to_come).label("armed"),
        case((following.is_not(None), seconds(following, func.now()))).label("next_due_in"),
    ]


def _gathered(rows: Select[Any], name: str) -> tuple[Any, list[Any]]:
    """*rows* as a single one of arrays, one for each column and all in the order of the rows, and its columns."""
    each = rows.subquery(f"each_of_{name}")
    arrays = [
        func.array_agg(column, type_=ARRAY(column.type)).label(f"{name}_{number}")
        for number, column in enumerate(each.columns)
    ]
    one = select(*arrays).subquery(name)
    return one, list(one.columns)


def _page(row: Row[Any], page: PageBounds) -> Page:
    def of(name: str, make: Callable[..., T]) -> Iterable[T]:
        arrays = [value for key, value in row._mapping.items() if str(key).startswith(f"{name}_")]  # noqa: SLF001
        return itertools.starmap(make, zip(*(array or () for array in arrays), strict=True))

    return Page(
        falls_due=tuple(DueMinute(min(count, page.per_minute), count > page.per_minute) for count in row.per_minute),
        overdue=tuple(of("overdue_runs", OverdueRun)),
        daemons=tuple(of("sessions", DaemonSessions)),
    )
