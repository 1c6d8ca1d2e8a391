"""The listener within the daemon: its links from the settings, and what it tells as metrics and log lines."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

from curfew_daemon.config import Settings
from curfew_daemon.conninfo import read_database_url, read_listen_url, redact
from curfew_daemon.ear import DEAF_REMEDY
from curfew_daemon.events import Events
from curfew_daemon.failures import shown
from curfew_daemon.links import make_link
from curfew_daemon.listener import HintListener
from curfew_daemon.metrics import Metrics
from curfew_daemon.results import HintOutcome, ListenerState
from curfew_daemon.settings_error import SettingsError
from curfew_daemon.wake import observer_pause
from curfew_store.hints import Hint

__all__ = ["Hearing"]

_REMEDIES: Final[Mapping[ListenerState, str]] = {
    ListenerState.SILENT: DEAF_REMEDY,
    ListenerState.UNREACHABLE: "see `error`: it connects again by itself; deadlines nearer than the poll interval are"
    " met within that interval meanwhile",
}
_STOP_WITHIN: Final = 1.0


class Hearing:
    """Listens while the settings say so, and does nothing otherwise; *hinted* is told of each deadline.

    *current* are the settings in force. Raises `SettingsError` if a URL that it needs cannot be read now.
    """

    def __init__(
        self, current: Callable[[], Settings], metrics: Metrics, events: Events, hinted: Callable[[Hint], bool]
    ) -> None:
        self._current = current
        self._metrics = metrics
        self._events = events
        self.hinted = hinted
        self._listener = self._made() if current().listen else None
        if self._listener is None:
            metrics.listener(ListenerState.OFF)

    def _made(self) -> HintListener:
        settings = self._current()
        return HintListener(
            settings.schema_name,
            make_link(self._current, statement_timeout=settings.statement_timeout, read_url=read_listen_url),
            make_link(self._current, statement_timeout=settings.statement_timeout),
            self,
            delay=self._delay,
        )

    def start(self) -> None:
        """Begin to listen."""
        if self._listener is not None:
            self._listener.start()

    def reconnect(self) -> None:
        """Use the settings that are in force now."""
        if self._listener is not None:
            self._listener.reconnect()

    def stop(self) -> None:
        """Stop listening; a thread that is in the middle of connecting is left to end by itself."""
        if self._listener is not None:
            self._listener.stop(_STOP_WITHIN)

    def _delay(self) -> float:
        # Later than the sweep's own connection and as spread as that for the gauges.
        chance = random.random()  # noqa: S311  (spreads reconnects, guards nothing)
        return observer_pause(self._current().reconnect_spread, chance)

    # What the listener tells, from its thread; `hinted` above is handed through.

    def hints_heard(self, outcome: HintOutcome, count: int) -> None:
        """Notifications came to that."""
        self._metrics.hints_heard(outcome, count)

    def listener(self, old: ListenerState | None, new: ListenerState, error: BaseException | None) -> None:
        """The state changed."""
        self._metrics.listener(new)
        said = None if error is None else self._redacted(error)
        self._events.listener(old, new, _REMEDIES.get(new), said)

    def _redacted(self, error: BaseException) -> str:
        said = shown(error)
        for read in (read_listen_url, read_database_url):
            try:
                said = redact(said, read(self._current()))
            except SettingsError:
                continue  # the URL cannot be read, so nothing of it can be in the error
        return said
