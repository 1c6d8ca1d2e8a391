"""The laboratory: a server, daemons, producers, and everything that happens to them on record.

`Lab.open` puts them together; a nemesis strikes, and when the lab has been brought to rest `Lab.record` holds what
the checker judges. A `Kind` of fault reaches its target here:

- `server` is the PostgreSQL; `admin` connects to it past every proxy, as its superuser;
- `proxy` stands between the daemons and the server, `producer_proxy` between the producers and the server;
- `fleet` holds the daemons: `with lab.fleet.borrow(rng) as daemon` takes one that no other strike touches, and
  replaces it afterwards if it has died;
- `client` is a store for a strike's own runs (see `tests.faults.spare`), recorded like all others.

The server's clock and this process's are the same unless a kind has faked one of them.
"""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

from curfew_store import FlowRunControlStore
from curfew_store.embedded import EmbeddedPostgres
from curfew_store.migrate import upgrade
from tests.faults import chronicle, runs
from tests.faults.fleet import Fleet
from tests.faults.history import Client, History
from tests.faults.procfs import held_by
from tests.faults.producers import Producers
from tests.faults.runs import database_now
from tests.faults.stalls import Stalls
from tests.faults.strikes import NEEDS, Kind, Moment, Strike, Violation, now
from tests.faults.wire import Wire

__all__ = ["NEEDS", "Kind", "Lab", "LabOptions", "Moment", "Strike", "Violation", "now", "server_settings"]

DATABASE: Final = "postgres"
SECRET: Final = "kept-canary-7f3a9c51"
"""The daemons' password, which is to show nowhere; the server asks for none."""
BYSTANDERS: Final = 200
_CONNECTIONS: Final = 150
_CONNECTIONS_EACH: Final = 6
_SERVER_SETTINGS: Final[Mapping[str, str]] = {
    "max_prepared_transactions": "8",
    "wal_level": "logical",
    "max_replication_slots": "8",
    "log_lock_waits": "on",
    "track_commit_timestamp": "on",
    "idle_in_transaction_session_timeout": "20s",
}
_ROLES: Final = """
CREATE ROLE lab_daemon LOGIN;
CREATE ROLE lab_producer LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON flow_run_controls, flow_idempotency_keys TO lab_daemon, lab_producer;
GRANT SELECT ON curfew_schema_version TO lab_daemon, lab_producer;
"""


def server_settings(options: LabOptions, **more: str) -> dict[str, str]:
    """What a server of a lab of that size is started with, and *more*."""
    most = max(_CONNECTIONS, 50 + _CONNECTIONS_EACH * options.daemons)
    return {**_SERVER_SETTINGS, "max_connections": str(most), **more}


@dataclass(frozen=True)
class LabOptions:
    """How large a lab is.

    *rate* is calls a second over all producers, whose deadlines lie at most *horizon* seconds ahead; *settings* are
    the daemons' own.
    """

    daemons: int = 4
    producers: int = 6
    rate: float = 120.0
    horizon: float = 6.0
    seed: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    quiet: bool = False


class Lab:
    """Everything that a strike may touch. Use `Lab.open`."""

    def __init__(self, server: EmbeddedPostgres, options: LabOptions, logs: Path, stack: ExitStack) -> None:
        self.server = server
        self.options = options
        self.logs = logs
        self.closing = threading.Event()
        self.engine: Engine = create_engine(server.sqlalchemy_url(DATABASE), poolclass=NullPool)
        stack.callback(self.engine.dispose)
        self._prepare()
        self.stalls = stack.enter_context(Stalls())
        self.proxy = stack.enter_context(Wire(server.port))
        self.producer_proxy = stack.enter_context(Wire(server.port))
        self.history = History()
        # At debug level a daemon logs every run that it marks.
        own = {"CURFEW_LOG_LEVEL": "debug", "CURFEW_OBSERVE_INTERVAL": "2", "CURFEW_BATCH_SIZE": "500"}
        self.fleet = Fleet(self.daemon_url, logs, own | dict(options.settings))
        stack.callback(self.fleet.close)
        self.producers = Producers(self.history, self.producer_url, options)
        stack.callback(self.producers.close)
        self.baseline: dict[str, tuple[int, int, int]] = {}

    @classmethod
    @contextmanager
    def open(cls, options: LabOptions, server: EmbeddedPostgres | None = None) -> Iterator[Lab]:
        """A lab with its daemons ready and its producers at work; *server* defaults to a durable one of its own.

        A server that is handed in listens on TCP (``EmbeddedPostgres.start(tcp=True, durable=True, ...)``), has
        `server_settings`, and its database ``postgres`` is empty; it stays with the caller.
        """
        with ExitStack() as stack:
            if server is None:
                server = stack.enter_context(
                    EmbeddedPostgres.start(durable=True, tcp=True, settings=server_settings(options))
                )
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="curfew-lab-")))
            lab = cls(server, options, logs, stack)
            stack.callback(lab.closing.set)
            for _ in range(options.daemons):
                lab.fleet.add()
            lab.fleet.wait_until_ready()
            lab.baseline = {each.instance: held_by(each.pid) for each in lab.fleet.members}
            lab.producers.start()
            yield lab

    @property
    def daemon_url(self) -> str:
        """The database as daemons reach it: as the role ``lab_daemon``, through `proxy`, with the `SECRET`."""
        return f"postgresql://lab_daemon:{SECRET}@127.0.0.1:{self.proxy.port}/{DATABASE}"

    @property
    def producer_url(self) -> str:
        """The database as producers reach it, for SQLAlchemy: as ``lab_producer``, through `producer_proxy`."""
        return f"postgresql+psycopg://lab_producer@127.0.0.1:{self.producer_proxy.port}/{DATABASE}"

    @contextmanager
    def admin(self, name: str = "lab admin") -> Iterator[psycopg.Connection[Any]]:
        """The superuser's session in autocommit, past the proxies; *name* is its ``application_name``."""
        with psycopg.connect(self.server.url(DATABASE), autocommit=True, application_name=name) as connection:
            yield connection

    @property
    def client(self) -> Client:
        """A store past the proxies for a strike's own calls, on record like a producer's."""
        engine = create_engine(
            self.server.sqlalchemy_url(DATABASE), poolclass=NullPool, connect_args={"application_name": "lab strike"}
        )
        return Client("strike", engine, self.history)

    def pause(self, seconds: float) -> None:
        """Sleep; ends early once the lab closes."""
        self.closing.wait(seconds)

    def say(self, line: str) -> None:
        """Show progress at once, also into a pipe."""
        if not self.options.quiet:
            print(line, flush=True)

    def _prepare(self) -> None:
        upgrade(self.engine)
        with self.engine.begin() as conn:
            conn.exec_driver_sql(_ROLES)
            runs.add_bystanders(
                FlowRunControlStore(self.engine), conn, random.Random(self.options.seed), BYSTANDERS, database_now(conn)
            )
            # Behind the bystanders: whatever of them it sees was not to happen.
            chronicle.install(conn)
        with self.admin() as admin:
            self.bystanders = chronicle.final_rows(admin)
