"""Every connection refused: the fleet tries again soon, and not in a storm."""

from __future__ import annotations

import random
from typing import Final

from tests.faults.kinds.server import everyone
from tests.faults.lab import Kind, Lab, Strike, Violation, now

__all__ = ["KINDS", "most_attempts"]

_SOON: Final = 8
"""Attempts with which a daemon may begin: its pauses double from a tenth of a second to `CURFEW_RECONNECT_MAX`."""
_A_SECOND: Final = 3
"""Attempts a second later on: one each half to whole second by the sweep, and now and then one by the observer."""


def most_attempts(daemons: int, seconds: float) -> int:
    """How often a fleet may try to connect in so long an outage."""
    return round(daemons * (_SOON + _A_SECOND * seconds))


def refused(lab: Lab, rng: random.Random) -> Strike:
    """All connections of the daemons end, and new ones are refused for some seconds."""
    lab.pause(rng.uniform(0, 0.3))
    lasts = rng.uniform(2, 4)
    began, before = now(), lab.proxy.accepted
    lab.proxy.mode = "refuse"
    try:
        lab.proxy.cut()
        lab.pause(lasts)
    finally:
        lab.proxy.mode = "forward"
    attempts, most = lab.proxy.accepted - before, most_attempts(len(lab.fleet.members), lasts)
    ended = now()
    found: tuple[Violation, ...] = ()
    if attempts > most:
        found = (Violation("I12", f"{attempts} attempts to connect in {lasts:.1f} s, more than {most}", ended.wall),)
    did = f"connections refused for {lasts:.1f} s: {attempts} attempts"
    return Strike("F30", began, ended, did, outage=True, lame=everyone(lab), found=found)


KINDS: Final = (Kind("F30", "refused", "every connection refused", refused, alone=True),)
