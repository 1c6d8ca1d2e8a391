"""``curfewd plan``: what would be marked, per flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from curfew_daemon.config import Settings
from curfew_daemon.conninfo import read_database_url
from curfew_daemon.links import read_only
from curfew_store.inspection import PlannedFlow, has_upstream_engine, planned_flows
from curfew_store.schema import tables_in

__all__ = ["planned", "render"]

_ANSWER_TIMEOUT = 60.0
_NOTE = (
    "note: FlowOrchestrator's flow_runs stands beside the controls. Runs that ended there look overdue here; "
    "`run` and `once` refuse to mark them, `purge` to delete"
)


def planned(settings: Settings, within: timedelta | None) -> tuple[list[PlannedFlow], bool]:
    """The flows with runs to mark, and whether upstream's engine uses the tables; in a read-only transaction."""
    tables = tables_in(settings.schema_name)
    with read_only(settings, read_database_url(settings), "plan", answer_timeout=_ANSWER_TIMEOUT) as conn:
        return planned_flows(conn, tables, within=within), has_upstream_engine(conn, tables)


def render(plan: tuple[Sequence[PlannedFlow], bool], within: str | None) -> Iterator[str]:
    """The plan as lines of a table, totals last."""
    flows, upstream = plan
    later = f"within {within}" if within else ""
    if flows:
        yield f"{'flow':<36}  {'overdue':>9}  {later:>12}  {'earliest deadline':<20}  latest deadline".rstrip()
    for flow in flows:
        count = f"{flow.due_later:,}" if within else ""
        yield (
            f"{flow.flow_id}  {flow.overdue:>9,}  {count:>12}  "
            f"{flow.earliest:%Y-%m-%d %H:%M:%S}   {flow.latest:%Y-%m-%d %H:%M:%S}"
        )
    overdue, due_later = sum(flow.overdue for flow in flows), sum(flow.due_later for flow in flows)
    yield f"{overdue:,} overdue now" + (f", {due_later:,} more {later}" if within else "") + " (times in UTC)"
    if upstream:
        yield _NOTE
