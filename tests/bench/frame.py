"""What every scenario of ``python -m tests.bench`` builds on: a server, databases, daemons, and `Figure`.

A scenario is a module of this package that `SCENARIOS` in ``__main__`` names. It has a one-line ``TITLE`` and

    def run(bench: Bench) -> list[Figure]

and does everything through *bench*:

    with bench.database("drain") as database:               # new, migrated; dropped on the way out
        with bench.daemons(database, 2, {"CURFEW_BATCH_SIZE": "200"}) as daemons:   # real processes, ready
            ...
            readings.memory(daemons[0].pid)                 # bytes; readings.cpu(pid) in seconds
        with bench.reference(database, 4):                  # the bare loop of `reference`, in four processes
            ...
    bench.full    # False: some seconds in all. True: full sizes, which take long
    bench.runs    # how often to measure; `bench.repeat(label, measure)` does it and says so
    bench.rng("drain")                                      # a generator of the run's seed
    bench.say("armed 500,000")                              # progress, at once
    bench.picture("drain", svg)                             # an SVG made with `pictures`, kept if pictures are wanted

`Figure` carries every measured value with what it is compared with. A relative limit is judged against the
reference of the same run; a scenario that cannot measure (a server without ``track_commit_timestamp``, say) says
so with `bench.say` and returns no figure. Longer than other modules, so that a scenario has one
place to look.
"""

from __future__ import annotations

import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Engine, create_engine, make_url

from curfew_store.embedded import EmbeddedPostgres
from curfew_store.migrate import upgrade
from tests.faults.daemons import DaemonProcess

ROOT = Path(__file__).resolve().parents[2]
SERVER_SETTINGS = {"track_commit_timestamp": "on", "max_connections": "200"}
"""Of our own server; it syncs to disk, and everything else is PostgreSQL's default."""
_ORDINARY_NAME = re.compile(r"[a-z_][a-z0-9_]*")
T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """One measured quantity: a value per run, and what it should be.

    *goal* is its limit as text for the reader, *met* whether it was kept (``None``: there is none). *reference* are the
    values of what it is compared with, measured in the same run. *notes* goes into the JSON as it is.
    """

    name: str
    values: Sequence[float]
    unit: str
    goal: str = ""
    met: bool | None = None
    reference: Sequence[float] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The least of the runs."""
        return min(self.values)

    @property
    def greatest(self) -> float:
        """The greatest of the runs."""
        return max(self.values)

    def judged(self, test: Callable[[Figure], bool]) -> Figure:
        """The same figure with *met* set by a test of it."""
        return replace(self, met=test(self))

    def with_goal(self, goal: str) -> Figure:
        """The same figure with another goal."""
        return replace(self, goal=goal)

    @property
    def ratio(self) -> float | None:
        """Median to the median of the reference; ``None`` without one, and for a reference of 0."""
        if not self.reference:
            return None
        beside = statistics.median(self.reference)
        return self.median / beside if beside else None


@dataclass(frozen=True)
class BenchDatabase:
    """One database of a scenario: *url* for daemons and psycopg, *engine* for the rest."""

    name: str
    url: str
    engine: Engine

    def scalar(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """The one value of one statement, in a transaction of its own."""
        with self.engine.begin() as conn:
            return conn.exec_driver_sql(statement, dict(parameters) if parameters else None).scalar_one()

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> int:
        """One statement in a transaction of its own; how many rows it touched."""
        with self.engine.begin() as conn:
            return conn.exec_driver_sql(statement, dict(parameters) if parameters else None).rowcount

    def maintain(self, statement: str) -> None:
        """One statement outside a transaction, such as VACUUM or CHECKPOINT."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql(statement)


