"""Stepping through what several sessions do at once: who waits for whom, and threads that start together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

from tests.patience import PATIENCE

T = TypeVar("T")


def eventually(holds: Callable[[], Any], what: str) -> None:
    """Return as soon as *holds* answers yes; fails with *what* if it never does."""
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, f"never happened: {what}"
        time.sleep(0.005)


class Onlooker:
    """A superuser's session that watches the others through the server's own views."""

    def __init__(self, conninfo: str) -> None:
        self._conn = psycopg.connect(conninfo, autocommit=True)

    def close(self) -> None:
        """Close the session."""
        self._conn.close()

    def ask(self, sql: str, *parameters: Any) -> Any:
        """The first value that a statement answers."""
        row = self._conn.execute(sql, parameters).fetchone()
        return None if row is None else row[0]

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """All rows of a statement, or none for one that returns nothing."""
        cursor = self._conn.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []

    def await_blocked(self, pid: int) -> None:
        """Return once the session *pid* waits for a lock."""
        eventually(lambda: self.ask("SELECT cardinality(pg_blocking_pids(%s)) > 0", pid), f"{pid} waits for a lock")

    def await_waiters(self, count: int) -> None:
        """Return once *count* sessions of this database wait for locks."""
        eventually(
            lambda: (
                self.ask(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND wait_event_type = 'Lock'"
                )
                == count
            ),
            f"{count} sessions wait for locks",
        )

    def terminate(self, pid: int) -> None:
        """End a backend and return once it has gone."""
        self.ask("SELECT pg_terminate_backend(%s)", pid)
        eventually(lambda: not self.ask("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid), "it ends")


@contextmanager
def onlooker(conninfo: str) -> Iterator[Onlooker]:
    """An `Onlooker` for the length of a block."""
    session = Onlooker(conninfo)
    try:
        yield session
    finally:
        session.close()


@contextmanager
def in_background(work: Callable[[], T]) -> Iterator[Future[T]]:
    """Run *work* in a thread; the block ends when the thread has ended."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def together(works: Sequence[Callable[[], T]]) -> list[T]:
    """Run all *works* at once, each in a thread of its own, released by a barrier; their results in order."""
    barrier = threading.Barrier(len(works))

    def released(work: Callable[[], T]) -> T:
        barrier.wait(PATIENCE)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(released, work) for work in works]]
