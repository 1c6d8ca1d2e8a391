"""``curfewd check``: whatever could keep deadlines from being met, and what to do about each.

`examine` yields findings as it makes them, so that a check which hangs shows how far it came. Once the database
cannot be reached, or the schema is not ours, what builds on it is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from ipaddress import ip_address
from typing import Final

from sqlalchemy import Connection

from curfew_daemon.check_listener import what_is_wrong
from curfew_daemon.config import Settings
from curfew_daemon.conninfo import describe, has_purge_url, read_database_url, read_purge_url
from curfew_daemon.database import BoundedConnection, bounded_engine
from curfew_daemon.failures import REMEDIES, exit_of, is_database_error, shown, state_of
from curfew_daemon.lifecycle import Exit
from curfew_daemon.results import DatabaseState
from curfew_daemon.retention import remedy_for
from curfew_store.errors import SchemaMismatch
from curfew_store.inspection import (
    ServerFacts,
    claim_uses_index,
    has_upstream_engine,
    keys_without_record,
    missing_rights,
    server_facts,
)
from curfew_store.retention import missing_rights as missing_purge_rights
from curfew_store.schema import Tables, tables_in
from curfew_store.version import verify

__all__ = ["Finding", "Level", "examine"]

OLDEST_TESTED: Final = 14
NEWEST_TESTED: Final = 18
TOLERATED_SKEW: Final = 1.0
_KEY_GRACE: Final = timedelta(hours=1)
_KEY_BOUND: Final = 1_000
_ANSWER_TIMEOUT: Final = 30.0
_SHORT_RETENTION: Final = timedelta(days=1)


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. *remedy* says what to do, *exit* is the code that an error ends with."""

    level: Level
    topic: str
    message: str
    remedy: str = ""
    exit: Exit = Exit.FAILURE


def examine(settings: Settings) -> Iterator[Finding]:
    """Every finding, in the order in which one thing builds on another."""
    yield Finding(Level.OK, "settings", f"complete, {len(settings.ignored)} service links ignored")
    conninfo = read_database_url(settings)
    engine = bounded_engine(
        conninfo,
        application_name=f"curfewd check {settings.instance}",
        connect_timeout=settings.connect_timeout,
        answer_timeout=_ANSWER_TIMEOUT,
    )
    try:
        with engine.connect() as plain:
            # One statement per transaction: an error of one finding must not spoil the next.
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            yield from _examine_server(conn, describe(conninfo))
            yield from _examine_tables(conn, tables_in(settings.schema_name))
            if settings.retention is not None:
                yield _retention(settings)
            if settings.listen:
                yield _listener(settings, conn)
    except Exception as error:
        if not is_database_error(error):
            raise
        topic = "schema" if isinstance(error, SchemaMismatch) else "database"
        yield Finding(Level.ERROR, topic, shown(error), REMEDIES[state_of(error)], exit_of(error))


def _examine_server(conn: Connection, place: str) -> Iterator[Finding]:
    before = time.time()
    facts = server_facts(conn)
    round_trip = time.time() - before
    yield _version(facts, place)
    if facts.recovery or facts.read_only:
        message = "the server is a standby" if facts.recovery else "transactions are read-only"
        remedy = "name the primary in CURFEW_DATABASE_URL, or list all hosts of the cluster"
        yield Finding(Level.ERROR, "database", message, remedy, Exit.DATABASE)
    yield from _timeouts(facts)
    yield from _encryption(*_peer(conn))
    yield _clock(facts, before, round_trip)


def _version(facts: ServerFacts, place: str) -> Finding:
    major = facts.version // 10_000
    message = f"PostgreSQL {major}.{facts.version % 10_000} at {place}, as {facts.role}"
    if OLDEST_TESTED <= major <= NEWEST_TESTED:
        return Finding(Level.OK, "connection", message)
    remedy = f"curfewd is tested with PostgreSQL {OLDEST_TESTED} to {NEWEST_TESTED}"
    return Finding(Level.WARNING, "connection", message, remedy)


def _timeouts(facts: ServerFacts) -> Iterator[Finding]:
    """What the role's own settings mean where a pooler drops those that the daemon asks for."""
    wanted = {
        "statement_timeout": (facts.statement_timeout, "5s"),
        "lock_timeout": (facts.lock_timeout, "2s"),
        "idle_in_transaction_session_timeout": (facts.idle_in_transaction_timeout, "10s"),
    }
    unset = {name: value for name, (milliseconds, value) in wanted.items() if not milliseconds}
    if unset:
        remedy = "; ".join(f"ALTER ROLE {facts.role} SET {name} = '{value}'" for name, value in unset.items())
        message = f"the role has no {', '.join(unset)}: a pooler that drops startup options leaves them unbounded"
        yield Finding(Level.WARNING, "timeouts", message, remedy)
    else:
        yield Finding(Level.OK, "timeouts", "the role bounds statements, lock waits and idle transactions")
    if facts.isolation != "read committed":
        message = f"default_transaction_isolation is {facts.isolation}: behind a pooler claims may be repeated"
        remedy = f"ALTER ROLE {facts.role} SET default_transaction_isolation = 'read committed'"
        yield Finding(Level.WARNING, "isolation", message, remedy)
    if facts.synchronous_commit == "off":
        message = "synchronous_commit is off: a crash of the server may lose marks that were acknowledged"
        remedy = f"ALTER ROLE {facts.role} SET synchronous_commit = on"
        yield Finding(Level.WARNING, "durability", message, remedy)


