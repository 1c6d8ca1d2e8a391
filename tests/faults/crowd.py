"""Two hundred daemons that lose their database at once, as far as their connects go: real pauses, real connections.

Each is a thread that waits as `curfew_daemon.wake` says and connects through a proxy which counts. Two hundred
processes would say the same of the pauses, and more of the machine than of the fleet.
"""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import psycopg

from curfew_daemon.wake import Pace, observer_pause
from tests.faults.wire import Wire

__all__ = ["Return", "come_back"]

_POLL: Final = 1.0
_RECONNECT_MAX: Final = 1.0


@dataclass(frozen=True)
class Return:
    """How a fleet came back: connects in the busiest second, and seconds until the first and the last could sweep."""

    most_per_second: int
    first: float
    last: float


def come_back(wire: Wire, daemons: int, *, spread: float, outage: float, seed: int) -> Return:
    """The wire refuses for *outage* seconds while the whole fleet, with this spread, tries to come back."""
    begun = len(wire.accepted_at)
    wire.mode = "refuse"
    reopened = threading.Timer(outage, lambda: setattr(wire, "mode", "forward"))
    since = time.monotonic() + outage
    reopened.start()
    with ThreadPoolExecutor(daemons) as pool:
        back = list(pool.map(lambda number: _one(wire, spread, random.Random(f"{seed}/{number}")), range(daemons)))
    moments = sorted(wire.accepted_at[begun:])
    busiest = max(bisect_right(moments, moment + 1.0) - place for place, moment in enumerate(moments))
    return Return(busiest, min(back) - since, max(back) - since)


def _one(wire: Wire, spread: float, chance: random.Random) -> float:
    """One daemon from its first failed sweep to its second connection; when it could sweep again (monotonic)."""
    time.sleep(chance.uniform(0, _POLL))
    pace = Pace()
    while True:
        pace, wake = pace.after_failure(longest=_RECONNECT_MAX, chance=chance.random(), spread=spread)
        time.sleep(wake.delay)
        if _connects(wire):
            back = time.monotonic()
            time.sleep(observer_pause(spread, chance.random()))
            _connects(wire)
            return back


def _connects(wire: Wire) -> bool:
    conninfo = f"postgresql://lab_producer@127.0.0.1:{wire.port}/postgres?connect_timeout=2"
    try:
        with psycopg.connect(conninfo, application_name="lab crowd") as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True
