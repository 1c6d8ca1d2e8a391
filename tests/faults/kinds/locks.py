"""Faults of neighbours: locks on rows and tables, a held horizon, another isolation level."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from tests.faults.kinds.server import everyone
from tests.faults.lab import DATABASE, Kind, Lab, Strike, Violation, now
from tests.faults.spare import armed_runs

__all__ = ["KINDS"]

_GAUGE: Final = "curfew_overdue_runs "
_GAUGE_WITHIN: Final = 6.0  # two intervals of the observer, as the lab sets it, and a kill


@contextmanager
def _session(lab: Lab, name: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(lab.server.url(DATABASE), application_name=f"lab {name}") as connection:
        yield connection
        connection.rollback()


def hold_horizon(lab: Lab, rng: random.Random) -> Strike:
    """Nothing that was marked meanwhile can be forgotten: an old snapshot, a prepared transaction, an idle slot."""
    how = rng.choice(("snapshot", "prepared", "slot"))
    name = f"lab_{rng.getrandbits(32):08x}"
    held_for = rng.uniform(1, 4)
    with lab.admin() as admin, _session(lab, "old") as old:
        began = now()
        if how == "snapshot":
            old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            old.execute("SELECT count(*) FROM flow_run_controls")
        elif how == "prepared":
            admin.execute(
                f"BEGIN; INSERT INTO flow_run_controls (run_id, trigger_key) VALUES (gen_random_uuid(), '{name}');"
                f" PREPARE TRANSACTION '{name}'"
            )
        else:
            admin.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
        armed_runs(lab, rng, 200, within=held_for)
        lab.pause(held_for)
        if how == "prepared":
            admin.execute(f"ROLLBACK PREPARED '{name}'")
        elif how == "slot":
            admin.execute("SELECT pg_drop_replication_slot(%s)", (name,))
    return Strike("F20", began, now(), f"horizon held {held_for:.1f} s by a {how}")


def lock_table(lab: Lab, rng: random.Random) -> Strike:
    """ACCESS EXCLUSIVE on the controls, for less or more than the daemons' lock_timeout."""
    held_for = rng.choice((rng.uniform(0.2, 1.5), rng.uniform(2.5, 5)))
    with lab.admin() as admin, admin.transaction():
        began = now()
        admin.execute("LOCK TABLE flow_run_controls IN ACCESS EXCLUSIVE MODE")
        lab.pause(held_for)
    return Strike("F22", began, now(), f"table locked {held_for:.1f} s", outage=True, lame=everyone(lab))


def rewrite_table(lab: Lab, rng: random.Random) -> Strike:
    """VACUUM FULL, or REINDEX CONCURRENTLY of the index that the claim uses."""
    statement = rng.choice(("VACUUM FULL flow_run_controls", "REINDEX INDEX CONCURRENTLY ix_flow_run_controls_armed"))
    lab.pause(rng.uniform(0, 0.3))
    with lab.admin() as admin:
        began = now()
        try:
            admin.execute(statement)
        except psycopg.errors.DeadlockDetected:  # with another strike of its kind
            lab.pause(0)
    return Strike("F22", began, now(), statement, outage=True, lame=everyone(lab))


def hold_rows(lab: Lab, rng: random.Random) -> Strike:
    """A producer sits in a transaction on overdue runs: the others are met, and the gauge shows these."""
    runs = armed_runs(lab, rng, rng.randint(1, 20), within=0.2)
    held_for = rng.uniform(0.5, 4)
    found: list[Violation] = []
    with _session(lab, "idle") as idle:
        began = now()
        idle.execute("SELECT FROM flow_run_controls WHERE run_id = ANY(%s) FOR UPDATE", (runs,))
        lab.pause(held_for)
        taken = lab.client.call("get_run_control", runs[0]).result
        if rng.random() < 0.3 and taken and taken["timed_out_at_utc"] is None and not _gauge_shows(lab):
            found.append(Violation("I11", f"no daemon's gauge showed the held runs within {_GAUGE_WITHIN:g} s"))
    did = f"{len(runs)} overdue runs held"
    return Strike("F23", began, now(), did, held=frozenset(runs), found=tuple(found))


def _gauge_shows(lab: Lab) -> bool:
    give_up = time.monotonic() + _GAUGE_WITHIN
    while time.monotonic() < give_up:
        for daemon in lab.fleet.members:
            # One that was just killed or frozen by another strike does not answer.
            with contextlib.suppress(OSError):
                lines = daemon.page("/metrics").splitlines()
                if any(line.startswith(_GAUGE) and float(line.split()[1]) > 0 for line in lines):
                    return True
        lab.pause(0.2)
    return False


def opposite_orders(lab: Lab, rng: random.Random) -> Strike:
    """Two bulk updates take the same due runs in opposite orders, again and again."""
    runs = armed_runs(lab, rng, 40, within=1.0)
    until = time.monotonic() + rng.uniform(0.8, 1.5)
    began = now()

    def update(order: str) -> None:
        statement = "UPDATE flow_run_controls SET trigger_key = trigger_key WHERE run_id = %s"
        with _session(lab, f"bulk {order}") as session:
            session.execute("SET deadlock_timeout = '50ms'")
            session.commit()
            while time.monotonic() < until:
                try:
                    for run in sorted(runs, reverse=order == "descending"):
                        session.execute(statement, (run,))
                    session.commit()
                except psycopg.Error:
                    session.rollback()

    threads = [threading.Thread(target=update, args=(order,)) for order in ("ascending", "descending")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = tuple(
        Violation("I14", f"{daemon.instance} was the victim of a deadlock")
        for daemon in lab.fleet.members
        if "deadlock detected" in daemon.log.read_text(errors="replace")
    )
    return Strike("F24", began, now(), "bulk updates in opposite orders", held=frozenset(runs), found=found)


def isolation(lab: Lab, rng: random.Random) -> Strike:
    """The daemons' role gets another isolation level as its default, and new sessions."""
    level = rng.choice(("serializable", "repeatable read"))
    sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lab_daemon'"
    with lab.admin() as admin:
        began = now()
        admin.execute(f"ALTER ROLE lab_daemon SET default_transaction_isolation = '{level}'")
        admin.execute(sessions)
        armed_runs(lab, rng, 50, within=1.5)
        lab.pause(rng.uniform(1, 2))
        admin.execute("ALTER ROLE lab_daemon RESET default_transaction_isolation")
        admin.execute(sessions)
    return Strike("F25", began, now(), f"{level} as the default", lame=everyone(lab))


KINDS: Final = (
    Kind("F20", "horizon", "the horizon held back", hold_horizon),
    Kind("F22", "lock-table", "a lock on the whole table", lock_table, alone=True, recovery=5.0),
    Kind("F22", "rewrite-table", "the table or its index rewritten", rewrite_table, alone=True),
    Kind("F23", "hold-rows", "a producer idle in transaction on overdue runs", hold_rows),
    Kind("F24", "opposite-orders", "bulk updates in opposite orders", opposite_orders),
    Kind("F25", "isolation", "another isolation level as the role's default", isolation, alone=True),
)
