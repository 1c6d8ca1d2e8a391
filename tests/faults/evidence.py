"""Brings a laboratory to rest, takes down all that the checker needs, and keeps it for whoever looks for a cause."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg

from tests.faults import chronicle
from tests.faults.daemons import DaemonProcess
from tests.faults.history import micros
from tests.faults.lab import SECRET, Lab
from tests.faults.nemesis import Struck
from tests.faults.procfs import held_by
from tests.faults.record import DaemonFacts, EndState, LoggedMark, Record
from tests.faults.strikes import Violation, now

__all__ = ["collected", "keep", "rest"]

REST_WITHIN: Final = 20.0
READY_WITHIN: Final = 90.0
LEFT_WITHIN: Final = 5.0
"""Seconds in which what has been closed has to be gone from the server's lists."""

_OVERDUE: Final = """
SELECT run_id FROM flow_run_controls
WHERE timed_out_at_utc IS NULL AND completed_at_utc IS NULL AND NOT cancel_requested
  AND timeout_at_utc <= clock_timestamp() + interval '{ahead} seconds'
"""
_SESSIONS: Final = """
SELECT application_name || ' (' || state || coalesce(', ' || wait_event, '') || ')' FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND state_change < now() - interval '2 seconds' AND (usename <> 'lab_daemon' OR state LIKE 'idle in transaction%')
  AND (application_name NOT LIKE 'lab %' OR application_name ~ '^lab (producer|caller|strike)')
"""
"""Not the laboratory's own: of the sessions that it names, only those through which a store is called."""
_PER_DAEMON: Final = """
SELECT split_part(application_name, ' ', 2) || ' has ' || count(*) || ' sessions' FROM pg_stat_activity
WHERE usename = 'lab_daemon' GROUP BY split_part(application_name, ' ', 2) HAVING count(*) > 4
"""
_LOCKS: Final = """
SELECT mode || ' on ' || relation::regclass || coalesce(' of ' || application_name, '')
FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
WHERE relation::regclass::text LIKE 'flow%' AND pid IS DISTINCT FROM pg_backend_pid()
  AND (pid IS NULL OR xact_start < now() - interval '2 seconds')
"""
_INVALID: Final = """
SELECT 'the index ' || indexrelid::regclass || ' is not valid' FROM pg_index WHERE NOT indisvalid
UNION ALL
SELECT 'the schema has ' || count(*) || ' versions' FROM curfew_schema_version HAVING count(*) <> 1
"""
_AMCHECK: Final = """
SELECT bt_index_check(indexrelid, true) FROM pg_index
WHERE indrelid IN ('flow_run_controls'::regclass, 'flow_idempotency_keys'::regclass)
"""

_COUNTED: Final = {
    "ix_flow_run_controls_armed": "SELECT count(*), max(timeout_at_utc)::text FROM flow_run_controls WHERE"
    " timed_out_at_utc IS NULL AND completed_at_utc IS NULL AND NOT cancel_requested AND timeout_at_utc IS NOT NULL",
    "flow_run_controls_pkey": "SELECT count(*), max(run_id::text) FROM flow_run_controls WHERE run_id IS NOT NULL",
    "flow_idempotency_keys_pkey": "SELECT count(*) FROM flow_idempotency_keys WHERE flow_id IS NOT NULL",
}
"""Counted by the index and by the table: with planner and server at rest both are to say the same."""


def rest(lab: Lab) -> None:
    """Stop the load, and return once every deadline has passed and been met, or patience ends."""
    lab.producers.close()
    give_up = time.monotonic() + REST_WITHIN
    while time.monotonic() < give_up:
        with contextlib.suppress(psycopg.Error), lab.admin() as admin:
            if not admin.execute(_OVERDUE.format(ahead=lab.options.horizon + 1)).fetchall():
                break
        lab.pause(0.2)
    ready_by = time.monotonic() + READY_WITHIN
    for daemon in lab.fleet.members:
        # The checker finds those that are not.
        with contextlib.suppress(TimeoutError):
            daemon.wait_until_ready(max(1.0, ready_by - time.monotonic()))


def collected(lab: Lab, struck: list[Struck], digests: tuple[str, str]) -> Record:
    """Everything, as plain data; stops the daemons."""
    lab.fleet.unexpected_endings()
    with lab.admin() as admin:
        overdue = tuple(row[0] for row in admin.execute(_OVERDUE.format(ahead=0)))
        end = _end_state(lab, admin, overdue)
        ended_at = now().wall
        survivors = {each.instance: _facts_of(lab, each) for each in lab.fleet.members}
        lab.fleet.stop()
        logs = {path.stem: path for path in sorted(lab.logs.glob("lab-*.log"))}
        return Record(
            calls=lab.history.calls(),
            changes=chronicle.changes(admin),
            key_changes=chronicle.key_changes(admin),
            rows=chronicle.final_rows(admin),
            keys=chronicle.final_keys(admin),
            struck=tuple(struck),
            daemons=tuple(
                _with_log(survivors.get(name) or DaemonFacts(name, at_start=lab.baseline.get(name)), path)
                for name, path in logs.items()
            ),
            endings=tuple(lab.fleet.endings),
            bystanders=lab.bystanders,
            end=end,
            stalls=lab.stalls.spans,
            batch_size=int(lab.fleet.settings["CURFEW_BATCH_SIZE"]),
            ended_at=ended_at,
            planned_digest=digests[0],
            struck_digest=digests[1],
        )


