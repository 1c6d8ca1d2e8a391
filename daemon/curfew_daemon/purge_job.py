"""The purge as a job of the daemon: its link from the settings, and what it does as metrics and log lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from curfew_daemon.config import Settings
from curfew_daemon.conninfo import has_purge_url, read_purge_url, redact
from curfew_daemon.database import Link
from curfew_daemon.events import Events
from curfew_daemon.failures import shown
from curfew_daemon.links import make_link
from curfew_daemon.metrics import Metrics
from curfew_daemon.results import DatabaseState, PurgedSlice, PurgeResult
from curfew_daemon.retention import Retention, remedy_for
from curfew_daemon.settings_error import SettingsError
from curfew_store.schema import tables_in

__all__ = ["PurgeJob", "purge_link"]

_NOT_YET: Final = 1.0
_OPTIONS: Final = {
    # What a crash of the server takes back is deleted again by the next round, and each commit that need not wait for
    # the disk leaves it to those that must: the marks and the producers.
    "synchronous_commit": "off"
}


def purge_link(current: Callable[[], Settings]) -> Link:
    """A link as whoever may delete. Raises `SettingsError` if its URL cannot be read now."""
    return make_link(current, statement_timeout=current().statement_timeout, read_url=read_purge_url, options=_OPTIONS)


class PurgeJob:
    """Runs rounds while the settings want them and *may_run* says yes; *current* are the settings in force."""

    def __init__(
        self, current: Callable[[], Settings], metrics: Metrics, events: Events, *, may_run: Callable[[], bool]
    ) -> None:
        self._current = current
        self._metrics = metrics
        self._events = events
        self._may_run = may_run
        self._retention = Retention(
            tables_in(current().schema_name),
            purge_link(current),
            self,
            older_than=lambda: current().retention,
            interval=lambda: current().purge_interval,
        )
        self.stop = self._retention.stop
        self.cancel = self._retention.cancel
        self.close = self._retention.close

    def run(self) -> float:
        """One round, if it is time for one; returns the seconds until the next."""
        settings = self._current()
        self._metrics.retention(settings.retention)
        if settings.retention is None:
            return settings.purge_interval
        return self._retention.serve() if self._may_run() else _NOT_YET

    def purged_slice(self, deleted: PurgedSlice) -> None:
        """A statement deleted something."""
        self._metrics.purged_slice(deleted)

    def purged(self, result: PurgeResult) -> None:
        """A round ended."""
        self._metrics.purged(result)
        self._events.purged(result)

    def purge_failed(self, state: DatabaseState, error: Exception) -> None:
        """A round was interrupted."""
        settings = self._current()
        self._metrics.purge_failed()
        self._events.purge_failed(state, _redacted(error, settings), remedy_for(state, own_url=has_purge_url(settings)))


def _redacted(error: Exception, settings: Settings) -> str:
    try:
        return redact(shown(error), read_purge_url(settings))
    except SettingsError:
        return shown(error)  # the URL cannot be read, so nothing of it can be in the error
