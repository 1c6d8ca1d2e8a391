"""Every operation of the store, written once.

Each function checks its parameters and returns an `Operation`: what is to be done on a SQLAlchemy
``Connection``. A bad value is therefore refused before a connection is taken, let alone a statement sent.
The sync façade calls the operation, the async façade hands it to ``AsyncConnection.run_sync``. An
operation begins no transaction, commits none and does nothing but database work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

import psycopg.errors
import sqlalchemy.exc
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Double,
    String,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import TypeEngine

from curfew_store import keys
from curfew_store.deadlines import (
    UNSET,
    Unset,
    checked_moment,
    chosen_deadline,
    from_now,
    required_timeout,
    resolved_deadline,
)
from curfew_store.errors import InvalidValue, KeyContended, RunAlreadyExists, WrongType
from curfew_store.records import FlowRunControlRecord, RunConfiguration, StartedRun
from curfew_store.run_ids import new_run_id
from curfew_store.schema import TIMESTAMPTZ, Tables, armed, control_columns

T = TypeVar("T")
Operation = Callable[[Connection], T]

DEFAULT_REASON: Final = "Run timed out."
LARGEST_PURGE: Final = 1_000_000
_START_ATTEMPTS: Final = 3


def get_run_control(tables: Tables, run_id: UUID) -> Operation[FlowRunControlRecord | None]:
    """Reads one record."""
    controls = tables.controls
    statement = select(*control_columns(controls)).where(controls.c.run_id == keys.checked_run_id(run_id))

    def read(conn: Connection) -> FlowRunControlRecord | None:
        row = conn.execute(statement).one_or_none()
        return None if row is None else FlowRunControlRecord(*row)

    return read


def _changes_one(statement: Update) -> Operation[bool]:
    def change(conn: Connection) -> bool:
        return conn.execute(statement).rowcount == 1

    return change


def configure_run(
    tables: Tables,
    run_id: UUID,
    flow_id: UUID,
    trigger_key: str,
    idempotency_key: str | None = None,
    timeout_at_utc: datetime | None = None,
    *,
    timeout: timedelta | None = None,
) -> Operation[None]:
    """Writes the four fields of a control record, inserting it where it is missing; latches stay."""
    fields = {
        "flow_id": keys.checked_uuid("flow_id", flow_id),
        "trigger_key": keys.checked_trigger_key(trigger_key),
        "idempotency_key": keys.checked_key(idempotency_key),
        "timeout_at_utc": resolved_deadline(timeout_at_utc, timeout).expression(),
    }
    statement = upsert(tables.controls).values(run_id=keys.checked_run_id(run_id), **fields)
    statement = statement.on_conflict_do_update(
        index_elements=["run_id"], set_={name: statement.excluded[name] for name in fields}
    )

    def configure(conn: Connection) -> None:
        conn.execute(statement)

    return configure


def configure_runs(tables: Tables, runs: Iterable[RunConfiguration]) -> Operation[None]:
    """`configure_run` for many, in one statement; sorted by run id, so that two callers cannot deadlock."""
    parameters = _configuration_arrays(runs)
    controls = tables.controls
    names = ("run_id", "flow_id", "trigger_key", "idempotency_key", "at", "after")
    types: tuple[TypeEngine[Any], ...] = (Uuid(), Uuid(), String(), String(), TIMESTAMPTZ, Double())
    arrays: list[Any] = [bindparam(name, type_=ARRAY(type_)) for name, type_ in zip(names, types, strict=True)]
    given = func.unnest(*arrays).table_valued(*names).render_derived()
    rows = select(
        given.c.run_id,
        given.c.flow_id,
        given.c.trigger_key,
        given.c.idempotency_key,
        func.coalesce(given.c["at"], from_now(given.c.after)),
    ).order_by(given.c.run_id)
    fields = ["flow_id", "trigger_key", "idempotency_key", "timeout_at_utc"]
    statement = upsert(controls).from_select(["run_id", *fields], rows)
    statement = statement.on_conflict_do_update(
        index_elements=["run_id"], set_={name: statement.excluded[name] for name in fields}
    )

    def configure(conn: Connection) -> None:
        if parameters["run_id"]:
            conn.execute(statement, parameters)

    return configure


def _configuration_arrays(runs: Iterable[RunConfiguration]) -> dict[str, list[Any]]:
    arrays: dict[str, list[Any]] = {
        name: [] for name in ("run_id", "flow_id", "trigger_key", "idempotency_key", "at", "after")
    }
    seen: set[UUID] = set()
    if not isinstance(runs, Iterable):
        raise WrongType("runs", "an iterable of RunConfiguration objects", runs)
    for run in runs:
        if not isinstance(run, RunConfiguration):
            raise WrongType("runs", "RunConfiguration objects", run)
        if keys.checked_run_id(run.run_id) in seen:
            raise InvalidValue("runs", f"names run {run.run_id} twice")
        seen.add(run.run_id)
        deadline = resolved_deadline(run.timeout_at_utc, run.timeout)
        arrays["run_id"].append(run.run_id)
        arrays["flow_id"].append(keys.checked_uuid("flow_id", run.flow_id))
        arrays["trigger_key"].append(keys.checked_trigger_key(run.trigger_key))
        arrays["idempotency_key"].append(keys.checked_key(run.idempotency_key))
        arrays["at"].append(deadline.at)
        arrays["after"].append(deadline.after)
    return arrays


def request_cancel(tables: Tables, run_id: UUID, reason: str | None = None) -> Operation[bool]:
    """Latches the cancel flag of an active run."""
    controls = tables.controls
    statement = (
        update(controls)
        .where(controls.c.run_id == keys.checked_run_id(run_id), armed(controls))
        .values(
            cancel_requested=true(),
            cancel_reason=bindparam("reason", keys.checked_reason(reason), type_=Text),
            cancel_requested_at_utc=func.coalesce(controls.c.cancel_requested_at_utc, func.statement_timestamp()),
        )
    )
    return _changes_one(statement)


def mark_timed_out(tables: Tables, run_id: UUID, reason: str | None = None) -> Operation[bool]:
    """Latches a run as timed out, whether or not it has a deadline and whether or not it has passed."""
    controls = tables.controls
    given = bindparam("reason", keys.checked_reason(reason), type_=Text)
    statement = (
        update(controls)
        .where(
            controls.c.run_id == keys.checked_run_id(run_id),
            controls.c.timed_out_at_utc.is_(None),
            controls.c.completed_at_utc.is_(None),
        )
        .values(timed_out_fields(controls, func.coalesce(given, controls.c.cancel_reason, DEFAULT_REASON)))
    )
    return _changes_one(statement)


def timed_out_fields(controls: Any, reason: Any) -> dict[str, Any]:
    """What marking a run sets. Both stamps are equal unless a user's cancel came first; extend relies on it."""
    return {
        "timed_out_at_utc": func.statement_timestamp(),
        "cancel_requested": true(),
        "cancel_reason": reason,
        "cancel_requested_at_utc": func.coalesce(controls.c.cancel_requested_at_utc, func.statement_timestamp()),
    }


