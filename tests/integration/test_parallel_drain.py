"""A deep backlog is marked by several connections: each run once, whatever becomes of the further ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

from curfew_daemon import crew as crew_module
from curfew_daemon import passes
from curfew_daemon.results import MarkedBatch
from curfew_daemon.sweeper import Sweeper
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration.contract.rows import Rows
from tests.integration.sessions import eventually

TABLES = tables_in("public")
CREW = 2


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """Connections as the daemon's: autocommit, no pool."""
    engine = create_engine(database.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten runs are a deep backlog, and batches begin with two."""
    monkeypatch.setattr("curfew_daemon.sweeper.DEEP", 10)
    monkeypatch.setattr(passes, "FIRST_BATCH", 2)


class Link:
    """A connection of the crew; *on_connect* runs in its thread before it is made."""

    def __init__(self, engine: Engine, on_connect: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._on_connect = on_connect
        self._connection: Connection | None = None
        self.connects = 0
        self.cancelled = 0
        self.outdated = False
        self.closed = False
        self.on_cancel: Callable[[], None] = lambda: None

    def connection(self) -> Connection:
        self.connects += 1
        self._on_connect()
        self._connection = self._engine.connect()
        return self._connection

    def drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cancel(self) -> None:
        self.cancelled += 1
        self.on_cancel()

    def close(self) -> None:
        self.closed = True
        self.drop()

    @property
    def open(self) -> bool:
        return self._connection is not None


class Sweep:
    """A sweeper with a crew, and what it told."""

    def __init__(self, engine: Engine, links: list[Link], most: int = 2) -> None:
        self.marked: list[UUID] = []
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.failures: list[Exception] = []
        self.successes: list[int] = []  # how many had failed by then
        self.beats = 0
        self.stopping = False
        self.on_batch: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self.connection = engine.connect()
        self.sweeper = Sweeper(
            TABLES,
            lambda: self.connection,
            batch_size=lambda: most,
            on_batch=self._batch,
            beat=self._beat,
            stopping=lambda: self.stopping,
            crew=links,
            on_crew_failure=self.failures.append,
            on_crew_success=lambda: self.successes.append(len(self.failures)),
        )

    def _beat(self) -> None:
        self.beats += 1

    def _batch(self, batch: MarkedBatch) -> None:
        with self._lock:
            self.marked += [run.run_id for run in batch.runs]
            self.batches.append(len(batch.runs))
            self.threads.add(threading.current_thread().name)
        self.on_batch()


@pytest.fixture
def sweep(engine: Engine) -> Iterator[Callable[..., Sweep]]:
    """Makes sweepers and closes their connections."""
    made: list[Sweep] = []

    def make(links: list[Link], most: int = 2) -> Sweep:
        made.append(Sweep(engine, links, most))
        return made[-1]

    yield make
    for each in made:
        each.connection.close()


def fill(rows: Rows, count: int, since: str = "now() - interval '1 hour'") -> None:
    """So many overdue runs at once; what lies behind the mark of an earlier sweep waits for a full look."""
    rows.sql(
        f"INSERT INTO flow_run_controls (run_id, timeout_at_utc) SELECT gen_random_uuid(), {since} "
        f"+ n * interval '1 us' FROM generate_series(1, {count}) n"
    )


def unmarked(rows: Rows) -> int:
    return int(rows.sql("SELECT count(*) FROM flow_run_controls WHERE timed_out_at_utc IS NULL")[0][0])


def crew_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("curfewd-crew")]


def test_a_deep_backlog_is_shared_and_each_run_marked_once(
    rows: Rows, engine: Engine, sweep: Callable[..., Sweep]
) -> None:
    """Every connection marks a part, the result counts them all, and afterwards only the sweep's own is open."""
    fill(rows, 600)
    links = [Link(engine) for _ in range(CREW)]
    one = sweep(links)
    joined = threading.Event()

    def wait_for_the_crew() -> None:
        if threading.current_thread().name.startswith("curfewd-crew"):
            joined.set()
        elif len(one.marked) > 20:
            assert joined.wait(30), "nobody helps"

    one.on_batch = wait_for_the_crew
    result = one.sweeper.run_once("deadline")

    assert (result.marked, result.batches) == (600, len(one.batches))
    assert (len(one.marked), len(set(one.marked)), unmarked(rows)) == (600, 600, 0)
    assert len(one.threads) > 1
    assert result.overdue_remains is False
    assert result.lag_max is not None
    assert not crew_threads()
    assert not any(link.open for link in links)
    assert one.failures == []
    fill(rows, 100, "now()")
    assert one.sweeper.run_once("deadline").marked == 100


def test_a_shallow_backlog_takes_no_further_connection(rows: Rows, engine: Engine, sweep: Callable[..., Sweep]) -> None:
    """Help is called when the runs of one pass pass the bound with its batches still full, and not before."""
    fill(rows, 9)
    links = [Link(engine)]
    assert sweep(links).sweeper.run_once("deadline").marked == 9
    assert links[0].connects == 0


def test_a_connection_that_fails_leaves_its_part_to_the_others(
    rows: Rows, engine: Engine, sweep: Callable[..., Sweep]
) -> None:
    """A server that has no connection to spare is told of, and the sweep marks everything all the same."""
    fill(rows, 100)

    def refuse() -> None:
        raise ConnectionError("too many connections")

    one = sweep([Link(engine, refuse)])
    assert one.sweeper.run_once("deadline").marked == 100
    assert unmarked(rows) == 0
    assert {str(error) for error in one.failures} == {"too many connections"}
    assert one.successes == []


def test_a_crew_that_works_again_is_told(rows: Rows, engine: Engine, sweep: Callable[..., Sweep]) -> None:
    """Once for all of it, when none of the connections that were called has failed."""
    lack = ["too many connections"]

    def refuse() -> None:
        if lack:
            raise ConnectionError(*lack)

    one = sweep([Link(engine), Link(engine, refuse)])
    fill(rows, 100)
    one.sweeper.run_once("deadline")
    failures = len(one.failures)
    assert (failures > 0, one.successes) == (True, [])
    lack.clear()
    fill(rows, 100, "now()")
    one.sweeper.run_once("deadline")
    assert set(one.successes) == {failures}


def test_the_end_waits_for_what_the_crew_has_in_hand(
    rows: Rows, engine: Engine, sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep may end before its crew; the wait beats, is bounded, and says whether the connections may be closed."""
    monkeypatch.setattr(crew_module, "LONGEST_WAIT", 0.01)
    fill(rows, 100)
    freed = threading.Event()
    links = [Link(engine, lambda: assert_set(freed)) for _ in range(CREW)]
    one = sweep(links)
    try:
        assert one.sweeper.run_once("deadline").marked == 100
        beats = one.beats
        assert not one.sweeper.crew_ends_within(0.2)
        assert one.beats > beats
        assert not one.sweeper.crew_ends_within(0.0)
    finally:
        freed.set()
    assert one.sweeper.crew_ends_within(30)
    assert not crew_threads()
    one.sweeper.close()
    assert all(link.closed for link in links)


def test_a_connection_of_former_settings_ends_its_part(
    rows: Rows, engine: Engine, sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the batch in hand it marks no more; the next backlog finds it with the new ones."""
    monkeypatch.setattr(crew_module, "LONGEST_WAIT", 30.0)
    fill(rows, 60)
    link = Link(engine)
    link.outdated = True
    one = sweep([link])
    helped: list[str] = []

    def batch() -> None:
        if (name := threading.current_thread().name).startswith("curfewd-crew"):
            helped.append(name)
        elif one.batches[3:]:
            eventually(lambda: helped or not crew_threads(), "it has had its turn")

    one.on_batch = batch
    assert one.sweeper.run_once("deadline").marked == 60
    assert (link.connects, len(helped)) == (1, 1)


def test_a_crew_is_cancelled_all_at_once(
    rows: Rows, engine: Engine, sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many connections, the cancelling takes the time of one, and no longer than its bound if one hangs."""
    monkeypatch.setattr(crew_module, "LONGEST_WAIT", 0.01)
    monkeypatch.setattr(crew_module, "_CANCELLED_WITHIN", 20.0)
    fill(rows, 100)
    freed, together = threading.Event(), threading.Barrier(15)
    links = [Link(engine, lambda: assert_set(freed)) for _ in range(15)]

    def cancel_with_the_others() -> None:
        together.wait(20)

    for link in links:
        link.on_cancel = cancel_with_the_others
    one = sweep(links)
    try:
        one.sweeper.run_once("deadline")
        one.sweeper.cancel()
        assert not together.broken
        assert [link.cancelled for link in links] == [1] * 15
        monkeypatch.setattr(crew_module, "_CANCELLED_WITHIN", 0.01)
        for link in links:
            link.on_cancel = lambda: assert_set(freed)
        one.sweeper.cancel()
        assert not freed.is_set()
    finally:
        freed.set()
    assert one.sweeper.crew_ends_within(30)


def test_a_connection_that_hangs_holds_nothing_up(
    rows: Rows, engine: Engine, sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep goes on without it, beating, asks it once and not again, and takes what it did into the next result."""
    monkeypatch.setattr(crew_module, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(crew_module, "_BEAT_EVERY", 0.01)
    fill(rows, 100)
    freed = threading.Event()
    link = Link(engine, lambda: assert_set(freed))
    one = sweep([link])
    try:
        assert one.sweeper.run_once("deadline").marked == 100
        beats = one.beats
        fill(rows, 50, "now()")
        assert one.sweeper.run_once("deadline").marked == 50
        assert one.beats > beats
        assert link.connects == 1
        one.sweeper.cancel()
        assert link.cancelled == 1
    finally:
        freed.set()
    eventually(lambda: not crew_threads(), "the connection has come and found nothing left")
    rows.insert(timeout_at_utc="now()")
    assert one.sweeper.run_once("deadline").marked == 1
    assert unmarked(rows) == 0
    one.sweeper.cancel()
    assert link.cancelled == 1


def assert_set(event: threading.Event) -> None:
    """Wait for the event, and fail where it does not come."""
    assert event.wait(30)


def test_a_stop_ends_every_connections_part_between_two_batches(
    rows: Rows, engine: Engine, sweep: Callable[..., Sweep]
) -> None:
    """The batches in hand are whole, no further ones begin, and what remains is said."""
    fill(rows, 400)
    one = sweep([Link(engine) for _ in range(CREW)])

    def stop() -> None:
        if len(one.marked) >= 30:
            one.stopping = True

    one.on_batch = stop
    result = one.sweeper.run_once("deadline")
    assert 30 <= result.marked < 60
    assert unmarked(rows) == 400 - result.marked
    assert result.overdue_remains
    assert not crew_threads()


def test_batches_grow_up_to_the_most_that_is_set(rows: Rows, engine: Engine, sweep: Callable[..., Sweep]) -> None:
    """Each full batch of a pass doubles the next one; the further pass begins small again."""
    fill(rows, 40)
    one = sweep([], most=10)
    assert one.sweeper.run_once("deadline").marked == 40
    assert one.batches == [2, 4, 8, 10, 10, 6]
