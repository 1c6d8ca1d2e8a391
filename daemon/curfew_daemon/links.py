"""Links and connections made from the settings: what every session of the daemon asks of the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from sqlalchemy import Connection

from curfew_daemon.config import Settings
from curfew_daemon.conninfo import connect_attempts, read_database_url
from curfew_daemon.database import Link, bounded_engine
from curfew_daemon.wait_bounds import MARGIN
from curfew_store.schema import tables_in
from curfew_store.version import translated, verify

__all__ = ["make_link", "read_only"]


def make_link(
    current: Callable[[], Settings],
    *,
    statement_timeout: float,
    on_options_dropped: Callable[[list[str]], None] = lambda _names: None,
    beat: Callable[[], None] = lambda: None,
    read_url: Callable[[Settings], str] = read_database_url,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Link:
    """A link for the settings in force; the URL is read again at every connect, and other settings are another epoch.

    Raises `SettingsError` if it cannot be read now. *statement_timeout* is in seconds; *read_url* chooses another of
    the settings' URLs, *options* are server settings on top of those that every session has.
    """
    settings = current()
    attempts = connect_attempts(read_url(settings), os.environ)
    return Link(
        tables_in(settings.schema_name),
        lambda: read_url(current()),
        application_name=f"curfewd {settings.instance}",
        options=_session_options(settings, statement_timeout) | dict(options),
        connect_timeout=settings.connect_timeout,
        longest_dial=attempts * settings.connect_timeout + MARGIN,
        answer_timeout=statement_timeout + MARGIN,
        on_options_dropped=on_options_dropped,
        beat=beat,
        epoch=current,
    )


@contextmanager
def read_only(settings: Settings, url: str, command: str, *, answer_timeout: float) -> Iterator[Connection]:
    """A connection for one *command* that reads: a read-only transaction over tables of the right version.

    Waits *answer_timeout* seconds at most for each answer. Raises what the store raises where the tables do not fit,
    and what the database raises otherwise.
    """
    tables = tables_in(settings.schema_name)
    engine = bounded_engine(
        url,
        application_name=f"curfewd {command} {settings.instance}",
        connect_timeout=settings.connect_timeout,
        answer_timeout=answer_timeout,
    )
    with translated(tables.schema), engine.connect() as plain:
        conn = plain.execution_options(postgresql_readonly=True)
        verify(conn, tables)
        yield conn


def _session_options(settings: Settings, statement_timeout: float) -> dict[str, str]:
    """Server settings for the session. A pooler may drop them; those of the role hold then."""
    return {
        "statement_timeout": str(round(statement_timeout * 1000)),
        "lock_timeout": str(round(min(settings.lock_timeout, statement_timeout) * 1000)),
        "idle_in_transaction_session_timeout": "10000",
        # A daemon that vanished with its network must not hold rows until the server's own keepalives of two hours.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "default_transaction_isolation": "read committed",
        # Every table is named with its schema; nothing of anybody's is found by accident.
        "search_path": "pg_catalog",
    }