def complete_run(tables: Tables, run_id: UUID) -> Operation[bool]:
    """Latches a run as completed, also a cancelled one and one past its deadline that nobody marked."""
    controls = tables.controls
    statement = (
        update(controls)
        .where(
            controls.c.run_id == keys.checked_run_id(run_id),
            controls.c.timed_out_at_utc.is_(None),
            controls.c.completed_at_utc.is_(None),
        )
        .values(completed_at_utc=func.statement_timestamp())
    )
    return _changes_one(statement)


def extend_deadline(
    tables: Tables,
    run_id: UUID,
    new_timeout_at_utc: datetime | Literal[Unset.UNSET] | None = UNSET,
    *,
    timeout: timedelta | Literal[Unset.UNSET] | None = UNSET,
) -> Operation[bool]:
    """Sets another deadline and takes back a timeout, with the cancel fields that came with it."""
    controls = tables.controls
    deadline = chosen_deadline(new_timeout_at_utc, timeout)
    # A mark stamps both columns with the same moment, a user's cancel never shares it.
    came_together = and_(
        controls.c.timed_out_at_utc.is_not(None),
        controls.c.cancel_requested_at_utc == controls.c.timed_out_at_utc,
    )
    statement = (
        update(controls)
        .where(controls.c.run_id == keys.checked_run_id(run_id), controls.c.completed_at_utc.is_(None))
        .values(
            timeout_at_utc=deadline.expression(),
            timed_out_at_utc=null(),
            cancel_requested=case((came_together, false()), else_=controls.c.cancel_requested),
            cancel_reason=case((came_together, null()), else_=controls.c.cancel_reason),
            cancel_requested_at_utc=case((came_together, null()), else_=controls.c.cancel_requested_at_utc),
        )
    )
    return _changes_one(statement)


def heartbeat(tables: Tables, run_id: UUID, *, timeout: timedelta) -> Operation[bool]:
    """Moves the deadline of a live run to now + timeout, if that is later."""
    controls = tables.controls
    statement = (
        update(controls)
        .where(
            controls.c.run_id == keys.checked_run_id(run_id),
            armed(controls),
            controls.c.timeout_at_utc > func.statement_timestamp(),
        )
        .values(timeout_at_utc=func.greatest(controls.c.timeout_at_utc, from_now(required_timeout(timeout))))
    )
    return _changes_one(statement)


