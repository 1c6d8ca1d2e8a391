"""Looking without touching: the plan of what would be marked, and facts for a health check.

Plain SELECTs that take no row lock, so what SKIP LOCKED hides from a claim is seen here. Longer than
other modules, so that all of these looks stand in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Integer,
    Interval,
    String,
    bindparam,
    column,
    exists,
    func,
    literal,
    literal_column,
    select,
    table,
)

from curfew_store.deadlines import required_timeout
from curfew_store.enforcement import claim_statement
from curfew_store.schema import ARMED_INDEX, CONTROLS, VERSION_TABLE, Tables, armed, as_utc, quoted
from curfew_store.version import relation, relation_exists

__all__ = [
    "PlannedFlow",
    "ServerFacts",
    "claim_uses_index",
    "has_upstream_engine",
    "keys_without_record",
    "missing_rights",
    "planned_flows",
    "server_facts",
    "upstream_engine",
]

UPSTREAM_RUNS: Final = "flow_runs"


def has_upstream_engine(conn: Connection, tables: Tables) -> bool:
    """Whether FlowOrchestrator's own table of runs stands beside the controls.

    Upstream records that a run has ended there and nowhere else, so its finished runs look overdue here.
    """
    return relation_exists(conn, tables.schema, UPSTREAM_RUNS)


def upstream_engine(tables: Tables) -> ColumnElement[bool]:
    """The same as a column of a statement."""
    return relation(tables.schema, UPSTREAM_RUNS)


@dataclass(frozen=True, slots=True)
class PlannedFlow:
    """The runs of one flow that a sweep would mark by a moment."""

    flow_id: UUID
    overdue: int
    due_later: int
    earliest: datetime
    latest: datetime


def planned_flows(conn: Connection, tables: Tables, *, within: timedelta | None = None) -> list[PlannedFlow]:
    """What would be marked now, or *within* a time from now, per flow; most runs first. Changes nothing."""
    controls = tables.controls
    reach = timedelta(seconds=0 if within is None else required_timeout(within))
    overdue = controls.c.timeout_at_utc <= func.now()
    statement = (
        select(
            controls.c.flow_id,
            func.count().filter(overdue),
            func.count().filter(~overdue),
            as_utc(func.min(controls.c.timeout_at_utc)).label("earliest"),
            as_utc(func.max(controls.c.timeout_at_utc)).label("latest"),
        )
        .where(armed(controls), controls.c.timeout_at_utc <= func.now() + bindparam("reach", reach, type_=Interval))
        .group_by(controls.c.flow_id)
        .order_by(func.count().desc(), controls.c.flow_id)
    )
    return [PlannedFlow(*row) for row in conn.execute(statement)]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a health check wants to know of the session and its server. Timeouts are in milliseconds, 0 is none."""

    version: int
    role: str
    clock: datetime
    recovery: bool
    read_only: bool
    isolation: str
    synchronous_commit: str
    statement_timeout: int
    lock_timeout: int
    idle_in_transaction_timeout: int


def server_facts(conn: Connection) -> ServerFacts:
    """Version, role, clock and the settings that matter, of this very session; one statement."""
    return ServerFacts(
        *conn.execute(
            select(
                _setting("server_version_num").cast(Integer),
                literal_column("current_user::text"),
                as_utc(func.clock_timestamp(type_=DateTime(timezone=True))),
                func.pg_catalog.pg_is_in_recovery(),
                _setting("transaction_read_only") == "on",
                _setting("default_transaction_isolation"),
                _setting("synchronous_commit"),
                *(_milliseconds(name) for name in _TIMEOUTS),
            )
        ).one()
    )


_TIMEOUTS: Final = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")


def _setting(name: str) -> ColumnElement[str]:
    return func.pg_catalog.current_setting(literal(name, String()), type_=String())


def _milliseconds(name: str) -> ColumnElement[int]:
    settings = table("pg_settings", column("name"), column("setting"), schema="pg_catalog")
    return (
        select(settings.c.setting.cast(Integer))
        .where(settings.c.name.op("OPERATOR(pg_catalog.=)", is_comparison=True)(name))
        .scalar_subquery()
    )


_MARKED: Final = ("timed_out_at_utc", "cancel_requested", "cancel_reason", "cancel_requested_at_utc")


def missing_rights(conn: Connection, tables: Tables) -> list[str]:
    """What this role lacks for enforcing, as the GRANT that would give it; empty if nothing."""
    schema, controls, version = tables.schema, quoted(tables.schema, CONTROLS), quoted(tables.schema, VERSION_TABLE)
    wanted = [
        (func.pg_catalog.has_schema_privilege(schema, "USAGE"), f"USAGE ON SCHEMA {quoted(schema)}"),
        (func.pg_catalog.has_table_privilege(version, "SELECT"), f"SELECT ON {version}"),
        (func.pg_catalog.has_table_privilege(controls, "SELECT"), f"SELECT ON {controls}"),
        *(
            (func.pg_catalog.has_column_privilege(controls, name, "UPDATE"), f"UPDATE ({name}) ON {controls}")
            for name in _MARKED
        ),
    ]
    held = conn.execute(select(*(has for has, _ in wanted))).one()
    return [grant for has, (_, grant) in zip(held, wanted, strict=True) if not has]


def keys_without_record(conn: Connection, tables: Tables, *, older_than: timedelta, bound: int) -> int:
    """How many keys older than a grace period point to no control record, counted up to *bound*.

    A crash of a producer that writes key and record in two transactions leaves such keys; every repeat of the
    trigger is then taken for a duplicate of a run that never was. `start_run` cannot leave one.
    """
    keys, controls = tables.keys, tables.controls
    some = (
        select(literal_column("1"))
        .select_from(keys)
        .where(
            keys.c.created_at_utc < func.now() - bindparam("grace", older_than, type_=Interval),
            ~exists().where(controls.c.run_id == keys.c.run_id),
        )
        .limit(bindparam("bound", bound))
        .subquery()
    )
    return conn.execute(select(func.count()).select_from(some)).scalar_one()


def claim_uses_index(conn: Connection, tables: Tables) -> tuple[bool, str]:
    """Whether the planner can run the claim on the index of armed deadlines, and its plan as text.

    On partitioned tables it is an index of that kind in each partition. For a transaction of its own: a tiny table
    is rightly read whole, so that is switched off for the look.
    """
    conn.exec_driver_sql("SET LOCAL enable_seqscan = off")
    compiled = claim_statement(tables, continued=False).compile(dialect=conn.dialect)
    lines = conn.exec_driver_sql(f"EXPLAIN {compiled}", {**compiled.params, "limit": 500}).scalars().all()
    plan = "\n".join(lines)
    return all(f" {name} " in plan for name in _armed_indexes(conn, tables)), plan


# Every name is PostgreSQL's own, whatever stands in the search path.
_CHILDREN: Final = """
SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_inherits AS i
JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid
WHERE i.inhparent OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%(index)s)
"""


def _armed_indexes(conn: Connection, tables: Tables) -> list[str]:
    """The index of armed deadlines as a plan names it; of a partitioned table, those of its partitions."""
    rows = conn.exec_driver_sql(_CHILDREN, {"index": quoted(tables.schema, ARMED_INDEX)})
    return [str(name) for name in rows.scalars()] or [ARMED_INDEX]
