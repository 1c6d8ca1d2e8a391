"""Bad input to the store that no other suite has: connections in a wrong state or in two hands, and edges of values."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from curfew_store import AsyncFlowRunControlStore, FlowRunControlStore, InvalidValue
from curfew_store.deadlines import required_timeout
from tests.integration.contract.facade import Facade
from tests.integration.contract.rows import FLOW, Rows

HOUR = timedelta(hours=1)
MOMENT = datetime(2031, 1, 1, tzinfo=UTC)

JOINING: dict[str, Callable[..., Any]] = {
    "configure_run": lambda store, run, **on: store.configure_run(run, FLOW, "t", timeout=HOUR, **on),
    "configure_runs": lambda store, run, **on: store.configure_runs([], **on),
    "start_run": lambda store, run, **on: store.start_run(FLOW, "t", "piped", **on),
    "get_run_control": lambda store, run, **on: store.get_run_control(run, **on),
    "request_cancel": lambda store, run, **on: store.request_cancel(run, **on),
    "mark_timed_out": lambda store, run, **on: store.mark_timed_out(run, **on),
    "complete_run": lambda store, run, **on: store.complete_run(run, **on),
    "extend_deadline": lambda store, run, **on: store.extend_deadline(run, None, **on),
    "heartbeat": lambda store, run, **on: store.heartbeat(run, timeout=2 * HOUR, **on),
    "reopen_run": lambda store, run, **on: store.reopen_run(run, **on),
    "find_run_id_by_idempotency_key": lambda store, run, **on: store.find_run_id_by_idempotency_key(
        FLOW, "t", "k", **on
    ),
    "try_register_idempotency_key": lambda store, run, **on: store.try_register_idempotency_key(
        FLOW, "t", "piped", run, **on
    ),
    "purge": lambda store, run, **on: store.purge(MOMENT, limit=9, **on),
}


@pytest.mark.contract("X-9", "Z-2")
def test_a_connection_in_pipeline_mode_is_refused(url: str, rows: Rows) -> None:
    """Where the driver awaits no answer every call is an error and sends nothing; behind the block they work."""
    engine, run = create_engine(url), rows.insert("active")
    store, before = FlowRunControlStore(engine), rows.everything()
    with engine.connect() as caller:
        driver = caller.connection.driver_connection
        assert driver is not None
        with driver.pipeline():
            for name, call in JOINING.items():
                with pytest.raises(InvalidValue, match="pipeline") as raised:
                    call(store, run, connection=caller)
                assert raised.value.parameter == "connection", name
        assert rows.everything() == before
        assert store.request_cancel(run, connection=caller) is True
        caller.commit()
    assert rows.everything() != before
    engine.dispose()


@pytest.mark.contract("X-9", "Z-2")
async def test_an_asynchronous_connection_in_pipeline_mode_is_refused(url: str, rows: Rows) -> None:
    """The other façade refuses it in the same words, and its own calls are not concerned."""
    engine, run = create_async_engine(url), rows.insert("active")
    store, before = AsyncFlowRunControlStore(engine), rows.everything()
    async with engine.connect() as caller:
        driver = (await caller.get_raw_connection()).driver_connection
        assert driver is not None
        async with driver.pipeline():
            for name, call in JOINING.items():
                with pytest.raises(InvalidValue, match="pipeline") as raised:
                    await call(store, run, connection=caller)
                assert raised.value.parameter == "connection", name
            record = await store.get_run_control(run)
        assert record is not None
        assert rows.everything() == before
        assert await store.request_cancel(run, connection=caller) is True
        await caller.rollback()
    await engine.dispose()


def test_every_joining_method_was_tried() -> None:
    """The table above has each method that takes a connection."""
    public = {name for name in vars(FlowRunControlStore) if not name.startswith("_")}
    assert JOINING.keys() == public - {"ensure_may_run"}


def test_one_connection_in_many_threads(url: str, rows: Rows) -> None:
    """Nobody gets another's answer and nothing is half done: all of it is committed with the connection, or none."""
    engine = create_engine(url)
    store, runs = FlowRunControlStore(engine), [rows.insert("active") for _ in range(24)]
    with engine.connect() as shared, ThreadPoolExecutor(6) as threads:
        shared.execute(text("SELECT 1"))  # the transaction that all of them join

        def cancelled(run: UUID) -> tuple[bool, str | None]:
            answer = store.request_cancel(run, str(run), connection=shared)
            record = store.get_run_control(run, connection=shared)
            return answer, None if record is None else record.cancel_reason

        answers = list(threads.map(cancelled, runs))
        assert answers == [(True, str(run)) for run in runs]
        assert all((row := rows.row(run)) is not None and row["cancel_requested"] is False for run in runs)
        shared.commit()
    assert all((row := rows.row(run)) is not None and row["cancel_reason"] == str(run) for run in runs)
    engine.dispose()


