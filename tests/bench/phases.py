"""The two phases of `proof_lag`, each on a database of its own with the same audit."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from uuid import UUID

from sqlalchemy import Engine, create_engine

from curfew_store import FlowRunControlStore
from curfew_store.embedded import EmbeddedPostgres
from curfew_store.migrate import upgrade
from tests.bench.apscheduler_rival import PATIENCE, wait_until_marked
from tests.bench.lag import Lag, measure
from tests.bench.load import FLOW, Load, Produced, produce
from tests.faults import audit
from tests.faults.daemons import DaemonProcess

DAEMONS = 2
_RIVAL = "import sys; from tests.bench.apscheduler_rival import main; main(sys.argv[1:])"


@contextmanager
def audited(server: EmbeddedPostgres, name: str) -> Iterator[Engine]:
    """A new database with the current schema and an audit."""
    admin = create_engine(server.sqlalchemy_url(), isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    engine = create_engine(server.sqlalchemy_url(name))
    try:
        upgrade(engine)
        with engine.begin() as conn:
            audit.install(conn)
        yield engine
    finally:
        engine.dispose()


def curfewd(server: EmbeddedPostgres, load: Load) -> Lag:
    """Two daemons with default settings; the runs are armed by this process, through the store."""
    with audited(server, "lag_curfewd") as engine, ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proof-lag-")))
        url = server.url("lag_curfewd")
        daemons = [stack.enter_context(DaemonProcess(f"lag-{number}", url, logs, {})) for number in range(DAEMONS)]
        for daemon in daemons:
            daemon.wait_until_ready()
        produced = produce(load, _armed_in(FlowRunControlStore(engine)))
        wait_until_marked(engine, load.count)
        return _measured(engine, produced)


def _armed_in(store: FlowRunControlStore) -> Callable[[UUID, datetime], None]:
    def arm(run_id: UUID, deadline: datetime) -> None:
        store.configure_run(run_id, FLOW, "lag", timeout_at_utc=deadline)

    return arm


def apscheduler(server: EmbeddedPostgres, load: Load) -> Lag:
    """A process with a job per run."""
    with audited(server, "lag_apscheduler") as engine:
        numbers = [str(number) for number in (load.rate, load.seconds, load.ahead)]
        done = subprocess.run(
            [sys.executable, "-c", _RIVAL, server.sqlalchemy_url("lag_apscheduler"), *numbers],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            # It gives up by itself; a job store that takes a second per run is allowed for.
            timeout=load.ahead + load.seconds + load.count + 2 * PATIENCE,
        )
        told = json.loads(done.stdout)
        runs = [(UUID(run_id), datetime.fromisoformat(deadline)) for run_id, deadline in told["runs"]]
        return _measured(engine, Produced(runs, told["leads"]))


def _measured(engine: Engine, produced: Produced) -> Lag:
    with engine.begin() as conn:
        audit.expect(conn, produced.runs)
    with engine.connect() as conn:
        return measure(conn, produced)
