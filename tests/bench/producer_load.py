"""What `producers` measures with: callers of several kinds, on connections of their own, in processes or threads."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkContext
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import create_engine, insert, make_url

from curfew_store import FlowRunControlStore
from curfew_store.schema import tables_in

FLOW: Final = UUID("0c0ffee0-0000-4000-8000-000000000003")
DEADLINE: Final = datetime(2040, 1, 1, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)

Call = Callable[[], object]
Kind = Callable[[str, ExitStack], Call]

_RECORD = (
    "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, idempotency_key, timeout_at_utc) "
    "VALUES (%(run)s, %(flow)s, 'order', %(key)s, %(deadline)s)"
)
_KEY = "INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id) "
_BOTH = f"WITH key AS ({_KEY} VALUES (%(flow)s, 'order', %(key)s, %(run)s)) {_RECORD}"


def _psycopg(statement: str, *, keyed: bool) -> Kind:
    """The driver alone, on a connection in autocommit that is kept."""

    def kind(url: str, stack: ExitStack) -> Call:
        conn = stack.enter_context(psycopg.connect(url, autocommit=True))
        return lambda: conn.execute(
            statement, {"run": uuid4(), "flow": FLOW, "key": uuid4().hex if keyed else None, "deadline": DEADLINE}
        )

    return kind


def _sqlalchemy(url: str, stack: ExitStack) -> Call:
    """A plain INSERT of SQLAlchemy's in autocommit, with a connection from the pool for each."""
    engine = create_engine(alchemy(url), pool_size=1)
    stack.callback(engine.dispose)
    autocommit, statement = engine.execution_options(isolation_level="AUTOCOMMIT"), insert(tables_in("public").controls)

    def call() -> None:
        row = {"run_id": uuid4(), "flow_id": FLOW, "trigger_key": "order", "timeout_at_utc": DEADLINE}
        with autocommit.connect() as conn:
            conn.execute(statement, row)

    return call


def _store(make: Callable[[FlowRunControlStore], Call]) -> Kind:
    def kind(url: str, stack: ExitStack) -> Call:
        engine = create_engine(alchemy(url), pool_size=1)
        stack.callback(engine.dispose)
        return make(FlowRunControlStore(engine))

    return kind


KINDS: Final[dict[str, Kind]] = {
    "psycopg": _psycopg(_RECORD, keyed=False),
    "psycopg, with key": _psycopg(_BOTH, keyed=True),
    "SQLAlchemy": _sqlalchemy,
    "configure_run": _store(lambda store: lambda: store.configure_run(uuid4(), FLOW, "order", None, DEADLINE)),
    "start_run": _store(lambda store: lambda: store.start_run(FLOW, "order", timeout_at_utc=DEADLINE)),
    "start_run, with key": _store(
        lambda store: lambda: store.start_run(FLOW, "order", uuid4().hex, timeout_at_utc=DEADLINE)
    ),
}


def alchemy(url: str) -> Any:
    """The URL for SQLAlchemy of one for psycopg."""
    return make_url(url).set(drivername="postgresql+psycopg")


_FORK: Final[ForkContext] = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class _Worker:
    """One process that calls as fast as it can while it is told to."""

    kind: Kind
    url: str
    ready: Any
    go: Any
    rates: Any
    seconds: float

    def __call__(self) -> None:
        with ExitStack() as stack:
            call = self.kind(self.url, stack)
            for _ in range(10):  # so that the statement is known to the driver and the schema to the store
                call()
            self.ready.release()
            self.go.wait()
            calls, begun = 0, time.monotonic()
            while (passed := time.monotonic() - begun) < self.seconds:
                call()
                calls += 1
            self.rates.put(calls / passed)


def throughput(kind: str, url: str, connections: int, seconds: float) -> float:
    """Calls per second of so many processes with one connection each."""
    ready, go, rates = _FORK.Semaphore(0), _FORK.Event(), _FORK.Queue()
    worker = _Worker(KINDS[kind], url, ready, go, rates, seconds)
    processes = [_FORK.Process(target=worker, daemon=True) for _ in range(connections)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire(timeout=60)
    go.set()
    total = sum(float(rates.get(timeout=60)) for _ in processes)
    for process in processes:
        process.join()
    return total


def contended(calls: Sequence[Callable[[str], object]], keys: Sequence[str]) -> list[float]:
    """Seconds of each call where one thread for each of *calls* goes through the same keys, all at once; sorted."""
    begin = threading.Barrier(len(calls))
    taken: list[float] = []

    def work(call: Callable[[str], object]) -> None:
        call("warm")
        begin.wait()
        mine = []
        for key in keys:
            begun = time.monotonic()
            call(key)
            mine.append(time.monotonic() - begun)
        taken.extend(mine)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(taken)
