"""Faults of a replicated database: failovers, two primaries, a standby that is mistaken for one, a frozen standby."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg

from curfew_store.embedded import StopMode
from tests.faults.canary import recovery_of
from tests.faults.daemons import READY_WITHIN, DaemonProcess
from tests.faults.kinds.server import everyone
from tests.faults.kinds.split import Split
from tests.faults.lab import Kind, Lab, LabOptions, Moment, Strike, Violation, now, server_settings
from tests.faults.pair import Pair

__all__ = ["KINDS", "STAGES"]

_STAGE: Final = "pair"
_PAIRS: Final[dict[Path, Pair]] = {}
"""The pair of each open stage, by its lab's folder of logs."""
_TERMINATE: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name || ' ', %s)"
)
_RECOVERY_PATIENCE: Final = 30.0
_MARGIN: Final = 1.0
"""The most seconds that a standby which follows is behind, on a machine under load."""


@contextmanager
def pair_stage(options: LabOptions) -> Iterator[Lab]:
    """A lab on a primary with a standby; the daemons know both addresses and do not know which is which."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="curfew-lab-pair-")))
        settings = server_settings(options, wal_sender_timeout="60s", max_wal_senders="8", wal_keep_size="256MB")
        pair = stack.enter_context(Pair(folder, settings))
        both = {"CURFEW_DATABASE_URL": f"{pair.conninfo} user=lab_daemon"}
        lab = stack.enter_context(Lab.open(replace(options, settings={**options.settings, **both}), pair.primary))
        _PAIRS[lab.logs] = pair
        stack.callback(_PAIRS.pop, lab.logs)
        yield lab


def _recovery(lab: Lab, ended: Moment) -> float | None:
    """Measured here, since the next standby is made before the lab could."""
    return recovery_of(lab, since=ended.monotonic, patience=_RECOVERY_PATIENCE)


def _known(recovery: float | None) -> float:
    """Raises `TimeoutError` if there is none."""
    if recovery is None:
        raise TimeoutError(f"no canary was marked within {_RECOVERY_PATIENCE:g} s")
    return recovery


def _failed_over(lab: Lab, pair: Pair, ended: Moment) -> float:
    """Let the rest of the lab use the server that is the primary now; returns the recovery in seconds."""
    lab.producer_proxy.target = pair.standby.port
    lab.producer_proxy.cut()
    lab.server = pair.standby
    recovery = _recovery(lab, ended)
    pair.swap()
    return _known(recovery)


def _promoted(pair: Pair, mode: StopMode) -> None:
    """Stop the primary and promote its standby; if that fails, the primary comes back before it is raised."""
    pair.primary.halt(mode)
    try:
        pair.promote()
    except psycopg.Error:
        pair.primary.resume()
        raise


def switchover(lab: Lab, rng: random.Random) -> Strike:
    """The primary is stopped in order, so the standby has everything, and is promoted: nothing may be missing."""
    pair = _PAIRS[lab.logs]
    lab.pause(rng.uniform(0, 0.5))
    began = now()
    _promoted(pair, "fast")  # waits for the standby to have received all
    ended = now()
    recovered = _failed_over(lab, pair, ended)
    return Strike(
        "F16", began, ended, "switchover under load", outage=True, grace=3.0, lame=everyone(lab), recovered=recovered
    )


def failover(lab: Lab, rng: random.Random) -> Strike:
    """The primary crashes, with its standby up to two seconds behind, which is promoted: the tail may be missing."""
    pair = _PAIRS[lab.logs]
    lab.pause(rng.uniform(0, 0.5))
    behind = rng.choice((0.0, rng.uniform(0.3, 2.0)))
    began = now()
    if behind:
        pair.part()
        lab.pause(behind)
    _promoted(pair, "immediate")
    ended = now()
    recovered = _failed_over(lab, pair, ended)
    did = f"failover, standby {behind:.1f} s behind"
    return Strike(
        "F16", began, ended, did, outage=True, grace=3.0, lame=everyone(lab), loses=_MARGIN, recovered=recovered
    )


def synchronous_failover(lab: Lab, rng: random.Random) -> Strike:
    """The primary crashes while commits wait for the standby, which is promoted: nothing acknowledged is missing."""
    pair = _PAIRS[lab.logs]
    with pair.synchronous():
        lab.pause(rng.uniform(0.5, 1.5))
        began = now()
        _promoted(pair, "immediate")
        ended = now()
        recovered = _failed_over(lab, pair, ended)
    did = "failover to a synchronous standby"
    return Strike("F16", began, ended, did, outage=True, grace=3.0, lame=everyone(lab), recovered=recovered)


def two_primaries(lab: Lab, rng: random.Random) -> Strike:
    """The standby is promoted while the primary lives. Who is connected stays; who has to connect may go to either.

    Some daemons lose their sessions meanwhile. The URL lists both hosts, and the first that can be written to is taken:
    what daemons do there is judged as it is on the primary that the lab goes on with.
    """
    pair = _PAIRS[lab.logs]
    lab.pause(rng.uniform(0, 0.5))
    daemons = lab.fleet.members
    moved = rng.sample(daemons, rng.choice((0, len(daemons) // 2)))
    wire = pair.at(pair.standby)
    with pair.admin(pair.primary) as first:
        split = Split(first)
        began = now()
        try:
            pair.promote()
            for daemon in moved:
                first.execute(_TERMINATE, (f"{daemon.application_name} ",))
            lab.pause(rng.uniform(1.0, 2.5))
            wire.mode = "refuse"
            wire.cut()
            ended = now()
            recovered = _recovery(lab, ended)
            with pair.admin(pair.standby) as second:
                found, elsewhere = split.judged(second, lab, began.wall)
        finally:
            pair.discard_standby()
            wire.mode = "forward"
    did = f"a second primary beside the first: {len(split.stayed)} stayed, {len(elsewhere)} marks on the second"
    lame = frozenset(daemon.instance for daemon in moved)
    return Strike(
        "F17",
        began,
        ended,
        did,
        outage=not split.stayed,
        grace=3.0,
        lame=lame,
        elsewhere=elsewhere,
        found=found,
        recovered=_known(recovered),
    )


def standby_first(lab: Lab, rng: random.Random) -> Strike:
    """All sessions end; the standby is asked first, or as well, and everyone finds the primary."""
    pair = _PAIRS[lab.logs]
    lab.pause(rng.uniform(0, 0.5))
    with lab.admin() as admin:
        began = now()
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lab_daemon'")
    first = "standby" if pair.standby_is_first else "primary"
    return Strike("F18", began, now(), f"sessions ended, the {first} is listed first", lame=everyone(lab))


def standby_only(lab: Lab, rng: random.Random) -> Strike:
    """A daemon is told of the standby alone: it says so, lives, and marks nothing."""
    pair = _PAIRS[lab.logs]
    lab.pause(rng.uniform(0, 0.3))
    began = now()
    instance = f"standby-{rng.getrandbits(32):x}"
    with DaemonProcess(instance, pair.standby.url(), pair.folder, {}) as daemon:
        waited = 0.0
        while waited < READY_WITHIN and daemon.exit_code is None and '"new": "standby"' not in daemon.last_lines():
            lab.pause(0.1)
            waited += 0.1
        told, lives = '"new": "standby"' in daemon.last_lines(), daemon.exit_code is None
    found: tuple[Violation, ...] = ()
    if not (told and lives):
        found = (Violation("I14", f"on a standby {instance} ended, or did not say where it is: {daemon.last_lines()}"),)
    return Strike("F18", began, now(), "a daemon on the standby alone", found=found)


def frozen_standby(lab: Lab, rng: random.Random) -> Strike:
    """Commits wait for a standby that receives nothing: no mark is acknowledged, and none is made twice."""
    pair = _PAIRS[lab.logs]
    lasts = rng.uniform(0.5, 8.0)
    with pair.synchronous():
        receiver = pair.receiver()
        lab.pause(rng.uniform(0, 0.5))
        began = now()
        os.kill(receiver, signal.SIGSTOP)
        try:
            lab.pause(lasts)
        finally:
            os.kill(receiver, signal.SIGCONT)
        ended = now()
    return Strike("F19", began, ended, f"synchronous standby frozen for {lasts:.1f} s", outage=True, lame=everyone(lab))


def _kind(code: str, name: str, title: str, strike: Callable[[Lab, random.Random], Strike], *, heavy: bool) -> Kind:
    return Kind(code, name, title, strike, heavy=heavy, alone=True, stage=_STAGE, recovery=10.0)


STAGES: Final = {_STAGE: pair_stage}
KINDS: Final = (
    _kind("F16", "switchover", "a switchover", switchover, heavy=True),
    _kind("F16", "failover", "a failover to an asynchronous standby", failover, heavy=True),
    _kind("F16", "synchronous-failover", "a failover to a synchronous standby", synchronous_failover, heavy=True),
    _kind("F17", "two-primaries", "two primaries", two_primaries, heavy=True),
    _kind("F18", "standby-first", "a DSN that may ask the standby first", standby_first, heavy=False),
    _kind("F18", "standby-only", "a daemon on a standby", standby_only, heavy=False),
    _kind("F19", "frozen-standby", "a frozen synchronous standby", frozen_standby, heavy=False),
)
