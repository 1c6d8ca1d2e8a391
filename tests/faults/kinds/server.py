"""Faults of the server: sessions terminated, restarts, crashes, outages, a frozen postmaster."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from pathlib import Path
from typing import Final

from tests.faults.lab import Kind, Lab, Strike, now

__all__ = ["KINDS", "everyone"]

_PROC: Final = Path("/proc")


def everyone(lab: Lab) -> frozenset[str]:
    """The instances of all daemons: any of them may have lost the answer to a claim."""
    return frozenset(daemon.instance for daemon in lab.fleet.members)


def terminate_sessions(lab: Lab, rng: random.Random) -> Strike:
    """Every session of daemons and producers is terminated at once."""
    lab.pause(rng.uniform(0, 0.4))
    with lab.admin() as admin:
        began = now()
        row = admin.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename LIKE 'lab\\_%'"
        ).fetchone()
    return Strike("F5", began, now(), f"{row[0] if row else 0} sessions terminated", lame=everyone(lab))


def restart(lab: Lab, rng: random.Random) -> Strike:
    """A fast restart, with up to two seconds between stop and start."""
    lab.pause(rng.uniform(0, 0.4))
    down = rng.uniform(0, 2)
    began = now()
    lab.server.halt("fast")
    lab.pause(down)
    lab.server.resume()
    return Strike("F6", began, now(), f"fast restart, {down:.1f} s down", outage=True, lame=everyone(lab))


def crash(lab: Lab, rng: random.Random) -> Strike:
    """An immediate stop, then recovery."""
    lab.pause(rng.uniform(0, 0.4))
    began = now()
    lab.server.restart("immediate")
    return Strike("F7", began, now(), "immediate stop and recovery", outage=True, lame=everyone(lab))


def outage(lab: Lab, rng: random.Random) -> Strike:
    """The server stays down until every daemon has long been at its longest pause between attempts."""
    down = rng.uniform(6, 9)
    began = now()
    lab.server.halt("fast")
    lab.pause(down)
    lab.server.resume()
    return Strike("F8", began, now(), f"{down:.0f} s down", outage=True, lame=everyone(lab))


def freeze(lab: Lab, rng: random.Random) -> Strike:
    """Postmaster and backends stop, with their sockets open, for longer or shorter than the client waits."""
    lab.pause(rng.uniform(0, 0.4))
    frozen_for = rng.choice((rng.uniform(0.5, 2), rng.uniform(6, 8)))
    postmaster = lab.server.postmaster_pid
    assert postmaster is not None
    began = now()
    # The parent first, so that it makes no further child meanwhile.
    stopped = [postmaster]
    os.kill(postmaster, signal.SIGSTOP)
    try:
        stopped += _children(postmaster)
        for pid in stopped[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        lab.pause(frozen_for)
    finally:
        for pid in reversed(stopped):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    return Strike("F9", began, now(), f"PostgreSQL frozen {frozen_for:.1f} s", outage=True, lame=everyone(lab))


def _children(parent: int) -> list[int]:
    found = []
    for stat in _PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in parentheses may hold spaces; the parent is the second field behind it.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


KINDS: Final = (
    Kind("F5", "terminate-sessions", "all sessions terminated by the server", terminate_sessions),
    Kind("F6", "restart", "PostgreSQL restarted (fast)", restart, alone=True),
    Kind("F7", "crash", "PostgreSQL crashed", crash, alone=True),
    Kind("F8", "outage", "a long outage of PostgreSQL", outage, heavy=True, alone=True),
    Kind("F9", "freeze-server", "PostgreSQL frozen", freeze, alone=True, recovery=15.0),
)
