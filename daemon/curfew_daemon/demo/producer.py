"""The trigger service and its workers, as a user of the store would write them.

Each run's life is a generator that yields how long to wait until its next step, so that a few threads can
live hundreds of lives. Everything goes through the public `FlowRunControlStore`.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid5

from curfew_daemon.demo.happenings import Happening, Kind
from curfew_store import FlowRunControlStore, StartedRun, is_transient

__all__ = ["Producer", "flow_name"]

Life = Iterator[float]

_FLOWS = ("nightly-report", "invoice-export", "image-resize", "fraud-check", "order-import")
_NAMESPACE = UUID("3b0f54c1-63a5-4ed9-8f3c-0b3f9d2f7a10")
_FLOW_IDS = {name: uuid5(_NAMESPACE, name) for name in _FLOWS}
_FLOW_NAMES = {flow_id: name for name, flow_id in _FLOW_IDS.items()}
_WORKERS = 4
# From longer than one poll interval, since a deadline armed later than that is met within it, not on time.
_SHORTEST, _LONGEST = 1.2, 6.0


def flow_name(flow_id: UUID) -> str:
    """The name of a flow of the demo, or the id of another."""
    return _FLOW_NAMES.get(flow_id, str(flow_id))


@dataclass(frozen=True, slots=True)
class _Run:
    """A started run as its worker knows it."""

    run_id: UUID
    flow: str
    timeout: float


class Producer:
    """Starts *rate* runs a second and lets each live its life; *report* is told of all, from any thread."""

    def __init__(
        self, store: FlowRunControlStore, *, rate: float, report: Callable[[Happening], None], seed: int | None = None
    ) -> None:
        self._store = store
        self._rate = rate
        self._report = report
        self._random = random.Random(seed)  # noqa: S311 - fates, not secrets
        self._began = 0.0
        self._agenda: list[tuple[float, int, Life]] = []
        self._order = itertools.count()
        self._living = 0
        self._starting = True
        self._ended = False
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"demo-worker-{n}", daemon=True) for n in range(_WORKERS)
        ]

    def start(self) -> None:
        """Start the threads; from now on runs are started."""
        self._began = time.monotonic()
        self._push(self._began, self._trigger_service())
        for thread in self._threads:
            thread.start()

    def start_no_more(self) -> None:
        """No further run is started; those that were live their lives to the end."""
        self._starting = False

    def stop(self) -> None:
        """Drop all that is left to do; when this returns, no thread touches the store any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def idle(self) -> bool:
        """Whether every life has ended and no other will begin."""
        with self._changed:
            return not self._agenda and not self._living

    def check(self) -> None:
        """Raise what ended a worker, if something did."""
        if self._error is not None:
            raise self._error

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    # The threads.

    def _work(self) -> None:
        while (step := self._next_step()) is not None:
            due, life = step
            try:
                pause = next(life, None)
            except Exception as error:  # noqa: BLE001 - handed to the main thread, which ends the demo
                # A life whose database had a bad moment is over, as if its worker had died: it times out.
                if not is_transient(error):
                    self._error = self._error or error
                pause = None
            self._took_step(due, pause, life)

    def _next_step(self) -> tuple[float, Life] | None:
        with self._changed:
            while not self._ended:
                wait = self._agenda[0][0] - time.monotonic() if self._agenda else None
                if wait is not None and wait <= 0:
                    due, _, life = heapq.heappop(self._agenda)
                    self._living += 1
                    return due, life
                self._changed.wait(wait)
            return None

    def _took_step(self, due: float, pause: float | None, life: Life) -> None:
        with self._changed:  # both at once, or `idle` would be true in between
            self._living -= 1
            if pause is not None:
                self._push(due + pause, life)

    def _push(self, due: float, life: Life) -> None:
        with self._changed:
            heapq.heappush(self._agenda, (due, next(self._order), life))
            self._changed.notify()

    # The lives.

    def _trigger_service(self) -> Life:
        """Begins a new life at each beat of the rate; after a stall it catches up."""
        fates = (self._succeeds, self._hangs, self._is_cancelled, self._is_extended, self._dies, self._is_retried)
        while self._starting:
            fate = self._random.choices(fates, weights=(32, 26, 12, 12, 10, 8))[0]
            self._push(time.monotonic(), fate())
            yield 1 / self._rate

    def _succeeds(self) -> Life:
        run = self._started()
        yield run.timeout * self._random.uniform(0.2, 0.9)
        self._completes(run)

    def _hangs(self) -> Life:
        """Never heard of again: this one is the daemon's."""
        self._started()
        yield from ()

    def _is_cancelled(self) -> Life:
        run = self._started()
        yield run.timeout * self._random.uniform(0.2, 0.9)
        if self._store.request_cancel(run.run_id, "the customer changed their mind"):
            self._tell(Kind.CANCELLED, run, "its deadline counts no more")

    def _is_extended(self) -> Life:
        """Gets more time before its deadline; half of these need even more and time out all the same."""
        run = self._started()
        yield run.timeout * self._random.uniform(0.3, 0.7)
        more = round(self._random.uniform(2.0, 3.5), 1)
        if self._store.extend_deadline(run.run_id, timeout=timedelta(seconds=more)):
            self._tell(Kind.EXTENDED, run, f"now due in {more:.1f} s")
        if self._random.random() < 0.5:
            yield more * 0.6
            self._completes(run)

    def _dies(self) -> Life:
        """A worker that renews its run's deadline, until it is killed."""
        run = self._started(timeout=2.0)
        for _ in range(self._random.randint(1, 4)):
            yield 0.7
            if self._store.heartbeat(run.run_id, timeout=timedelta(seconds=2)):
                self._tell(Kind.HEARTBEAT, run, "its worker lives: 2.0 s more")

    def _is_retried(self) -> Life:
        """A client that got no answer sends its request again, with the same key."""
        key = f"request-{self._random.getrandbits(48):012x}"
        run = self._started(key=key)
        yield self._random.uniform(0.1, 0.5)
        again = self._start(run.flow, key, run.timeout)
        if again.duplicate:
            same = "the same" if again.run_id == run.run_id else "ANOTHER"
            self._tell(Kind.DUPLICATE, run, f"request repeated: {same} run")
        yield run.timeout * self._random.uniform(0.2, 0.4)
        self._completes(run)

    def _started(self, *, timeout: float | None = None, key: str | None = None) -> _Run:
        flow = self._random.choice(_FLOWS)
        seconds = round(self._random.uniform(_SHORTEST, _LONGEST), 1) if timeout is None else timeout
        run = _Run(self._start(flow, key, seconds).run_id, flow, seconds)
        self._tell(Kind.STARTED, run, f"due in {seconds:.1f} s")
        return run

    def _start(self, flow: str, key: str | None, timeout: float) -> StartedRun:
        return self._store.start_run(_FLOW_IDS[flow], "demo", key, timeout=timedelta(seconds=timeout))

    def _completes(self, run: _Run) -> None:
        if self._store.complete_run(run.run_id):
            self._tell(Kind.COMPLETED, run, "in time")

    def _tell(self, kind: Kind, run: _Run, detail: str) -> None:
        self._report(Happening(kind, run.run_id, run.flow, detail, self.elapsed()))
