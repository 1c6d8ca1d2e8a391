"""Proves "once": three daemons under SIGKILL, PostgreSQL restarted under them, and every run judged at the end.

`python -m tests.faults.proof_once --seed N` prints progress, then one line with the verdict, and exits with 0 if
every overdue run was marked exactly once, none early, and no other row was touched. Time, victims and deadlines
follow from the seed; how they interleave does not. PostgreSQL syncs to disk, so that an acknowledged mark
survives the restart that is a crash.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, create_engine, text

from curfew_store import FlowRunControlStore
from curfew_store.embedded import EmbeddedPostgres, StopMode
from curfew_store.migrate import upgrade
from tests.faults import audit, runs
from tests.faults.daemons import DaemonProcess
from tests.faults.plants import PLANTS, plant

DAEMONS = 3
DATABASE = "postgres"
KILL_EVERY = 1.0
PATIENCE = 120.0  # seconds after the last deadline
SETTLE = 2.0  # seconds for which the daemons live on with nothing left to mark
JUST_BEFORE = 0.1


@dataclass
class Faults:
    """What was done to the daemons and to the server, for the verdict line."""

    killed: list[tuple[str, float]] = field(default_factory=list)
    """The session name of each victim, and the wall clock at its end."""
    restarts: list[str] = field(default_factory=list)


class Fleet:
    """The daemons; a killed one is replaced at once by another incarnation."""

    def __init__(self, url: str, logs: Path, batch_size: int) -> None:
        self._url = url
        self._logs = logs
        self._settings = {"CURFEW_BATCH_SIZE": str(batch_size)}
        self._born = [0] * DAEMONS
        self._daemons = [self._start(number) for number in range(DAEMONS)]

    def _start(self, number: int) -> DaemonProcess:
        self._born[number] += 1
        return DaemonProcess(f"d{number + 1}-{self._born[number]}", self._url, self._logs, self._settings)

    def wait_until_ready(self) -> None:
        """Return once every daemon says that it is ready."""
        for daemon in self._daemons:
            daemon.wait_until_ready()

    def kill(self, rng: random.Random) -> tuple[str, float]:
        """SIGKILL one and start its successor; returns the victim's session name and the moment.

        The victim is one that has marked runs, if there is any: killing one that still starts proves little.
        """
        marking = [number for number, daemon in enumerate(self._daemons) if daemon.has_marked()]
        number = rng.choice(marking or range(DAEMONS))
        victim = self._daemons[number]
        victim.kill()
        moment = time.time()
        self._daemons[number] = self._start(number)
        return victim.application_name, moment

    def stop(self) -> None:
        """Stop them all."""
        for daemon in self._daemons:
            daemon.stop()


def say(line: str) -> None:
    """Shows progress at once, also into a pipe."""
    print(line, flush=True)


def prepare(engine: Engine, rng: random.Random, options: argparse.Namespace) -> list[list[runs.Run]]:
    """The database before the faults; returns the batches that are still to be armed."""
    upgrade(engine)
    store = FlowRunControlStore(engine)
    with engine.begin() as conn:
        audit.install(conn)
        now = runs.database_now(conn)
        armed, batches = runs.planned(rng, options.overdue, now, options.seconds)
        runs.add_bystanders(store, conn, rng, options.bystanders, now)
        runs.arm(store, conn, armed)
    with engine.begin() as conn:
        # Only what was committed has its final xmin; the audit begins here too.
        conn.exec_driver_sql("TRUNCATE proof.change")
        audit.snapshot(conn)
    return batches


class Strikes:
    """The faults in their time: a kill every second, two restarts somewhere in the middle.

    Kills end at twice the span. On a machine so loaded that a daemon takes seconds to start, they would otherwise
    go on for as long as they prevent the end that they wait for.
    """

    def __init__(self, fleet: Fleet, server: EmbeddedPostgres, rng: random.Random, span: float) -> None:
        self._fleet = fleet
        self._server = server
        self._rng = rng
        self._modes: list[tuple[float, StopMode]] = [
            (span * rng.uniform(0.25, 0.4), "fast"),
            (span * rng.uniform(0.55, 0.75), "immediate"),
        ]
        self._restarting: list[Future[None]] = []
        self._last_kill = 2 * span
        self._turns = 0
        self._begun = time.monotonic()
        self.faults = Faults()

    @property
    def elapsed(self) -> float:
        """Seconds since the first."""
        return time.monotonic() - self._begun

    @property
    def restarted(self) -> bool:
        """Whether both restarts are over; raises what one of them raised."""
        return not self._modes and all(done.done() and done.result() is None for done in self._restarting)

    def next(self, pool: ThreadPoolExecutor) -> None:
        """Wait for the next turn, kill a daemon, and have *pool* restart the server if that is due."""
        self._turns += 1
        time.sleep(max(0.0, KILL_EVERY * self._turns - self.elapsed))
        if self.elapsed < self._last_kill:
            self.faults.killed.append(self._fleet.kill(self._rng))
        if self._modes and self.elapsed > self._modes[0][0]:
            mode = self._modes.pop(0)[1]
            self.faults.restarts.append(mode)
            say(f"{self.elapsed:5.1f} s: PostgreSQL restarts ({mode})")
            # In another thread: daemons die also while the server is down.
            self._restarting.append(pool.submit(self._server.restart, mode))


def strike(strikes: Strikes, engine: Engine, feeding: Future[int], span: float) -> None:
    """Strike until every run is armed and marked, or patience ends."""
    with ThreadPoolExecutor(1) as pool:
        while strikes.elapsed < span + PATIENCE:
            strikes.next(pool)
            if not (strikes.restarted and feeding.done()):
                if len(strikes.faults.killed) % 5 == 0:
                    say(f"{strikes.elapsed:5.1f} s: {len(strikes.faults.killed)} kills")
                continue
            with engine.connect() as conn:
                left = audit.unmarked(conn)
            say(f"{strikes.elapsed:5.1f} s: {len(strikes.faults.killed)} kills, {left} runs to mark")
            if left == 0 and strikes.elapsed > span:
                return


def struck_marking(engine: Engine, faults: Faults) -> int:
    """How many victims had marked a run within the last tenth of a second before they died."""
    statement = text(
        "SELECT EXISTS (SELECT FROM proof.change WHERE session = :session"
        " AND seen_at > to_timestamp(:moment) - make_interval(secs => :before))"
    )
    with engine.connect() as conn:
        return sum(
            conn.execute(statement, {"session": session, "moment": moment, "before": JUST_BEFORE}).scalar_one()
            for session, moment in faults.killed
        )


@contextmanager
def started(options: argparse.Namespace) -> Iterator[tuple[EmbeddedPostgres, Engine, Path]]:
    """The server, an engine on it, and a folder for the daemons' logs, which goes at the end."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres.start(durable=True))
        engine = create_engine(server.sqlalchemy_url(DATABASE), pool_pre_ping=True)
        stack.callback(engine.dispose)
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proof-once-")))
        yield server, engine, logs


