"""Faults of what is finite: connections, files, threads, log space, the speed of a disk, an HTTP server's patience."""

from __future__ import annotations

import contextlib
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

import psycopg

from tests.faults.cgroups import thread_limit
from tests.faults.crowd import come_back
from tests.faults.daemons import READY_WITHIN, DaemonProcess
from tests.faults.guests import Output, guest
from tests.faults.hostile_http import NONSENSE, answer, slow_clients, speak
from tests.faults.kinds.network import reconnected
from tests.faults.kinds.server import everyone
from tests.faults.lab import Kind, Lab, Strike, Violation, now
from tests.faults.procfs import held_by
from tests.faults.wire import Wire

__all__ = ["KINDS"]

Limit = AbstractContextManager[None]

_SLOW_CLIENTS: Final = 500
_CROWD: Final = 200
_SPREAD_EACH: Final = 0.06  # what the description of CURFEW_RECONNECT_SPREAD recommends for each daemon
_CONNECTS_A_SECOND: Final = 50
_FIRST_BACK: Final = 2.0
_ALL_BACK: Final = 45.0


def slow_disk(lab: Lab, rng: random.Random) -> Strike:
    """Each flush of the log waits for 20 to 100 ms, as on a disk of 10 to 50 writes a second."""
    wait = rng.randint(20_000, 100_000)
    with lab.admin() as admin:
        began = now()
        try:
            admin.execute(f"ALTER SYSTEM SET commit_delay = {wait}")
            admin.execute("ALTER SYSTEM SET commit_siblings = 0")
            admin.execute("SELECT pg_reload_conf()")
            lab.pause(rng.uniform(2.0, 4.0))
        finally:
            admin.execute("ALTER SYSTEM RESET commit_delay")
            admin.execute("ALTER SYSTEM RESET commit_siblings")
            admin.execute("SELECT pg_reload_conf()")
    return Strike("F29", began, now(), f"{wait / 1000:.0f} ms for each flush")


def no_connections(lab: Lab, rng: random.Random) -> Strike:
    """All sessions of the daemons end, and others hold every connection that there is."""
    lab.pause(rng.uniform(0, 0.3))
    lasts = rng.uniform(0.5, 3.0)
    with ExitStack() as stack, lab.admin() as admin:
        began = now()
        held = _hogs(lab, stack)
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lab_daemon'")
        held += _hogs(lab, stack)
        lab.pause(lasts)
    did = f"{held} sessions hold all connections for {lasts:.1f} s"
    return Strike("F30", began, now(), did, outage=True, lame=everyone(lab))


def _hogs(lab: Lab, stack: ExitStack) -> int:
    """Connect until nobody can any more; how often."""
    conninfo = f"postgresql://lab_producer@127.0.0.1:{lab.server.port}/postgres"
    held = 0
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            stack.enter_context(contextlib.closing(psycopg.connect(conninfo, application_name="lab hog")))
            held += 1
    return held


def large_fleet(lab: Lab, rng: random.Random) -> Strike:
    """200 daemons with the spread recommended for them lose their connections, beside those of the lab."""
    began = now()
    with Wire(lab.server.port) as wire:
        back = come_back(
            wire,
            _CROWD,
            spread=_SPREAD_EACH * _CROWD,
            outage=rng.uniform(0, 8),
            seed=rng.getrandbits(32),
            settings=lab.fleet.settings,
        )
    took = f"the first back after {back.first:.1f} s and the last after {back.last:.0f} s"
    found: tuple[Violation, ...] = ()
    if back.most_per_second > _CONNECTS_A_SECOND:
        found = (Violation("I12", f"{_CROWD} daemons made {back.most_per_second} connects in a second"),)
    if back.first > _FIRST_BACK or back.last > _ALL_BACK:
        found += (Violation("I14", f"{_CROWD} daemons: {took}"),)
    did = f"{_CROWD} daemons, {took}, at most {back.most_per_second} connects a second"
    return Strike("F30", began, now(), did, found=found)


def role_limit(lab: Lab, rng: random.Random) -> Strike:
    """The daemons' role may have no connection, and those that it has end."""
    lab.pause(rng.uniform(0, 0.3))
    with lab.admin() as admin:
        began = now()
        try:
            admin.execute("ALTER ROLE lab_daemon CONNECTION LIMIT 0")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lab_daemon'")
            lab.pause(rng.uniform(0.3, 3.0))
        finally:
            admin.execute("ALTER ROLE lab_daemon CONNECTION LIMIT -1")
    return Strike("F30", began, now(), "no connection left for the role", outage=True, lame=everyone(lab))


