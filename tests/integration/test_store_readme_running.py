"""The producer's guide: what a worker does with a run, and what is done about timeouts, failures and lost races."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy import Connection, event

from curfew_store import (
    FlowRunControlStore,
    InvalidValue,
    RunCancelled,
    RunCompleted,
    RunState,
    RunStopped,
    RunTimedOut,
    StartedRun,
)
from tests.conftest import Database
from tests.integration import readme_snippets
from tests.integration.readme_snippets import ORDERS, RUNS, Readme, claims

readme = readme_snippets.readme
HOUR = timedelta(hours=1)


@claims("worker")
def test_a_worker_stops_where_it_should(readme: Readme) -> None:
    """Steps renew the lease until the run is cancelled, times out or is completed; nothing runs after that."""
    stopped: list[RunStopped] = []
    done: list[object] = []
    readme.run("trigger")
    store: FlowRunControlStore = readme["store"]
    readme.run("worker", clean_up=stopped.append, finish=store.complete_run)

    def work(ending: Callable[[UUID], object], timeout: timedelta | None = timedelta(minutes=1)) -> tuple[UUID, bool]:
        run_id = store.start_run(readme["FLOW"], "order", timeout=timeout).run_id
        done.clear()
        steps = [lambda: done.append(ending(run_id)), lambda: done.append("second")]
        return run_id, readme["work"](run_id, steps)

    run_id, finished = work(lambda _run_id: "first")
    assert (finished, done, stopped) == (True, ["first", "second"], [])
    [[lease]] = readme.sql("SELECT timeout_at_utc - created_at_utc FROM flow_run_controls")
    assert timedelta(minutes=5) <= lease < timedelta(minutes=6)
    _, finished = work(lambda _run_id: "first", timeout=None)
    assert (finished, stopped) == (True, []), "nothing is renewed where there is no deadline, and nothing stops the run"

    endings: list[tuple[type[RunStopped], Callable[[UUID], object]]] = [
        (RunCancelled, lambda run_id: store.request_cancel(run_id, "enough")),
        (RunTimedOut, readme.make_overdue),
        (RunCompleted, store.complete_run),
    ]
    for error, ending in endings:
        run_id, finished = work(ending)
        assert (finished, len(done)) == (False, 1)
        assert type(stopped[-1]) is error
        assert stopped[-1].run_id == stopped[-1].record.run_id == run_id
    assert "enough" in str(stopped[0])
    assert len(stopped) == 3


@claims("finish")
def test_result_and_completion_stand_or_fall_together(readme: Readme) -> None:
    """A result is written with the completion, not after a timeout, not twice, and a failure undoes both."""
    readme.sql("CREATE TABLE results (run_id uuid PRIMARY KEY, total integer NOT NULL)")
    readme.run("trigger", "finish", total_of=lambda _run_id: 17)
    store: FlowRunControlStore = readme["store"]
    good, late, broken = (store.start_run(readme["FLOW"], "order", timeout=HOUR).run_id for _ in range(3))
    assert readme["finish"](good) is True
    assert readme["finish"](good) is True, "an earlier attempt committed"
    store.mark_timed_out(late)
    assert readme["finish"](late) is False
    assert readme["finish"](uuid4()) is False
    readme.names["total_of"] = lambda _run_id: None
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        readme["finish"](broken)
    assert readme.sql("SELECT run_id, total FROM results") == [(good, 17)]
    assert store.ensure_may_run(broken) is not None


@claims("poll", "timed-out-since")
def test_a_timeout_can_be_seen(readme: Readme, capsys: pytest.CaptureFixture[str]) -> None:
    """The record and plain SQL show the runs that were marked, and nothing of the others."""
    readme.run("trigger")
    store: FlowRunControlStore = readme["store"]
    late, live, before = (store.start_run(readme["FLOW"], "order", timeout=HOUR).run_id for _ in range(3))
    store.mark_timed_out(before)
    readme.sql("UPDATE flow_run_controls SET timed_out_at_utc = now() - interval '2 hours' WHERE run_id = :r", r=before)
    store.mark_timed_out(late, "too slow")
    readme.run("poll", run_id=live)
    assert capsys.readouterr().out == ""
    readme.run("poll", run_id=late)
    record = store.get_run_control(late)
    assert record is not None
    assert capsys.readouterr().out == f"timed out at {record.timed_out_at_utc}: too slow\n"
    expected = (late, readme["FLOW"], record.timeout_at_utc, record.timed_out_at_utc, "too slow")
    assert readme.sql(readme.source("timed-out-since")) == [expected]


@claims("compensations-table", "compensation")
def test_each_timeout_is_compensated_once(readme: Readme) -> None:
    """A timeout is handled once, a failed compensation is tried again, and a second timeout of the run counts anew."""
    readme.sql(readme.source("compensations-table"))
    released: list[UUID] = []

    def release_stock(run_id: UUID, connection: Connection) -> None:
        assert connection.in_transaction()
        released.append(run_id)
        if len(released) == 1:
            raise ConnectionError("the stock is not to be reached")

    readme.run("trigger", "compensation", release_stock=release_stock)
    store: FlowRunControlStore = readme["store"]
    late, older, _live = (store.start_run(readme["FLOW"], "order", timeout=HOUR).run_id for _ in range(3))
    store.mark_timed_out(late)
    store.mark_timed_out(older)
    readme.sql("UPDATE flow_run_controls SET timed_out_at_utc = now() - interval '2 hours' WHERE run_id = :r", r=older)
    since = datetime.now(UTC) - HOUR
    with pytest.raises(ConnectionError):
        readme["compensate"](since)
    assert [readme["compensate"](since), readme["compensate"](since)] == [[late], []]
    assert store.reopen_run(late)
    assert store.mark_timed_out(late)
    assert readme["compensate"](since) == [late]
    assert readme["compensate"](since - 2 * HOUR) == [older]


@claims("retries")
def test_transient_errors_are_retried_and_others_are_not(readme: Readme) -> None:
    """A connection that the server has closed costs one more attempt; an invalid value is raised at once."""
    readme.run("trigger", "retries")
    store: FlowRunControlStore = readme["store"]
    run_id = store.start_run(readme["FLOW"], "order").run_id
    readme.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    attempts: list[str | None] = []

    def cancel(reason: str | None) -> bool:
        attempts.append(reason)
        return store.request_cancel(run_id, reason)

    assert readme["with_retries"](lambda: cancel("enough")) is True
    assert attempts == ["enough", "enough"]
    assert readme.sql("SELECT cancel_reason FROM flow_run_controls") == [("enough",)]

    attempts.clear()
    with pytest.raises(InvalidValue):
        readme["with_retries"](lambda: cancel("\x00"))
    assert len(attempts) == 1

    def lost() -> None:
        attempts.append(None)
        raise psycopg.OperationalError("the server has gone")

    attempts.clear()
    with pytest.raises(psycopg.OperationalError):
        readme["with_retries"](lost, attempts=2)
    assert len(attempts) == 2


@claims("unknown-outcome")
def test_a_start_whose_answer_was_lost_is_dispatched(readme: Readme, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated start recognises its own committed attempt and dispatches it, but not the run of another request."""
    dispatched: list[UUID] = []
    readme.run("trigger", "retries", "unknown-outcome", dispatch=dispatched.append)
    start = readme["store"].start_run
    answers: list[StartedRun] = []

    def start_and_lose_the_first_answer(*args: Any, **kwargs: Any) -> StartedRun:
        answers.append(start(*args, **kwargs))
        if len(answers) == 1:
            raise psycopg.OperationalError("the connection broke while it committed")
        return answers[-1]

    monkeypatch.setattr(readme["store"], "start_run", start_and_lose_the_first_answer)
    run_id = readme["trigger_with_retries"]("order-17")
    assert [answer.duplicate for answer in answers] == [False, True]
    assert readme["trigger_with_retries"]("order-17") == run_id
    assert dispatched == [run_id]
    assert readme.sql(RUNS) == [(run_id,)]


@claims("isolation")
def test_a_lost_race_repeats_the_transaction(readme: Readme, database: Database) -> None:
    """An extension that commits after the snapshot costs one more transaction, which completes the run."""
    readme.sql(ORDERS)
    readme.run("trigger", "retries")
    run_id = readme["store"].start_run(readme["FLOW"], "order", timeout=HOUR).run_id
    readme.sql("INSERT INTO orders VALUES (:r, 'book', true)", r=run_id)
    rival = FlowRunControlStore(database.engine)
    sent: list[str] = []

    @event.listens_for(readme["engine"], "before_cursor_execute")
    def interfere(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("UPDATE"):
            if not sent:
                rival.extend_deadline(run_id, timeout=2 * HOUR)
            sent.append(statement)

    readme.run("isolation", run_id=run_id)
    assert readme["closed"] is True
    assert len(sent) == 2
    record = rival.get_run_control(run_id)
    assert record is not None
    assert record.state is RunState.COMPLETED
