"""A session that listens for notifications, and the proof that it hears them."""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import psycopg
import sqlalchemy.exc
from sqlalchemy import Connection

from curfew_daemon.database import BoundedConnection
from curfew_store import hints

__all__ = ["DEAF_REMEDY", "PROBE", "PROVE_WITHIN", "Ear", "Silent", "hears"]

PROBE: Final = "probe "
"""What the token of a proof begins with, and no hint does."""

PROVE_WITHIN: Final = 2.0
"""How long a token may take; it is sent again once, since a server under load may be slow."""

DEAF_REMEDY: Final = (
    "give CURFEW_LISTEN_URL a way to the primary past the pooler, or one that pools by session; deadlines nearer than"
    " the poll interval are met within that interval meanwhile"
)


class Silent(psycopg.OperationalError):
    """The session is there, but what is notified does not reach it."""


class Ear:
    """A session that listens, on a connection in autocommit; *take* is given each payload, by the calling thread."""

    def __init__(self, conn: Connection, schema: str, take: Callable[[str], None]) -> None:
        raw = conn.connection.driver_connection
        assert isinstance(raw, BoundedConnection)
        self._conn, self._raw, self._schema, self._take = conn, raw, schema, take
        raw.add_notify_handler(lambda notify: take(notify.payload))  # for those that come with an answer
        hints.listen(conn, schema)

    def listen_until(self, give_up: float, enough: Callable[[], bool], interrupt: socket.socket | None = None) -> bool:
        """Take what comes until *enough* says so, *give_up* (monotonic) has come or *interrupt* can be read.

        Returns whether it was enough. Raises psycopg's error when the connection ends.
        """
        sockets: list[Any] = [self._raw.pgconn.socket, *([] if interrupt is None else [interrupt])]
        while not enough():
            readable, _, _ = select.select(sockets, [], [], max(0.0, give_up - time.monotonic()))
            if not readable or interrupt in readable:
                return False
            self._take_in()
        return True

    def check(self) -> None:
        """Raise `Silent` if the session that answers is not the one that listens."""
        if not hints.is_listening(self._conn, self._schema):
            raise Silent("another session answers than the one that listens: a pooler is in between")

    def close(self) -> None:
        """Listen no more, as far as it can be reached: a pooler hands the session on to others, who never asked."""
        with contextlib.suppress(psycopg.Error, sqlalchemy.exc.SQLAlchemyError):
            hints.unlisten(self._conn, self._schema)

    def _take_in(self) -> None:
        self._raw.pgconn.consume_input()
        while (notify := self._raw.pgconn.notifies()) is not None:
            self._take(notify.extra.decode(errors="replace"))


def hears(
    ear: Ear,
    heard: Callable[[str], bool],
    send: Callable[[str], None],
    *,
    within: float = PROVE_WITHIN,
    interrupt: socket.socket | None = None,
) -> bool:
    """Whether a token that *send* notifies reaches *ear*, sent twice at most; *heard* says if one was taken."""
    for _ in range(2):
        token = f"{PROBE}{secrets.token_hex(8)}"
        send(token)
        if ear.listen_until(time.monotonic() + within, partial(heard, token), interrupt):
            return True
    return False
