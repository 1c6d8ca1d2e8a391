"""How a call without ``connection=`` is committed: in one round trip where one statement writes.

Such a statement runs in autocommit, so that neither BEGIN nor COMMIT crosses the wire. In autocommit it is the
session that says how a statement is isolated, and only its default can be something else than READ COMMITTED (a role,
a database or the server says so); that is asked once for each connection that the pool makes. Where the default is
another, and for operations of more than one writing statement, a transaction says READ COMMITTED for itself.

So it does where somebody has set what only a transaction heeds: a listener for ``begin`` (`SET LOCAL` of a role, of a
tenant for row-level security, of a timeout; in autocommit PostgreSQL only warns), or the driver's ``read_only``.

A connection of the pool can have its own way: a listener made it SERIALIZABLE, or ``connect_args`` put it in
autocommit. SQLAlchemy's ``isolation_level`` would not do here, since on the way back to the pool it sets what the
engine's first connection had. So the driver's settings are changed and put back here, which sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, SingletonThreadPool, StaticPool

from curfew_store.errors import InvalidValue
from curfew_store.execution import PLAINLY
from curfew_store.operations import Operation, WritesOnce
from curfew_store.version import VerifiedOnce

__all__ = ["committed"]

T = TypeVar("T")

_DEFAULT: Final = "curfew_store.default_transaction_isolation"


def committed(operation: Operation[T], verified_once: VerifiedOnce) -> Callable[[Connection], T]:
    """*operation* for a connection that has just come from its pool: READ COMMITTED, and committed on return.

    The driver's connection has its own settings again when that is over, however it ends.
    """
    work = verified_once(operation)

    def run(conn: Connection) -> T:
        if _driver(conn).pgconn.transaction_status != TransactionStatus.IDLE:
            return _committed_with_what_is_open(conn, work)
        conn.rollback()  # a listener may have executed something in autocommit; for the server there is no transaction
        with _settings_kept(conn):
            if not (isinstance(operation, WritesOnce) and _may_commit_by_itself(conn)):
                _set(conn, False, IsolationLevel.READ_COMMITTED)
            with conn.begin():  # in autocommit nothing is sent for it
                return work(conn)

    return run


def _committed_with_what_is_open(conn: Connection, work: Operation[T]) -> T:
    """In the transaction that a listener for new connections, or for those on their way out, has begun.

    It is committed, as ``engine.begin()`` would. `InvalidValue` where it can be somebody else's: pools that give the
    same connection to several at once are for tests, and their transactions are only joined where that is asked for.
    """
    if isinstance(conn.engine.pool, StaticPool | SingletonThreadPool):
        raise InvalidValue(
            "connection",
            f"must be given: the only one of the engine's {type(conn.engine.pool).__name__} has an open transaction",
        )
    # Refused by the server if the transaction has another level and has seen data: then it cannot be changed any more.
    conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", None, PLAINLY)
    result = work(conn)
    conn.commit()
    return result


def _may_commit_by_itself(conn: Connection) -> bool:
    """Whether a statement in autocommit, in which the connection is then, does what one in a transaction would."""
    driver = _driver(conn)
    if conn.dispatch.begin or driver.read_only is not None:
        return False
    _set(conn, True, driver.isolation_level)
    return _is_read_committed(conn)


def _is_read_committed(conn: Connection) -> bool:
    """Whether a statement in autocommit is READ COMMITTED on this connection; asked once in its life."""
    default = conn.info.get(_DEFAULT)
    if default is None:
        with conn.begin():
            default = conn.exec_driver_sql("SHOW default_transaction_isolation", None, PLAINLY).scalar_one()
        conn.info[_DEFAULT] = default
    return bool(default == "read committed")


@contextmanager
def _settings_kept(conn: Connection) -> Iterator[None]:
    """Puts back the settings of the driver's connection, unless that has been given up."""
    driver = _driver(conn)
    autocommit, level = driver.autocommit, driver.isolation_level
    try:
        yield
    finally:
        if not conn.invalidated:
            _set(conn, autocommit, level)


def _driver(conn: Connection) -> Any:
    """The driver's own connection; of an asynchronous engine one whose attributes can only be read."""
    return conn.connection.driver_connection


def _set(conn: Connection, autocommit: bool, level: IsolationLevel | None) -> None:
    """What differs, by methods that psycopg has and so has SQLAlchemy's adapter of an asynchronous connection."""
    driver, adapted = _driver(conn), cast("Any", conn.connection.dbapi_connection)
    if driver.autocommit != autocommit:
        adapted.set_autocommit(autocommit)
    if driver.isolation_level != level:
        adapted.set_isolation_level(level)
