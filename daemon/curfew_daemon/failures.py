"""What an error says about the database, and what to do about it.

Errors of an established connection carry a SQLSTATE, and that decides. A refused connection carries none
(libpq does not pass it on), so the server's English words decide there; with other words the state is
``unreachable``, which is retried all the same, and the words are logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import psycopg
import sqlalchemy.exc

from curfew_daemon.lifecycle import Exit
from curfew_daemon.results import DatabaseState
from curfew_daemon.settings_error import SettingsError
from curfew_store.errors import SchemaMismatch, sqlstate_of

__all__ = ["REMEDIES", "DatabaseRefusal", "blames_a_row", "exit_of", "is_database_error", "shown", "state_of"]


class DatabaseRefusal(Exception):
    """The server answered, and must not be enforced on."""

    def __init__(self, state: DatabaseState, message: str) -> None:
        self.state = state
        super().__init__(message)


REMEDIES: Final[Mapping[DatabaseState, str]] = {
    DatabaseState.UP: "",
    DatabaseState.STARTING: "nothing to do: the server is starting or recovering",
    DatabaseState.UNREACHABLE: "check that the server runs and that its address in CURFEW_DATABASE_URL is right",
    DatabaseState.STANDBY: "name the primary in CURFEW_DATABASE_URL, or list all hosts of the cluster",
    DatabaseState.READ_ONLY: "find out why transactions are read-only (default_transaction_read_only, a failover)",
    DatabaseState.AUTHENTICATION: "check user, password, database and pg_hba.conf; a password file is read again by "
    "itself",
    DatabaseState.TOO_MANY_CONNECTIONS: "raise max_connections or the role's limit, or find who holds the connections",
    DatabaseState.SHUTTING_DOWN: "nothing to do: the server was stopped or the session was terminated",
    DatabaseState.DISK_FULL: "free disk space for the database",
    DatabaseState.SCHEMA_MISSING: "run `curfewd migrate`; this daemon goes on by itself afterwards",
    DatabaseState.SCHEMA_OLD: "run `curfewd migrate` of this release, or upgrade curfewd where the error asks for it; "
    "this daemon goes on by itself afterwards",
    DatabaseState.UPSTREAM_ENGINE: "see `curfewd plan`; enforce on a schema without FlowOrchestrator's engine",
    DatabaseState.LOCK_TIMEOUT: "find who locks the table (pg_locks): DDL, LOCK TABLE or VACUUM FULL",
    DatabaseState.STATEMENT_TIMEOUT: "look at the server's load; CURFEW_STATEMENT_TIMEOUT bounds a statement",
    DatabaseState.DENIED: "grant the daemon's role USAGE on the schema, SELECT and UPDATE on flow_run_controls "
    "and SELECT on curfew_schema_version",
    DatabaseState.OTHER: "see the error",
}

_BY_SQLSTATE: Final[Mapping[str, DatabaseState]] = {
    "25006": DatabaseState.READ_ONLY,
    "28000": DatabaseState.AUTHENTICATION,
    "28P01": DatabaseState.AUTHENTICATION,
    "3D000": DatabaseState.AUTHENTICATION,
    "3F000": DatabaseState.SCHEMA_MISSING,
    "42P01": DatabaseState.SCHEMA_MISSING,
    "42703": DatabaseState.SCHEMA_OLD,
    "42501": DatabaseState.DENIED,
    "53100": DatabaseState.DISK_FULL,
    "53300": DatabaseState.TOO_MANY_CONNECTIONS,
    "55P03": DatabaseState.LOCK_TIMEOUT,
    "57014": DatabaseState.STATEMENT_TIMEOUT,
    "57P01": DatabaseState.SHUTTING_DOWN,
    "57P02": DatabaseState.SHUTTING_DOWN,
    "57P03": DatabaseState.STARTING,
}

# The words of a FATAL answer to a connection attempt; PostgreSQL 14 to 18 and PgBouncer 1.18.
_BY_WORDS: Final[tuple[tuple[str, DatabaseState], ...]] = (
    ("authentication failed", DatabaseState.AUTHENTICATION),
    ("no password supplied", DatabaseState.AUTHENTICATION),
    ("no pg_hba.conf entry", DatabaseState.AUTHENTICATION),
    ("pg_hba.conf rejects", DatabaseState.AUTHENTICATION),
    ("is not permitted to log in", DatabaseState.AUTHENTICATION),
    ("does not exist", DatabaseState.AUTHENTICATION),
    ("no such database", DatabaseState.AUTHENTICATION),
    ("permission denied for database", DatabaseState.AUTHENTICATION),
    ("is not currently accepting connections", DatabaseState.AUTHENTICATION),
    ("certificate", DatabaseState.AUTHENTICATION),
    ("too many clients", DatabaseState.TOO_MANY_CONNECTIONS),
    ("too many connections", DatabaseState.TOO_MANY_CONNECTIONS),
    ("remaining connection slots", DatabaseState.TOO_MANY_CONNECTIONS),
    ("no more connections allowed", DatabaseState.TOO_MANY_CONNECTIONS),
    ("is starting up", DatabaseState.STARTING),
    ("in recovery mode", DatabaseState.STARTING),
    ("not yet accepting connections", DatabaseState.STARTING),
    ("not accepting connections", DatabaseState.STARTING),
    ("is shutting down", DatabaseState.SHUTTING_DOWN),
    ("session is read-only", DatabaseState.STANDBY),
    ("is in hot standby mode", DatabaseState.STANDBY),
)


def state_of(error: BaseException) -> DatabaseState:
    """The state of the database that *error* tells of; ``OTHER`` for an error that it does not explain."""
    if isinstance(error, DatabaseRefusal):
        return error.state
    if isinstance(error, SchemaMismatch):
        return DatabaseState.SCHEMA_MISSING if error.found is None else DatabaseState.SCHEMA_OLD
    sqlstate = sqlstate_of(error)
    if sqlstate is not None:
        by_class = DatabaseState.UNREACHABLE if sqlstate.startswith("08") else DatabaseState.OTHER
        return _BY_SQLSTATE.get(sqlstate, by_class)
    if not is_database_error(error):
        return DatabaseState.OTHER
    words = str(error)
    return next((state for fragment, state in _BY_WORDS if fragment in words), DatabaseState.UNREACHABLE)


# Appendix A of PostgreSQL's manual: errors of what a statement did to a row, by the class of their SQLSTATE.
_OF_A_ROW: Final = (
    "09",  # triggered action exception
    "22",  # data exception
    "23",  # integrity constraint violation
    "27",  # triggered data change violation
    "38",  # external routine exception
    "39",  # external routine invocation exception
    "44",  # WITH CHECK OPTION violation
    "P0",  # PL/pgSQL error, such as RAISE EXCEPTION
    "XX",  # internal error, such as a damaged page
)


def blames_a_row(error: BaseException) -> bool:
    """Whether *error* may be the fault of a single row, so that the statement could succeed without it."""
    return (sqlstate_of(error) or "").startswith(_OF_A_ROW)


def is_statement_timeout(error: BaseException) -> bool:
    """Whether the server ended a statement that took too long, or was asked to end it."""
    return sqlstate_of(error) == "57014"


def is_database_error(error: BaseException) -> bool:
    """Whether *error* comes from the database or from the way to it, rather than from a defect of ours.

    A `SettingsError` at run time is a file with the URL that cannot be read (any more). An `OSError` comes from the
    operating system on that way: no file descriptor left for a connection, say.
    """
    return isinstance(
        error,
        DatabaseRefusal
        | SchemaMismatch
        | SettingsError
        | psycopg.OperationalError
        | psycopg.InterfaceError
        | sqlalchemy.exc.DBAPIError
        | OSError,
    )


_EXITS: Final[Mapping[DatabaseState, Exit]] = {
    DatabaseState.SCHEMA_MISSING: Exit.SCHEMA,
    DatabaseState.SCHEMA_OLD: Exit.SCHEMA,
    DatabaseState.UPSTREAM_ENGINE: Exit.UPSTREAM_ENGINE,
}


def exit_of(error: BaseException) -> Exit:
    """The code with which a command ends that met *error*."""
    if isinstance(error, SettingsError):
        return Exit.SETTINGS
    return _EXITS.get(state_of(error), Exit.DATABASE)


def shown(error: BaseException) -> str:
    """What the database said, in its own words and without the statement that SQLAlchemy adds."""
    return str(getattr(error, "orig", None) or error).strip()
