"""The store for threads: `FlowRunControlStore`.

Longer than other modules by the docstrings, which are those of both façades.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Engine

from curfew_store import enforcement, operations, retention
from curfew_store.deadlines import UNSET, Unset
from curfew_store.errors import InvalidValue, KeyContended, WrongType
from curfew_store.hints import checked_horizon
from curfew_store.joined_transactions import joined
from curfew_store.operations import Operation
from curfew_store.own_transactions import committed
from curfew_store.records import FlowRunControlRecord, RunConfiguration, StartedRun
from curfew_store.schema import tables_in
from curfew_store.version import VerifiedOnce, translated

__all__ = ["FlowRunControlStore"]

T = TypeVar("T")


class FlowRunControlStore:
    """Run-level control signals (deadline, cancel, completion, idempotency keys) in PostgreSQL.

    *engine* is a SQLAlchemy engine for ``postgresql+psycopg://``; *schema* names the schema of the tables.
    One store may be shared by threads. Construction touches no database.

    *notify_within*, at most a minute, has every call that sets a deadline nearer than that notify the daemons which
    listen, in the same statement and when its transaction commits. It makes such commits queue up behind each other:
    for deadlines that are nearer than the daemons' poll interval, and for those only.

    Every method but `ensure_may_run` takes *connection*: a SQLAlchemy ``Connection`` (``session.connection()``
    for users of the ORM) whose transaction the call joins and never commits. Without it the call runs in a
    READ COMMITTED transaction of its own and has been committed when it returns. Every method may be repeated.

    Raised by every method, before anything is sent: `WrongType` and `InvalidValue`. At the first call on
    missing or outdated tables: `SchemaMismatch`. Errors of the database arrive as SQLAlchemy's;
    `is_transient` tells which of them a retry can cure.

    The methods, parameters and results follow FlowOrchestrator's ``IFlowRunControlStore``; what goes beyond
    it is marked so.
    """

    def __init__(self, engine: Engine, *, schema: str = "public", notify_within: timedelta | None = None) -> None:
        if not isinstance(engine, Engine):
            raise WrongType("engine", "a sqlalchemy.Engine (AsyncFlowRunControlStore takes an AsyncEngine)", engine)
        if (engine.dialect.name, engine.dialect.driver) != ("postgresql", "psycopg"):
            raise InvalidValue("engine", f"must be for postgresql+psycopg://, not {engine.url.drivername}://")
        self._tables = tables_in(schema)
        self._notify_within = checked_horizon(notify_within)
        self._engine = engine
        self._verified_once = VerifiedOnce(self._tables)

    def configure_run(
        self,
        run_id: UUID,
        flow_id: UUID,
        trigger_key: str,
        idempotency_key: str | None = None,
        timeout_at_utc: datetime | None = None,
        *,
        timeout: timedelta | None = None,
        connection: Connection | None = None,
    ) -> None:
        """Write the control record of a run, or overwrite these four fields of it.

        *timeout_at_utc* is an aware moment, *timeout* a positive time from now by the database's clock; at most
        one of them. With neither the run has no deadline. Latches (cancelled, timed out, completed) stay, and a
        latched run is never armed by this call.
        """
        work = operations.configure_run(
            self._tables,
            run_id,
            flow_id,
            trigger_key,
            idempotency_key,
            timeout_at_utc,
            timeout=timeout,
            notify_within=self._notify_within,
        )
        self._run(work, connection)

    def configure_runs(self, runs: Iterable[RunConfiguration], *, connection: Connection | None = None) -> None:
        """`configure_run` for many runs in one statement, all or nothing (beyond upstream).

        A run id that occurs twice is an `InvalidValue`; no runs at all is no error.
        """
        self._run(operations.configure_runs(self._tables, runs, notify_within=self._notify_within), connection)

    def start_run(
        self,
        flow_id: UUID,
        trigger_key: str,
        idempotency_key: str | None = None,
        *,
        run_id: UUID | None = None,
        timeout_at_utc: datetime | None = None,
        timeout: timedelta | None = None,
        connection: Connection | None = None,
    ) -> StartedRun:
        """Register the key and write the control record in one SQL statement (beyond upstream).

        The answer names this run, or, with ``duplicate`` set and nothing written, the run that an earlier call
        started for the same flow, trigger and key. Without *run_id* a UUID of version 7 is handed out. A
        *run_id* that already has a record is a duplicate if the call names no key or the record's own, else
        `RunAlreadyExists`. `KeyContended` (transient) if others took the same key or run id at the same moment.
        """
        work = operations.start_run(
            self._tables,
            flow_id,
            trigger_key,
            idempotency_key,
            run_id=run_id,
            timeout_at_utc=timeout_at_utc,
            timeout=timeout,
            notify_within=self._notify_within,
        )
        return self._run(work, connection)

    def get_run_control(self, run_id: UUID, *, connection: Connection | None = None) -> FlowRunControlRecord | None:
        """The control record of a run, or ``None``."""
        return self._run(operations.get_run_control(self._tables, run_id), connection)

    def ensure_may_run(self, run_id: UUID) -> FlowRunControlRecord | None:
        """What a step calls before it executes: return the record, or raise why the run must stop (beyond upstream).

        Raises `RunTimedOut`, `RunCompleted` or `RunCancelled`. A lapsed deadline raises `RunTimedOut` and is
        latched at once if nobody holds the row, so no step starts after its deadline even with no daemon up.
        A run without a record may run. Always a short transaction of its own, committed before it raises.
        """
        return self._run(enforcement.ensure_may_run(self._tables, run_id), None).raise_if_stopped()

    def request_cancel(self, run_id: UUID, reason: str | None = None, *, connection: Connection | None = None) -> bool:
        """Ask for a run to be cancelled. ``True`` for the one call that did; its reason and time stand.

        ``False`` for a run that is unknown, cancelled already, timed out or completed. Never creates a record.
        """
        return self._run(operations.request_cancel(self._tables, run_id, reason), connection)

    def mark_timed_out(self, run_id: UUID, reason: str | None = None, *, connection: Connection | None = None) -> bool:
        """Latch a run as timed out, whatever its deadline. ``True`` for the one call that did.

        Sets the cancel flag too, so that readers of that flag stop. The reason kept is *reason*, else that of
        an earlier cancel, else "Run timed out.". ``False`` for a run that is unknown, timed out or completed.
        """
        return self._run(operations.mark_timed_out(self._tables, run_id, reason), connection)

    def complete_run(self, run_id: UUID, *, connection: Connection | None = None) -> bool:
        """Record that a run has ended, which disarms its deadline (beyond upstream).

        A run that is never completed here WILL be marked at its deadline, even if its work ended well. A run
        past its deadline that nobody has marked yet completes. ``False`` if unknown, completed already or timed
        out: then read the record; `RunState.COMPLETED` means that an earlier attempt of yours won.
        """
        return self._run(operations.complete_run(self._tables, run_id), connection)

    def extend_deadline(
        self,
        run_id: UUID,
        new_timeout_at_utc: datetime | Literal[Unset.UNSET] | None = UNSET,
        *,
        timeout: timedelta | Literal[Unset.UNSET] | None = UNSET,
        connection: Connection | None = None,
    ) -> bool:
        """Set another deadline, earlier or later, also a past one; exactly one parameter must be given.

        An explicit ``None`` clears the deadline. If the run had timed out, that is taken back with the cancel
        fields that came with it; an earlier cancel by a user stays. ``False`` for unknown or completed.
        """
        work = operations.extend_deadline(
            self._tables, run_id, new_timeout_at_utc, timeout=timeout, notify_within=self._notify_within
        )
        return self._run(work, connection)

    def heartbeat(self, run_id: UUID, *, timeout: timedelta, connection: Connection | None = None) -> bool:
        """Renew the deadline to now + *timeout* if that is later than it is (beyond upstream).

        Only for a run that is active, has a deadline and is not overdue; never shortens, arms or un-latches.
        ``False`` means: stop, and let `ensure_may_run` say why.
        """
        return self._run(operations.heartbeat(self._tables, run_id, timeout=timeout), connection)

    def reopen_run(
        self,
        run_id: UUID,
        timeout_at_utc: datetime | None = None,
        *,
        timeout: timedelta | None = None,
        connection: Connection | None = None,
    ) -> bool:
        """Retry an ended run: clear its latches and give it a fresh deadline, or none (beyond upstream).

        ``True`` for the one call that reopened it; ``False`` for unknown or active.
        """
        work = operations.reopen_run(
            self._tables, run_id, timeout_at_utc, timeout=timeout, notify_within=self._notify_within
        )
        return self._run(work, connection)

    def find_run_id_by_idempotency_key(
        self, flow_id: UUID, trigger_key: str, idempotency_key: str, *, connection: Connection | None = None
    ) -> UUID | None:
        """The run that holds a key, or ``None``. Both keys are compared trimmed and in lower case."""
        work = operations.find_run_id_by_idempotency_key(self._tables, flow_id, trigger_key, idempotency_key)
        return self._run(work, connection)

    def try_register_idempotency_key(
        self,
        flow_id: UUID,
        trigger_key: str,
        idempotency_key: str,
        run_id: UUID,
        *,
        connection: Connection | None = None,
    ) -> bool:
        """Register a key if nobody has. ``False`` for a duplicate, also with the same run id.

        Waits for another producer's open transaction on the same key, as long as the session's
        ``lock_timeout`` allows.
        """
        work = operations.try_register_idempotency_key(self._tables, flow_id, trigger_key, idempotency_key, run_id)
        return self._run(work, connection)

    def purge(self, before: datetime, *, limit: int, connection: Connection | None = None) -> int:
        """Delete up to *limit* runs that ended before a moment, with their keys (beyond upstream).

        What is left of *limit* goes to keys registered before the moment that point to no record. Returns how
        many of both were deleted; less than *limit* means that nothing more is to be had. Rows in use are left.
        """
        return self._run(retention.purge(self._tables, before, limit=limit), connection)

    def _run(self, operation: Operation[T], connection: Connection | None) -> T:
        with translated(self._tables.schema):
            if connection is None:
                return self._in_own_transaction(operation)
            if not isinstance(connection, Connection):
                raise WrongType(
                    "connection", "a sqlalchemy.Connection (for a Session: session.connection())", connection
                )
            return joined(operation, self._verified_once)(connection)

    def _in_own_transaction(self, operation: Operation[T]) -> T:
        try:
            return self._committed(operation)
        except KeyContended as lost:
            if lost.attempts > 1:
                raise
        # Nothing of the first try is left, and what it ran into is there to be seen now.
        return self._committed(operation)

    def _committed(self, operation: Operation[T]) -> T:
        with self._engine.connect() as own:
            return committed(operation, self._verified_once)(own)
