"""One performance: runs are started, their fates take their course, and every mark is judged."""

from __future__ import annotations

import queue
import time
from datetime import timedelta
from typing import Final

from curfew_daemon.demo.daemon_process import DaemonProcess
from curfew_daemon.demo.happenings import Happening, Kind, Tally, milliseconds
from curfew_daemon.demo.interrupts import Interrupts
from curfew_daemon.demo.options import Options
from curfew_daemon.demo.producer import Producer, flow_name
from curfew_daemon.demo.scene import Addresses, Scene, Show
from curfew_daemon.demo.stage import Outlook, Stage
from curfew_daemon.demo.summary import Summary
from curfew_daemon.demo.verdict import Fault, Faults, Judge, Mark
from curfew_store import FlowRunControlStore

__all__ = ["Performance"]

_TICK: Final = 0.1
_KEPT: Final = timedelta(seconds=60)
"""How long an ended run is kept; by purging, a demo can go on for ever."""
_PURGE_EVERY: Final = 10.0
_PURGE_BATCH: Final = 5000
_LONGEST_WAIT: Final = 15.0
"""The last deadline of any life lies within 12 s of its start; then a grace for what is overdue."""
_COUNT_PATIENCE: Final = 2.5
"""The daemon renders its metrics at most once a second."""

_LAG_TO_COMMIT: Final = "from the deadline to the commit of the mark, by the server's clock"
_LAG_TO_STAMP: Final = (
    "from the deadline to the mark's own stamp, which is taken before the commit (the time of the commit is not "
    "known: track_commit_timestamp is off on this server)"
)


class Performance:
    """Lets the producer and the daemon play on *stage* and keeps the score, shown on *show*."""

    def __init__(
        self, stage: Stage, daemon: DaemonProcess, show: Show, options: Options, interrupts: Interrupts
    ) -> None:
        self._stage = stage
        self._daemon = daemon
        self._show = show
        self._seconds = None if options.forever else options.seconds
        self._interrupts = interrupts
        self._store = FlowRunControlStore(stage.engine, schema=stage.schema)
        self._reported: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self._producer = Producer(self._store, rate=options.rate, report=self._reported.put)
        self._judge, self._faults, self._tally = Judge(), Faults(), Tally()
        self._next_purge = _PURGE_EVERY
        self._addresses = Addresses(
            server=f"PostgreSQL {stage.version}",
            database=stage.server.shown,
            schema=stage.schema,
            page=daemon.url,
            lag=_LAG_TO_COMMIT if stage.commit_times else _LAG_TO_STAMP,
        )

    def to_the_end(self) -> Summary:
        """Play until the time is up or somebody asks to stop; raises `DemoFailed` if the daemon ends."""
        self._show.open(self._addresses)
        self._interrupts.gentle = True
        self._producer.start()
        try:
            while not self._interrupts.asked.wait(_TICK) and not self._time_is_up():
                self._tick(ending=False)
            lasted = self._producer.elapsed()
            self._settle()
        finally:
            self._producer.stop()
        self._tick(ending=True)  # what was committed while the last steps ended
        return self._summary(lasted)

    def _time_is_up(self) -> bool:
        return self._seconds is not None and self._producer.elapsed() >= self._seconds

    def _settle(self) -> None:
        """Wait for the last deadlines, or, when asked to stop, only for what is overdue already."""
        self._producer.start_no_more()
        give_up = time.monotonic() + _LONGEST_WAIT
        while time.monotonic() < give_up:
            asked = self._interrupts.asked.wait(_TICK)
            if asked:
                self._producer.stop()
            outlook = self._tick(ending=True)
            nothing_to_come = asked or (self._producer.idle and not outlook.armed)
            if nothing_to_come and not outlook.overdue:
                return

    def _tick(self, *, ending: bool) -> Outlook:
        """Look at what has happened since the last tick, and show it."""
        self._daemon.check()
        self._producer.check()
        elapsed = self._producer.elapsed()
        happenings = self._told() + self._marked(elapsed)
        for happening in happenings:
            self._tally.add(happening)
        outlook = self._stage.outlook()
        scene = Scene(elapsed, self._seconds, ending, self._addresses, self._tally, self._faults, outlook)
        self._show.update(scene, happenings)
        if elapsed > self._next_purge:
            self._next_purge = elapsed + _PURGE_EVERY
            self._purge(outlook)
        return outlook

    def _told(self) -> list[Happening]:
        """What the producer has done since the last tick."""
        return [self._reported.get() for _ in range(self._reported.qsize())]

    def _marked(self, elapsed: float) -> list[Happening]:
        """The runs that timed out since the last tick; every mark is judged, whoever made it."""
        marks = self._judge.judge(self._stage.take_audit())
        for mark in marks:
            self._faults.add(mark)
        return [_timed_out(mark, elapsed) for mark in marks if not mark.faults & {Fault.TWICE, Fault.UNARMED}]

    def _purge(self, outlook: Outlook) -> None:
        before = outlook.at - _KEPT
        while self._store.purge(before, limit=_PURGE_BATCH) == _PURGE_BATCH:
            pass
        self._judge.forget(before)

    def _summary(self, lasted: float) -> Summary:
        counted = self._tally.counts[Kind.TIMED_OUT]
        give_up = time.monotonic() + _COUNT_PATIENCE
        while (daemon_count := self._daemon.count_of_marks()) != counted and time.monotonic() < give_up:
            time.sleep(_TICK)
        return Summary(
            elapsed=lasted,
            lag=self._addresses.lag,
            tally=self._tally,
            faults=self._faults,
            overdue=self._stage.overdue(),
            still_armed=self._stage.outlook().armed,
            daemon_count=daemon_count,
        )


def _timed_out(mark: Mark, elapsed: float) -> Happening:
    detail = "BEFORE its deadline" if mark.lag is None else f"{milliseconds(mark.lag)} after its deadline"
    return Happening(Kind.TIMED_OUT, mark.run_id, flow_name(mark.flow_id), detail, elapsed, mark.lag)
