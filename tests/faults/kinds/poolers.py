"""Faults of a pooler: daemons behind PgBouncer in transaction mode, all of them through one server connection."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg

from curfew_store.embedded import EmbeddedPostgres
from tests.faults.kinds.server import everyone
from tests.faults.lab import Kind, Lab, LabOptions, Strike, now, server_settings
from tests.faults.pgbouncer import PgBouncer

__all__ = ["KINDS", "STAGES"]

_STAGE: Final = "pooled"
_POOLERS: Final[dict[int, PgBouncer]] = {}
"""The pooler of each open stage, by the server's port."""


@contextmanager
def pooled_stage(options: LabOptions) -> Iterator[Lab]:
    """A lab whose daemons share one server connection through a pooler; its producers connect directly."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="curfew-lab-pooler-")))
        server = stack.enter_context(EmbeddedPostgres.start(durable=True, tcp=True, settings=server_settings(options)))
        pooler = stack.enter_context(PgBouncer(folder, server.port, pool_size=1))
        _POOLERS[server.port] = pooler
        stack.callback(_POOLERS.pop, server.port)
        through = {"CURFEW_DATABASE_URL": pooler.url("lab_daemon")}
        yield stack.enter_context(Lab.open(replace(options, settings={**options.settings, **through}), server))


def _pooler(lab: Lab) -> PgBouncer:
    return _POOLERS[lab.server.port]


def killed(lab: Lab, rng: random.Random) -> Strike:
    """SIGKILL to the pooler, and another in its place after a while."""
    lab.pause(rng.uniform(0, 0.5))
    down = rng.uniform(0, 2.0)
    began = now()
    _pooler(lab).kill()
    lab.pause(down)
    _pooler(lab).start()
    return Strike("F31", began, now(), f"pooler killed, {down:.1f} s down", outage=True, lame=everyone(lab))


def paused(lab: Lab, rng: random.Random) -> Strike:
    """PAUSE and, after a while, RESUME: every statement waits at the pooler."""
    lab.pause(rng.uniform(0, 0.5))
    lasts = rng.uniform(0.3, 5.0)
    began = now()
    try:
        _pooler(lab).tell("PAUSE postgres")
        lab.pause(lasts)
    finally:
        _pooler(lab).tell("RESUME postgres")
    return Strike("F31", began, now(), f"pooler paused for {lasts:.1f} s", outage=True, lame=everyone(lab))


def churned(lab: Lab, rng: random.Random) -> Strike:
    """No server connection lives for longer than a second."""
    began = now()
    try:
        _pooler(lab).tell("SET server_lifetime = 1")
        lab.pause(rng.uniform(2.0, 4.0))
        _pooler(lab).tell("RECONNECT postgres")
    finally:
        _pooler(lab).tell("SET server_lifetime = 3600")
    return Strike("F31", began, now(), "server connections live for 1 s", lame=everyone(lab))


def occupied(lab: Lab, rng: random.Random) -> Strike:
    """Another client holds the only server connection in a transaction."""
    lab.pause(rng.uniform(0, 0.5))
    lasts = rng.uniform(0.3, 5.0)
    with psycopg.connect(_pooler(lab).url("lab_daemon"), prepare_threshold=None) as other:
        other.execute("SELECT 1")
        began = now()
        lab.pause(lasts)
        other.rollback()
        ended = now()
    return Strike(
        "F31", began, ended, f"the pool's one connection held for {lasts:.1f} s", outage=True, lame=everyone(lab)
    )


def _kind(name: str, title: str, strike: Callable[[Lab, random.Random], Strike]) -> Kind:
    return Kind("F31", name, title, strike, frozenset({"pgbouncer"}), alone=True, stage=_STAGE, recovery=10.0)


STAGES: Final = {_STAGE: pooled_stage}
KINDS: Final = (
    _kind("pooler-killed", "a pooler killed", killed),
    _kind("pooler-paused", "a pooler paused", paused),
    _kind("pooler-churn", "a pooler's connections renewed all the time", churned),
    _kind("pooler-occupied", "a pool of one, held by another", occupied),
)
