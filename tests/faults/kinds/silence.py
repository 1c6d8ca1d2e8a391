"""A connection that falls silent and never says that it has ended: the daemon has to give it up by itself."""

from __future__ import annotations

import contextlib
import random
import time
from typing import Final

from tests.faults.daemons import DaemonProcess
from tests.faults.kinds.network import CLAIM
from tests.faults.lab import Kind, Lab, Strike, Violation, now
from tests.faults.spare import armed_runs
from tests.faults.wire import Point, Trap

__all__ = ["KINDS"]

_SPRINGS_WITHIN: Final = 20.0
_GIVES_UP_WITHIN: Final = 15.0
_SWEPT: Final = "curfew_last_successful_sweep_timestamp_seconds "


def silent_for_good(lab: Lab, rng: random.Random) -> Strike:
    """One daemon's claim is never answered: within 15 s it sweeps again on another connection."""
    at: Point = rng.choice(("parse", "fetch", "commit"))
    with lab.fleet.borrow(rng) as daemon:
        armed_runs(lab, rng, 3, within=0.3)
        began = now()
        with lab.proxy.trap(Trap(at, "black hole", daemon.application_name, CLAIM)) as trap:
            if not trap.wait(_SPRINGS_WITHIN):
                raise TimeoutError(f"{daemon.instance} sent no claim")
            silent = now()
            back = _sweeps_again(lab, daemon, silent.wall / 1e6)
            ended = now()
        found: tuple[Violation, ...] = ()
        if back is None:
            found = (Violation("I14", f"{daemon.instance} did not give up a silent connection", ended.wall),)
        did = f"{daemon.instance} never answered at {at}"
        lame = frozenset({daemon.instance})
        return Strike("F12", began, ended, did, lame=lame, found=found, recovered=back)


def _sweeps_again(lab: Lab, daemon: DaemonProcess, since: float) -> float | None:
    """Seconds until *daemon* says that a sweep succeeded after *since*; ``None`` if it does not in time."""
    begun = time.monotonic()
    while (waited := time.monotonic() - begun) < _GIVES_UP_WITHIN:
        with contextlib.suppress(OSError):
            lines = daemon.page("/metrics").splitlines()
            if any(line.startswith(_SWEPT) and float(line.split()[1]) > since for line in lines):
                return waited
        lab.pause(0.1)
    return None


KINDS: Final = (
    Kind("F12", "silent-for-good", "a connection that never ends", silent_for_good, heavy=True, recovery=15.0),
)
