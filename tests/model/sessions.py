"""The real side of the state machine: sessions on PostgreSQL, and calls that wait in a thread.

`Stage.hold` starts a call that must come to wait for a given session, and returns only when the server says so;
nothing here sleeps and hopes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from typing import Any, TypeVar, cast
from uuid import UUID

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

from curfew_store import FlowRunControlRecord
from curfew_store.enforcement import claim_overdue, look_ahead
from curfew_store.records import LookAhead, ScanStart
from curfew_store.schema import tables_in
from tests.integration.contract.facade import AsyncFacade, Caller, Facade
from tests.integration.sessions import Onlooker, eventually
from tests.patience import PATIENCE

T = TypeVar("T")

TABLES = tables_in("public")
_CLEAR = "DELETE FROM flow_run_controls; DELETE FROM flow_idempotency_keys"
_ROWS = "SELECT to_jsonb(c) FROM flow_run_controls c"
_KEYS = "SELECT flow_id, trigger_key, idempotency_key, run_id FROM flow_idempotency_keys"
_WAITING_FOR = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND %s = ANY(pg_blocking_pids(pid))"


class Transaction:
    """A session of the caller's with a transaction open."""

    def __init__(self, facade: Facade) -> None:
        self._stack = ExitStack()
        self.caller: Caller = self._stack.enter_context(facade.begin())
        self.pid = int(self.caller.sql("SELECT pg_backend_pid()")[0][0])

    def end(self, *, commit: bool) -> None:
        """Commit or roll back, and give the connection back."""
        (self.caller.commit if commit else self.caller.rollback)()
        self._stack.close()


class Stage:
    """One façade on one database, an onlooker, and threads for calls that wait."""

    def __init__(self, facade: Facade, url: str, conninfo: str) -> None:
        self.facade = facade
        self.store: Any = facade.store
        self._daemon: Engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._daemons_connection = self._daemon.connect()
        self._onlooker = Onlooker(conninfo)
        self._threads = ThreadPoolExecutor(8)

    def close(self) -> None:
        """End threads and sessions; the façade is the caller's."""
        self._threads.shutdown()
        self._daemons_connection.close()
        self._daemon.dispose()
        self._onlooker.close()

    def clear(self) -> None:
        """Empty both tables."""
        self._onlooker.rows(_CLEAR)

    def hold(self, call: Callable[[], T], holder: int) -> tuple[Future[T], int]:
        """Start *call* in a thread and return once its session, whose pid is returned, waits for *holder*."""
        future = self._threads.submit(call)
        waiting: list[tuple[int]] = []

        def waits() -> bool:
            waiting[:] = self._onlooker.rows(_WAITING_FOR, holder)
            return bool(waiting) or future.done()

        eventually(waits, f"a call waits for session {holder}")
        assert waiting, f"the call should have waited for another session, but ended: {_outcome(future)}"
        return future, int(waiting[0][0])

    def result(self, future: Future[T]) -> T:
        """What a call that waited returns or raises, now that nothing holds it."""
        return future.result(PATIENCE)

    def on(self, transaction: Transaction | None, work: Callable[[Connection], T]) -> T:
        """Do daemon's work in a transaction, or in the daemon's own session in autocommit."""
        if transaction is None:
            return work(self._daemons_connection)
        handle = transaction.caller.handle
        if isinstance(self.facade, AsyncFacade):
            return cast("T", self.facade._loop.run(handle.run_sync(work)))
        return work(handle)

    def claim(
        self, transaction: Transaction | None, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[tuple[UUID, datetime]]:
        """The shipped claim; the runs that it marked with their deadlines."""
        start = None if after is None else ScanStart(*after)
        claimed = self.on(transaction, lambda conn: claim_overdue(conn, TABLES, limit=limit, after=start))
        return [(run.run_id, run.deadline) for run in claimed]

    def look_ahead(self) -> LookAhead:
        """The shipped look-ahead."""
        return self.on(None, lambda conn: look_ahead(conn, TABLES))

    def records(self) -> dict[UUID, FlowRunControlRecord]:
        """Every committed control record, read without the store."""
        found = [dict(row[0]) for row in self._onlooker.rows(_ROWS)]
        return {UUID(row["run_id"]): _record(row) for row in found}

    def keys(self) -> dict[tuple[UUID, str, str], UUID]:
        """Every committed key and its run."""
        return {(flow, trigger, key): run for flow, trigger, key, run in self._onlooker.rows(_KEYS)}


def _record(row: dict[str, Any]) -> FlowRunControlRecord:
    times = {name: datetime.fromisoformat(value) for name, value in row.items() if name.endswith("_utc") and value}
    return FlowRunControlRecord(**{**row, **times, "run_id": UUID(row["run_id"]), "flow_id": UUID(row["flow_id"])})


def _outcome(future: Future[Any]) -> object:
    return future.exception() or future.result()
