"""The daemon's workers, made from its settings: the links of each, and whom it tells what it did."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Protocol
from uuid import UUID

from curfew_daemon.config import Settings
from curfew_daemon.enforcer import Enforcer, Listener
from curfew_daemon.events import Events
from curfew_daemon.isolation import Isolation
from curfew_daemon.links import make_link
from curfew_daemon.observer import Observer
from curfew_daemon.results import MarkedBatch
from curfew_daemon.scan import LowWaterMark
from curfew_daemon.sweeper import Sweeper
from curfew_store.daemon_sessions import session_name
from curfew_store.schema import tables_in

__all__ = ["Audience", "make_enforcer", "make_observer"]


class Audience(Listener, Protocol):
    """Who hears what the enforcer and its sweeper did."""

    def marked(self, batch: MarkedBatch) -> None:
        """A batch was marked and committed."""

    def refused(self, run_id: UUID, retry_in: float, error: BaseException) -> None:
        """The database refused to mark a run; it is tried again after *retry_in* seconds."""

    def crew_failed(self, error: Exception) -> None:
        """A further connection of a drain gave up; told from a thread of its own."""

    def crew_worked(self) -> None:
        """All further connections of a drain did their part."""


def make_enforcer(
    current: Callable[[], Settings], audience: Audience, events: Events, *, rouse: Callable[[], None]
) -> Enforcer:
    """The enforcer with its sweeper, and with a link for itself and for each of the crew that drains a backlog.

    *current* are the settings in force, *rouse* as in `Enforcer`. Raises `SettingsError` if the database's URL cannot
    be read now.
    """
    settings, tables = current(), tables_in(current().schema_name)
    link = make_link(
        current,
        statement_timeout=settings.statement_timeout,
        on_options_dropped=events.startup_options_dropped,
        beat=audience.beat,
    )
    sweeper = Sweeper(
        tables,
        link.connection,
        batch_size=lambda: current().batch_size,
        on_batch=audience.marked,
        on_progress=lambda: enforcer.progressed(),  # noqa: PLW0108  (made below)
        beat=audience.beat,
        stopping=lambda: enforcer.stopping or link.outdated,
        mark=LowWaterMark(lambda: current().poll_interval),
        crew=[
            make_link(current, statement_timeout=settings.statement_timeout)
            for _ in range(settings.drain_connections - 1)
        ],
        on_crew_failure=audience.crew_failed,
        on_crew_success=audience.crew_worked,
        isolation=Isolation(audience.refused),
    )
    enforcer = Enforcer(
        sweeper,
        link,
        audience,
        poll_interval=lambda: current().poll_interval,
        reconnect_max=lambda: current().reconnect_max,
        reconnect_spread=lambda: current().reconnect_spread,
        rouse=rouse,
    )
    return enforcer


def make_observer(current: Callable[[], Settings], slack: Callable[[], float]) -> Observer:
    """The observer with a link of its own, whose session shows the *slack* of this daemon in its name.

    Raises `SettingsError` as `make_enforcer` does.
    """
    settings = current()
    return Observer(
        tables_in(settings.schema_name),
        # The planner's costs of all parts add up to where PostgreSQL compiles a statement, for longer than it runs.
        make_link(current, statement_timeout=settings.observe_budget, options={"jit": "off"}),
        name=lambda: session_name(settings.instance, version("curfewd"), slack()),
    )
