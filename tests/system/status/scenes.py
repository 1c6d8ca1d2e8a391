"""Boards as a day in the life of a daemon leaves them, without waiting the hour that their history takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from curfew_daemon.failures import REMEDIES
from curfew_daemon.http import HttpServer, bind, create_app, url_of
from curfew_daemon.results import DatabaseState, MarkedBatch, MarkedRun, Observation
from curfew_daemon.status import Board, Identity, StatusPage, TableFacts
from curfew_store.daemon_sessions import DaemonSessions
from curfew_store.status_queries import DueMinute, OverdueRun

INSTANCE = "deadlines-7d9c5b6f4-x2kq8:1"
NOW = datetime(2031, 5, 14, 9, 26, 53, tzinfo=UTC)
POLL = 1.0


class Scene:
    """A board on clocks that the scene turns itself."""

    def __init__(self, *, instance: str = INSTANCE, runs_shown: bool = True) -> None:
        self.random = random.Random(7)  # the same scene each time
        self.moment = 0.0
        self.board = Board(
            Identity(instance, "public", "0.1.0", runs_shown),
            poll_interval=lambda: POLL,
            observe_interval=5.0,
            remedies=REMEDIES.__getitem__,
            clock=lambda: self.moment,
            wall_clock=lambda: NOW + timedelta(seconds=self.moment - 3600),
        )
        self.page = StatusPage(self.board.facts, late_after=lambda: self.board.late_after)

    def run_id(self) -> UUID:
        """A run of the scene's own."""
        return UUID(int=self.random.getrandbits(128), version=4)

    def mark(self, count: int, lag: Callable[[], float]) -> None:
        """The daemon marks so many runs, each so late."""
        stamp = self.board._wall_clock()
        runs = tuple(
            MarkedRun(self.run_id(), self.run_id(), stamp - timedelta(seconds=lag()), stamp) for _ in range(count)
        )
        self.board.marked(MarkedBatch(runs, 0.0004))

    def an_hour(self, per_minute: Callable[[int], int]) -> None:
        """An hour of sweeps that meet every deadline within milliseconds."""
        for minute in range(60):
            self.moment = minute * 60 + 50
            if count := per_minute(minute):
                self.mark(count, lambda: self.random.lognormvariate(-6.3, 0.45))
        self.moment = 3600.0 - 7

    def observe(self, gauges: Observation, overdue: tuple[OverdueRun, ...] = (), *, pooled: bool = False) -> None:
        """The daemon reads the table."""
        steady = [max(0, round(34 + 22 * self.random.gauss(0, 0.4) - minute * 0.35)) for minute in range(60)]
        falls_due = tuple(DueMinute(count, capped=False) for count in steady)
        daemons = (
            DaemonSessions(self.board.identity.instance, 2, NOW - timedelta(hours=9), "0.1.0", 0.0),
            DaemonSessions("deadlines-7d9c5b6f4-m9wtz:1", 2, NOW - timedelta(hours=8, minutes=57), "0.1.0", 0.32),
        )
        self.board.observed(gauges, TableFacts(falls_due, overdue, None if pooled else daemons))

    def overdue(self, count: int, late: Callable[[int], float]) -> tuple[OverdueRun, ...]:
        """Overdue runs, the longest first."""
        ages = [late(place) for place in range(count)]
        return tuple(
            OverdueRun(self.run_id(), self.run_id(), NOW - timedelta(seconds=age), age)
            for age in sorted(ages, reverse=True)
        )


QUIET = Observation(
    overdue=0,
    overdue_capped=False,
    oldest_overdue_age=None,
    armed=1874,
    armed_capped=False,
    next_due_in=2.6,
    duration=0.004,
)


def on_time() -> Scene:
    """Nothing overdue; an hour of ordinary work behind it."""
    scene = Scene()
    scene.board.database(DatabaseState.UP)
    scene.an_hour(lambda minute: max(0, round(30 + 14 * scene.random.gauss(0, 1))))
    scene.observe(QUIET)
    scene.moment += 3
    return scene


def backlog() -> Scene:
    """100,000 overdue after an outage of others; two runs are held by somebody."""
    scene = Scene()
    scene.board.database(DatabaseState.UP)
    scene.an_hour(lambda minute: 31 + minute % 7 if minute < 41 else 0)
    scene.mark(500, lambda: 1100 + scene.random.random())
    held = scene.overdue(2, lambda place: 7260.0 + 130 * place)
    seen = replace(
        QUIET, overdue=10_000, overdue_capped=True, oldest_overdue_age=7390.0, armed=10_000, armed_capped=True
    )
    for _ in range(2):
        scene.observe(seen, (*held, *scene.overdue(8, lambda place: 1103.0 - 0.2 * place)))
        scene.board.swept()
        scene.board.swept()
    scene.observe(seen, (*held, *scene.overdue(8, lambda place: 1103.0 - 0.2 * place)))
    scene.moment += 2
    return scene


def database_down() -> Scene:
    """The database went away two minutes ago; what was known then is all there is."""
    scene = on_time()
    scene.observe(replace(QUIET, overdue=3, oldest_overdue_age=1.4), scene.overdue(3, lambda place: 1.4 - 0.3 * place))
    scene.moment += 4
    scene.board.database(DatabaseState.UNREACHABLE)
    scene.moment += 134
    return scene


def fresh() -> Scene:
    """Just started."""
    scene = Scene()
    scene.moment = 0.4
    return scene


def first_minute() -> Scene:
    """Started, connected through a pooler, and nothing has fallen due yet."""
    scene = Scene(runs_shown=False)
    scene.board.database(DatabaseState.UP)
    scene.moment = 18.0
    scene.observe(replace(QUIET, armed=3, next_due_in=190.0), pooled=True)
    scene.moment = 21.0
    return scene


SCENES: dict[str, Callable[[], Scene]] = {
    "on-time": on_time,
    "backlog": backlog,
    "database-down": database_down,
    "fresh": fresh,
    "first-minute": first_minute,
}


@contextmanager
def served(scene: Scene, clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """The scene's page as the daemon would serve it; gives the address. *clock* is that of the page's age."""
    deaths: list[BaseException] = []
    sock = bind("127.0.0.1", 0)
    app = create_app(
        render=lambda _openmetrics: b"",
        beat_age=lambda: 0.0,
        readiness=lambda: (True, "ok"),
        status=scene.page,
        clock=clock,
    )
    server = HttpServer(app, sock, deaths.append)
    server.start()
    try:
        yield url_of(sock)
    finally:
        assert server.stop(5)
        assert deaths == []
