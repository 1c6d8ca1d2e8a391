"""Further connections that mark a deep backlog beside the sweep's own.

Each goes through the backlog by itself: SKIP LOCKED shares the runs out, as it does among daemons. They are dialled
when the backlog proves deep and given up when it is gone, so an ordinary day costs no connection. None of them
decides when a drain is over, and one that fails leaves its part to the others.
"""

from __future__ import annotations

import contextlib
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
_CANCELLED_WITHIN: Final = 1.0


class CrewLink(Protocol):
    """The part of `database.Link` that a crew uses."""

    def connection(self) -> Connection:
        """A live connection in autocommit."""

    @property
    def outdated(self) -> bool:
        """Whether the settings that it was made with have changed."""

    def drop(self) -> None:
        """Give it up."""

    def cancel(self) -> None:
        """End its statement in hand; waits about a second at most."""

    def close(self) -> None:
        """Give it up for good."""


class _Worker:
    """One connection and the thread that uses it; a thread for each backlog."""

    def __init__(self, link: CrewLink) -> None:
        self.link = link
        self.tally = Tally()
        self.failed = False
        self.thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        thread = self.thread  # the sweep's thread may take it away meanwhile
        return thread is not None and thread.is_alive()


class Crew:
    """Helps one sweeper; `call` and `finish` are for the thread of the sweep.

    *on_failure* is told, from the thread of the connection, why one gave up; *on_success*, from the sweep's, that all
    have ended and none gave up.
    """

    def __init__(
        self,
        links: Sequence[CrewLink],
        claims: Claims,
        on_failure: Callable[[Exception], None] = lambda _error: None,
        on_success: Callable[[], None] = lambda: None,
    ) -> None:
        self._workers = [_Worker(link) for link in links]
        self._claims = claims
        self._on_failure = on_failure
        self._on_success = on_success
        self._called = False

    def call(self, since: datetime | None) -> None:
        """Have every connection that is not at it already go through what is overdue from *since* on."""
        for number, worker in enumerate(self._workers):
            if worker.thread is None:
                self._called, worker.failed = True, False
                worker.thread = threading.Thread(
                    target=self._work, args=(worker, since), name=f"curfewd-crew-{number}", daemon=True
                )
                try:
                    worker.thread.start()
                except RuntimeError as error:  # no thread left; the sweep marks it all by itself
                    worker.thread = None
                    worker.failed = True
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
        if self._called and all(worker.thread is None for worker in self._workers):
            self._called = False
            if not any(worker.failed for worker in self._workers):
                self._on_success()
        return done

    def ends_within(self, seconds: float, beat: Callable[[], None]) -> bool:
        """Wait for what they have in hand, *seconds* for all together; whether none is at it any more.

        For any thread, once nobody calls any more. *beat* is called meanwhile.
        """
        give_up = time.monotonic() + seconds
        for worker in self._workers:
            while worker.thread is not None and worker.busy and (left := give_up - time.monotonic()) > 0:
                worker.thread.join(min(left, _BEAT_EVERY))
                beat()
        return not any(worker.busy for worker in self._workers)

    def cancel(self) -> None:
        """Have the server end the statements in hand, all at once; for any thread, waits a second at most."""
        threads = [
            threading.Thread(target=worker.link.cancel, name="curfewd-cancel", daemon=True)
            for worker in self._workers
            if worker.busy
        ]
        give_up = time.monotonic() + _CANCELLED_WITHIN
        with contextlib.suppress(RuntimeError):  # no thread left
            for thread in threads:
                thread.start()
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, give_up - time.monotonic()))

    def close(self) -> None:
        """Give the connections up; only once none is at it any more."""
        for worker in self._workers:
            worker.link.close()

    def _work(self, worker: _Worker, since: datetime | None) -> None:
        try:
            conn = worker.link.connection()
            self._claims.one_pass(conn, worker.tally, since, cut_short=lambda: worker.link.outdated)
        except Exception as error:  # noqa: BLE001  (the sweep's own connection finds out what it means)
            worker.failed = True
            self._on_failure(error)
        finally:
            worker.link.drop()
