"""The SQL of the operations, one statement each.

A statement is built once for each schema and takes its values as parameters: to build one costs SQLAlchemy more
than to send it (``configure_run`` took 0.43 ms of CPU when each call built its own, and takes 0.11 ms). What a caller
gives comes in as ``given_…``, since SQLAlchemy takes a parameter that is named like a column for a value of it.
Where a statement can be *hinted*, it also notifies the daemons of a near deadline. How many rows were written is
told by the server anyway; a RETURNING only to know it would cost the client a quarter of the call.
Longer than other modules, so that everything an operation writes can be compared side by side.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    Double,
    Select,
    String,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, psycopg
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import TypeEngine

from curfew_store.deadlines import from_now, given_deadline, given_seconds
from curfew_store.hints import hint_of_earliest, hint_of_given
from curfew_store.schema import TIMESTAMPTZ, Tables, armed, control_columns

DEFAULT_REASON: Final = "Run timed out."

CONFIGURED: Final = ("flow_id", "trigger_key", "idempotency_key", "timeout_at_utc")
"""What `configure_run` overwrites."""

_TYPES: Final[dict[str, TypeEngine[Any]]] = {
    "run_id": Uuid(),
    "flow_id": Uuid(),
    "trigger_key": String(),
    "idempotency_key": String(),
    # In their normal form, beside the text as it was given.
    "normal_trigger_key": String(),
    "normal_idempotency_key": String(),
    "reason": Text(),
}


def _given(name: str) -> BindParameter[Any]:
    return bindparam(f"given_{name}", type_=_TYPES[name])


def _given_record() -> dict[str, ColumnElement[Any]]:
    """A control record as callers give it."""
    names = ("run_id", "flow_id", "trigger_key", "idempotency_key")
    return {**{name: _given(name) for name in names}, "timeout_at_utc": given_deadline()}


def equals(column: Any, value: Any) -> ColumnElement[bool]:
    """*column* = *value* by PostgreSQL's own operator.

    It has none for varchar and takes the one for text; an operator for varchar, anybody's in the search path, would
    fit better and be called instead.
    """
    return column.op("OPERATOR(pg_catalog.=)", is_comparison=True)(value)  # type: ignore[no-any-return]


@cache
def as_sent(statement: Any) -> tuple[str, dict[str, Any]]:
    """A statement as the driver takes it, and those of its parameters that are not given.

    SQLAlchemy would look it up and go through its parameters again for each call: 63 us of CPU for a call on an open
    connection, against 40 us like this and 24 us of psycopg alone.
    """
    compiled = statement.compile(dialect=psycopg.dialect())  # type: ignore[no-untyped-call]
    return str(compiled), {name: value for name, value in compiled.params.items() if not name.startswith("given_")}


@cache
def get_run_control(tables: Tables) -> Select[Any]:
    """A control record, ready for Python."""
    return select(*control_columns(tables.controls)).where(tables.controls.c.run_id == _given("run_id"))


@cache
def configure_run(tables: Tables, *, hinted: bool) -> Any:
    """One control record."""
    record = _overwriting(upsert(tables.controls).values(**_given_record()))
    return record.returning(hint_of_given(tables.schema)) if hinted else record


@cache
def configure_runs(tables: Tables, *, hinted: bool) -> Any:
    """Control records from arrays, written in the order of their run ids."""
    names = ("run_id", "flow_id", "trigger_key", "idempotency_key", "at", "after")
    types: tuple[TypeEngine[Any], ...] = (Uuid(), Uuid(), String(), String(), TIMESTAMPTZ, Double())
    arrays = [bindparam(f"given_{name}", type_=ARRAY(type_)) for name, type_ in zip(names, types, strict=True)]
    given = func.unnest(*arrays).table_valued(*names).render_derived()
    fields = [given.c[name] for name in names[:4]]
    deadline = func.coalesce(given.c["at"], from_now(given.c.after))
    rows = select(*fields, deadline).order_by(given.c.run_id)
    records = _overwriting(upsert(tables.controls).from_select(["run_id", *CONFIGURED], rows))
    if not hinted:
        return records
    written = records.returning(tables.controls.c.run_id, tables.controls.c.timeout_at_utc).cte("written")
    return hint_of_earliest(tables.schema, written)


def _overwriting(records: Insert) -> Insert:
    """*records*, where there is one already in place of what it was configured with; its latches stay."""
    return records.on_conflict_do_update(
        index_elements=["run_id"], set_={name: records.excluded[name] for name in CONFIGURED}
    )


@cache
def request_cancel(tables: Tables) -> Update:
    """Sets the cancel flag of an active run."""
    controls = tables.controls
    return (
        update(controls)
        .where(controls.c.run_id == _given("run_id"), armed(controls))
        .values(
            cancel_requested=true(),
            cancel_reason=_given("reason"),
            cancel_requested_at_utc=func.coalesce(controls.c.cancel_requested_at_utc, func.statement_timestamp()),
        )
    )


@cache
def mark_timed_out(tables: Tables) -> Update:
    """Marks a run that is neither timed out nor completed."""
    reason = func.coalesce(_given("reason"), tables.controls.c.cancel_reason, DEFAULT_REASON)
    return _unended(tables).values(timed_out_fields(tables.controls, reason))


def timed_out_fields(controls: Any, reason: Any) -> dict[str, Any]:
    """What marking a run sets. Both stamps are equal unless a user's cancel came first; extend relies on it."""
    return {
        "timed_out_at_utc": func.statement_timestamp(),
        "cancel_requested": true(),
        "cancel_reason": reason,
        "cancel_requested_at_utc": func.coalesce(controls.c.cancel_requested_at_utc, func.statement_timestamp()),
    }