def prove(options: argparse.Namespace) -> bool:
    """The whole proof; prints the verdict line and returns whether it holds."""
    rng = random.Random(options.seed)
    begun = time.monotonic()
    with started(options) as (server, engine, logs):
        say(f"PostgreSQL {server.server_version}: {options.overdue} overdue and {options.bystanders} other runs")
        batches = prepare(engine, rng, options)
        fleet = Fleet(server.url(DATABASE), logs, options.batch_size)
        try:
            fleet.wait_until_ready()
            say(f"{DAEMONS} daemons, batches of {options.batch_size}, one killed every {KILL_EVERY:g} s")
            with ThreadPoolExecutor(1) as pool:
                feeding = pool.submit(runs.feed, engine, FlowRunControlStore(engine), batches, options.seconds)
                strikes = Strikes(fleet, server, rng, options.seconds)
                strike(strikes, engine, feeding, options.seconds)
                repeats = feeding.result()
            time.sleep(SETTLE)
        finally:
            fleet.stop()
        with engine.connect() as conn:
            if options.plant:
                plant(conn, options.plant)
            verdict = audit.judge(conn)
        faults = strikes.faults
        struck = struck_marking(engine, faults)
    holds = verdict.ok and verdict.expected == options.overdue and len(faults.restarts) == 2
    say(
        f"proof-once: {'PASS' if holds else 'FAIL'} seed={options.seed} {verdict}"
        f" others={verdict.bystanders} kills={len(faults.killed)} while-marking={struck}"
        f" restarts={len(faults.restarts)} ({'+'.join(faults.restarts)}) repeated-arms={repeats}"
        f" seconds={time.monotonic() - begun:.0f}"
    )
    return holds


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="proof_once", description="Three daemons, kills, restarts: marked once?")
    parser.add_argument("--seed", type=int, default=1, help="chooses victims, moments and deadlines")
    parser.add_argument("--overdue", type=int, default=20_000, help="runs that are to be marked")
    parser.add_argument("--bystanders", type=int, default=5_000, help="runs that nothing may touch")
    parser.add_argument("--seconds", type=float, default=24.0, help="over which the runs fall due")
    parser.add_argument("--batch-size", type=int, default=5, help="CURFEW_BATCH_SIZE of the daemons")
    parser.add_argument("--plant", choices=sorted(PLANTS), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(0 if prove(parsed(None)) else 1)
