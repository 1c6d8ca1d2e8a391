"""`start_run`: key and record in one statement, duplicates, and what happens when the winner vanishes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from curfew_store import FlowRunControlStore, KeyContended, RunAlreadyExists, StartedRun, is_transient
from tests.integration.contract.facade import Facade
from tests.integration.contract.rows import FLOW, OTHER_FLOW, Rows
from tests.patience import PATIENCE

MOMENT = datetime(2031, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
HOUR = timedelta(hours=1)


@contextmanager
def before_each_statement(facade: Facade, act: Callable[[str], None]) -> Iterator[None]:
    """Calls *act* with each statement of the store just before it is sent."""

    def hook(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        act(statement)

    event.listen(facade.engine, "before_cursor_execute", hook)
    yield
    event.remove(facade.engine, "before_cursor_execute", hook)


@pytest.mark.contract("S-1", "S-7", "K-1", "K-5")
@pytest.mark.parametrize("kwargs", [{}, {"timeout_at_utc": MOMENT}, {"timeout": HOUR}])
def test_a_started_run_has_key_and_record(store: FlowRunControlStore, rows: Rows, kwargs: dict[str, Any]) -> None:
    """The key is registered in its normal form, the record holds the text as given and the deadline."""
    key = f" Key-{uuid4()} "
    started = store.start_run(FLOW, " Trigger ", key, **kwargs)
    assert started.duplicate is False
    assert rows.keys_of(started.run_id) == [("trigger", key.strip().lower())]
    record = store.get_run_control(started.run_id)
    assert record is not None
    assert (record.flow_id, record.trigger_key, record.idempotency_key) == (FLOW, " Trigger ", key)
    if "timeout" in kwargs:
        assert record.timeout_at_utc is not None
        assert abs(record.timeout_at_utc - record.created_at_utc - HOUR) < timedelta(seconds=5)
    else:
        assert record.timeout_at_utc == kwargs.get("timeout_at_utc")


@pytest.mark.contract("S-1")
def test_key_and_record_are_one_statement(facade: Facade) -> None:
    """A start that wins sends a single statement, so nothing can come between key and record."""
    facade.store.get_run_control(uuid4())  # the check of the schema, once, is not what is counted
    sent: list[str] = []
    with before_each_statement(facade, sent.append):
        facade.store.start_run(FLOW, "trigger", f"key-{uuid4()}")
    assert len(sent) == 1
    assert "flow_idempotency_keys" in sent[0]
    assert "flow_run_controls" in sent[0]


@pytest.mark.contract("S-1")
@pytest.mark.parametrize("isolation", ["AUTOCOMMIT", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_failed_record_takes_the_key_with_it(facade: Facade, rows: Rows, isolation: str) -> None:
    """When the record cannot be written, no key is left behind, whatever the isolation and under autocommit."""
    run_id, key = uuid4(), f"key-{uuid4()}"
    rows.sql(f"ALTER TABLE flow_run_controls ADD CONSTRAINT poisoned CHECK (run_id <> '{run_id}') NOT VALID")
    try:
        with facade.begin(isolation) as caller:
            with pytest.raises(Exception, match="poisoned"):
                facade.store.start_run(FLOW, "trigger", key, run_id=run_id, connection=caller.handle)
            if isolation != "AUTOCOMMIT":
                caller.rollback()
            caller.sql("SELECT 1")
    finally:
        rows.sql("ALTER TABLE flow_run_controls DROP CONSTRAINT poisoned")
    assert rows.row(run_id) is None
    assert rows.keys_of(run_id) == []


@pytest.mark.contract("S-2", "X-7")
@pytest.mark.parametrize("own", [False, True])
def test_a_taken_key_writes_nothing(store: FlowRunControlStore, rows: Rows, own: bool) -> None:
    """A second start with the key, in any spelling, names the first run; with its run id it was one's own attempt."""
    run_id, key = uuid4(), f"key-{uuid4()}"
    assert store.start_run(FLOW, "trigger", key, run_id=run_id, timeout=HOUR) == StartedRun(run_id, duplicate=False)
    before = rows.everything()
    again = store.start_run(FLOW, " TRIGGER", f"{key.upper()} ", run_id=run_id if own else None, timeout_at_utc=MOMENT)
    assert again == StartedRun(run_id, duplicate=True)
    assert rows.everything() == before


@pytest.mark.contract("S-2", "I-3")
def test_a_key_belongs_to_its_flow_and_trigger(store: FlowRunControlStore) -> None:
    """The same key under another trigger or another flow starts another run."""
    key = f"key-{uuid4()}"
    started = [store.start_run(*scope, key) for scope in [(FLOW, "a"), (FLOW, "b"), (OTHER_FLOW, "a")]]
    assert not any(run.duplicate for run in started)
    assert len({run.run_id for run in started}) == 3


@pytest.mark.contract("S-5", "S-6")
def test_without_key_and_id_each_call_starts_a_run(store: FlowRunControlStore, rows: Rows) -> None:
    """Ids are handed out as version 7 of RFC 9562, with the time in front, and no key is registered."""
    started = [store.start_run(FLOW, "trigger") for _ in range(20)]
    assert not any(run.duplicate for run in started)
    ids = [run.run_id for run in started]
    assert len(set(ids)) == 20
    assert {(i.version, i.variant) for i in ids} == {(7, uuid.RFC_4122)}
    stamps = [i.int >> 80 for i in ids]
    assert stamps == sorted(stamps)
    assert abs(stamps[0] / 1000 - datetime.now(UTC).timestamp()) < 60
    assert all(rows.keys_of(i) == [] for i in ids)


