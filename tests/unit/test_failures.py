"""What an error says about the database: the constructed ones. Those of a real server: integration/test_refusals."""

from __future__ import annotations

import psycopg
import psycopg.errors
import pytest
import sqlalchemy.exc

from curfew_daemon.failures import REMEDIES, DatabaseRefusal, exit_of, is_database_error, shown, state_of
from curfew_daemon.lifecycle import Exit
from curfew_daemon.results import DatabaseState
from curfew_daemon.settings_error import SettingsError
from curfew_store.errors import SchemaMismatch

S = DatabaseState


def wrapped(error: BaseException) -> sqlalchemy.exc.DBAPIError:
    """As SQLAlchemy hands out an error of the driver."""
    return sqlalchemy.exc.OperationalError("SELECT secret_column", {"secret": "parameter"}, error)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (psycopg.errors.DiskFull("could not extend file"), S.DISK_FULL),
        (psycopg.errors.CannotConnectNow("the database system is starting up"), S.STARTING),
        (psycopg.errors.CrashShutdown("crash of another server process"), S.SHUTTING_DOWN),
        (psycopg.errors.TooManyConnections("sorry, too many clients already"), S.TOO_MANY_CONNECTIONS),
        (psycopg.errors.InvalidSchemaName("no such schema"), S.SCHEMA_MISSING),
        (psycopg.errors.ConnectionFailure("broken"), S.UNREACHABLE),
        (psycopg.errors.ProtocolViolation("out of step"), S.UNREACHABLE),
        (psycopg.errors.OutOfMemory("out of memory"), S.OTHER),
        (psycopg.errors.SerializationFailure("concurrent update"), S.OTHER),
    ],
)
def test_a_sqlstate_decides(error: psycopg.Error, state: DatabaseState) -> None:
    """With a code the words do not matter, also inside of SQLAlchemy's own error."""
    assert state_of(error) is state
    assert state_of(wrapped(error)) is state
    assert is_database_error(wrapped(error))


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("FATAL:  the database system is starting up", S.STARTING),
        ("FATAL:  the database system is in recovery mode", S.STARTING),
        ("FATAL:  the database system is not yet accepting connections", S.STARTING),
        (
            "FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.",
            S.STARTING,
        ),
        ("FATAL:  sorry, too many clients already", S.TOO_MANY_CONNECTIONS),
        ("FATAL:  remaining connection slots are reserved for roles with SUPERUSER", S.TOO_MANY_CONNECTIONS),
        ("FATAL:  no more connections allowed (max_client_conn)", S.TOO_MANY_CONNECTIONS),
        ("FATAL:  no such database: runs", S.AUTHENTICATION),
        ('FATAL:  database "runs" is not currently accepting connections', S.AUTHENTICATION),
        ("SSL error: certificate verify failed", S.AUTHENTICATION),
        ("the server is in hot standby mode", S.STANDBY),
        ("connection refused", S.UNREACHABLE),
        ("could not translate host name", S.UNREACHABLE),
        ("FATAL:  el sistema de base de datos se está apagando", S.UNREACHABLE),
    ],
)
def test_a_refused_connection_has_only_words(words: str, state: DatabaseState) -> None:
    """Known words decide; unknown ones (another language, another pooler) mean that it is out of reach."""
    error = psycopg.OperationalError(f"connection failed: {words}")
    assert state_of(error) is state
    assert state_of(wrapped(error)) is state


def test_what_curfewd_itself_refuses() -> None:
    """A refusal carries its state; a schema that is missing is told from one that is old."""
    assert state_of(DatabaseRefusal(S.UPSTREAM_ENGINE, "another engine")) is S.UPSTREAM_ENGINE
    assert state_of(SchemaMismatch("public", None, "0001")) is S.SCHEMA_MISSING
    assert state_of(SchemaMismatch("public", "0000", "0001")) is S.SCHEMA_OLD


def test_a_defect_is_no_state_of_the_database() -> None:
    """An error of our own making explains nothing about the server."""
    assert state_of(ZeroDivisionError("oops")) is S.OTHER
    assert not is_database_error(ZeroDivisionError("oops"))


def test_what_the_operating_system_refuses_on_the_way_is_an_unreachable_database() -> None:
    """No descriptor or thread left for a connection: retried like any other, and no crash report."""
    refused = OSError(24, "Too many open files")
    assert is_database_error(refused)
    assert state_of(refused) is DatabaseState.UNREACHABLE


def test_a_url_file_that_cannot_be_read_is_waited_for() -> None:
    """A secret that is being rotated may be gone for a moment: out of reach, not a defect."""
    gone = SettingsError(["CURFEW_DATABASE_URL_FILE: gone"])
    assert state_of(gone) is S.UNREACHABLE
    assert is_database_error(gone)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError(["x"]), Exit.SETTINGS),
        (SchemaMismatch("public", None, "0001"), Exit.SCHEMA),
        (SchemaMismatch("public", "0000", "0001"), Exit.SCHEMA),
        (DatabaseRefusal(S.UPSTREAM_ENGINE, "x"), Exit.UPSTREAM_ENGINE),
        (DatabaseRefusal(S.STANDBY, "x"), Exit.DATABASE),
        (psycopg.OperationalError("x"), Exit.DATABASE),
    ],
)
def test_commands_end_with_the_code_of_what_they_met(error: Exception, code: Exit) -> None:
    """Settings, schema and another engine have codes of their own; all else is the database."""
    assert exit_of(error) is code


def test_every_state_has_a_remedy() -> None:
    """Whoever reads of a state reads what to do; only the good one needs nothing."""
    assert set(REMEDIES) == set(DatabaseState)
    assert [state for state, remedy in REMEDIES.items() if not remedy] == [S.UP]


def test_an_error_is_shown_in_the_servers_words() -> None:
    """SQLAlchemy's addition of the statement and its parameters is left out."""
    assert shown(wrapped(psycopg.OperationalError("  the server's words\n"))) == "the server's words"
    assert shown(DatabaseRefusal(S.STANDBY, "ours")) == "ours"
