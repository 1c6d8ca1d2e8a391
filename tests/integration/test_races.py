"""Races between producers: one winner, and everybody else learns who it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event

from curfew_store import (
    FlowRunControlStore,
    KeyContended,
    RunAlreadyExists,
    RunState,
    StartedRun,
    is_transient,
)
from tests.conftest import Database
from tests.integration.sessions import in_background, onlooker, together

FLOW = uuid4()


@pytest.fixture
def crowd(database: Database) -> Iterator[Engine]:
    """An engine with a connection for each of 64 threads; none of them waits for ever."""
    engine = create_engine(database.url, pool_size=64, max_overflow=0, connect_args={"options": "-c lock_timeout=20s"})
    yield engine
    engine.dispose()


@pytest.fixture
def store(crowd: Engine) -> FlowRunControlStore:
    """One store, shared by all threads."""
    return FlowRunControlStore(crowd)


def _count(database: Database, table: str) -> int:
    with psycopg.connect(database.conninfo) as conn:
        return int(conn.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


@pytest.mark.contract("Q-1", "Q-2")
def test_of_50_cancels_at_once_one_says_true_and_its_reason_stays(store: FlowRunControlStore) -> None:
    """Exactly one of 50 concurrent cancels latches the flag, and the stored reason is that caller's."""
    run = store.start_run(FLOW, "t").run_id
    answers = together([partial(store.request_cancel, run, f"reason {n}") for n in range(50)])
    assert Counter(answers) == {True: 1, False: 49}
    record = store.get_run_control(run)
    assert record is not None
    assert record.cancel_reason == f"reason {answers.index(True)}"


@pytest.mark.contract("M-1", "D-1", "Q-1", "O-1")
@pytest.mark.parametrize("method", ["mark_timed_out", "complete_run", "reopen_run"])
def test_of_many_latches_at_once_one_says_true(store: FlowRunControlStore, method: str) -> None:
    """Marking, completing and reopening have one winner each, as cancelling has."""
    run = store.start_run(FLOW, "t").run_id
    if method == "reopen_run":
        store.complete_run(run)
    assert sum(together([partial(getattr(store, method), run) for _ in range(24)])) == 1


@pytest.mark.contract("M-1", "D-3", "M-5")
def test_a_run_is_completed_or_timed_out_and_never_both(store: FlowRunControlStore) -> None:
    """Of completions and marks at once exactly one wins, and the record shows only that one."""
    run = store.start_run(FLOW, "t").run_id
    works = [partial(store.complete_run, run), partial(store.mark_timed_out, run)] * 12
    answers = together(works)
    assert sum(answers) == 1
    record = store.get_run_control(run)
    assert record is not None
    assert record.state is (RunState.TIMED_OUT if answers.index(True) % 2 else RunState.COMPLETED)
    assert (record.timed_out_at_utc is None) != (record.completed_at_utc is None)


@pytest.mark.contract("C-1", "X-7")
def test_configuring_one_run_from_many_threads_makes_one_record(database: Database, store: FlowRunControlStore) -> None:
    """Concurrent first calls for one run raise nothing and leave one record, of one of the callers."""
    run, flows = uuid4(), [uuid4() for _ in range(24)]
    together([partial(store.configure_run, run, flow, "t") for flow in flows])
    record = store.get_run_control(run)
    assert record is not None
    assert record.flow_id in flows
    assert _count(database, "flow_run_controls") == 1


@pytest.mark.contract("I-1", "I-2")
def test_of_64_registrations_of_one_key_one_says_true(store: FlowRunControlStore) -> None:
    """Exactly one thread registers the key, and it is its run that everybody finds."""
    runs = [uuid4() for _ in range(64)]

    def register(run: UUID) -> tuple[bool, UUID | None]:
        won = store.try_register_idempotency_key(FLOW, "t", "key", run)
        return won, store.find_run_id_by_idempotency_key(FLOW, "t", "key")

    answers = together([partial(register, run) for run in runs])
    winner = runs[[won for won, _ in answers].index(True)]
    assert Counter(answers) == {(True, winner): 1, (False, winner): 63}


