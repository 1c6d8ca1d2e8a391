"""``curfewd purge``: one round, for cron, or a count of what one would delete."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from curfew_daemon.config import Settings
from curfew_daemon.conninfo import read_purge_url
from curfew_daemon.links import read_only
from curfew_daemon.purge_job import purge_link
from curfew_daemon.purger import Purger
from curfew_daemon.results import PurgeResult
from curfew_store.retention import count_old
from curfew_store.schema import tables_in

__all__ = ["TURN_WAIT", "counted", "purge_until_done"]

TURN_WAIT: Final = 60.0
"""Seconds to wait for the turn while another purge of the schema has it."""

_ANSWER_TIMEOUT: Final = 600.0


def purge_until_done(settings: Settings, older_than: timedelta, *, patience: float = TURN_WAIT) -> PurgeResult:
    """Delete what is *older_than*, at the pace of the daemon's rounds and in turn with them.

    The outcome is ``aside`` where another purge did not let it in for *patience* seconds. Raises what the database
    raises: this is for cron, which tries again by itself.
    """
    link = purge_link(lambda: settings)
    try:
        return Purger(
            tables_in(settings.schema_name),
            link.connection,
            older_than=older_than.total_seconds,
            patience=patience,
        ).run_once()
    finally:
        link.close()


def counted(settings: Settings, older_than: timedelta) -> tuple[int, int]:
    """How many ended runs and orphaned keys are *older_than*; in a read-only transaction that reads both tables."""
    tables = tables_in(settings.schema_name)
    with read_only(settings, read_purge_url(settings), "purge", answer_timeout=_ANSWER_TIMEOUT) as conn:
        return count_old(conn, tables, older_than=older_than)
