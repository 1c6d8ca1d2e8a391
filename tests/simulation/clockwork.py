"""Virtual time: events in the order of their moments, and processes that sleep between them.

A process is a generator. It yields a `Sleep` or any other request that the caller's *serve* understands, and is
resumed with the answer. Equal moments happen in the order in which they were asked for, so a run depends on its
seed alone.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

Process = Generator[Any, Any, None]


@dataclass(frozen=True, slots=True)
class Sleep:
    """A request to be resumed after *seconds*."""

    seconds: float


class Clockwork:
    """The moments to come. `now` is true time in seconds; no clock in the simulation runs differently but for steps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Do something at a moment; one that has passed is now."""
        heapq.heappush(self._events, (max(moment, self.now), next(self._numbers), action))

    def run(self, until: float) -> None:
        """Let everything happen that happens before *until*."""
        while self._events and self._events[0][0] < until:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = until


class Actor:
    """Drives one process; `kill` ends it at whatever it waits for."""

    def __init__(
        self, clockwork: Clockwork, process: Process, serve: Callable[[Any, Callable[..., None]], None]
    ) -> None:
        self._clockwork = clockwork
        self._process = process
        self._serve = serve
        self.alive = True

    def start(self, moment: float) -> None:
        """Begin at a moment."""
        self._clockwork.at(moment, self.resume)

    def kill(self) -> None:
        """As SIGKILL does: nothing of it happens any more; what it has asked for goes on without it."""
        self.alive = False

    def resume(self, answer: Any = None, error: Exception | None = None) -> None:
        """Go on with an answer, or with an error raised where the process waits."""
        if not self.alive:
            return
        request = self._process.throw(error) if error is not None else self._process.send(answer)
        if isinstance(request, Sleep):
            self._clockwork.at(self._clockwork.now + request.seconds, self.resume)
        else:
            self._serve(request, self.resume)
