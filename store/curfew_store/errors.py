"""Everything that the store raises, and the test of whether a retry is safe.

Every error carries its data as attributes and names the remedy. An invalid value is also a
``ValueError`` and a wrong type also a ``TypeError``, so that callers who know nothing of this
module still catch what they expect. Errors of the database are not wrapped: they arrive as
SQLAlchemy raised them, except where they mean that the schema is not ours (`SchemaMismatch`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import sqlalchemy.exc

if TYPE_CHECKING:
    from curfew_store.records import FlowRunControlRecord

__all__ = [
    "CurfewError",
    "InvalidValue",
    "KeyContended",
    "MigrationError",
    "RunAlreadyExists",
    "RunCancelled",
    "RunCompleted",
    "RunStopped",
    "RunTimedOut",
    "SchemaMismatch",
    "WrongType",
    "is_transient",
]


class CurfewError(Exception):
    """Base of everything that this package raises on its own account."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Built anew from text and data, since the parameters of `__init__` are not the arguments of Exception.
        # So an error survives the way back from a worker process.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[CurfewError], args: tuple[Any, ...], data: dict[str, Any]) -> CurfewError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(data)
    return error


class InvalidValue(CurfewError, ValueError):
    """A parameter has the right type and a value that cannot be accepted. Nothing was written.

    Attributes: *parameter*, the name of the parameter; *problem*, what is wrong with it.
    """

    def __init__(self, parameter: str, problem: str) -> None:
        self.parameter = parameter
        self.problem = problem
        super().__init__(f"{parameter}: {problem}")


class WrongType(CurfewError, TypeError):
    """A parameter has a type that the store does not take. Nothing was written.

    Attributes: *parameter*; *expected*, in words; *got*, the type of the value.
    """

    def __init__(self, parameter: str, expected: str, value: object) -> None:
        self.parameter = parameter
        self.expected = expected
        self.got = type(value)
        super().__init__(f"{parameter}: expected {expected}, got {self.got.__name__}")


class SchemaMismatch(CurfewError):
    """The tables in the database are missing, older than this package, or too new for it.

    Attributes: *schema*, its name; *found*, the version in the database (``None``: no tables of ours);
    *needed*, the version that this package needs.
    """

    def __init__(self, schema: str, found: str | None, needed: str, problem: str | None = None) -> None:
        self.schema = schema
        self.found = found
        self.needed = needed
        what = problem or (
            f"the tables of curfewd are missing in schema {schema!r}"
            if found is None
            else f"schema {schema!r} is at version {found}, this release needs {needed}"
        )
        super().__init__(f"{what}: run `curfewd migrate` with CURFEW_SCHEMA={schema}")


class MigrationError(CurfewError):
    """A migration could not be carried out. What it had done so far is safe to keep and to repeat."""


class RunStopped(CurfewError):
    """The run must not go on. Catch this one to stop for any reason.

    Attributes: *run_id*; *record*, the control record as it was read.
    """

    _because = "has stopped"

    def __init__(self, run_id: UUID, record: FlowRunControlRecord) -> None:
        self.run_id = run_id
        self.record = record
        reason = f": {record.cancel_reason}" if record.cancel_reason else ""
        super().__init__(f"run {run_id} {self._because}{reason}")


class RunTimedOut(RunStopped):
    """The run's deadline has passed. Start no further step; `reopen_run` or `extend_deadline` revives it."""

    _because = "timed out"


class RunCancelled(RunStopped):
    """Somebody asked for the run to be cancelled. Start no further step."""

    _because = "was cancelled"


class RunCompleted(RunStopped):
    """The run has already been completed. `reopen_run` revives it."""

    _because = "is already completed"


class RunAlreadyExists(CurfewError):
    """`start_run` was given a run id that belongs to another trigger. Nothing was written; use a fresh run id.

    Attributes: *run_id*.
    """

    def __init__(self, run_id: UUID) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id} already has a control record with another idempotency key: use a fresh run id")


class KeyContended(CurfewError):
    """Another call took the same idempotency key, or the same run id, at the same moment. Transient: repeat the call.

    Raised where a key was taken and freed again at each try, and where somebody committed a record for the
    run id while `start_run` wrote its own; the repeat finds out whose run it is. In a transaction of the caller's
    own the latter has aborted it, so the whole transaction is repeated.

    Attributes: *attempts*, how many times it was tried.
    """

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        super().__init__(
            f"another call took the same key or run id at the same moment, {attempts} times: repeat the call"
        )


# PostgreSQL, Appendix A (error codes). Each of these says "not now" about the statement or the
# connection and nothing about its content, so the same call may simply be made again.
_TRANSIENT_SQLSTATES = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "53300",  # too_many_connections
        "55P03",  # lock_not_available (lock_timeout)
        "57014",  # query_canceled (statement_timeout)
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "57P05",  # idle_session_timeout
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
    }
)


def is_transient(error: BaseException) -> bool:
    """Whether the call that raised *error* may be repeated as it was.

    True for lost connections, serialization failures, deadlocks, lock and statement timeouts, a server that
    starts or stops, an exhausted pool and `KeyContended`. Inside a transaction of your own the whole
    transaction must be repeated. Every method of the store may be repeated after an unknown outcome.
    """
    if isinstance(error, KeyContended | sqlalchemy.exc.TimeoutError):
        return True
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        if error.connection_invalidated:
            return True
        if error.orig is not None:
            return is_transient(error.orig)
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        # libpq noticed by itself that the connection is gone, or could not make one.
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate in _TRANSIENT_SQLSTATES or error.sqlstate.startswith("08")


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE behind *error*, if the server gave one."""
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        return sqlstate_of(error.orig)
    return error.sqlstate if isinstance(error, psycopg.Error) else None
