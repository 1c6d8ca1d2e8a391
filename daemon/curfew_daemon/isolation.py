"""Runs that the database refuses to mark, kept apart so that the others of their batch are marked.

A trigger that raises, a CHECK of somebody's own, a damaged page: the claim is one statement, so one such row takes its
whole batch back. A pass then narrows its batches down to the row at fault, sets that one aside for a while and goes
on behind it; in the end each of them costs its own attempt now and then, and nobody else's deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "MOST_ASIDE", "NARROWING", "Isolation"]

NARROWING: Final = 8
"""A batch that was refused is tried again with so many times fewer runs: of 500, four attempts find the one."""

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds for which a refused run is set aside; they double with each refusal."""

MOST_ASIDE: Final = 1_000
"""With more refused runs than that it is not single rows that are at fault, and the sweep fails as a whole."""


@dataclass(frozen=True, slots=True)
class _Aside:
    """Until when a run is left out, on the monotonic clock, and how long the pause was."""

    until: float
    pause: float


class Isolation:
    """The runs that are set aside; may be used from several threads.

    *on_refused* is told of each refusal: the run, the seconds until it is tried again, and the error.
    """

    def __init__(
        self,
        on_refused: Callable[[UUID, float, BaseException], None] = lambda _run_id, _pause, _error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_refused = on_refused
        self._clock = clock
        self._runs: dict[UUID, _Aside] = {}
        self._lock = threading.Lock()

    def aside(self) -> list[UUID]:
        """The runs that are left out now."""
        now = self._clock()
        with self._lock:
            # One that was not refused again within a pause of its turn has been marked or is no longer due.
            self._runs = {run: each for run, each in self._runs.items() if now < each.until + LONGEST_PAUSE}
            return [run for run, each in self._runs.items() if now < each.until]

    def refuse(self, run_id: UUID, error: BaseException) -> bool:
        """Set a run aside because of *error*; ``False`` if too many are already. One that is aside stays as it is."""
        with self._lock:
            if len(self._runs) >= MOST_ASIDE and run_id not in self._runs:
                return False
            before = self._runs.get(run_id)
            if before is not None and self._clock() < before.until:
                return True  # another connection met it in the same moment
            pause = FIRST_PAUSE if before is None else min(2 * before.pause, LONGEST_PAUSE)
            self._runs[run_id] = _Aside(self._clock() + pause, pause)
        self._on_refused(run_id, pause, error)
        return True
