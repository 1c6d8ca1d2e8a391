"""An asynchronous call that is cancelled: what is known afterwards, and in which state connections are left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from curfew_store import AsyncFlowRunControlStore, RunState
from tests.integration.contract.rows import FLOW, Rows

LOCK = "SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE"


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine of the test's own loop with a single pooled connection, so that a spoilt one would be noticed."""
    made = create_async_engine(url, pool_size=1, max_overflow=0)
    yield made
    await made.dispose()


@pytest.mark.contract("X-5", "X-7")
async def test_an_own_transaction_is_repeated(engine: AsyncEngine, rows: Rows) -> None:
    """Cancelled while it waits for a lock, the call lets go; the store goes on, and the repeated call settles it."""
    store, run_id = AsyncFlowRunControlStore(engine), rows.insert("active")
    with rows.held(LOCK, run=run_id):
        call = asyncio.create_task(store.request_cancel(run_id, "first try"))
        await asyncio.to_thread(rows.wait_until_blocked)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    answer = await store.request_cancel(run_id, "second try")
    record = await store.get_run_control(run_id)
    assert record is not None
    assert record.state is RunState.CANCEL_REQUESTED
    assert record.cancel_reason == ("second try" if answer else "first try")


@pytest.mark.contract("X-5")
async def test_a_joined_connection_is_invalidated(engine: AsyncEngine, rows: Rows) -> None:
    """The caller cannot commit half a transaction by mistake; the pool replaces the connection."""
    store, mine, contended = AsyncFlowRunControlStore(engine), rows.insert("active"), rows.insert("active")
    before = rows.row(mine), rows.row(contended)
    with rows.held(LOCK, run=contended):
        async with engine.connect() as connection:
            assert await store.complete_run(mine, connection=connection) is True
            call = asyncio.create_task(store.complete_run(contended, connection=connection))
            await asyncio.to_thread(rows.wait_until_blocked)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert connection.invalidated
    assert (rows.row(mine), rows.row(contended)) == before
    async with engine.connect() as connection:
        assert await store.complete_run(mine, connection=connection) is True
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1


@pytest.mark.contract("X-5", "S-1", "S-2")
async def test_a_timeout_around_a_start_leaves_all_or_nothing(engine: AsyncEngine, rows: Rows) -> None:
    """A start that is given up by asyncio.timeout leaves key and record, or neither; repeated, it names one run."""
    store, run_id, key = AsyncFlowRunControlStore(engine), uuid4(), f"key-{uuid4()}"
    taken = "INSERT INTO flow_idempotency_keys VALUES (:flow, 't', :key, :run, now())"
    with rows.held(taken, flow=FLOW, key=key, run=uuid4()), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await store.start_run(FLOW, "t", key, run_id=run_id)
    assert (rows.row(run_id) is not None) == bool(rows.keys_of(run_id))
    started = await store.start_run(FLOW, "t", key, run_id=run_id)
    assert started.run_id == run_id
    assert rows.keys_of(run_id) == [("t", key)]


@pytest.mark.contract("X-1")
async def test_calls_at_once_do_not_mix(url: str, rows: Rows) -> None:
    """Twenty calls of one store in flight at once each answer for their own run."""
    engine = create_async_engine(url, pool_size=5)
    store, run_ids = AsyncFlowRunControlStore(engine), [rows.insert("active") for _ in range(20)]
    await asyncio.gather(*(store.request_cancel(run_id, str(run_id)) for run_id in run_ids))
    records = await asyncio.gather(*(store.get_run_control(run_id) for run_id in run_ids))
    await engine.dispose()
    assert [record and record.cancel_reason for record in records] == [str(run_id) for run_id in run_ids]
