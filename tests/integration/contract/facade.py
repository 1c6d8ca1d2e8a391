"""Both façades under one calling convention, so that each promise is tested once and held by both.

The asynchronous store runs on an event loop in a thread; a call waits for its coroutine. A test therefore
reads as plain calls, may use threads for what happens at once, and never knows which store it has.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

from sqlalchemy import Connection, Engine, Row, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from curfew_store import AsyncFlowRunControlStore, FlowRunControlStore
from tests.patience import PATIENCE

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="contract-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, or what it raised."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=PATIENCE)

    def close(self) -> None:
        """Stop the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Blocking:
    """Looks like the synchronous store and calls the asynchronous one."""

    def __init__(self, store: AsyncFlowRunControlStore, loop: Loop) -> None:
        self._store = store
        self._loop = loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)
        return lambda *args, **kwargs: self._loop.run(method(*args, **kwargs))


class Caller(Protocol):
    """A transaction of the caller's. *handle* is what the store takes as ``connection``."""

    handle: Any

    def sql(self, statement: str, **parameters: Any) -> list[Row[Any]]:
        """Run a statement of the caller's own."""

    def commit(self) -> None:
        """Commit the transaction."""

    def rollback(self) -> None:
        """Roll the transaction back."""


class _SyncCaller:
    def __init__(self, connection: Any) -> None:
        self.handle = connection

    def sql(self, statement: str, **parameters: Any) -> list[Row[Any]]:
        result = self.handle.execute(text(statement), parameters)
        return list(result) if result.returns_rows else []

    def commit(self) -> None:
        self.handle.commit()

    def rollback(self) -> None:
        self.handle.rollback()


class _AsyncCaller:
    def __init__(self, connection: AsyncConnection, loop: Loop) -> None:
        self.handle = connection
        self._loop = loop

    def sql(self, statement: str, **parameters: Any) -> list[Row[Any]]:
        result = self._loop.run(self.handle.execute(text(statement), parameters))
        return list(result) if result.returns_rows else []

    def commit(self) -> None:
        self._loop.run(self.handle.commit())

    def rollback(self) -> None:
        self._loop.run(self.handle.rollback())


class Facade(Protocol):
    """A store on one database, and what a caller of it needs around it."""

    store: FlowRunControlStore
    engine: Engine
    """The synchronous engine at the bottom, to listen for events on."""

    def begin(self, isolation: str | None = None) -> Any:
        """A context with a `Caller` at an isolation level; what it leaves open is rolled back."""

    def commit_in_orm_session(self, work: Callable[[Any], Callable[..., Any]], *args: Any) -> Any:
        """Call a method of the store on the connection of an ORM session, then commit the session."""

    def wrong_connection(self) -> Any:
        """What the other façade would take as ``connection``."""

    def close(self) -> None:
        """Give the connections back to the server."""


class SyncFacade:
    """`FlowRunControlStore` as it is."""

    def __init__(
        self, url: str, schema: str = "public", notify_within: timedelta | None = None, **options: Any
    ) -> None:
        self.engine = create_engine(url, **options)
        self.store = FlowRunControlStore(self.engine, schema=schema, notify_within=notify_within)

    @contextmanager
    def begin(self, isolation: str | None = None) -> Iterator[Caller]:
        with self.engine.connect() as connection:
            if isolation is not None:
                connection.execution_options(isolation_level=isolation)
            yield _SyncCaller(connection)

    def commit_in_orm_session(self, work: Callable[[Any], Callable[..., Any]], *args: Any) -> Any:
        with Session(self.engine) as session:
            result = work(self.store)(*args, connection=session.connection())
            session.commit()
        return result

    def wrong_connection(self) -> Any:
        return AsyncConnection(create_async_engine(self.engine.url))

    def close(self) -> None:
        self.engine.dispose()


class AsyncFacade:
    """`AsyncFlowRunControlStore` behind the synchronous calling convention."""

    def __init__(
        self, loop: Loop, url: str, schema: str = "public", notify_within: timedelta | None = None, **options: Any
    ) -> None:
        self._loop = loop
        self.async_engine: AsyncEngine = create_async_engine(url, **options)
        self.engine = self.async_engine.sync_engine
        self.async_store = AsyncFlowRunControlStore(self.async_engine, schema=schema, notify_within=notify_within)
        self.store = cast("FlowRunControlStore", _Blocking(self.async_store, loop))

    @contextmanager
    def begin(self, isolation: str | None = None) -> Iterator[Caller]:
        connection = self.async_engine.connect()
        self._loop.run(self._opened(connection, isolation))
        try:
            yield _AsyncCaller(connection, self._loop)
        finally:
            self._loop.run(connection.close())

    @staticmethod
    async def _opened(connection: AsyncConnection, isolation: str | None) -> None:
        await connection
        if isolation is not None:
            await connection.execution_options(isolation_level=isolation)

    def commit_in_orm_session(self, work: Callable[[Any], Callable[..., Any]], *args: Any) -> Any:
        async def committed() -> Any:
            async with AsyncSession(self.async_engine) as session:
                result = await work(self.async_store)(*args, connection=await session.connection())
                await session.commit()
            return result

        return self._loop.run(committed())

    def wrong_connection(self) -> Any:
        return Connection(create_engine(self.engine.url), connection=cast("Any", object()))

    def close(self) -> None:
        self._loop.run(self.async_engine.dispose())


OpenFacade = Callable[..., Facade]
