"""The store for asyncio: `AsyncFlowRunControlStore`, the same operations through ``AsyncConnection.run_sync``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

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

__all__ = ["AsyncFlowRunControlStore"]

T = TypeVar("T")


class AsyncFlowRunControlStore:
    """`FlowRunControlStore` for asyncio: the same methods, parameters, results and errors.

    *engine* is an ``AsyncEngine`` for ``postgresql+psycopg://`` (install ``curfewd[async]``); *connection* is an
    ``AsyncConnection`` (``await session.connection()`` for users of the ORM).

    A call that is cancelled leaves the outcome of its own transaction unknown: repeat it, every method may be
    repeated. On a joined connection the cancellation invalidates the connection.
    """

    def __init__(self, engine: AsyncEngine, *, schema: str = "public", notify_within: timedelta | None = None) -> None:
        if not isinstance(engine, AsyncEngine):
            raise WrongType("engine", "an AsyncEngine (FlowRunControlStore takes an Engine)", engine)
        if (engine.dialect.name, engine.dialect.driver) != ("postgresql", "psycopg"):
            raise InvalidValue("engine", f"must be for postgresql+psycopg://, not {engine.url.drivername}://")
        self._tables = tables_in(schema)
        self._notify_within = checked_horizon(notify_within)
        self._engine = engine
        self._verified_once = VerifiedOnce(self._tables)

    async def configure_run(
        self,
        run_id: UUID,
        flow_id: UUID,
        trigger_key: str,
        idempotency_key: str | None = None,
        timeout_at_utc: datetime | None = None,
        *,
        timeout: timedelta | None = None,
        connection: AsyncConnection | None = None,
    ) -> None:
        """See `FlowRunControlStore.configure_run`."""
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
        await self._run(work, connection)

    async def configure_runs(
        self, runs: Iterable[RunConfiguration], *, connection: AsyncConnection | None = None
    ) -> None:
        """See `FlowRunControlStore.configure_runs`."""
        await self._run(operations.configure_runs(self._tables, runs, notify_within=self._notify_within), connection)

    async def start_run(
        self,
        flow_id: UUID,
        trigger_key: str,
        idempotency_key: str | None = None,
        *,
        run_id: UUID | None = None,
        timeout_at_utc: datetime | None = None,
        timeout: timedelta | None = None,
        connection: AsyncConnection | None = None,
    ) -> StartedRun:
        """See `FlowRunControlStore.start_run`."""
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
        return await self._run(work, connection)

    async def get_run_control(
        self, run_id: UUID, *, connection: AsyncConnection | None = None
    ) -> FlowRunControlRecord | None:
        """See `FlowRunControlStore.get_run_control`."""
        return await self._run(operations.get_run_control(self._tables, run_id), connection)

    async def ensure_may_run(self, run_id: UUID) -> FlowRunControlRecord | None:
        """See `FlowRunControlStore.ensure_may_run`."""
        return (await self._run(enforcement.ensure_may_run(self._tables, run_id), None)).raise_if_stopped()

    async def request_cancel(
        self, run_id: UUID, reason: str | None = None, *, connection: AsyncConnection | None = None
    ) -> bool:
        """See `FlowRunControlStore.request_cancel`."""
        return await self._run(operations.request_cancel(self._tables, run_id, reason), connection)

    async def mark_timed_out(
        self, run_id: UUID, reason: str | None = None, *, connection: AsyncConnection | None = None
    ) -> bool:
        """See `FlowRunControlStore.mark_timed_out`."""
        return await self._run(operations.mark_timed_out(self._tables, run_id, reason), connection)

    async def complete_run(self, run_id: UUID, *, connection: AsyncConnection | None = None) -> bool:
        """See `FlowRunControlStore.complete_run`."""
        return await self._run(operations.complete_run(self._tables, run_id), connection)

    async def extend_deadline(
        self,
        run_id: UUID,
        new_timeout_at_utc: datetime | Literal[Unset.UNSET] | None = UNSET,
        *,
        timeout: timedelta | Literal[Unset.UNSET] | None = UNSET,
        connection: AsyncConnection | None = None,
    ) -> bool:
        """See `FlowRunControlStore.extend_deadline`."""
        work = operations.extend_deadline(
            self._tables, run_id, new_timeout_at_utc, timeout=timeout, notify_within=self._notify_within
        )
        return await self._run(work, connection)

    async def heartbeat(self, run_id: UUID, *, timeout: timedelta, connection: AsyncConnection | None = None) -> bool:
        """See `FlowRunControlStore.heartbeat`."""
        return await self._run(operations.heartbeat(self._tables, run_id, timeout=timeout), connection)

    async def reopen_run(
        self,
        run_id: UUID,
        timeout_at_utc: datetime | None = None,
        *,
        timeout: timedelta | None = None,
        connection: AsyncConnection | None = None,
    ) -> bool:
        """See `FlowRunControlStore.reopen_run`."""
        work = operations.reopen_run(
            self._tables, run_id, timeout_at_utc, timeout=timeout, notify_within=self._notify_within
        )
        return await self._run(work, connection)

    async def find_run_id_by_idempotency_key(
        self,
        flow_id: UUID,
        trigger_key: str,
        idempotency_key: str,
        *,
        connection: AsyncConnection | None = None,
    ) -> UUID | None:
        """See `FlowRunControlStore.find_run_id_by_idempotency_key`."""
        work = operations.find_run_id_by_idempotency_key(self._tables, flow_id, trigger_key, idempotency_key)
        return await self._run(work, connection)

    async def try_register_idempotency_key(
        self,
        flow_id: UUID,
        trigger_key: str,
        idempotency_key: str,
        run_id: UUID,
        *,
        connection: AsyncConnection | None = None,
    ) -> bool:
        """See `FlowRunControlStore.try_register_idempotency_key`."""
        work = operations.try_register_idempotency_key(self._tables, flow_id, trigger_key, idempotency_key, run_id)
        return await self._run(work, connection)

    async def purge(self, before: datetime, *, limit: int, connection: AsyncConnection | None = None) -> int:
        """See `FlowRunControlStore.purge`."""
        return await self._run(retention.purge(self._tables, before, limit=limit), connection)

    async def _run(self, operation: Operation[T], connection: AsyncConnection | None) -> T:
        with translated(self._tables.schema):
            if connection is None:
                return await self._in_own_transaction(operation)
            if not isinstance(connection, AsyncConnection):
                raise WrongType(
                    "connection", "an AsyncConnection (for a session: await session.connection())", connection
                )
            return await connection.run_sync(joined(operation, self._verified_once))

    async def _in_own_transaction(self, operation: Operation[T]) -> T:
        try:
            return await self._committed(operation)
        except KeyContended as lost:
            if lost.attempts > 1:
                raise
        # Nothing of the first try is left, and what it ran into is there to be seen now.
        return await self._committed(operation)

    async def _committed(self, operation: Operation[T]) -> T:
        async with self._engine.connect() as own:
            return await own.run_sync(committed(operation, self._verified_once))
