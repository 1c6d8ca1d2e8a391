"""Everything that the status page shows, as one frozen record, and the same as JSON.

Durations are in seconds, times are aware and in UTC. What is ``None`` is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from curfew_daemon.results import DatabaseState, Observation
from curfew_daemon.status.history import Lags, Minute
from curfew_store.daemon_sessions import DaemonSessions
from curfew_store.status_queries import DueMinute, OverdueRun

__all__ = ["Facts", "Identity", "ListedOverdue", "Seen", "TableFacts", "TimedOutRun", "Verdict", "as_json"]


class Verdict(StrEnum):
    """What an operator wants to know first."""

    STARTING = "starting"
    ON_TIME = "on_time"
    LATE = "late"
    DATABASE_DOWN = "database_down"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this daemon is."""

    instance: str
    schema: str
    version: str
    runs_shown: bool
    """Whether ids of runs and flows may be shown."""


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What the page's own queries found."""

    falls_due: tuple[DueMinute, ...]
    overdue: tuple[OverdueRun, ...]
    daemons: tuple[DaemonSessions, ...] | None
    """``None`` behind a pooler, whose sessions are not the daemons'."""


@dataclass(frozen=True, slots=True)
class ListedOverdue:
    """An overdue run; stuck if it was there at the reading before and a whole sweep has passed it over since."""

    run: OverdueRun
    stuck: bool


@dataclass(frozen=True, slots=True)
class TimedOutRun:
    """A run that this daemon marked."""

    run_id: UUID
    flow_id: UUID
    deadline: datetime
    timed_out_at: datetime
    lag: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The last reading of the table: when, how old it is, and what it found."""

    at: datetime
    age: float
    stale: bool
    gauges: Observation
    table: TableFacts | None
    """``None`` where the page's own queries did not succeed."""
    overdue: tuple[ListedOverdue, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """The page at one moment."""

    identity: Identity
    at: datetime
    up_for: float
    verdict: Verdict
    database: DatabaseState | None
    database_for: float | None
    """How long the state of the database has held."""
    remedy: str
    lag_now: float | None
    """The greatest lag of this minute and the last, or the age of the oldest overdue run if that is greater."""
    lag_now_waits: bool
    """Whether `lag_now` is that of a run which still waits."""
    last_hour: Minute
    minutes: tuple[Minute, ...]
    marked_since_start: int
    last_marked_ago: float | None
    newest: tuple[TimedOutRun, ...]
    seen: Seen | None


def as_json(facts: Facts) -> dict[str, Any]:
    """The facts for scripts. The keys are documented in the operator's guide and stay."""
    identity = facts.identity
    return {
        "instance": identity.instance,
        "schema": identity.schema,
        "version": identity.version,
        "at": facts.at.isoformat(),
        "up_s": round(facts.up_for, 3),
        "verdict": facts.verdict.value,
        "database": {"state": facts.database, "for_s": _rounded(facts.database_for), "remedy": facts.remedy or None},
        "lag": {
            "now_s": _rounded(facts.lag_now),
            "now_waits": facts.lag_now_waits,
            "last_hour": _lags(facts.last_hour.lags),
            "per_minute": [_lags(minute.lags) for minute in facts.minutes],
        },
        "timed_out": {
            "since_start": facts.marked_since_start,
            "last_hour": facts.last_hour.marked,
            "per_minute": [minute.marked for minute in facts.minutes],
            "last_ago_s": _rounded(facts.last_marked_ago),
            "newest": [_timed_out(run) for run in facts.newest] if identity.runs_shown else None,
        },
        "table": None if facts.seen is None else _seen(facts.seen, runs_shown=identity.runs_shown),
    }


def _seen(seen: Seen, *, runs_shown: bool) -> dict[str, Any]:
    gauges, table = seen.gauges, seen.table
    return {
        "at": seen.at.isoformat(),
        "age_s": _rounded(seen.age),
        "stale": seen.stale,
        "overdue": {
            "count": gauges.overdue,
            "capped": gauges.overdue_capped,
            "oldest_age_s": _rounded(gauges.oldest_overdue_age),
            "longest": [_overdue(each) for each in seen.overdue] if runs_shown and table is not None else None,
        },
        "armed": {"count": gauges.armed, "capped": gauges.armed_capped, "next_due_in_s": _rounded(gauges.next_due_in)},
        "falls_due": {
            "per_minute": None if table is None else [minute.count for minute in table.falls_due],
            "capped": None if table is None else [minute.capped for minute in table.falls_due],
        },
        "daemons": None
        if table is None or table.daemons is None
        else [
            {
                "instance": each.instance,
                "sessions": each.sessions,
                "since": None if each.since is None else each.since.isoformat(),
                "version": each.version,
                "slack_s": _rounded(each.slack),
            }
            for each in table.daemons
        ],
    }


def _lags(lags: Lags) -> dict[str, float | None]:
    return {"p50_s": _rounded(lags.median), "p99_s": _rounded(lags.p99), "max_s": _rounded(lags.greatest)}


def _timed_out(run: TimedOutRun) -> dict[str, Any]:
    return {
        "run_id": str(run.run_id),
        "flow_id": str(run.flow_id),
        "deadline": run.deadline.isoformat(),
        "timed_out_at": run.timed_out_at.isoformat(),
        "lag_s": _rounded(run.lag),
    }


def _overdue(each: ListedOverdue) -> dict[str, Any]:
    return {
        "run_id": str(each.run.run_id),
        "flow_id": str(each.run.flow_id),
        "deadline": each.run.deadline.isoformat(),
        "late_s": _rounded(each.run.late),
        "stuck": each.stuck,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