def keep(lab: Lab, record: Record, violations: Sequence[Violation], folder: Path) -> None:
    """Leave in *folder*, which is made: the logs, and what was judged, a JSON object a line, times in microseconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in [*lab.logs.glob("*.log"), lab.server.log_path]:
        shutil.copyfile(log, folder / log.name)
    kept: dict[str, Iterable[object]] = {
        "violations": violations,
        "strikes": ({"name": each.kind.name, **vars(each.strike), "recovery": each.recovery} for each in record.struck),
        "calls": record.calls,
        "changes": record.changes,
        "key_changes": record.key_changes,
        "rows": ({"run_id": run_id, **vars(row)} for run_id, row in record.rows.items()),
        "daemons": record.daemons,
        "endings": record.endings,
        "stalls": record.stalls,
        "end": [record.end],
    }
    for name, things in kept.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as sink:
            sink.writelines(json.dumps(each, default=_plainly) + "\n" for each in things)


def _plainly(value: object) -> object:
    if is_dataclass(value):
        return vars(value)
    return list(value) if isinstance(value, frozenset) else str(value)


def _end_state(lab: Lab, admin: psycopg.Connection[Any], overdue: tuple[UUID, ...]) -> EndState:
    def said(statement: str) -> tuple[str, ...]:
        return tuple(str(row[0]) for row in admin.execute(statement))

    give_up = time.monotonic() + LEFT_WITHIN
    while sessions := said(_SESSIONS) + said(_PER_DAEMON):
        if time.monotonic() > give_up:
            break
        lab.pause(0.1)
    return EndState(
        overdue=overdue,
        sessions=sessions,
        locks=said(_LOCKS),
        prepared=said("SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts"),
        schema=said(_INVALID) + _checked_indexes(admin),
        leaks=tuple(_leaks(lab)),
    )


def _checked_indexes(admin: psycopg.Connection[Any]) -> tuple[str, ...]:
    """What amcheck finds; where the server has none, whether each index knows as many rows as its table has."""
    if not admin.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'").fetchone():
        return _counted_indexes(admin)
    try:
        admin.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
        admin.execute(_AMCHECK).fetchall()
    except psycopg.Error as error:
        return (str(error).splitlines()[0],)
    return ()


def _counted_indexes(admin: psycopg.Connection[Any]) -> tuple[str, ...]:
    found = []
    for index, statement in _COUNTED.items():
        counts = []
        for off in ("enable_seqscan", "enable_indexscan, enable_indexonlyscan, enable_bitmapscan"):
            with admin.transaction():
                for name in off.split(", "):
                    admin.execute(f"SET LOCAL {name} = off")
                counts.append(admin.execute(statement).fetchone())
        if counts[0] != counts[1]:
            found.append(f"{index} knows {counts[0]} rows of {counts[1]}")
    return tuple(found)


def _leaks(lab: Lab) -> Iterator[str]:
    for path in [*lab.logs.glob("*.log"), lab.server.log_path]:
        if SECRET in path.read_text(errors="replace"):
            yield f"the password stands in {path.name}"
    for daemon in lab.fleet.members:
        for page in ("/", "/metrics", "/readyz"):
            with contextlib.suppress(OSError):
                if SECRET in daemon.page(page):
                    yield f"the password stands on {page} of {daemon.instance}"


def _facts_of(lab: Lab, daemon: DaemonProcess) -> DaemonFacts:
    counted, ready, held = None, False, None
    with contextlib.suppress(OSError):
        ready = daemon.page("/readyz").startswith(("ok", "{"))
        held = held_by(daemon.pid)
        for line in daemon.page("/metrics").splitlines():
            if line.startswith("curfew_runs_timed_out_total "):
                counted = int(float(line.split()[1]))
    return DaemonFacts(daemon.instance, (), counted, ready, lab.baseline.get(daemon.instance), held)


def _with_log(facts: DaemonFacts, path: Path) -> DaemonFacts:
    logged, tracebacks = [], []
    for line in path.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line of a daemon that was killed
        if event.get("event") == "run_timed_out":
            stamps = [micros(datetime.fromisoformat(event[name])) for name in ("deadline", "timed_out_at")]
            logged.append(LoggedMark(UUID(event["run_id"]), stamps[0], stamps[1]))
        elif event.get("event") in {"crashed", "scheduler_job_failed"}:
            tracebacks.append(line)
    return DaemonFacts(
        facts.instance,
        tuple(logged),
        facts.counted,
        facts.ready,
        facts.at_start,
        facts.at_end,
        tuple(tracebacks),
    )