def reopen_run(
    tables: Tables, run_id: UUID, timeout_at_utc: datetime | None = None, *, timeout: timedelta | None = None
) -> Operation[bool]:
    """Clears every latch of a run that has one and gives it a fresh deadline, or none."""
    controls = tables.controls
    statement = (
        update(controls)
        .where(
            controls.c.run_id == keys.checked_run_id(run_id),
            or_(
                controls.c.timed_out_at_utc.is_not(None),
                controls.c.completed_at_utc.is_not(None),
                controls.c.cancel_requested,
            ),
        )
        .values(
            timeout_at_utc=resolved_deadline(timeout_at_utc, timeout).expression(),
            timed_out_at_utc=null(),
            completed_at_utc=null(),
            cancel_requested=false(),
            cancel_reason=null(),
            cancel_requested_at_utc=null(),
        )
    )
    return _changes_one(statement)


def _same(column: Any, value: Any) -> ColumnElement[bool]:
    """*column* = *value* by PostgreSQL's own operator.

    It has none for varchar and takes the one for text; an operator for varchar, anybody's in the search path, would
    fit better and be called instead.
    """
    return column.op("OPERATOR(pg_catalog.=)", is_comparison=True)(value)  # type: ignore[no-any-return]


def find_run_id_by_idempotency_key(
    tables: Tables, flow_id: UUID, trigger_key: str, idempotency_key: str
) -> Operation[UUID | None]:
    """Looks a key up in its normal form."""
    table = tables.keys
    statement = select(table.c.run_id).where(
        table.c.flow_id == keys.checked_uuid("flow_id", flow_id),
        _same(table.c.trigger_key, keys.normalised(keys.checked_trigger_key(trigger_key))),
        _same(table.c.idempotency_key, keys.normalised(keys.required_key(idempotency_key))),
    )

    def find(conn: Connection) -> UUID | None:
        return conn.execute(statement).scalar_one_or_none()

    return find


def try_register_idempotency_key(
    tables: Tables, flow_id: UUID, trigger_key: str, idempotency_key: str, run_id: UUID
) -> Operation[bool]:
    """Inserts a key where it is absent."""
    statement = (
        upsert(tables.keys)
        .values(
            flow_id=keys.checked_uuid("flow_id", flow_id),
            trigger_key=keys.normalised(keys.checked_trigger_key(trigger_key)),
            idempotency_key=keys.normalised(keys.required_key(idempotency_key)),
            run_id=keys.checked_run_id(run_id),
        )
        .on_conflict_do_nothing()
        .returning(tables.keys.c.run_id)
    )

    def register(conn: Connection) -> bool:
        return conn.execute(statement).one_or_none() is not None

    return register


def start_run(
    tables: Tables,
    flow_id: UUID,
    trigger_key: str,
    idempotency_key: str | None = None,
    *,
    run_id: UUID | None = None,
    timeout_at_utc: datetime | None = None,
    timeout: timedelta | None = None,
) -> Operation[StartedRun]:
    """Writes key and control record in one statement, or finds out whose run the call repeats."""
    own_id = new_run_id() if run_id is None else keys.checked_run_id(run_id)
    record = {
        "run_id": literal(own_id, Uuid()),
        "flow_id": literal(keys.checked_uuid("flow_id", flow_id), Uuid()),
        "trigger_key": literal(keys.checked_trigger_key(trigger_key), String()),
        "idempotency_key": literal(keys.checked_key(idempotency_key), String()),
        "timeout_at_utc": resolved_deadline(timeout_at_utc, timeout).expression(),
    }
    if idempotency_key is None:
        return _start_without_key(tables, own_id, record)
    return _start_with_key(tables, own_id, record, (flow_id, trigger_key, idempotency_key))


def _start_without_key(tables: Tables, own_id: UUID, record: dict[str, Any]) -> Operation[StartedRun]:
    controls = tables.controls
    statement = upsert(controls).values(**record).on_conflict_do_nothing().returning(controls.c.run_id)

    def start(conn: Connection) -> StartedRun:
        return StartedRun(own_id, duplicate=conn.execute(statement).one_or_none() is None)

    return start


