"""Purging at its time, through whatever the database does; the body of the purge job.

It is a job of its own with a connection of its own: whatever it meets, a lack of rights above all, marking goes on.
The connection lives for a round, since rounds are far apart.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final, Protocol

from curfew_daemon.database import Link
from curfew_daemon.failures import REMEDIES, state_of
from curfew_daemon.purger import Purger
from curfew_daemon.results import DatabaseState, PurgedSlice, PurgeResult
from curfew_store.schema import Tables

__all__ = ["Listener", "Retention", "remedy_for"]

_LONGEST_PAUSE: Final = 60.0
_SPREAD: Final = 0.1
_STUCK: Final = frozenset({DatabaseState.LOCK_TIMEOUT, DatabaseState.STATEMENT_TIMEOUT})


class Listener(Protocol):
    """Who hears what was purged; the composition root turns it into log lines and metrics."""

    def purged_slice(self, deleted: PurgedSlice) -> None:
        """A statement deleted something and has committed."""

    def purged(self, result: PurgeResult) -> None:
        """A round ended."""

    def purge_failed(self, state: DatabaseState, error: Exception) -> None:
        """A round was interrupted by *error*; it goes on later."""


class Retention:
    """Purges what is *older_than* seconds through *link*, every *interval* seconds; both are asked each time.

    `stop` and `cancel` are for other threads.
    """

    def __init__(
        self,
        tables: Tables,
        link: Link,
        listener: Listener,
        *,
        older_than: Callable[[], float | None],
        interval: Callable[[], float],
    ) -> None:
        self._link = link
        self._listener = listener
        self._interval = interval
        self._stopping = threading.Event()
        self._failures = 0
        self._purger = Purger(
            tables,
            link.connection,
            older_than=older_than,
            on_slice=listener.purged_slice,
            stopping=self._stopping,
        )

    def serve(self) -> float:
        """A round, or what an error leaves of it; returns after how many seconds to serve again. Never raises."""
        try:
            result = self._purger.run_once()
        except Exception as error:  # noqa: BLE001  (marking goes on whatever this was; the listener tells of it)
            return self._failed(error)
        finally:
            self._link.drop()
        self._failures = 0
        self._listener.purged(result)
        # Daemons that were started together drift apart.
        return self._interval() * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311

    def stop(self) -> None:
        """Begin no other statement."""
        self._stopping.set()

    def cancel(self) -> None:
        """Have the server end the statement in hand, which it rolls back; waits a second at most."""
        self._link.cancel()

    def close(self) -> None:
        """Give the connection up; only once nothing serves any more."""
        self._link.close()

    def _failed(self, error: Exception) -> float:
        if self._stopping.is_set():
            return self._interval()  # what a stop cancelled is no failure
        state = state_of(error)
        if state in _STUCK:
            self._purger.skip()
        self._failures += 1
        self._listener.purge_failed(state, error)
        longest = min(_LONGEST_PAUSE, self._interval(), 2.0**self._failures)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  (spreads attempts, guards nothing)


def remedy_for(state: DatabaseState, *, own_url: bool) -> str:
    """What to do about a purge that the database stopped; *own_url*: it has a URL of its own."""
    if state is DatabaseState.DENIED:
        return (
            "let CURFEW_PURGE_URL name a role that may delete (deploy/postgres/roles.sql makes one), or unset "
            "CURFEW_RETENTION"
        )
    remedy = REMEDIES[state]
    return remedy.replace("CURFEW_DATABASE_URL", "CURFEW_PURGE_URL") if own_url else remedy
