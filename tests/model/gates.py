"""A database on which the shipped claim can be stopped between its steps, and the sessions that play there.

The claim is the shipped statement, sent by the shipped function. It stops at gates, advisory locks that the replay
holds and lets go one by one:

- a row-level policy asks for the gate of a run when the scan comes to it, so before it is locked: at the first gate the
  statement has its snapshot and no lock, at the next one it has tried the lock of the run before;
- a BEFORE UPDATE trigger asks for one more gate: there everything is locked and nothing is marked.

The clock of the claim is set from outside: in the daemons' search path a schema with a function ``now()`` stands before
pg_catalog, so that a deadline equal to now, and one that becomes due between two claims, are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import psycopg
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from curfew_store import FlowRunControlStore
from curfew_store.enforcement import claim_overdue
from curfew_store.schema import tables_in
from tests.integration.sessions import Onlooker
from tests.model.claim_states import DAEMONS, Scenario

TABLES: Final = tables_in("public")
RUNS: Final = (UUID(int=1), UUID(int=2))
EPOCH: Final = datetime(2030, 1, 1, tzinfo=UTC)
UPDATE_GATE: Final = 99

Claim = Callable[[Connection, int], list[UUID]]

SET_UP: Final = """
CREATE SCHEMA clock;
CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE
    AS $$ SELECT pg_catalog.current_setting('model.now')::timestamptz $$;
CREATE FUNCTION clock.gate(number integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE daemon text := pg_catalog.current_setting('model.daemon', true);
BEGIN
    IF daemon <> '' THEN
        PERFORM pg_catalog.pg_advisory_lock_shared(daemon::integer, number);
        PERFORM pg_catalog.pg_advisory_unlock_shared(daemon::integer, number);
    END IF;
END $$;
CREATE FUNCTION clock.gate_of_run(run uuid) RETURNS boolean LANGUAGE plpgsql
    AS $$ BEGIN PERFORM clock.gate(('x' || right(run::text, 8))::bit(32)::integer); RETURN true; END $$;
CREATE FUNCTION clock.gate_of_update() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN PERFORM clock.gate(99); RETURN NEW; END $$;
CREATE TRIGGER gate BEFORE UPDATE ON flow_run_controls FOR EACH ROW EXECUTE FUNCTION clock.gate_of_update();
ALTER TABLE flow_run_controls ENABLE ROW LEVEL SECURITY;
CREATE POLICY gate ON flow_run_controls USING (clock.gate_of_run(run_id));
GRANT USAGE ON SCHEMA clock TO {role};
GRANT SELECT, UPDATE ON flow_run_controls TO {role};
"""

# On a table of two rows a scan of the whole costs less than the index. Deadlines shall be met in the shipped order.
_SESSION_OF_A_DAEMON: Final = """
SET ROLE {role};
SET search_path = clock, pg_catalog, public;
SET model.daemon = '{daemon}';
SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; SET jit = off
"""


def moment(deadline: int) -> datetime | None:
    """A time of the model as a time."""
    return EPOCH + timedelta(days=deadline) if deadline else None


def shipped_claim(conn: Connection, limit: int) -> list[UUID]:
    """The claim as the daemon makes it."""
    return [run.run_id for run in claim_overdue(conn, TABLES, limit=limit)]


class Theatre:
    """A database that has been set up, and the sessions that outlive a trace."""

    def __init__(self, url: str, conninfo: str, role: str, claim: Claim = shipped_claim) -> None:
        self.claim = claim
        self.role = role
        self.engine = create_engine(url, poolclass=NullPool)
        self.store = FlowRunControlStore(self.engine)
        self.store.get_run_control(RUNS[0])  # the check of the schema is over before it can disturb
        self.onlooker = Onlooker(conninfo)
        self.gates = psycopg.connect(conninfo, autocommit=True)
        self.threads = ThreadPoolExecutor(4)
        self._idle: dict[int, Connection] = {}

    def close(self) -> None:
        """End every session."""
        self.threads.shutdown()
        for conn in self._idle.values():
            conn.close()
        self.gates.close()
        self.onlooker.close()
        self.engine.dispose()

    def connection(self, actor: int) -> Connection:
        """The session of an actor: the one of the trace before, if it is still alive."""
        conn = self._idle.pop(actor, None)
        if conn is None:
            conn = self.engine.connect()
            if actor in DAEMONS:
                setup = _SESSION_OF_A_DAEMON.format(role=self.role, daemon=1000 + actor)
                conn.exec_driver_sql(setup)
            else:
                conn.exec_driver_sql("SET lock_timeout = '20s'")
            conn.commit()
        return conn

    def give_back(self, actor: int, conn: Connection) -> None:
        """Keep a session for the next trace."""
        conn.rollback()
        self._idle[actor] = conn

    def begin(self, scenario: Scenario) -> None:
        """The rows of the scenario, and every gate closed."""
        statement = "DELETE FROM flow_run_controls; SELECT pg_advisory_unlock_all(); "
        for run, row in zip(RUNS, scenario.rows, strict=True):
            if row is not None:
                values = f"('{run}', '{moment(row.deadline)}')"
                statement += f"INSERT INTO flow_run_controls (run_id, timeout_at_utc) VALUES {values}; "
        for daemon in DAEMONS:
            for gate in (*(run.int for run in RUNS), UPDATE_GATE):
                statement += f"SELECT pg_advisory_lock({1000 + daemon}, {gate}); "
        self.gates.execute(statement.encode())


def set_up(conninfo: str, role: str) -> None:
    """Put gates and clock beside the tables of a database, for daemons that act as *role*."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute(SET_UP.format(role=role).encode())
