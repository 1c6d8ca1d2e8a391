"""Faults of the network: connections cut, silent, slow, reset, or answered by something that is no PostgreSQL."""

from __future__ import annotations

import random
from typing import Final

from tests.faults.daemons import DaemonProcess
from tests.faults.guests import Guest
from tests.faults.kinds.server import everyone
from tests.faults.lab import Kind, Lab, Strike, Violation, now
from tests.faults.spare import armed_runs
from tests.faults.wire import Deed, Point, Trap, Weather

__all__ = ["CLAIM", "DAEMONS", "KINDS", "instance_of", "reconnected"]

CLAIM: Final = b"SKIP LOCKED"
"""A part of the claim, and of no other statement that a daemon repeats."""
DAEMONS: Final = "curfewd "
_PRODUCERS: Final = "lab producer"
_CALL: Final = b"flow_"
"""A part of every statement that a producer sends."""
_SPRINGS_WITHIN: Final = 20.0
_BACK_WITHIN: Final = 15.0
_LEAST_PROGRESS: Final = 0.5


def instance_of(session: str) -> str:
    """The daemon behind an ``application_name``."""
    return session.removeprefix(DAEMONS).split(" ")[0]


def _caught(lab: Lab, trap: Trap, victims: int = 1) -> frozenset[str]:
    if not trap.wait(_SPRINGS_WITHIN, victims):
        raise TimeoutError(f"nobody came to the {trap.at} of {trap.session or 'anyone'} {trap.statement!r}")
    return frozenset(instance_of(each) for each in trap.victims if each.startswith(DAEMONS))


def cut_before(lab: Lab, rng: random.Random) -> Strike:
    """A claim or a producer's call is lost on its way: the server takes the statement back, and it comes again."""
    lab.pause(rng.uniform(0, 0.3))
    do: Deed = rng.choice(("cut", "reset"))
    at: Point = rng.choice(("parse", "unsynced"))
    began = now()
    if rng.random() < 0.4:
        with lab.producer_proxy.trap(Trap(at, do, _PRODUCERS, _CALL)) as trap:
            _caught(lab, trap)
        return Strike("F10", began, now(), f"{trap.victims[0]}: {do} before a call is committed ({at})")
    armed_runs(lab, rng, 3, within=0.3)
    with lab.proxy.trap(Trap(at, do, DAEMONS, CLAIM)) as trap:
        _caught(lab, trap)
    return Strike("F10", began, now(), f"{trap.victims[0]}: {do} before the claim is committed ({at})")


def cut_after(lab: Lab, rng: random.Random) -> Strike:
    """A claim that marked, or a producer's call, took effect, and its answer is lost."""
    lab.pause(rng.uniform(0, 0.3))
    do: Deed = rng.choice(("cut", "reset"))
    began = now()
    if rng.random() < 0.4:
        with lab.producer_proxy.trap(Trap("commit", do, _PRODUCERS, _CALL, marking=True)) as trap:
            _caught(lab, trap)
        return Strike("F11", began, now(), f"{trap.victims[0]}: {do} before a call is answered")
    armed_runs(lab, rng, 3, within=0.3)
    with lab.proxy.trap(Trap("commit", do, DAEMONS, CLAIM, marking=True)) as trap:
        lame = _caught(lab, trap)
    return Strike("F11", began, now(), f"{trap.victims[0]}: {do} before marks are answered", lame=lame)


def half_open(lab: Lab, rng: random.Random) -> Strike:
    """One daemon's connection falls silent, at any of five points, for longer or shorter than it is waited for."""
    at: Point = rng.choice(("connect", "auth", "parse", "fetch", "commit"))
    with lab.fleet.borrow(rng) as daemon:
        lab.pause(rng.uniform(0, 0.3))
        silent_for = rng.uniform(0.5, 8.0)
        name = daemon.application_name
        began = now()
        connecting = at in {"connect", "auth"}
        with lab.proxy.trap(Trap(at, "black hole", name, b"" if connecting else CLAIM, times=100)) as trap:
            if connecting:
                lab.proxy.cut(name)
            _caught(lab, trap)
            lab.pause(silent_for)
        ended = now()
        found, back = reconnected(lab, daemon, ended.wall)
        lame = frozenset({daemon.instance}) if at in {"fetch", "commit"} else frozenset[str]()
        did = f"{daemon.instance} half open at {at} for {silent_for:.1f} s"
        return Strike("F12", began, ended, did, lame=lame, found=found, recovered=back)


