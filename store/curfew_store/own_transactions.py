"""How a call without ``connection=`` is committed: in one round trip where one statement writes.

Such a statement runs in autocommit, so that neither BEGIN nor COMMIT crosses the wire. In autocommit it is the
session that says how a statement is isolated, and only its default can be something else than READ COMMITTED (a role,
a database or the server says so); that is asked once for each connection that the pool makes. Where the default is
another, and for operations of more than one writing statement, a transaction says READ COMMITTED for itself.

So it does where the engine's owner listens for ``begin``: what such a listener sets for the transaction (`SET LOCAL` of
a role, of a tenant for row-level security, of a timeout) has no effect in autocommit, where PostgreSQL only warns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy import Connection

from curfew_store.operations import Operation, WritesOnce
from curfew_store.version import VerifiedOnce

__all__ = ["committed"]

T = TypeVar("T")

_DEFAULT: Final = "curfew_store.default_transaction_isolation"


def committed(operation: Operation[T], verified_once: VerifiedOnce) -> Callable[[Connection], T]:
    """*operation* for a connection that has just come from its pool: READ COMMITTED, and committed on return.

    The pool resets what is set here when it takes the connection back, so others see nothing of it.
    """
    work = verified_once(operation)

    def run(conn: Connection) -> T:
        alone = isinstance(operation, WritesOnce) and not _sets_what_is_local(conn) and _is_read_committed(conn)
        conn.execution_options(isolation_level="AUTOCOMMIT" if alone else "READ COMMITTED")
        with conn.begin():  # in autocommit nothing is sent for it
            return work(conn)

    return run


def _sets_what_is_local(conn: Connection) -> bool:
    """Whether somebody listens for this connection's transactions to begin."""
    return bool(conn.dispatch.begin)


def _is_read_committed(conn: Connection) -> bool:
    """Whether a statement in autocommit is READ COMMITTED on this connection; asked once in its life."""
    default = conn.info.get(_DEFAULT)
    if default is None:
        conn.execution_options(isolation_level="AUTOCOMMIT")
        with conn.begin():
            default = conn.exec_driver_sql("SHOW default_transaction_isolation").scalar_one()
        conn.info[_DEFAULT] = default
    return bool(default == "read committed")
