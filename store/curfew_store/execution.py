"""How the store's statements are executed on a connection whose options are somebody else's.

An engine or a connection may carry options that are meant for its owner's queries: ``schema_translate_map`` would have
a statement go to another schema than the one the store was made for, ``yield_per`` and ``stream_results`` would put it
into a server-side cursor, which can neither write nor count. None of them applies here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection

from curfew_store.statements import as_sent

__all__ = ["PLAINLY", "rows_read", "rows_written"]

PLAINLY: Final[dict[str, Any]] = {"schema_translate_map": None, "stream_results": False, "yield_per": None}
"""Execution options for every statement of a method of the store."""


def rows_written(conn: Connection, statement: Any, parameters: dict[str, Any]) -> int:
    """How many rows *statement* wrote."""
    sql, constants = as_sent(statement)
    with conn.exec_driver_sql(sql, constants | parameters, PLAINLY) as result:
        return result.rowcount


def rows_read(conn: Connection, statement: Any, parameters: dict[str, Any]) -> Sequence[Any]:
    """The rows that *statement* returns, as the driver has them."""
    sql, constants = as_sent(statement)
    with conn.exec_driver_sql(sql, constants | parameters, PLAINLY) as result:
        return result.cursor.fetchall()  # there is one as long as there are rows to fetch
