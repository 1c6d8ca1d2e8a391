"""What daemons cost while nothing is due, and what nine more of them add while deadlines come."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg
from sqlalchemy import make_url

from tests.bench import readings
from tests.bench.frame import Bench, BenchDatabase, Figure

TITLE = "cost of idle daemons, and of many daemons"
RATE = 100
FLEET = 10
_LEAD = 2.0
_SETTLE = 17.0  # PostgreSQL's background writer has one record to write up to 15 s after the last change
_OWN_TRANSACTIONS = 2  # that arm the runs, and look whether they are marked
# The observer asks every five seconds by default, in the place of a poll; here only the sweeps are counted.
_QUIET = {"CURFEW_OBSERVE_INTERVAL": "300"}
_ARM = """
INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc)
SELECT gen_random_uuid(), 'idle', now() + make_interval(secs => %(lead)s + n / %(rate)s::float8)
FROM generate_series(0, %(count)s - 1) n
"""
_COUNTERS = """
SELECT extract(epoch FROM clock_timestamp())::float8, xact_commit, pg_snapshot_xmax(pg_current_snapshot())::text::int8,
    pg_current_wal_insert_lsn() - '0/0'
FROM pg_stat_database WHERE datname = %(name)s
"""


@dataclass(frozen=True)
class Counters:
    """The server's counters at a moment (seconds): transactions of the database, next transaction id, WAL in bytes."""

    at: float
    transactions: int
    next_xid: int
    wal: int


def run(bench: Bench) -> list[Figure]:
    """First the idle daemon, then one and ten of them under the same load."""
    figures = _idle(bench, 60.0 if bench.full else 10.0)
    seconds = 30.0 if bench.full else 6.0
    one, ten = (per_deadline(bench, daemons, seconds) for daemons in (1, FLEET))
    name = f"statements per deadline, {FLEET} daemons, {RATE}/s"
    return [
        *figures,
        Figure(name, [ten], "statements", "< 1.5 of one daemon", reference=[one]).judged(
            lambda figure: (figure.ratio or 9) < 1.5
        ),
    ]


def _idle(bench: Bench, seconds: float) -> list[Figure]:
    """A daemon with default settings, and one whose observer is silent beside it, each on a database of its own."""
    statements: list[float] = []
    sweeps: list[float] = []
    xids: list[float] = []
    wal: list[float] = []
    share: list[float] = []
    with ExitStack() as stack:
        # It looks after the catalogs of new databases, and takes transaction ids for it.
        stack.enter_context(bench.without_autovacuum())
        database, quiet = (stack.enter_context(bench.database(name)) for name in ("idle", "idle_quiet"))
        (daemon,) = stack.enter_context(bench.daemons(database))
        stack.enter_context(bench.daemons(quiet, 1, _QUIET))
        database.maintain("CHECKPOINT")
        time.sleep(_SETTLE)
        for _ in range(bench.runs):
            before, quiet_before, used = counters(database), counters(quiet), readings.cpu(daemon.pid)
            time.sleep(seconds)
            after, quiet_after = counters(database), counters(quiet)
            lasted = after.at - before.at
            share.append(100 * (readings.cpu(daemon.pid) - used) / lasted)
            statements.append((after.transactions - before.transactions) / lasted)
            sweeps.append((quiet_after.transactions - quiet_before.transactions) / lasted)
            xids.append(after.next_xid - before.next_xid)
            wal.append(after.wal - before.wal)
            bench.say(
                f"idle for {lasted:.0f} s: {sweeps[-1]:.2f} statements/s of the sweep, {share[-1]:.2f} % of a core"
            )
    none = "none"
    return [
        # What the sessions tell the server of themselves comes up to a second late.
        Figure("idle daemon: statements of the sweep", sweeps, "per s", "one per poll interval").judged(
            lambda figure: figure.median <= 1 + 2 / seconds
        ),
        Figure("idle daemon: statements, the observer's too", statements, "per s", "one per poll interval").judged(
            lambda figure: figure.median <= 1 + 2 / seconds
        ),
        Figure("idle daemon: transaction ids", xids, "ids", none).judged(lambda figure: figure.greatest == 0),
        Figure("idle daemon: WAL", wal, "bytes", none).judged(lambda figure: figure.greatest == 0),
        Figure("idle daemon: processor", share, "% of a core", "< 0.5 %").judged(lambda figure: figure.median < 0.5),
    ]


def per_deadline(bench: Bench, daemons: int, seconds: float) -> float:
    """Statements of all sweeps per deadline, the polls of standbys included."""
    count = round(RATE * seconds)
    with ExitStack() as stack:
        database = stack.enter_context(bench.database(f"fleet_{daemons}"))
        stack.enter_context(bench.daemons(database, daemons, _QUIET))
        _serve(database, RATE)  # who is active is settled by the first deadlines
        before = _settled(database)
        _serve(database, count)
        after = _settled(database)
    found = (after.transactions - before.transactions - _OWN_TRANSACTIONS) / count
    bench.say(f"{daemons} daemons: {found:.2f} statements per deadline")
    return found


def _serve(database: BenchDatabase, count: int) -> None:
    """Arm so many runs and return when they have been marked; looks once only, since looking counts too."""
    database.execute(_ARM, {"lead": _LEAD, "rate": RATE, "count": count})
    time.sleep(_LEAD + count / RATE + 0.5)
    left = database.scalar("SELECT count(*) FROM flow_run_controls WHERE timed_out_at_utc IS NULL")
    if left:
        raise RuntimeError(f"{left} runs were not marked in time")


def _settled(database: BenchDatabase) -> Counters:
    """The counters, once every session has told of what it did: they do so once a second."""
    time.sleep(1.5)
    return counters(database)


def counters(database: BenchDatabase) -> Counters:
    """The server's counters, asked for from another database, which costs neither a transaction here nor an id."""
    elsewhere = make_url(database.url).set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(elsewhere, autocommit=True) as conn:
        row = conn.execute(_COUNTERS, {"name": database.name}).fetchone()
    assert row is not None
    return Counters(float(row[0]), int(row[1]), int(row[2]), int(row[3]))