@contextmanager
def _limited(daemon: DaemonProcess, what: int, most: int) -> Iterator[None]:
    """A soft limit on a running process for the length of a block."""
    before = resource.prlimit(daemon.pid, what)
    resource.prlimit(daemon.pid, what, (most, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(daemon.pid, what, before)


def _without(lab: Lab, rng: random.Random, did: str, limit: Callable[[DaemonProcess], Limit]) -> Strike:
    """One daemon reaches a limit, its connections break, and it is well again once the limit has gone."""
    with lab.fleet.borrow(rng) as daemon:
        lab.pause(rng.uniform(0, 0.3))
        began = now()
        with limit(daemon):
            lab.proxy.cut(daemon.application_name)
            lab.pause(rng.uniform(0.5, 3.0))
        ended = now()
        found, back = reconnected(lab, daemon, ended.wall)
        lame = frozenset({daemon.instance})
        return Strike("F36", began, ended, f"{daemon.instance}: {did}", lame=lame, found=found, recovered=back)


def no_files(lab: Lab, rng: random.Random) -> Strike:
    """One daemon may open no further file, and its connections break."""
    return _without(
        lab,
        rng,
        "no file descriptor left",
        lambda daemon: _limited(daemon, resource.RLIMIT_NOFILE, held_by(daemon.pid)[0]),
    )


def no_threads(lab: Lab, rng: random.Random) -> Strike:
    """One daemon may start no further thread, and its connections break."""
    return _without(lab, rng, "no thread left", lambda daemon: thread_limit(daemon.pid))


def no_log_space(lab: Lab, rng: random.Random) -> Strike:
    """One daemon's log can grow no further: it sweeps on. A successor follows, since this one's log has a gap."""
    with lab.fleet.borrow(rng) as daemon:
        lab.pause(rng.uniform(0, 0.3))
        began = now()
        with _limited(daemon, resource.RLIMIT_FSIZE, 1):
            if rng.random() < 0.5:
                lab.proxy.cut(daemon.application_name)
            lab.pause(rng.uniform(0.5, 3.0))
            found, back = reconnected(lab, daemon, now().wall)
        daemon.kill()
        did = f"{daemon.instance}: no room for its log"
        return Strike("F36", began, now(), did, lame=frozenset({daemon.instance}), found=found, recovered=back)


def no_output(lab: Lab, rng: random.Random) -> Strike:
    """A daemon whose output is closed, or a pipe that nobody reads, sweeps like the others."""
    output: Output = rng.choice(("closed", "full pipe"))
    began = now()
    with guest(lab, output, {"CURFEW_LOG_LEVEL": "debug"}) as daemon:
        found, _ = reconnected(lab, daemon, began.wall, READY_WITHIN)  # it has only just been started
        lab.pause(rng.uniform(0.5, 1.5))
        ended = now()
        if not found:
            found, _ = reconnected(lab, daemon, ended.wall)
    return Strike(
        "F36", began, ended, f"output of {daemon.instance}: {output}", lame=frozenset({daemon.instance}), found=found
    )


def hostile_http(lab: Lab, rng: random.Random) -> Strike:
    """500 slow clients and every kind of nonsense at one daemon; it answers a scrape and sweeps all the while."""
    with lab.fleet.borrow(rng) as daemon:
        began = now()
        slowest, statuses = 0.0, set[int]()
        with slow_clients(daemon.address, _SLOW_CLIENTS):
            for words in rng.sample(NONSENSE, 5):
                speak(daemon.address, words, 0.1)
                status, seconds = answer(daemon.address, "/metrics")
                slowest = max(slowest, seconds)
                statuses.add(status)
        ended = now()
        found: tuple[Violation, ...] = ()
        if statuses != {200}:
            found = (
                Violation("I14", f"{daemon.instance} answered scrapes with {sorted(statuses)} among slow clients"),
            )
        missed, back = reconnected(lab, daemon, ended.wall)
        did = f"{_SLOW_CLIENTS} slow clients and nonsense at {daemon.instance}: slowest scrape {slowest:.2f} s"
        return Strike("F37", began, ended, did, found=found + missed, recovered=back)


KINDS: Final = (
    Kind("F29", "slow-disk", "slow input and output", slow_disk),
    Kind("F30", "no-connections", "connections exhausted", no_connections, alone=True),
    Kind("F30", "large-fleet", "the return of 200 daemons", large_fleet, heavy=True),
    Kind("F30", "role-limit", "no connection for the role", role_limit, alone=True),
    Kind("F36", "no-files", "file descriptors exhausted", no_files, recovery=15.0),
    Kind("F36", "no-threads", "threads exhausted", no_threads, frozenset({"root", "cgroup"}), recovery=15.0),
    Kind("F36", "no-log-space", "no room for the log", no_log_space, recovery=15.0),
    Kind("F36", "no-output", "standard output closed, or a full pipe", no_output),
    Kind("F37", "hostile-http", "hostile HTTP", hostile_http, recovery=15.0),
)
