"""How the store's statements are executed on a connection whose options are somebody else's.

An engine or a connection may carry options that are meant for its owner's queries: ``schema_translate_map`` would have
a statement go to another schema than the one the store was made for, ``yield_per`` and ``stream_results`` would put it
into a server-side cursor, which can neither write nor count. None of them applies here.

On a connection of a call's own that nobody watches, a statement goes to the driver's cursor directly. What SQLAlchemy
does for each statement (a context, a transaction, a result, their events) took half the client's time of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from curfew_store.statements import as_sent

__all__ = ["PLAINLY", "directly", "is_watched", "rows_read", "rows_written"]

T = TypeVar("T")

PLAINLY: Final[dict[str, Any]] = {"schema_translate_map": None, "stream_results": False, "yield_per": None}
"""Execution options for every statement of a method of the store."""

_DIRECTLY: Final = "curfew_store_directly"


def is_watched(conn: Connection) -> bool:
    """Whether anybody listens for an event of SQLAlchemy's execution, or has its statements logged.

    By the flags that SQLAlchemy itself looks at before each event. To ask the listeners of each event, of a connection
    that is new for each call, costs as much as the statement.
    """
    engine, dialect = conn.engine, conn.dialect
    return bool(conn._has_events or engine._has_events or dialect._has_events or conn._echo)  # noqa: SLF001


def directly(conn: Connection) -> Connection:
    """*conn*, in autocommit and not watched, with the statements of the functions below sent past SQLAlchemy."""
    return conn.execution_options(**{_DIRECTLY: True})


def rows_written(conn: Connection, statement: Any, parameters: dict[str, Any]) -> int:
    """How many rows *statement* wrote."""
    sql, constants = as_sent(statement)
    if _DIRECTLY in conn.get_execution_options():
        return _from_cursor(conn, sql, constants | parameters, _row_count)
    with conn.exec_driver_sql(sql, constants | parameters, PLAINLY) as result:
        return result.rowcount


def rows_read(conn: Connection, statement: Any, parameters: dict[str, Any]) -> Sequence[Any]:
    """The rows that *statement* returns, as the driver has them."""
    sql, constants = as_sent(statement)
    if _DIRECTLY in conn.get_execution_options():
        return _from_cursor(conn, sql, constants | parameters, _all_rows)
    with conn.exec_driver_sql(sql, constants | parameters, PLAINLY) as result:
        return result.cursor.fetchall()  # there is one as long as there are rows to fetch


def _row_count(cursor: Any) -> int:
    return int(cursor.rowcount)


def _all_rows(cursor: Any) -> Sequence[Any]:
    return cursor.fetchall()  # type: ignore[no-any-return]


def _from_cursor(conn: Connection, sql: str, parameters: dict[str, Any], take: Callable[[Any], T]) -> T:
    cursor = conn.connection.cursor()
    try:
        cursor.execute(sql, parameters)
        taken = take(cursor)
        cursor.close()
    except BaseException as error:  # noqa: BLE001  # a cancelled call too leaves a connection that has to be given up
        # What SQLAlchemy does with an error of its own statements: wraps it, tells listeners of it and gives up what
        # is broken. It has no public name, and has had this one and these parameters since SQLAlchemy 0.8.
        conn._handle_dbapi_exception(error, sql, parameters, cursor, None)  # noqa: SLF001
    return taken
