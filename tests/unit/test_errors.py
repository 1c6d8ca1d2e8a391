"""The errors of the store: one base, data, remedies, and which of the database's errors a retry can cure."""

from __future__ import annotations

import asyncio
import copy
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy.exc
from psycopg import errors as pg

from curfew_store import (
    CurfewError,
    FlowRunControlRecord,
    InvalidValue,
    KeyContended,
    MigrationError,
    RunAlreadyExists,
    RunCancelled,
    RunCompleted,
    RunStopped,
    RunTimedOut,
    SchemaMismatch,
    WrongType,
    errors,
    is_transient,
)

TRANSIENT = {
    "08000": "connection_exception",
    "08003": "connection_does_not_exist",
    "08006": "connection_failure",
    "08P01": "protocol_violation",
    "25P03": "idle_in_transaction_session_timeout",
    "40001": "serialization_failure",
    "40P01": "deadlock_detected",
    "53300": "too_many_connections",
    "55P03": "lock_not_available",
    "57014": "query_canceled",
    "57P01": "admin_shutdown",
    "57P02": "crash_shutdown",
    "57P03": "cannot_connect_now",
    "57P05": "idle_session_timeout",
}
PERMANENT = {
    "22001": "string_data_right_truncation",
    "22003": "numeric_value_out_of_range",
    "22P02": "invalid_text_representation",
    "23505": "unique_violation",
    "23514": "check_violation",
    "25006": "read_only_sql_transaction",
    "25P02": "in_failed_sql_transaction",
    "28P01": "invalid_password",
    "3D000": "invalid_catalog_name",
    "42501": "insufficient_privilege",
    "42601": "syntax_error",
    "42703": "undefined_column",
    "42P01": "undefined_table",
    "53100": "disk_full",
    "XX000": "internal_error",
}


def by_sqlalchemy(error: BaseException, *, lost: bool = False) -> sqlalchemy.exc.DBAPIError:
    """A driver's error as it arrives through SQLAlchemy."""
    return sqlalchemy.exc.DBAPIError("SELECT 1", {}, error, connection_invalidated=lost)


@pytest.mark.contract("Z-4")
@pytest.mark.parametrize(
    ("sqlstate", "transient"),
    [(code, True) for code in TRANSIENT] + [(code, False) for code in PERMANENT],
)
def test_sqlstates(sqlstate: str, transient: bool) -> None:
    """ "Not now" is transient and "not so" is not, whether the error comes from the driver or through SQLAlchemy."""
    error = pg.lookup(sqlstate)("message")
    assert is_transient(error) is transient
    assert is_transient(by_sqlalchemy(error)) is transient
    assert errors.sqlstate_of(by_sqlalchemy(error)) == errors.sqlstate_of(error) == sqlstate


class TransactionTimeout(psycopg.OperationalError):
    """What a server of version 17 sends at transaction_timeout; older drivers have no class for it."""

    sqlstate = "25P04"


