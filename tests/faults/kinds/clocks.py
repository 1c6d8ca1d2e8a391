"""Faults of clocks: the server's stepped by an hour or doubled in speed, the daemons' off by days or in odd zones."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

from curfew_store.embedded import EmbeddedPostgres
from tests.faults.fake_clock import FakeClock, programs_under
from tests.faults.lab import Kind, Lab, LabOptions, Moment, Strike, Violation, now, server_settings
from tests.faults.producers import FLOW

__all__ = ["KINDS", "STAGES"]

_DEBIAN: Final = Path("/usr/lib/postgresql")
_SERVER_STAGE: Final = "server's clock"
_DAEMON_STAGE: Final = "daemons' clocks"
_CLOCKS: Final[dict[Path, FakeClock]] = {}
"""The clock of each open stage, by its lab's folder of logs."""
_HOUR: Final = timedelta(hours=1)
_WITHIN: Final = 2.0
_PATIENCE: Final = 20.0
_DAEMON_TIMES: Final = (
    "-86400",
    "+86400",
    "@2028-02-29 23:59:58",
    "@2026-03-29 00:59:58",
    "@2026-10-25 00:59:58",
    "@2038-01-19 03:14:05",
    "+0 x5",
    "-7200",
)


@contextmanager
def server_stage(options: LabOptions) -> Iterator[Lab]:
    """A lab whose server has a clock of its own; without producers, whose deadlines and records know another time."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="curfew-lab-clock-")))
        clock = FakeClock(folder)
        programs = max(_DEBIAN.glob("*/bin"), key=lambda path: int(path.parent.name))
        under = programs_under(clock, programs, folder)
        server = stack.enter_context(
            EmbeddedPostgres.start(bin_dir=under, durable=True, tcp=True, settings=server_settings(options))
        )
        lab = stack.enter_context(Lab.open(replace(options, producers=0), server))
        _CLOCKS[lab.logs] = clock
        stack.callback(_CLOCKS.pop, lab.logs)
        yield lab


@contextmanager
def daemon_stage(options: LabOptions) -> Iterator[Lab]:
    """A lab whose daemons share a wall clock of their own, in a zone that is not a whole hour from UTC."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="curfew-lab-clock-")))
        clock = FakeClock(folder)
        odd = {**clock.environment, "TZ": "Asia/Kathmandu"}
        lab = stack.enter_context(Lab.open(replace(options, settings={**options.settings, **odd})))
        _CLOCKS[lab.logs] = clock
        stack.callback(_CLOCKS.pop, lab.logs)
        yield lab


def _arm(admin: psycopg.Connection[Any], *due_in: timedelta) -> list[UUID]:
    """Runs that fall due so long after the server's present time."""
    runs = [uuid4() for _ in due_in]
    for run, due in zip(runs, due_in, strict=True):
        admin.execute(
            "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc)"
            " VALUES (%s, %s, 'clock', clock_timestamp() + %s)",
            (run, FLOW, due),
        )
    return runs


def _server_now(admin: psycopg.Connection[Any]) -> int:
    row = admin.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").fetchone()
    assert row is not None
    return int(row[0])


def _latest(admin: psycopg.Connection[Any]) -> int:
    """The server's present time, or that of the last change: at another speed its processes are not quite as one."""
    row = admin.execute("SELECT (extract(epoch FROM max(at)) * 1000000)::bigint FROM lab.change").fetchone()
    return max(_server_now(admin), int(row[0]) if row and row[0] else 0)


def _marked(admin: psycopg.Connection[Any], runs: list[UUID]) -> int:
    row = admin.execute(
        "SELECT count(*) FROM flow_run_controls WHERE run_id = ANY(%s) AND timed_out_at_utc IS NOT NULL", (runs,)
    ).fetchone()
    assert row is not None
    return int(row[0])


def _all_marked(lab: Lab, admin: psycopg.Connection[Any], runs: list[UUID]) -> float:
    """How many seconds it takes until these runs are marked; at most patience."""
    began = time.monotonic()
    while _marked(admin, runs) < len(runs) and time.monotonic() - began < _PATIENCE:
        lab.pause(0.02)
    return time.monotonic() - began


def _seconds(rng: random.Random, least: float, most: float, count: int) -> list[timedelta]:
    return [timedelta(seconds=rng.uniform(least, most)) for _ in range(count)]


