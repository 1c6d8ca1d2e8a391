"""Two hundred daemons that lose their database at once, as far as their connects go: real pauses, real connections.

Each is a thread of a process of their own, waits as `curfew_daemon.wake` says, and connects through a proxy which
counts. Two hundred processes would say the same of the pauses, and more of the machine than of the fleet. Like a
daemon, the process has the settings of the lab's fleet, and loses the safety that these take away.

    python -m tests.faults.crowd PORT DAEMONS SPREAD SEED    # says "ready", begins at a line, says when each was back
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from curfew_daemon import wake
from tests.faults.daemons import kept_environment
from tests.faults.wire import Wire

__all__ = ["Return", "come_back"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_POLL: Final = 1.0
_RECONNECT_MAX: Final = 1.0


@dataclass(frozen=True)
class Return:
    """How a fleet came back: connects in the busiest second, and seconds until the first and the last could sweep."""

    most_per_second: int
    first: float
    last: float


def come_back(
    wire: Wire, daemons: int, *, spread: float, outage: float, seed: int, settings: Mapping[str, str] | None = None
) -> Return:
    """The wire refuses for *outage* seconds while the whole fleet, with this spread, tries to come back."""
    command = [sys.executable, "-m", "tests.faults.crowd", *map(str, (wire.port, daemons, spread, seed))]
    environment = kept_environment() | dict(settings or {})
    with subprocess.Popen(
        command, cwd=_ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as crowd:
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        if crowd.stdout.readline() != "ready\n":
            raise RuntimeError("the crowd ended before it began")
        begun = len(wire.accepted_at)
        wire.mode = "refuse"
        reopened = threading.Timer(outage, lambda: setattr(wire, "mode", "forward"))
        since = time.monotonic() + outage
        reopened.start()
        said, _ = crowd.communicate("begin\n")
    if crowd.returncode:
        raise RuntimeError(f"the crowd ended with {crowd.returncode}")
    back = json.loads(said)
    moments = sorted(wire.accepted_at[begun:])
    busiest = max(bisect_right(moments, moment + 1.0) - place for place, moment in enumerate(moments))
    return Return(busiest, min(back) - since, max(back) - since)


def _one(port: int, spread: float, chance: random.Random) -> float:
    """One daemon from its first failed sweep to its second connection; when it could sweep again (monotonic)."""
    time.sleep(chance.uniform(0, _POLL))
    pace = wake.Pace()
    while True:
        pace, next_sweep = pace.after_failure(longest=_RECONNECT_MAX, chance=chance.random(), spread=spread)
        time.sleep(next_sweep.delay)
        if _connects(port):
            back = time.monotonic()  # one clock for all processes of a machine
            time.sleep(wake.observer_pause(spread, chance.random()))
            _connects(port)
            return back


def _connects(port: int) -> bool:
    conninfo = f"postgresql://lab_producer@127.0.0.1:{port}/postgres?connect_timeout=2"
    try:
        with psycopg.connect(conninfo, application_name="lab crowd") as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def main() -> None:
    """Be the crowd that the command line asks for."""
    port, daemons, spread, seed = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(daemons) as pool:
        back = pool.map(lambda number: _one(port, spread, random.Random(f"{seed}/{number}")), range(daemons))
        print(json.dumps(list(back)))


if __name__ == "__main__":
    main()