@pytest.mark.contract("Z-4")
@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly"), True),
        (pg.ConnectionTimeout("connection timeout expired"), True),
        (TransactionTimeout("transaction timeout"), True),
        (psycopg.InterfaceError("the cursor is closed"), False),
        (psycopg.DataError("cannot adapt"), False),
        (sqlalchemy.exc.TimeoutError("QueuePool limit reached"), True),
        (sqlalchemy.exc.InvalidRequestError("closed"), False),
        (KeyContended(3), True),
        (RunAlreadyExists(uuid4()), False),
        (SchemaMismatch("public", None, "0001"), False),
        (InvalidValue("run_id", "is the nil UUID"), False),
        (ValueError("no"), False),
        (TimeoutError(), False),
        (asyncio.CancelledError(), False),
        (KeyboardInterrupt(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_errors_without_an_sqlstate(error: BaseException, transient: bool) -> None:
    """A connection that is lost or not to be had is transient; mistakes and unknown errors are not."""
    assert is_transient(error) is transient
    assert errors.sqlstate_of(ValueError()) is None


@pytest.mark.contract("Z-4")
def test_a_connection_that_sqlalchemy_gave_up() -> None:
    """An error with which SQLAlchemy discarded the connection is transient, whatever the driver called it."""
    assert is_transient(by_sqlalchemy(psycopg.InterfaceError("closed"), lost=True)) is True
    assert is_transient(by_sqlalchemy(psycopg.InterfaceError("closed"))) is False


RECORD = FlowRunControlRecord(
    run_id=uuid4(),
    flow_id=uuid4(),
    trigger_key="trigger",
    idempotency_key=None,
    timeout_at_utc=None,
    cancel_requested=True,
    cancel_reason="by a user",
    cancel_requested_at_utc=None,
    timed_out_at_utc=None,
    created_at_utc=datetime(2030, 1, 1, tzinfo=UTC),
    completed_at_utc=None,
)
EXAMPLES: list[tuple[CurfewError, dict[str, object], str]] = [
    (InvalidValue("key", "is blank"), {"parameter": "key", "problem": "is blank"}, "key: is blank"),
    (WrongType("key", "a str", 7), {"parameter": "key", "expected": "a str", "got": int}, "expected a str, got int"),
    (SchemaMismatch("s", None, "0001"), {"schema": "s", "found": None, "needed": "0001"}, "curfewd migrate"),
    (SchemaMismatch("s", "0000", "0001"), {"found": "0000"}, "at version 0000, this release needs 0001"),
    (RunTimedOut(RECORD.run_id, RECORD), {"run_id": RECORD.run_id, "record": RECORD}, "timed out: by a user"),
    (RunCancelled(RECORD.run_id, RECORD), {"record": RECORD}, "was cancelled: by a user"),
    (RunCompleted(RECORD.run_id, RECORD), {"record": RECORD}, "already completed"),
    (RunAlreadyExists(RECORD.run_id), {"run_id": RECORD.run_id}, "use a fresh run id"),
    (KeyContended(3), {"attempts": 3}, "repeat the call"),
    (MigrationError("busy"), {}, "busy"),
]


@pytest.mark.contract("Z-1", "Z-2")
@pytest.mark.parametrize(("error", "data", "says"), EXAMPLES, ids=lambda v: type(v).__name__)
def test_every_error_carries_its_data(error: CurfewError, data: dict[str, object], says: str) -> None:
    """Attributes hold the data, and the message says what to do or what was expected."""
    assert {name: getattr(error, name) for name in data} == data
    assert says in str(error)


@pytest.mark.contract("Z-1")
def test_the_family_of_errors() -> None:
    """Every exception of the module descends from one base; bad values and types are Python's own kinds as well."""
    own = [v for v in vars(errors).values() if isinstance(v, type) and v.__module__ == errors.__name__]
    assert all(issubclass(kind, CurfewError) for kind in own)
    assert {type(error) for error, _, _ in EXAMPLES} == set(own) - {CurfewError, RunStopped}
    assert issubclass(InvalidValue, ValueError)
    assert issubclass(WrongType, TypeError)
    assert all(issubclass(kind, RunStopped) for kind in (RunTimedOut, RunCancelled, RunCompleted))
    assert sorted(errors.__all__) == sorted({kind.__name__ for kind in own} | {"is_transient"})


@pytest.mark.contract("Z-1")
@pytest.mark.parametrize("error", [error for error, _, _ in EXAMPLES], ids=lambda e: type(e).__name__)
def test_errors_survive_a_copy(error: CurfewError) -> None:
    """An error can cross a process boundary, as workers of a task queue send it: type, text and data stay."""
    again = copy.copy(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_error_of_the_driver_without_its_cause_is_not_transient() -> None:
    """Nothing is known of it, so a retry is not promised to help."""
    assert not is_transient(sqlalchemy.exc.DBAPIError("SELECT 1", {}, None))  # type: ignore[arg-type]  # it may be lost on the way