@cache
def complete_run(tables: Tables) -> Update:
    """Completes a run that is neither timed out nor completed."""
    return _unended(tables).values(completed_at_utc=func.statement_timestamp())


def _unended(tables: Tables) -> Update:
    controls = tables.controls
    return update(controls).where(
        controls.c.run_id == _given("run_id"),
        controls.c.timed_out_at_utc.is_(None),
        controls.c.completed_at_utc.is_(None),
    )


@cache
def extend_deadline(tables: Tables, *, hinted: bool) -> Any:
    """Sets another deadline and takes back a timeout, with the cancel fields that came with it."""
    controls = tables.controls
    # A mark stamps both columns with the same moment, a user's cancel never shares it.
    came_together = and_(
        controls.c.timed_out_at_utc.is_not(None),
        controls.c.cancel_requested_at_utc == controls.c.timed_out_at_utc,
    )
    change = (
        update(controls)
        .where(controls.c.run_id == _given("run_id"), controls.c.completed_at_utc.is_(None))
        .values(
            timeout_at_utc=given_deadline(),
            timed_out_at_utc=null(),
            cancel_requested=case((came_together, false()), else_=controls.c.cancel_requested),
            cancel_reason=case((came_together, null()), else_=controls.c.cancel_reason),
            cancel_requested_at_utc=case((came_together, null()), else_=controls.c.cancel_requested_at_utc),
        )
    )
    return change.returning(hint_of_given(tables.schema)) if hinted else change


@cache
def heartbeat(tables: Tables) -> Update:
    """Moves the deadline of a live run, forward only."""
    controls = tables.controls
    return (
        update(controls)
        .where(
            controls.c.run_id == _given("run_id"),
            armed(controls),
            controls.c.timeout_at_utc > func.statement_timestamp(),
        )
        .values(timeout_at_utc=func.greatest(controls.c.timeout_at_utc, from_now(given_seconds())))
    )


@cache
def reopen_run(tables: Tables, *, hinted: bool) -> Any:
    """Clears every latch of a run that has one."""
    controls = tables.controls
    change = (
        update(controls)
        .where(
            controls.c.run_id == _given("run_id"),
            or_(
                controls.c.timed_out_at_utc.is_not(None),
                controls.c.completed_at_utc.is_not(None),
                controls.c.cancel_requested,
            ),
        )
        .values(
            timeout_at_utc=given_deadline(),
            timed_out_at_utc=null(),
            completed_at_utc=null(),
            cancel_requested=false(),
            cancel_reason=null(),
            cancel_requested_at_utc=null(),
        )
    )
    return change.returning(hint_of_given(tables.schema)) if hinted else change


@cache
def find_key(tables: Tables) -> Select[Any]:
    """The run that holds a key."""
    table = tables.keys
    return select(table.c.run_id).where(
        table.c.flow_id == _given("flow_id"),
        equals(table.c.trigger_key, _given("normal_trigger_key")),
        equals(table.c.idempotency_key, _given("normal_idempotency_key")),
    )


@cache
def register_key(tables: Tables) -> Insert:
    """A key, where nobody holds it."""
    key = {
        "flow_id": _given("flow_id"),
        "trigger_key": _given("normal_trigger_key"),
        "idempotency_key": _given("normal_idempotency_key"),
        "run_id": _given("run_id"),
    }
    return upsert(tables.keys).values(**key).on_conflict_do_nothing()


@cache
def start_without_key(tables: Tables, *, hinted: bool) -> Any:
    """A control record, where the run has none."""
    record = upsert(tables.controls).values(**_given_record()).on_conflict_do_nothing()
    return record.returning(hint_of_given(tables.schema)) if hinted else record


@cache
def start_with_key(tables: Tables, *, hinted: bool) -> Any:
    """The key if it is free and the run has no record, and the record if the key was inserted."""
    controls, table, record = tables.controls, tables.keys, _given_record()
    unknown = ~exists().where(controls.c.run_id == record["run_id"])
    keys = (record["flow_id"], _given("normal_trigger_key"), _given("normal_idempotency_key"), record["run_id"])
    new_key = (
        upsert(table)
        .from_select(["flow_id", "trigger_key", "idempotency_key", "run_id"], select(*keys).where(unknown))
        .on_conflict_do_nothing()
        .returning(table.c.run_id)
        .cte("new_key")
    )
    columns = [new_key.c.run_id, *(value for name, value in record.items() if name != "run_id")]
    new_record = upsert(controls).from_select(list(record), select(*columns))
    return new_record.returning(hint_of_given(tables.schema)) if hinted else new_record
