"""The tables, as FlowOrchestrator made them, plus what curfewd adds.

``flow_run_controls`` and ``flow_idempotency_keys`` keep the names, columns, types, defaults and keys of
FlowOrchestrator's PostgreSQL schema (unchanged there from its first release to 1.32), so that a .NET
producer and a Python one can share a database. Added are ``created_at_utc``, ``completed_at_utc`` and one
partial index. There is no foreign key, no trigger and no CHECK on ``flow_run_controls``: each of them
would let one odd old row, or one slow neighbour, stop every sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    and_,
    case,
    func,
    literal_column,
    text,
)
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.types import TypeDecorator

from curfew_store.errors import InvalidValue, WrongType

__all__ = [
    "ARMED_INDEX",
    "CONTROLS",
    "KEYS",
    "VERSION_TABLE",
    "Tables",
    "armed",
    "as_utc",
    "control_columns",
    "due",
    "quoted",
    "tables_in",
]

CONTROLS = "flow_run_controls"
KEYS = "flow_idempotency_keys"
VERSION_TABLE = "curfew_schema_version"
ARMED_INDEX = "ix_flow_run_controls_armed"
KEYS_RUN_ID_INDEX = "ix_flow_idempotency_keys_run_id"

TIMESTAMPTZ = DateTime(timezone=True)


class UtcTimestamp(TypeDecorator[datetime]):
    """A timestamp that SQL has already turned into UTC; read as an aware datetime."""

    impl = DateTime(timezone=False)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one schema."""

    schema: str
    controls: Table
    keys: Table
    version: Table


def _controls(metadata: MetaData) -> Table:
    table = Table(
        CONTROLS,
        metadata,
        Column("run_id", Uuid, primary_key=True),
        Column("flow_id", Uuid, nullable=False, server_default=text("'00000000-0000-0000-0000-000000000000'")),
        Column("trigger_key", String(256), nullable=False, server_default=text("''")),
        Column("idempotency_key", String(256)),
        Column("timeout_at_utc", TIMESTAMPTZ),
        Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
        Column("cancel_reason", Text),
        Column("cancel_requested_at_utc", TIMESTAMPTZ),
        Column("timed_out_at_utc", TIMESTAMPTZ),
        Column("created_at_utc", TIMESTAMPTZ, nullable=False, server_default=func.now()),
        Column("completed_at_utc", TIMESTAMPTZ),
    )
    # Column order serves ORDER BY and the keyset cursor of the claim; the predicate empties the index of
    # everything that can no longer fall due. `timeout_at_utc IS NOT NULL` is implied by any comparison.
    Index(
        ARMED_INDEX,
        table.c.timeout_at_utc,
        table.c.run_id,
        postgresql_where=and_(armed(table), table.c.timeout_at_utc.is_not(None)),
    )
    return table


def _keys(metadata: MetaData) -> Table:
    table = Table(
        KEYS,
        metadata,
        Column("flow_id", Uuid, primary_key=True),
        Column("trigger_key", String(256), primary_key=True),
        Column("idempotency_key", String(256), primary_key=True),
        Column("run_id", Uuid, nullable=False),
        Column("created_at_utc", TIMESTAMPTZ, nullable=False, server_default=func.now()),
    )
    Index(KEYS_RUN_ID_INDEX, table.c.run_id)
    return table


def _version(metadata: MetaData) -> Table:
    return Table(
        VERSION_TABLE,
        metadata,
        Column("version_num", String(32), primary_key=True),
        Column("minimum_client", Integer, nullable=False, server_default=text("1")),
    )


def checked_schema(schema: str) -> str:
    """*schema* if PostgreSQL can have a schema of that name, else `InvalidValue` or `WrongType`."""
    if not isinstance(schema, str):
        raise WrongType("schema", "a str", schema)
    if not schema or "\x00" in schema:
        raise InvalidValue("schema", "must be the name of a schema")
    try:
        length = len(schema.encode())
    except UnicodeEncodeError:
        raise InvalidValue("schema", "holds a lone surrogate") from None
    if length > 63:
        # PostgreSQL would cut the name silently, and two schemas could become one.
        raise InvalidValue("schema", f"is {length} bytes long; PostgreSQL's names have at most 63")
    if schema.startswith("pg_") or schema == "information_schema":
        raise InvalidValue("schema", f"{schema!r} belongs to PostgreSQL itself")
    return schema


def quoted(*names: str) -> str:
    """A qualified name for SQL that is written as text, every part quoted."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


@cache
def tables_in(schema: str) -> Tables:
    """The tables in *schema*; the name is always quoted, so any name that PostgreSQL takes will do."""
    metadata = MetaData(schema=quoted_name(checked_schema(schema), quote=True))
    return Tables(schema, _controls(metadata), _keys(metadata), _version(metadata))


def armed(controls: Any) -> ColumnElement[bool]:
    """The predicate of an unlatched run, spelled as in the partial index.

    PostgreSQL uses a partial index only if it can prove its predicate from the query's, and it proves no
    more than the spelling allows: ``cancel_requested IS FALSE``, or a bound boolean, loses the index.
    """
    columns = controls.c
    return and_(columns.timed_out_at_utc.is_(None), columns.completed_at_utc.is_(None), ~columns.cancel_requested)


def due(controls: Any) -> ColumnElement[bool]:
    """The predicate of a run that is to be marked now; a deadline equal to now is due."""
    return and_(armed(controls), controls.c.timeout_at_utc <= func.now())


_EARLIEST: ColumnElement[Any] = literal_column("'0001-01-01 00:00:00+00'::timestamptz")
_LATEST: ColumnElement[Any] = literal_column("'9999-12-31 23:59:59.999999+00'::timestamptz")


def control_columns(controls: Table) -> list[ColumnElement[Any]]:
    """The columns of a control record in the order of `FlowRunControlRecord`, ready for Python."""
    return [as_utc(column) if isinstance(column.type, DateTime) else column for column in controls.columns]


def as_utc(column: ColumnElement[Any]) -> ColumnElement[datetime]:
    """*column* in UTC and within Python's range, whatever the session's TimeZone and DateStyle are."""
    within = func.least(func.greatest(column, _EARLIEST), _LATEST)
    in_utc = func.timezone(literal_column("'UTC'"), within, type_=UtcTimestamp)
    # greatest() ignores NULL, so without the CASE a missing time would read as the year 1.
    return case((column.is_not(None), in_utc)).label(str(getattr(column, "name", "moment")))