@pytest.mark.contract("S-1", "S-2")
def test_of_64_starts_with_one_key_one_starts_the_run(database: Database, store: FlowRunControlStore) -> None:
    """Exactly one thread starts a run; the others are handed its id and write nothing."""
    answers = together([partial(store.start_run, FLOW, "t", "key")] * 64)
    (winner,) = [answer.run_id for answer in answers if not answer.duplicate]
    assert Counter(answers) == {StartedRun(winner, False): 1, StartedRun(winner, True): 63}
    assert (_count(database, "flow_run_controls"), _count(database, "flow_idempotency_keys")) == (1, 1)


@pytest.mark.contract("I-4", "S-2")
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_63_starts_wait_for_the_winners_transaction(
    database: Database, store: FlowRunControlStore, crowd: Engine, commits: bool
) -> None:
    """If the winner commits, all read its run; if it rolls back, exactly one of the others wins."""
    with onlooker(database.conninfo) as admin, crowd.connect() as first:
        winner = store.start_run(FLOW, "t", "key", connection=first).run_id
        with in_background(lambda: together([partial(store.start_run, FLOW, "t", "key")] * 63)) as others:
            admin.await_waiters(63)
            (first.commit if commits else first.rollback)()
            answers = others.result()
    won = [answer.run_id for answer in answers if not answer.duplicate]
    assert len(won) == (0 if commits else 1)
    assert {answer.run_id for answer in answers} == {winner if commits else won[0]}
    assert (_count(database, "flow_run_controls"), _count(database, "flow_idempotency_keys")) == (1, 1)


@pytest.mark.contract("I-4", "I-1")
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_63_registrations_wait_for_the_winners_transaction(
    database: Database, store: FlowRunControlStore, crowd: Engine, commits: bool
) -> None:
    """If the winner commits, all are duplicates; if it rolls back, exactly one of the others registers."""
    first_run, runs = uuid4(), [uuid4() for _ in range(63)]
    register = partial(store.try_register_idempotency_key, FLOW, "t", "key")
    with onlooker(database.conninfo) as admin, crowd.connect() as first:
        assert register(first_run, connection=first)
        with in_background(lambda: together([partial(register, run) for run in runs])) as others:
            admin.await_waiters(63)
            (first.commit if commits else first.rollback)()
            answers = others.result()
    assert sum(answers) == (0 if commits else 1)
    expected = first_run if commits else runs[answers.index(True)]
    assert store.find_run_id_by_idempotency_key(FLOW, "t", "key") == expected


@pytest.mark.contract("S-4")
def test_of_many_starts_of_one_run_without_a_key_one_writes(database: Database, store: FlowRunControlStore) -> None:
    """The same run id from many threads makes one record, and the others are told that it is theirs."""
    run = uuid4()
    answers = together([partial(store.start_run, FLOW, "t", run_id=run)] * 24)
    assert Counter(answers) == {StartedRun(run, False): 1, StartedRun(run, True): 23}
    assert _count(database, "flow_run_controls") == 1


def _outcome(work: Callable[[], StartedRun]) -> StartedRun | type[Exception]:
    try:
        return work()
    except RunAlreadyExists as error:
        return type(error)


@pytest.mark.contract("S-4", "S-1")
def test_of_many_starts_of_one_run_with_different_keys_one_writes(
    database: Database, store: FlowRunControlStore
) -> None:
    """One thread's key and record are written; the others get `RunAlreadyExists` and leave no key behind."""
    run = uuid4()
    works = [partial(store.start_run, FLOW, "t", f"key {n}", run_id=run) for n in range(24)]
    answers = together([partial(_outcome, work) for work in works])
    assert Counter(answers) == {StartedRun(run, False): 1, RunAlreadyExists: 23}
    winner = answers.index(StartedRun(run, False))
    assert store.find_run_id_by_idempotency_key(FLOW, "t", f"key {winner}") == run
    assert (_count(database, "flow_run_controls"), _count(database, "flow_idempotency_keys")) == (1, 1)