def reconnected(
    lab: Lab, daemon: DaemonProcess | Guest, since: int, within: float = _BACK_WITHIN + 5
) -> tuple[tuple[Violation, ...], float | None]:
    """How long after *since* (wall, microseconds) *daemon* had swept; a violation if it did not, or has ended."""
    statement = (
        "SELECT min(extract(epoch FROM state_change) * 1000000 - %s) FROM pg_stat_activity WHERE state = 'idle'"
        " AND application_name = %s AND query LIKE '%%flow_run_controls%%'"
        " AND state_change > to_timestamp(%s / 1000000.0)"
    )
    waited = 0.0
    while waited < within and daemon.exit_code is None:
        with lab.admin("lab onlooker") as onlooker:
            row = onlooker.execute(statement, (since, daemon.application_name, since)).fetchone()
        if row and row[0] is not None:
            return (), float(row[0]) / 1_000_000
        lab.pause(0.1)
        waited += 0.1
    if daemon.exit_code is not None:
        return (Violation("I14", f"{daemon.instance} ended with {daemon.exit_code}"),), None
    return (Violation("I14", f"{daemon.instance} did not sweep again within {waited:.0f} s"),), None


def partition(lab: Lab, rng: random.Random) -> Strike:
    """All daemons' connections fall silent at once, and new ones are not answered."""
    lab.pause(rng.uniform(0, 0.3))
    lasts = rng.uniform(0.5, 8.0)
    began = now()
    lab.proxy.mode = "black hole"
    try:
        lab.pause(lasts)
    finally:
        lab.proxy.mode = "forward"
        lab.proxy.cut()  # what was swallowed would be missing in the conversation
    return Strike("F12", began, now(), f"no traffic for {lasts:.1f} s", outage=True, lame=everyone(lab))


def slow_link(lab: Lab, rng: random.Random) -> Strike:
    """200 ± 100 ms of latency each way, or 64 kbit/s, for every daemon; deadlines are met all the same."""
    narrow = rng.random() < 0.5
    weather = Weather(DAEMONS, rate=8000) if narrow else Weather(DAEMONS, delay=0.2, jitter=0.1)
    began = now()
    with lab.proxy.weather(weather):
        lab.pause(rng.uniform(2.0, 5.0))
    return Strike("F13", began, now(), "64 kbit/s" if narrow else "latency of 200 ± 100 ms")


def resets(lab: Lab, rng: random.Random) -> Strike:
    """One piece of traffic in ten resets its connection; at least half of what falls due is marked all the same."""
    began = now()
    with lab.proxy.weather(Weather(DAEMONS, loss=0.1)):
        lab.pause(rng.uniform(7.0, 10.0))  # so long that a second in which nobody gets through is no half of it
        with lab.admin() as admin:
            row = admin.execute(
                "SELECT (SELECT count(*) FROM lab.change WHERE session LIKE 'curfewd %%' AND at > to_timestamp(%s)),"
                " (SELECT count(*) FROM flow_run_controls WHERE timed_out_at_utc IS NULL AND completed_at_utc IS NULL"
                " AND NOT cancel_requested AND timeout_at_utc <= now())",
                (began.wall / 1_000_000,),
            ).fetchone()
    assert row is not None
    marked, left = row
    found: tuple[Violation, ...] = ()
    if marked < _LEAST_PROGRESS * (marked + left):
        found = (Violation("I14", f"{marked} marked and {left} overdue while 1 in 10 pieces was reset"),)
    did = f"1 in 10 reset: {marked} marked, {left} left"
    return Strike("F14", began, now(), did, outage=True, lame=everyone(lab), found=found)


def garbage(lab: Lab, rng: random.Random) -> Strike:
    """Something that is no PostgreSQL answers a daemon, at its connect or in the middle of a claim's answer."""
    at: Point = rng.choice(("connect", "fetch", "commit"))
    with lab.fleet.borrow(rng) as daemon:
        lab.pause(rng.uniform(0, 0.3))
        began = now()
        statement = b"" if at == "connect" else CLAIM
        with lab.proxy.trap(Trap(at, "garbage", daemon.application_name, statement, times=rng.randint(1, 3))) as trap:
            if at == "connect":
                lab.proxy.cut(daemon.application_name)
            _caught(lab, trap)
        ended = now()
        found, back = reconnected(lab, daemon, ended.wall)
        lame = frozenset[str]() if at == "connect" else frozenset({daemon.instance})
        did = f"garbage for {daemon.instance} at {at}"
        return Strike("F15", began, ended, did, lame=lame, found=found, recovered=back)


KINDS: Final = (
    Kind("F10", "cut-before", "connection cut before the statement arrives", cut_before),
    Kind("F11", "cut-after", "connection cut before the answer arrives", cut_after),
    Kind("F12", "half-open", "a connection half open", half_open, recovery=15.0),
    Kind("F12", "partition", "all connections half open", partition, alone=True, recovery=15.0),
    Kind("F13", "slow-link", "latency and a narrow link", slow_link, alone=True),
    Kind("F14", "resets", "resets", resets, alone=True),
    Kind("F15", "garbage", "garbage instead of PostgreSQL", garbage, recovery=15.0),
)
