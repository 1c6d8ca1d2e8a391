"""Further connections that mark a deep backlog beside the sweep's own.

Each goes through the backlog by itself: SKIP LOCKED shares the runs out, as it does among daemons. They are dialled
when the backlog proves deep and given up when it is gone, so an ordinary day costs no connection. None of them
decides when a drain is over, and one that fails leaves its part to the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, Protocol

from sqlalchemy import Connection

from curfew_daemon.passes import Claims, Tally

__all__ = ["DEEP", "LONGEST_WAIT", "Crew", "CrewLink"]

DEEP: Final = 5_000
"""Runs that a pass must have marked, with its batches still full, before help is called.

A connection costs the server a process; the sweep alone marks so many in the time that one takes to be made.
"""

LONGEST_WAIT: Final = 0.5
"""Seconds that a sweep waits for the batches in hand of its crew; their limit is that of any statement."""

_BEAT_EVERY: Final = 0.1


class CrewLink(Protocol):
    """The part of `database.Link` that a crew uses."""

    def connection(self) -> Connection:
        """A live connection in autocommit."""

    def drop(self) -> None:
        """Give it up."""

    def cancel(self) -> None:
        """End its statement in hand."""


class _Worker:
    """One connection and the thread that uses it; a thread for each backlog."""

    def __init__(self, link: CrewLink) -> None:
        self.link = link
        self.tally = Tally()
        self.thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Crew:
    """Helps one sweeper; every method but `cancel` is for the thread of the sweep.

    *on_failure* is told, from the thread of the connection, why one gave up.
    """

    def __init__(
        self, links: Sequence[CrewLink], claims: Claims, on_failure: Callable[[Exception], None] = lambda _error: None
    ) -> None:
        self._workers = [_Worker(link) for link in links]
        self._claims = claims
        self._on_failure = on_failure

    def call(self, since: datetime | None) -> None:
        """Have every connection that is not at it already go through what is overdue from *since* on."""
        for number, worker in enumerate(self._workers):
            if worker.thread is None:
                worker.thread = threading.Thread(
                    target=self._work, args=(worker, since), name=f"curfewd-crew-{number}", daemon=True
                )
                try:
                    worker.thread.start()
                except RuntimeError as error:  # no thread left; the sweep marks it all by itself
                    worker.thread = None
                    self._on_failure(error)

    def finish(self, beat: Callable[[], None]) -> Tally:
        """Wait for what they have in hand, at most `LONGEST_WAIT` seconds, and return what has been done by now.

        What a slow one does later is in the tally of the next time. *beat* is called meanwhile.
        """
        done = Tally()
        give_up = time.monotonic() + LONGEST_WAIT
        for worker in self._workers:
            while worker.thread is not None and worker.busy and time.monotonic() < give_up:
                worker.thread.join(_BEAT_EVERY)
                beat()
            if worker.thread is not None and not worker.busy:
                worker.thread = None
                done.merge(worker.tally)
                worker.tally = Tally()
        return done

    def cancel(self) -> None:
        """Have the server end the statements in hand; for any thread, waits a second for each at most."""
        for worker in self._workers:
            if worker.busy:
                worker.link.cancel()

    def _work(self, worker: _Worker, since: datetime | None) -> None:
        try:
            self._claims.one_pass(worker.link.connection(), worker.tally, since)
        except Exception as error:  # noqa: BLE001  (the sweep's own connection finds out what it means)
            self._on_failure(error)
        finally:
            worker.link.drop()