@pytest.mark.contract("L-1")
def test_two_extensions_at_once(facade: Facade, rows: Rows) -> None:
    """The second waits for the first, both say yes, and the deadline is that of whoever committed last."""
    run = rows.insert("active")
    with facade.begin() as first, ThreadPoolExecutor(1) as pool:
        assert facade.store.extend_deadline(run, MOMENT, connection=first.handle) is True
        second = pool.submit(facade.store.extend_deadline, run, MOMENT + HOUR)
        rows.wait_until_blocked()
        first.commit()
        assert second.result(timeout=10) is True
    record = facade.store.get_run_control(run)
    assert record is not None
    assert record.timeout_at_utc == MOMENT + HOUR


@pytest.mark.contract("A-3")
def test_less_than_a_microsecond_is_no_duration() -> None:
    """What Python rounds to nothing is refused like nothing; what it rounds up is a microsecond."""
    with pytest.raises(InvalidValue, match="must be positive"):
        required_timeout(timedelta(microseconds=0.4))
    assert required_timeout(timedelta(microseconds=0.6)) == 1e-6


@pytest.mark.contract("A-3", "Z-2")
@pytest.mark.parametrize("timeout", [timedelta(0), -HOUR, timedelta.max], ids=str)
def test_an_extension_by_nothing(facade: Facade, rows: Rows, timeout: timedelta) -> None:
    """A deadline is not moved by no time, back in time or out of all time; the run stays as it was."""
    run = rows.insert("active")
    before = rows.row(run)
    with pytest.raises(InvalidValue, match="timeout"):
        facade.store.extend_deadline(run, timeout=timeout)
    assert rows.changed(before, run) == set()


@pytest.mark.contract("K-7", "K-9")
def test_a_key_that_cannot_be_compressed(facade: Facade, rows: Rows) -> None:
    """256 random characters of four bytes in both parts fit the index; 3,000 are refused and nothing is written."""
    chance = random.Random(1)
    trigger, key = ("".join(chr(chance.randrange(0x20000, 0x2A6D0)) for _ in range(256)) for _ in range(2))
    flow, run = uuid4(), uuid4()
    assert facade.store.try_register_idempotency_key(flow, trigger, key, run) is True
    assert facade.store.find_run_id_by_idempotency_key(flow, trigger, key) == run
    before = rows.everything()
    with pytest.raises(InvalidValue, match="3000 characters"):
        facade.store.start_run(flow, trigger, "".join(chr(chance.randrange(33, 127)) for _ in range(3000)))
    assert rows.everything() == before


@pytest.mark.contract("R-1")
@pytest.mark.parametrize("reason", ["", " ", "\x1b[31m\r\n\x07\x7f\x9f", "\u202e%s'; --", "r" * 4000], ids=ascii)
def test_a_reason_is_kept_to_the_letter(facade: Facade, rows: Rows, reason: str) -> None:
    """Blank, control characters and four thousand of any kind: what was given is what is read."""
    run = rows.insert("active")
    assert facade.store.request_cancel(run, reason) is True
    record = facade.store.get_run_control(run)
    assert record is not None
    assert record.cancel_reason == reason


@pytest.mark.contract("Q-3", "G-1")
def test_a_run_that_nobody_knows(facade: Facade, rows: Rows) -> None:
    """Reading, cancelling, marking, completing, extending and renewing find nothing and make nothing."""
    before, unknown = rows.everything(), uuid4()
    store = facade.store
    assert store.get_run_control(unknown) is None
    assert store.ensure_may_run(unknown) is None
    assert not any(
        (
            store.request_cancel(unknown, "r"),
            store.mark_timed_out(unknown),
            store.complete_run(unknown),
            store.extend_deadline(unknown, None),
            store.heartbeat(unknown, timeout=HOUR),
            store.reopen_run(unknown),
        )
    )
    assert rows.everything() == before
