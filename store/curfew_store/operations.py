"""Every operation of the store, written once.

Each function checks its parameters and returns an `Operation`: what is to be done on a SQLAlchemy
``Connection``. A bad value is therefore refused before a connection is taken, let alone a statement sent.
The sync façade calls the operation, the async façade hands it to ``AsyncConnection.run_sync``. An
operation begins no transaction, commits none and does nothing but database work. The SQL stands in
`curfew_store.statements`. Longer than other modules, so that all that both façades offer stands in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, Literal, TypeVar
from uuid import UUID

import psycopg.errors
import sqlalchemy.exc
from sqlalchemy import Connection

from curfew_store import keys, statements
from curfew_store.deadlines import UNSET, Deadline, Unset, chosen_deadline, required_timeout, resolved_deadline
from curfew_store.errors import InvalidValue, KeyContended, RunAlreadyExists, WrongType
from curfew_store.execution import rows_read, rows_written
from curfew_store.hints import wants_hint
from curfew_store.records import FlowRunControlRecord, RunConfiguration, StartedRun
from curfew_store.run_ids import new_run_id
from curfew_store.schema import Tables

T = TypeVar("T")
Operation = Callable[[Connection], T]

_START_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class WritesOnce(Generic[T]):
    """An operation of which at most one statement writes.

    Every statement may commit by itself: there is nothing that a transaction would have to hold together. What such
    an operation reads, it wants as new as it is, which is what each statement of a READ COMMITTED transaction sees.
    """

    work: Callable[[Connection], T]

    def __call__(self, conn: Connection) -> T:
        return self.work(conn)


def get_run_control(tables: Tables, run_id: UUID) -> Operation[FlowRunControlRecord | None]:
    """Reads one record."""
    statement, parameters = statements.get_run_control(tables), {"given_run_id": keys.checked_run_id(run_id)}

    def read(conn: Connection) -> FlowRunControlRecord | None:
        rows = rows_read(conn, statement, parameters)
        return control_record(*rows[0]) if rows else None

    return WritesOnce(read)


def control_record(*columns: Any) -> FlowRunControlRecord:
    """A record from what the driver made of `control_columns`: times in UTC that do not say so yet."""
    fields: list[Any] = [each.replace(tzinfo=UTC) if isinstance(each, datetime) else each for each in columns]
    return FlowRunControlRecord(*fields)


def _changes_one(statement: Any, run_id: UUID, **given: Any) -> Operation[bool]:
    return _writes_one(statement, {"given_run_id": keys.checked_run_id(run_id), **given})


def _writes_one(statement: Any, parameters: dict[str, Any]) -> Operation[bool]:
    return WritesOnce(lambda conn: rows_written(conn, statement, parameters) == 1)


def _sets_deadline(
    statement: Callable[..., Any], tables: Tables, run_id: UUID, deadline: Deadline, notify_within: float | None
) -> Operation[bool]:
    built = statement(tables, hinted=wants_hint(deadline, notify_within))
    return _changes_one(built, run_id, given_horizon=notify_within, **deadline.parameters())


def configure_run(
    tables: Tables,
    run_id: UUID,
    flow_id: UUID,
    trigger_key: str,
    idempotency_key: str | None = None,
    timeout_at_utc: datetime | None = None,
    *,
    timeout: timedelta | None = None,
    notify_within: float | None = None,
) -> Operation[None]:
    """Writes the four fields of a control record, inserting it where it is missing; latches stay."""
    deadline = resolved_deadline(timeout_at_utc, timeout)
    parameters = _record(run_id, flow_id, trigger_key, idempotency_key, deadline) | {"given_horizon": notify_within}
    statement = statements.configure_run(tables, hinted=wants_hint(deadline, notify_within))

    def configure(conn: Connection) -> None:
        rows_written(conn, statement, parameters)

    return WritesOnce(configure)


def _record(
    run_id: UUID, flow_id: UUID, trigger_key: str, idempotency_key: str | None, deadline: Deadline
) -> dict[str, Any]:
    return {
        "given_run_id": keys.checked_run_id(run_id),
        "given_flow_id": keys.checked_uuid("flow_id", flow_id),
        "given_trigger_key": keys.checked_trigger_key(trigger_key),
        "given_idempotency_key": keys.checked_key(idempotency_key),
        **deadline.parameters(),
    }


def configure_runs(
    tables: Tables, runs: Iterable[RunConfiguration], *, notify_within: float | None = None
) -> Operation[None]:
    """`configure_run` for many, in one statement; sorted by run id, so that two callers cannot deadlock."""
    parameters = _configuration_arrays(runs) | {"given_horizon": notify_within}
    statement = statements.configure_runs(tables, hinted=notify_within is not None)

    def configure(conn: Connection) -> None:
        if parameters["given_run_id"]:
            rows_written(conn, statement, parameters)

    return WritesOnce(configure)


def _configuration_arrays(runs: Iterable[RunConfiguration]) -> dict[str, Any]:
    if not isinstance(runs, Iterable):
        raise WrongType("runs", "an iterable of RunConfiguration objects", runs)
    records: list[dict[str, Any]] = []
    seen: set[UUID] = set()
    for run in runs:
        if not isinstance(run, RunConfiguration):
            raise WrongType("runs", "RunConfiguration objects", run)
        deadline = resolved_deadline(run.timeout_at_utc, run.timeout)
        records.append(_record(run.run_id, run.flow_id, run.trigger_key, run.idempotency_key, deadline))
        if run.run_id in seen:
            raise InvalidValue("runs", f"names run {run.run_id} twice")
        seen.add(run.run_id)
    names = ("given_run_id", "given_flow_id", "given_trigger_key", "given_idempotency_key", "given_at", "given_after")
    return {name: [record[name] for record in records] for name in names}


def request_cancel(tables: Tables, run_id: UUID, reason: str | None = None) -> Operation[bool]:
    """Latches the cancel flag of an active run."""
    return _changes_one(statements.request_cancel(tables), run_id, given_reason=keys.checked_reason(reason))


def mark_timed_out(tables: Tables, run_id: UUID, reason: str | None = None) -> Operation[bool]:
    """Latches a run as timed out, whether or not it has a deadline and whether or not it has passed."""
    return _changes_one(statements.mark_timed_out(tables), run_id, given_reason=keys.checked_reason(reason))


def complete_run(tables: Tables, run_id: UUID) -> Operation[bool]:
    """Latches a run as completed, also a cancelled one and one past its deadline that nobody marked."""
    return _changes_one(statements.complete_run(tables), run_id)


def extend_deadline(
    tables: Tables,
    run_id: UUID,
    new_timeout_at_utc: datetime | Literal[Unset.UNSET] | None = UNSET,
    *,
    timeout: timedelta | Literal[Unset.UNSET] | None = UNSET,
    notify_within: float | None = None,
) -> Operation[bool]:
    """Sets another deadline and takes back a timeout, with the cancel fields that came with it."""
    deadline = chosen_deadline(new_timeout_at_utc, timeout)
    return _sets_deadline(statements.extend_deadline, tables, run_id, deadline, notify_within)


def heartbeat(tables: Tables, run_id: UUID, *, timeout: timedelta) -> Operation[bool]:
    """Moves the deadline of a live run to now + timeout, if that is later."""
    return _changes_one(statements.heartbeat(tables), run_id, given_after=required_timeout(timeout))


def reopen_run(
    tables: Tables,
    run_id: UUID,
    timeout_at_utc: datetime | None = None,
    *,
    timeout: timedelta | None = None,
    notify_within: float | None = None,
) -> Operation[bool]:
    """Clears every latch of a run that has one and gives it a fresh deadline, or none."""
    deadline = resolved_deadline(timeout_at_utc, timeout)
    return _sets_deadline(statements.reopen_run, tables, run_id, deadline, notify_within)


def _key(flow_id: UUID, trigger_key: str, idempotency_key: str) -> dict[str, Any]:
    return {
        "given_flow_id": keys.checked_uuid("flow_id", flow_id),
        "given_normal_trigger_key": keys.normalised(keys.checked_trigger_key(trigger_key)),
        "given_normal_idempotency_key": keys.normalised(keys.required_key(idempotency_key)),
    }


def find_run_id_by_idempotency_key(
    tables: Tables, flow_id: UUID, trigger_key: str, idempotency_key: str
) -> Operation[UUID | None]:
    """Looks a key up in its normal form."""
    statement, parameters = statements.find_key(tables), _key(flow_id, trigger_key, idempotency_key)

    def find(conn: Connection) -> UUID | None:
        rows = rows_read(conn, statement, parameters)
        return rows[0][0] if rows else None

    return WritesOnce(find)


def try_register_idempotency_key(
    tables: Tables, flow_id: UUID, trigger_key: str, idempotency_key: str, run_id: UUID
) -> Operation[bool]:
    """Inserts a key where it is absent."""
    parameters = {**_key(flow_id, trigger_key, idempotency_key), "given_run_id": keys.checked_run_id(run_id)}

    return _writes_one(statements.register_key(tables), parameters)


def start_run(
    tables: Tables,
    flow_id: UUID,
    trigger_key: str,
    idempotency_key: str | None = None,
    *,
    run_id: UUID | None = None,
    timeout_at_utc: datetime | None = None,
    timeout: timedelta | None = None,
    notify_within: float | None = None,
) -> Operation[StartedRun]:
    """Writes key and control record in one statement, or finds out whose run the call repeats."""
    deadline = resolved_deadline(timeout_at_utc, timeout)
    own_id = new_run_id() if run_id is None else run_id
    record = _record(own_id, flow_id, trigger_key, idempotency_key, deadline) | {"given_horizon": notify_within}
    hinted = wants_hint(deadline, notify_within)
    if idempotency_key is None:
        return _start_without_key(statements.start_without_key(tables, hinted=hinted), own_id, record)
    statement = statements.start_with_key(tables, hinted=hinted)
    return _start_with_key(tables, statement, own_id, record, (flow_id, trigger_key, idempotency_key))


def _start_without_key(statement: Any, own_id: UUID, record: dict[str, Any]) -> Operation[StartedRun]:
    def start(conn: Connection) -> StartedRun:
        return StartedRun(own_id, duplicate=rows_written(conn, statement, record) == 0)

    return WritesOnce(start)


def _start_with_key(
    tables: Tables, statement: Any, own_id: UUID, record: dict[str, Any], key: tuple[UUID, str, str]
) -> Operation[StartedRun]:
    parameters = {**record, **_key(*key)}

    def start(conn: Connection) -> StartedRun:
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                if rows_written(conn, statement, parameters):
                    return StartedRun(own_id, duplicate=False)
            except sqlalchemy.exc.IntegrityError as error:
                # Somebody committed a record for this very run id while the statement ran; the violation took
                # our key back with it. Whose run it is can be told only in another transaction.
                if isinstance(error.orig, psycopg.errors.UniqueViolation):
                    raise KeyContended(attempt) from error
                raise
            # A statement of its own, since a winner that we waited for is not in the first one's snapshot.
            winner = find_run_id_by_idempotency_key(tables, *key)(conn)
            if winner is not None:
                return StartedRun(winner, duplicate=True)
            if (existing := get_run_control(tables, own_id)(conn)) is not None:
                return _same_start(existing, key)
        raise KeyContended(_START_ATTEMPTS)

    return WritesOnce(start)


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