@pytest.mark.contract("S-4", "S-1")
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_a_start_waits_for_another_start_of_the_same_run(
    database: Database, store: FlowRunControlStore, crowd: Engine, commits: bool
) -> None:
    """The same run under two keys: the second waits, and is refused whole or, after a rollback, writes whole."""
    run = uuid4()
    with onlooker(database.conninfo) as admin, crowd.connect() as first:
        store.start_run(FLOW, "t", "first", run_id=run, connection=first)
        second = partial(store.start_run, FLOW, "t", "second", run_id=run)
        with in_background(lambda: _outcome(second)) as answer:
            admin.await_waiters(1)
            (first.commit if commits else first.rollback)()
            assert answer.result() == (RunAlreadyExists if commits else StartedRun(run, False))
    found = [store.find_run_id_by_idempotency_key(FLOW, "t", key) for key in ("first", "second")]
    assert found == ([run, None] if commits else [None, run])


@pytest.mark.contract("S-2", "X-7")
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_a_repeated_start_waits_for_its_own_earlier_attempt(
    database: Database, store: FlowRunControlStore, crowd: Engine, commits: bool
) -> None:
    """The same run and key again, while the first attempt is still open: a duplicate of it, or the start."""
    run = uuid4()
    again = partial(store.start_run, FLOW, "t", "key", run_id=run)
    with onlooker(database.conninfo) as admin, crowd.connect() as first:
        again(connection=first)
        with in_background(again) as answer:
            admin.await_waiters(1)
            (first.commit if commits else first.rollback)()
            assert answer.result() == StartedRun(run, duplicate=commits)


@pytest.fixture
def fickle_key(database: Database, crowd: Engine) -> Iterator[list[int]]:
    """A key that is gone whenever it is looked up and back before the next insert, as often as the list says."""
    times = [0]
    insert = (
        "INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id) "
        "VALUES (%s, 't', 'fickle', gen_random_uuid())"
    )
    with psycopg.connect(database.conninfo, autocommit=True) as other:

        def before(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            if statement.startswith("SELECT") and "flow_idempotency_keys" in statement and times[0]:
                other.execute("DELETE FROM flow_idempotency_keys")
            elif statement.startswith("WITH") and times[0]:
                other.execute(insert, [FLOW])

        def after(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            if statement.startswith("SELECT") and "flow_idempotency_keys" in statement and times[0]:
                times[0] -= 1

        event.listen(crowd, "before_cursor_execute", before)
        event.listen(crowd, "after_cursor_execute", after)
        yield times


@pytest.mark.contract("S-3")
def test_a_start_whose_key_was_freed_in_between_tries_again(store: FlowRunControlStore, fickle_key: list[int]) -> None:
    """A key taken at the insert and gone at the look-up is tried for again, and won at last."""
    fickle_key[0] = 2
    started = store.start_run(FLOW, "t", "fickle")
    assert not started.duplicate
    assert fickle_key == [0]
    assert store.find_run_id_by_idempotency_key(FLOW, "t", "fickle") == started.run_id


@pytest.mark.contract("S-3", "Z-4")
def test_a_start_gives_up_on_a_key_that_comes_and_goes(
    database: Database, store: FlowRunControlStore, fickle_key: list[int]
) -> None:
    """After three tries the call raises a transient error and has written nothing."""
    fickle_key[0] = 3
    with pytest.raises(KeyContended) as caught:
        store.start_run(FLOW, "t", "fickle")
    assert caught.value.attempts == 3
    assert is_transient(caught.value)
    assert _count(database, "flow_run_controls") == 0
    assert not store.start_run(FLOW, "t", "fickle").duplicate


@pytest.mark.contract("B-4")
def test_batches_that_share_runs_wait_for_each_other_and_do_not_deadlock(
    database: Database, store: FlowRunControlStore
) -> None:
    """Many threads configure the same runs in opposite orders: all succeed, each run has one record."""
    from curfew_store import RunConfiguration

    deadline = datetime.now(UTC) + timedelta(hours=1)
    runs = [RunConfiguration(uuid4(), FLOW, "t", timeout_at_utc=deadline) for _ in range(200)]
    together([partial(store.configure_runs, order) for order in (runs, runs[::-1]) * 6])
    assert _count(database, "flow_run_controls") == 200