class Bench:
    """What a scenario runs on. Use it as a context manager: the server is up inside.

    With *database_url* (a role that may create databases) that server is used, else an embedded one that syncs
    to disk.
    """

    def __init__(
        self,
        *,
        full: bool = False,
        seed: int = 1,
        runs: int = 3,
        database_url: str | None = None,
        pictures: Path | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.full = full
        self.seed = seed
        self.runs = runs
        self.data: dict[str, Any] = {}
        """Raw data that a scenario wants in the JSON, by a name of its own."""
        self._database_url = database_url
        self._own = database_url is None
        self._pictures = pictures
        self._say = say or _print
        self._stack = ExitStack()
        self._logs = Path()

    def __enter__(self) -> Self:
        self._logs = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="curfewd-bench-")))
        if self._database_url is None:
            server = EmbeddedPostgres.start(settings=SERVER_SETTINGS, durable=True)
            self._stack.callback(server.stop)
            self._database_url = server.url()
        self._admin = create_engine(self._url_of("postgresql+psycopg"), isolation_level="AUTOCOMMIT")
        self._stack.callback(self._admin.dispose)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, text: str) -> None:
        """Show progress."""
        self._say(text)

    def rng(self, name: str) -> random.Random:
        """A generator that depends on the seed of the run and on *name* alone."""
        return random.Random(f"{self.seed} {name}")

    def setting(self, name: str) -> str:
        """A setting of the server, such as ``server_version``."""
        with self._admin.connect() as conn:
            return str(conn.exec_driver_sql("SELECT current_setting(%s)", (name,)).scalar_one())

    @property
    def own_server(self) -> bool:
        """Whether the server is the bench's own, on this machine and its disk."""
        return self._own

    @property
    def tells_commits(self) -> bool:
        """Whether the server keeps the moment of each commit; lag cannot be measured without."""
        return self.setting("track_commit_timestamp") == "on"

    @contextmanager
    def database(self, name: str, *, migrated: bool = True) -> Iterator[BenchDatabase]:
        """A new database ``curfew_bench_<name>``, with the current schema unless not *migrated*; dropped at the end."""
        if not _ORDINARY_NAME.fullmatch(name):
            raise ValueError(f"not an ordinary name: {name!r}")
        full_name = f"curfew_bench_{name}"
        with self._admin.connect() as conn:
            conn.exec_driver_sql(f"DROP DATABASE IF EXISTS {full_name} WITH (FORCE)")
            conn.exec_driver_sql(f"CREATE DATABASE {full_name}")
        engine = create_engine(self._url_of("postgresql+psycopg", full_name), pool_size=20)
        try:
            if migrated:
                upgrade(engine)
            url = self._url_of("postgresql", full_name)
            yield BenchDatabase(full_name, url, engine)
        finally:
            engine.dispose()
            with self._admin.connect() as conn:
                conn.exec_driver_sql(f"DROP DATABASE IF EXISTS {full_name} WITH (FORCE)")

    @contextmanager
    def without_autovacuum(self) -> Iterator[None]:
        """No worker of autovacuum starts inside, on our own server; one that is somebody's is left as it is."""
        if not self._own:
            yield
            return
        with self._admin.connect() as conn:
            conn.exec_driver_sql("ALTER SYSTEM SET autovacuum = off")
            conn.exec_driver_sql("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            with self._admin.connect() as conn:
                conn.exec_driver_sql("ALTER SYSTEM RESET autovacuum")
                conn.exec_driver_sql("SELECT pg_reload_conf()")

    @contextmanager
    def daemons(
        self, database: BenchDatabase, count: int = 1, settings: Mapping[str, str] | None = None
    ) -> Iterator[list[DaemonProcess]]:
        """*count* daemons with default settings but *settings*; ready inside, stopped outside."""
        with ExitStack() as stack:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self._logs)))
            started = [
                stack.enter_context(DaemonProcess(f"bench-{number}", database.url, logs, settings or {}))
                for number in range(count)
            ]
            for daemon in started:
                daemon.wait_until_ready()
            yield started

    @contextmanager
    def reference(self, database: BenchDatabase, count: int = 1, *, batch: int = 500) -> Iterator[list[int]]:
        """*count* reference loops, connected and sweeping; their process ids."""
        command = [sys.executable, "-m", "tests.bench.reference", database.url, "--batch", str(batch)]
        with ExitStack() as stack:
            loops = []
            for _ in range(count):
                loop = subprocess.Popen([*command, "--announce"], cwd=ROOT, stdout=subprocess.PIPE)
                stack.callback(_ended, loop)
                loops.append(loop)
            for loop in loops:
                assert loop.stdout is not None
                if not loop.stdout.readline():
                    raise RuntimeError("a reference loop ended before it had connected")
            yield [loop.pid for loop in loops]

    def repeat(self, label: str, measure: Callable[[], T]) -> list[T]:
        """What *measure* returns in each of the runs."""
        values = []
        for number in range(self.runs):
            values.append(measure())
            self.say(f"{label}: run {number + 1} of {self.runs}")
        return values

    def picture(self, name: str, svg: str) -> None:
        """Keep a picture as ``<name>.svg`` if pictures are wanted."""
        if self._pictures is not None:
            self._pictures.mkdir(parents=True, exist_ok=True)
            (self._pictures / f"{name}.svg").write_text(svg, encoding="utf-8")
            self.say(f"picture: {name}.svg")

    def _url_of(self, scheme: str, database: str | None = None) -> str:
        assert self._database_url is not None
        url = make_url(self._database_url).set(drivername=scheme)
        if database is not None:
            url = url.set(database=database)
        return url.render_as_string(hide_password=False)


@contextmanager
def in_background(*targets: Callable[[], object], over: threading.Event) -> Iterator[None]:
    """Each of *targets* in a thread of its own; *over* is set at the end, at which they have to return."""
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _print(text: str) -> None:
    print(f"  {text}", flush=True)


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
