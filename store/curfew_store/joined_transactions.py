"""How a call with ``connection=`` joins the caller's transaction, and which connections it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from psycopg.pq import PipelineStatus
from sqlalchemy import Connection

from curfew_store.errors import InvalidValue
from curfew_store.operations import Operation
from curfew_store.version import VerifiedOnce

__all__ = ["joined"]

T = TypeVar("T")


def joined(operation: Operation[T], verified_once: VerifiedOnce) -> Callable[[Connection], T]:
    """*operation* for a connection of the caller's, in whatever transaction it has.

    Raises `InvalidValue` on a connection of another driver, and on one in the driver's pipeline mode. There a
    statement is sent without its answer being awaited: a call would say that nothing was found or written, whatever
    happens, and its error would come later.
    """
    work = verified_once(operation)

    def run(conn: Connection) -> T:
        if (conn.dialect.name, conn.dialect.driver) != ("postgresql", "psycopg"):
            raise InvalidValue("connection", f"must be for postgresql+psycopg://, not {conn.engine.url.drivername}://")
        driver = conn.connection.driver_connection
        if driver is not None and driver.pgconn.pipeline_status != PipelineStatus.OFF:
            raise InvalidValue(
                "connection", "is in pipeline mode, in which no answer is awaited: leave the block of pipeline() first"
            )
        return work(conn)

    return run