def _start_with_key(
    tables: Tables, own_id: UUID, record: dict[str, Any], key: tuple[UUID, str, str]
) -> Operation[StartedRun]:
    flow_id, trigger_key, idempotency_key = key
    find = find_run_id_by_idempotency_key(tables, flow_id, trigger_key, idempotency_key)
    both = _key_and_record(tables, record, (keys.normalised(trigger_key), keys.normalised(idempotency_key)))

    def start(conn: Connection) -> StartedRun:
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                if conn.execute(both).one_or_none() is not None:
                    return StartedRun(own_id, duplicate=False)
            except sqlalchemy.exc.IntegrityError as error:
                # Somebody committed a record for this very run id while the statement ran; the violation took
                # our key back with it. Whose run it is can be told only in another transaction.
                if isinstance(error.orig, psycopg.errors.UniqueViolation):
                    raise KeyContended(attempt) from error
                raise
            # A statement of its own, since a winner that we waited for is not in the first one's snapshot.
            winner = find(conn)
            if winner is not None:
                return StartedRun(winner, duplicate=True)
            if (existing := get_run_control(tables, own_id)(conn)) is not None:
                return _same_start(existing, key)
        raise KeyContended(_START_ATTEMPTS)

    return start


def _key_and_record(tables: Tables, record: dict[str, Any], normal: tuple[str, str]) -> Any:
    """One statement that inserts the key if it is free, and the record if the key was inserted."""
    controls, table = tables.controls, tables.keys
    trigger_key, idempotency_key = normal
    unknown = ~exists().where(controls.c.run_id == record["run_id"])
    wanted = select(
        record["flow_id"],
        literal(trigger_key, String()),
        literal(idempotency_key, String()),
        record["run_id"],
    ).where(unknown)
    new_key = (
        upsert(table)
        .from_select(["flow_id", "trigger_key", "idempotency_key", "run_id"], wanted)
        .on_conflict_do_nothing()
        .returning(table.c.run_id)
        .cte("new_key")
    )
    columns = [new_key.c.run_id, *(value for name, value in record.items() if name != "run_id")]
    new_record = (
        insert(controls).from_select(list(record), select(*columns)).returning(controls.c.run_id).cte("new_record")
    )
    return select(new_record.c.run_id)


def _same_start(existing: FlowRunControlRecord, key: tuple[UUID, str, str]) -> StartedRun:
    """A run that has a record, and a key that nobody holds: ours if the record was written for that key."""
    flow_id, trigger_key, idempotency_key = key
    same = (
        existing.flow_id == flow_id
        and keys.normalised(existing.trigger_key) == keys.normalised(trigger_key)
        and existing.idempotency_key is not None
        and keys.normalised(existing.idempotency_key) == keys.normalised(idempotency_key)
    )
    if not same:
        raise RunAlreadyExists(existing.run_id)
    return StartedRun(existing.run_id, duplicate=True)


def purge(tables: Tables, before: datetime, *, limit: int) -> Operation[int]:
    """Deletes ended runs with their keys, then keys that point to no record; rows in use are passed over."""
    moment = checked_moment("before", before)
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise WrongType("limit", "an int", limit)
    if not 1 <= limit <= LARGEST_PURGE:
        raise InvalidValue("limit", f"must be between 1 and {LARGEST_PURGE:,}, got {limit}")
    runs, orphans = _purge_runs(tables, moment), _purge_orphaned_keys(tables, moment)

    def remove(conn: Connection) -> int:
        removed = len(conn.execute(runs, {"limit": limit}).all())
        if removed < limit:
            removed += len(conn.execute(orphans, {"limit": limit - removed}).all())
        return removed

    return remove


def _purge_runs(tables: Tables, moment: datetime) -> Any:
    controls, table = tables.controls, tables.keys
    ended_at = func.coalesce(
        controls.c.completed_at_utc,
        controls.c.timed_out_at_utc,
        case((controls.c.cancel_requested, controls.c.cancel_requested_at_utc)),
    )
    ended = (
        select(controls.c.run_id)
        .where(ended_at < moment)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True)
        .cte("ended")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    gone = delete(controls).where(controls.c.run_id == ended.c.run_id).returning(controls.c.run_id).cte("gone")
    their_keys = delete(table).where(table.c.run_id == gone.c.run_id).returning(table.c.run_id).cte("their_keys")
    return select(gone.c.run_id).add_cte(their_keys)


def _purge_orphaned_keys(tables: Tables, moment: datetime) -> Any:
    controls, table = tables.controls, tables.keys
    orphaned = (
        select(table.c.flow_id, table.c.trigger_key, table.c.idempotency_key)
        .where(table.c.created_at_utc < moment, ~exists().where(controls.c.run_id == table.c.run_id))
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True, of=table)
        .cte("orphaned")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    same_key: Sequence[Any] = [_same(table.c[column.name], orphaned.c[column.name]) for column in table.primary_key]
    return delete(table).where(*same_key).returning(table.c.run_id)
