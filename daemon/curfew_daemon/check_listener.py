"""What ``curfewd check`` tries out of LISTEN: whether a notification arrives where the daemon would listen."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from curfew_daemon.config import Settings
from curfew_daemon.conninfo import read_listen_url
from curfew_daemon.database import bounded_engine
from curfew_daemon.ear import DEAF_REMEDY, PROVE_WITHIN, Ear, hears
from curfew_daemon.failures import is_database_error, shown
from curfew_store import hints

__all__ = ["what_is_wrong"]

_CONNECT_REMEDY = "see to CURFEW_LISTEN_URL, or to CURFEW_DATABASE_URL where that is not set"


def what_is_wrong(settings: Settings, conn: Connection, *, answer_timeout: float) -> tuple[str, str] | None:
    """Listens as the daemon would and notifies over *conn*, in autocommit; ``None`` if it is heard.

    Else what is wrong and what to do about it. Takes a transaction id for each of at most two tokens.
    """
    taken: list[str] = []
    engine = bounded_engine(
        read_listen_url(settings),
        application_name=f"curfewd check {settings.instance}",
        connect_timeout=settings.connect_timeout,
        answer_timeout=answer_timeout,
    )
    try:
        with engine.connect() as plain:
            ear = Ear(plain.execution_options(isolation_level="AUTOCOMMIT"), settings.schema_name, taken.append)
            if hears(ear, taken.__contains__, _sender(conn, settings.schema_name), within=PROVE_WITHIN):
                return None
            ear.close()
    except Exception as error:
        if not is_database_error(error):
            raise
        return f"cannot listen: {shown(error)}", _CONNECT_REMEDY
    return "what is notified over CURFEW_DATABASE_URL is not heard where the daemon would listen", DEAF_REMEDY


def _sender(conn: Connection, schema: str) -> Callable[[str], None]:
    return lambda token: hints.probe(conn, schema, token)