@pytest.mark.contract("S-4", "Z-1")
@pytest.mark.parametrize(
    ("key", "trigger_key", "flow_id", "duplicate"),
    [
        (None, "Trigger", FLOW, True),
        (None, "Other", OTHER_FLOW, True),
        (" the KEY", "TRIGGER", FLOW, True),
        ("other key", "Trigger", FLOW, False),
        ("the key", "Other", FLOW, False),
        ("the key", "Trigger", OTHER_FLOW, False),
    ],
)
def test_a_run_id_that_has_a_record(
    store: FlowRunControlStore, rows: Rows, key: str | None, trigger_key: str, flow_id: UUID, duplicate: bool
) -> None:
    """With no key or the record's own it is a duplicate, with another it is an error; either way nothing is written."""
    run_id = rows.insert("active", idempotency_key="'The Key'")
    before = rows.everything()
    if duplicate:
        again = store.start_run(flow_id, trigger_key, key, run_id=run_id, timeout=HOUR)
        assert again == StartedRun(run_id, duplicate=True)
    else:
        with pytest.raises(RunAlreadyExists, match="fresh run id") as raised:
            store.start_run(flow_id, trigger_key, key, run_id=run_id, timeout=HOUR)
        assert raised.value.run_id == run_id
        assert not is_transient(raised.value)
    assert rows.everything() == before


@pytest.mark.contract("S-4")
@pytest.mark.parametrize("key", ["the key", "other key", None])
def test_a_record_that_is_written_meanwhile(store: FlowRunControlStore, rows: Rows, key: str | None) -> None:
    """A record that another session commits while the start waits for it counts like one that was there before."""
    run_id = uuid4()
    insert = (
        "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, idempotency_key) "
        "VALUES (:run, :flow, 'Trigger', 'The Key')"
    )
    with rows.held(insert, run=run_id, flow=FLOW) as holder, ThreadPoolExecutor(1) as pool:
        starting = pool.submit(store.start_run, FLOW, "Trigger", key, run_id=run_id)
        rows.wait_until_blocked()
        holder.commit()
        if key == "other key":
            with pytest.raises(RunAlreadyExists):
                starting.result(timeout=PATIENCE)
        else:
            assert starting.result(timeout=PATIENCE) == StartedRun(run_id, duplicate=True)
    assert rows.keys_of(run_id) == []


class VanishingWinner:
    """Another session that takes the key before each insert, and frees it before each look-up, so many times."""

    def __init__(self, rows: Rows, key: str, times: int) -> None:
        self.rows, self.key, self.left = rows, key, times
        self.inserts = 0

    def __call__(self, statement: str) -> None:
        if "INSERT INTO" in statement:
            self.inserts += 1
            if self.left > 0:
                self.rows.insert_key(uuid4(), self.key)
        elif "flow_idempotency_keys" in statement and self.left > 0:
            self.left -= 1
            self.rows.sql("DELETE FROM flow_idempotency_keys WHERE idempotency_key = :key", key=self.key)


@pytest.mark.contract("S-3", "Z-4", "Z-5")
def test_a_winner_that_keeps_vanishing(facade: Facade, rows: Rows) -> None:
    """After three tries the call gives up with a transient error that says so, and nothing has been written."""
    run_id, key = uuid4(), f"key-{uuid4()}"
    winner = VanishingWinner(rows, key, times=99)
    with before_each_statement(facade, winner), pytest.raises(KeyContended, match="repeat") as raised:
        facade.store.start_run(FLOW, "trigger", key, run_id=run_id)
    assert (raised.value.attempts, winner.inserts) == (3, 3)
    assert is_transient(raised.value)
    assert rows.row(run_id) is None
    assert rows.keys_of(run_id) == []
    assert facade.store.start_run(FLOW, "trigger", key, run_id=run_id) == StartedRun(run_id, duplicate=False)


@pytest.mark.contract("S-3")
@pytest.mark.parametrize("times", [1, 2])
def test_a_winner_that_vanishes_is_succeeded(facade: Facade, rows: Rows, times: int) -> None:
    """A key that is free again at the next try is taken then."""
    key = f"key-{uuid4()}"
    winner = VanishingWinner(rows, key, times)
    with before_each_statement(facade, winner):
        started = facade.store.start_run(FLOW, "trigger", key)
    assert started.duplicate is False
    assert winner.inserts == times + 1
    assert rows.keys_of(started.run_id) == [("trigger", key)]


@pytest.mark.contract("S-2", "I-4")
@pytest.mark.parametrize("commits", [True, False])
def test_a_start_waits_for_the_one_before(facade: Facade, rows: Rows, commits: bool) -> None:
    """A start that meets an uncommitted one waits: it is a duplicate of what commits and succeeds what rolls back."""
    key = f"key-{uuid4()}"
    with facade.begin() as caller, ThreadPoolExecutor(1) as pool:
        first = facade.store.start_run(FLOW, "trigger", key, connection=caller.handle)
        waiting = pool.submit(facade.store.start_run, FLOW, "trigger", key)
        rows.wait_until_blocked()
        if commits:
            caller.commit()
        else:
            caller.rollback()
        second = waiting.result(timeout=PATIENCE)
    assert second.duplicate is commits
    assert (second.run_id == first.run_id) is commits
    assert store_has(rows, first.run_id) is commits


def store_has(rows: Rows, run_id: UUID) -> bool:
    """Whether a run has its record and its key; never one of them alone."""
    record, keys = rows.row(run_id) is not None, bool(rows.keys_of(run_id))
    assert record == keys
    return record
