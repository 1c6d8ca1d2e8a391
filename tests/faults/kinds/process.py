"""Faults of processes: killed, stopped, frozen, out of memory."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import time
from typing import Any, Final
from uuid import UUID

import psycopg

from tests.faults.daemons import DaemonProcess
from tests.faults.lab import Kind, Lab, Moment, Strike, Violation, now
from tests.faults.producers import FLOW
from tests.faults.spare import armed_runs

__all__ = ["KINDS"]

_ENDS_WITHIN: Final = 8.0  # statement_timeout and a little: the promise for SIGTERM in mid-statement


def _at_a_random_moment(lab: Lab, rng: random.Random) -> Moment:
    lab.pause(rng.uniform(0, 0.5))
    return now()


def kill(lab: Lab, rng: random.Random) -> Strike:
    """SIGKILL to one daemon; a successor starts at once."""
    with lab.fleet.borrow(rng) as daemon:
        began = _at_a_random_moment(lab, rng)
        daemon.kill()
        return Strike("F1", began, now(), f"SIGKILL to {daemon.instance}", lame=frozenset({daemon.instance}))


def terminate(lab: Lab, rng: random.Random) -> Strike:
    """SIGTERM to one daemon whose claim waits for a lock on the table; it has to end with 0."""
    with lab.fleet.borrow(rng) as daemon, lab.admin() as admin:
        lab.pause(rng.uniform(0, 0.3))
        held_for = rng.uniform(0.2, 0.8)
        with admin.transaction():
            began = now()
            # Conflicts with the claim's own lock and with nothing that reads: the statement is on its way.
            admin.execute("LOCK TABLE flow_run_controls IN SHARE MODE")
            _await_waiting(lab, daemon, 1.5)
            daemon.signal(signal.SIGTERM)
            lab.pause(held_for)
        found = _ended_well(daemon, lab)
        ended = now()
        did = f"SIGTERM to {daemon.instance} in a statement"
        lame = frozenset({daemon.instance})
        return Strike("F2", began, ended, did, outage=True, lame=lame, found=found)


def _await_waiting(lab: Lab, daemon: DaemonProcess, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE starts_with(application_name || ' ', %s || ' ') AND wait_event_type = 'Lock'"
    )
    with lab.admin("lab onlooker") as onlooker:
        while time.monotonic() < give_up:
            row = onlooker.execute(waiting, (daemon.application_name,)).fetchone()
            if row and row[0]:
                return
            lab.pause(0.02)


def _ended_well(daemon: DaemonProcess, lab: Lab) -> tuple[Violation, ...]:
    give_up = time.monotonic() + _ENDS_WITHIN
    while daemon.exit_code is None and time.monotonic() < give_up:
        lab.pause(0.02)
    if daemon.exit_code is None:
        daemon.kill()
        return (Violation("I14", f"{daemon.instance} outlived SIGTERM by {_ENDS_WITHIN:g} s"),)
    if daemon.exit_code != 0:
        return (Violation("I14", f"{daemon.instance} ended with {daemon.exit_code} after SIGTERM"),)
    return ()


def freeze(lab: Lab, rng: random.Random) -> Strike:
    """SIGSTOP to one daemon at any point of its sweep, then SIGCONT: meanwhile the others meet the deadlines."""
    with lab.fleet.borrow(rng) as daemon:
        began = _at_a_random_moment(lab, rng)
        daemon.signal(signal.SIGSTOP)
        try:
            lab.pause(rng.uniform(0.5, 4.0))
        finally:
            daemon.signal(signal.SIGCONT)
        return Strike("F3", began, now(), f"{daemon.instance} frozen", lame=frozenset({daemon.instance}))


def freeze_producer(lab: Lab, rng: random.Random) -> Strike:
    """A producer freezes between its UPDATE and its COMMIT; the server's idle limit lets the rows go."""
    runs = armed_runs(lab, rng, rng.randint(1, 5), within=0.5)
    with psycopg.connect(
        lab.server.url(), application_name="lab frozen", options="-c idle_in_transaction_session_timeout=1500"
    ) as held:
        began = now()
        held.execute("UPDATE flow_run_controls SET trigger_key = 'held' WHERE run_id = ANY(%s)", (runs,))
        give_up = time.monotonic() + 5
        while time.monotonic() < give_up and not _let_go(lab, held, runs):
            lab.pause(0.05)
        held.close()
    did = f"a producer frozen in a transaction on {len(runs)} runs"
    return Strike("F3", began, now(), did, held=frozenset(runs))


def commit_late(lab: Lab, rng: random.Random) -> Strike:
    """A producer freezes before the COMMIT of new runs and thaws after their deadlines, behind every daemon's mark."""
    runs, lasts = rng.randint(1, 5), rng.uniform(1.0, 3.0)
    with psycopg.connect(lab.server.url(), application_name="lab late") as late:
        began = now()
        late.execute(
            "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc)"
            " SELECT gen_random_uuid(), %s, 'late', clock_timestamp() + interval '100 ms' FROM generate_series(1, %s)",
            (FLOW, runs),
        )
        lab.pause(lasts)
        late.commit()
        ended = now()
    return Strike("F3", began, ended, f"a producer frozen for {lasts:.1f} s before its COMMIT of {runs} runs")


def _let_go(lab: Lab, held: psycopg.Connection[Any], runs: list[UUID]) -> bool:
    statement = "SELECT count(*) FROM (SELECT FROM flow_run_controls WHERE run_id = ANY(%s) FOR UPDATE SKIP LOCKED) _"
    with lab.admin("lab onlooker") as onlooker:
        row = onlooker.execute(statement, (runs,)).fetchone()
    return row is not None and row[0] == len(runs)


def exhaust_memory(lab: Lab, rng: random.Random) -> Strike:
    """One daemon may have no more memory than it has: it fails somewhere, and its successor starts clean."""
    with lab.fleet.borrow(rng) as daemon:
        began = _at_a_random_moment(lab, rng)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(daemon.pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
        lab.pause(rng.uniform(0.3, 1.5))
        survived = daemon.exit_code is None
        daemon.kill()
        did = f"{daemon.instance} without memory, {'killed in the end' if survived else 'died of it'}"
        return Strike("F4", began, now(), did, lame=frozenset({daemon.instance}))


KINDS: Final = (
    Kind("F1", "kill", "a daemon killed", kill),
    Kind("F2", "terminate", "SIGTERM in the middle of a statement", terminate, recovery=6.0),
    Kind("F3", "freeze", "a daemon frozen and thawed", freeze),
    Kind("F3", "freeze-producer", "a producer frozen in a transaction", freeze_producer),
    Kind("F3", "late-commit", "a producer frozen before its COMMIT", commit_late),
    Kind("F4", "memory", "a daemon out of memory", exhaust_memory),
)