def _peer(conn: Connection) -> tuple[str, bool]:
    """The address at the other end, "" for a Unix socket, and whether the way there is encrypted by TLS.

    Asked of our own end: behind a pooler the server knows the pooler's connection only.
    """
    raw = conn.connection.driver_connection
    assert isinstance(raw, BoundedConnection)
    return raw.info.hostaddr, raw.pgconn.ssl_in_use


def _encryption(address: str, encrypted: bool) -> Iterator[Finding]:
    if encrypted or not address or ip_address(address).is_loopback:
        return
    message = f"the connection to {address} is not encrypted: passwords and runs can be read, and answers forged"
    remedy = "add sslmode=verify-full and sslrootcert= to CURFEW_DATABASE_URL; the server must have ssl = on"
    yield Finding(Level.WARNING, "tls", message, remedy)


def _clock(facts: ServerFacts, before: float, round_trip: float) -> Finding:
    skew = (facts.clock - datetime.fromtimestamp(before + round_trip / 2, UTC)).total_seconds()
    message = f"the database's clock is {skew:+.3f} s from this machine's (round trip {round_trip * 1000:.1f} ms)"
    if abs(skew) <= TOLERATED_SKEW + round_trip:
        return Finding(Level.OK, "clock", message)
    remedy = (
        "deadlines are kept by the database's clock, so marks are right by it; producers that pass timeout_at_utc "
        "by their own clock are off by this much: pass timeout, or synchronise the clocks"
    )
    return Finding(Level.WARNING, "clock", message, remedy)


def _examine_tables(conn: Connection, tables: Tables) -> Iterator[Finding]:
    version = verify(conn, tables)
    yield Finding(Level.OK, "schema", f"schema {tables.schema} is at version {version}")
    missing = missing_rights(conn, tables)
    for grant in missing:
        yield Finding(Level.ERROR, "rights", f"the role lacks {grant}", f"GRANT {grant} TO the daemon's role")
    if not missing:
        yield Finding(Level.OK, "rights", "the role may read and mark runs")
        yield _claim(conn, tables)
    if has_upstream_engine(conn, tables):
        message = (
            f"{tables.schema}.flow_runs stands beside the controls: `run` and `once` refuse to mark anything,"
            " `purge` to delete"
        )
        remedy = "FlowOrchestrator's finished runs look overdue here; see `curfewd plan`"
        yield Finding(Level.ERROR, "engine", message, remedy, Exit.UPSTREAM_ENGINE)
    yield _orphans(conn, tables)


def _listener(settings: Settings, conn: Connection) -> Finding:
    wrong = what_is_wrong(settings, conn, answer_timeout=_ANSWER_TIMEOUT)
    if wrong is None:
        return Finding(Level.OK, "listener", "what is notified is heard where the daemon would listen")
    message, remedy = wrong
    return Finding(Level.WARNING, "listener", message, remedy)


def _retention(settings: Settings) -> Finding:
    """Whether whoever purges can be, and may delete; marking does not depend on it."""
    engine = bounded_engine(
        read_purge_url(settings),
        application_name=f"curfewd check {settings.instance}",
        connect_timeout=settings.connect_timeout,
        answer_timeout=_ANSWER_TIMEOUT,
    )
    try:
        with engine.connect() as conn:
            role, missing = server_facts(conn).role, missing_purge_rights(conn, tables_in(settings.schema_name))
    except Exception as error:
        if not is_database_error(error):
            raise
        remedy = remedy_for(state_of(error), own_url=has_purge_url(settings))
        return Finding(Level.WARNING, "retention", f"nothing is purged: {shown(error)}", remedy)
    if missing:
        message = f"nothing is purged: role {role} lacks {', '.join(missing)}"
        return Finding(Level.WARNING, "retention", message, remedy_for(DatabaseState.DENIED, own_url=True))
    kept = timedelta(seconds=settings.retention or 0)
    if kept < _SHORT_RETENTION:
        message = f"the record of a run that timed out or was cancelled is gone after {kept}: who asks then may go on"
        remedy = "set CURFEW_RETENTION to longer than any step of a run may still be queued"
        return Finding(Level.WARNING, "retention", message, remedy)
    return Finding(Level.OK, "retention", f"ended runs and their keys are deleted after {kept}, as {role}")


def _claim(conn: Connection, tables: Tables) -> Finding:
    with conn.engine.begin() as transaction:
        indexed, plan = claim_uses_index(transaction, tables)
    if indexed:
        return Finding(Level.OK, "claim", "the claim runs on the index of armed deadlines")
    remedy = "run `curfewd migrate`, which builds the index where it is missing, and ANALYZE; the plan was:\n" + plan
    return Finding(Level.ERROR, "claim", "the claim does not run on the index of armed deadlines", remedy)


def _orphans(conn: Connection, tables: Tables) -> Finding:
    try:
        count = keys_without_record(conn, tables, older_than=_KEY_GRACE, bound=_KEY_BOUND)
    except Exception as error:
        if not is_database_error(error):
            raise
        return Finding(Level.WARNING, "keys", f"could not be looked at: {shown(error)}", "GRANT SELECT on both tables")
    if not count:
        return Finding(Level.OK, "keys", "no idempotency key without its control record")
    many = f"{count:,}{' or more' if count == _KEY_BOUND else ''}"
    message = f"{many} idempotency keys older than an hour point to no control record: their triggers never start"
    remedy = "a producer died between registering and configuring; use start_run, and purge() to free the keys"
    return Finding(Level.WARNING, "keys", message, remedy)