def _late(seconds: float, did: str) -> tuple[Violation, ...]:
    return () if seconds <= _WITHIN else (Violation("I2", f"{did}: overdue for {seconds:.1f} s by that clock"),)


def _run_at_double_speed(lab: Lab, clock: FakeClock, seconds: float) -> None:
    """Ten small steps a second: the library's own rate begins at another moment in each process."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        clock.set(f"+{passed:.3f}")
        lab.pause(0.1)


def step_forward(lab: Lab, rng: random.Random) -> Strike:
    """An hour ahead at once, or at double speed: all that has become due is marked, and nothing that has not."""
    clock = _CLOCKS[lab.logs]
    fast = rng.random() < 0.5
    did = "server's clock at double speed" if fast else "server's clock +1 h"
    with lab.admin() as admin:
        due = _arm(admin, *_seconds(rng, 0.2, 1.0, 10))
        far = _arm(admin, *_seconds(rng, 7200, 9000, 5))
        began = Moment(time.monotonic(), _server_now(admin))
        try:
            if fast:
                _run_at_double_speed(lab, clock, 1.5)
            else:
                clock.set("+3600")
            recovered = _all_marked(lab, admin, due)
            fresh = _arm(admin, *_seconds(rng, 0.05, 0.3, 5))
            found = _late(recovered - (0.0 if fast else 1.0), did) + _late(_all_marked(lab, admin, fresh) - 0.3, did)
            if _marked(admin, far):
                found += (Violation("I1", f"{did}: a run was marked two hours early"),)
            ended = Moment(time.monotonic(), _latest(admin))
        finally:
            clock.set("+0")
        admin.execute("UPDATE flow_run_controls SET cancel_requested = true WHERE run_id = ANY(%s)", (far,))
    return Strike("F26", began, ended, did, outage=True, found=found, recovered=recovered)


def step_back(lab: Lab, rng: random.Random) -> Strike:
    """An hour back and, a while later, forth: no mark before the deadline by the clock in force, all marks after."""
    clock, did = _CLOCKS[lab.logs], "server's clock -1 h and back"
    with lab.admin() as admin:
        waiting = _arm(admin, *_seconds(rng, 1.0, 1.5, 10))
        began = Moment(time.monotonic(), _server_now(admin))
        clock.set("-3600")
        try:
            fresh = _arm(admin, *_seconds(rng, 0.05, 0.5, 5))
            found = _late(_all_marked(lab, admin, fresh) - 0.5, did)
            lab.pause(rng.uniform(0.5, 2.0))
            if _marked(admin, waiting):
                found += (Violation("I1", f"{did}: a run was marked before its deadline by that clock"),)
        finally:
            clock.set("+0")
        recovered = _all_marked(lab, admin, waiting)
        found += _late(recovered - 1.5, did)
        ended = Moment(time.monotonic(), _server_now(admin))
    return Strike("F26", began, ended, did, outage=True, found=found, recovered=recovered)


def odd_clock(lab: Lab, rng: random.Random) -> Strike:
    """All daemons' wall clocks jump to another day, a change of summer time, a leap day, or run five times as fast."""
    clock = _CLOCKS[lab.logs]
    words = rng.choice(_DAEMON_TIMES)
    began = now()
    clock.set(words)
    lab.pause(rng.uniform(0.5, 2.0))
    if rng.random() < 0.5:
        clock.set("+0")
    return Strike("F27", began, now(), f"daemons' clocks at {words}, in Asia/Kathmandu")


_NEEDS: Final = frozenset({"libfaketime"})
STAGES: Final = {_SERVER_STAGE: server_stage, _DAEMON_STAGE: daemon_stage}
KINDS: Final = (
    Kind(
        "F26",
        "clock-forward",
        "the database's clock stepped forward",
        step_forward,
        _NEEDS | {"debian-postgres"},
        alone=True,
        stage=_SERVER_STAGE,
    ),
    Kind(
        "F26",
        "clock-back",
        "the database's clock stepped back",
        step_back,
        _NEEDS | {"debian-postgres"},
        alone=True,
        stage=_SERVER_STAGE,
    ),
    Kind("F27", "odd-clock", "a daemon's clock or time zone off", odd_clock, _NEEDS, alone=True, stage=_DAEMON_STAGE),
)
