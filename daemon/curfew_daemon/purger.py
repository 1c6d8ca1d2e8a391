"""One round of the purge: a walk over the control records, and one over the keys.

Each step is one statement that commits by itself, so a daemon may stop or die between any two and loses nothing. It
raises whatever the database raises, and goes on from where it was when it is called again.

Of several sessions that purge a schema one at a time has the turn, each time for a statement: between two of them it
rests, and another can come in. So a round asks a few times more before it is left to whoever has the turn.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal

from sqlalchemy import Connection

from curfew_daemon.results import PurgedSlice, PurgeResult
from curfew_daemon.slices import Slices, rest_after
from curfew_store import retention
from curfew_store.schema import Tables

__all__ = ["BATCH_SIZE", "PATIENCE", "Purger"]

BATCH_SIZE: Final = 500
"""Most rows that one statement deletes, the keys of its runs not counted."""

PATIENCE: Final = 0.2
"""Seconds for which a round asks for the turn again; longer, and the rounds of a large fleet would leave no rest."""

_TURN_REST: Final = 0.05
_WALKS: Final = (retention.purge_ended_runs, retention.purge_orphaned_keys)


@dataclass(slots=True)
class _Round:
    """How far a round has come, and what it has deleted so far."""

    walk: int = 0
    slices: Slices = field(default_factory=Slices)
    total: PurgedSlice = field(default_factory=PurgedSlice)
    statements: int = 0
    worked: float = 0.0


class Purger:
    """Deletes what is older than *older_than* seconds (asked before each statement; ``None`` ends the round).

    *connect* returns a live connection in autocommit. *on_slice* is told of every statement that deleted something,
    after its commit. *stopping* ends a rest at once and the round with it. *patience* is how many seconds a round
    waits for its turn while another session has it.
    """

    def __init__(
        self,
        tables: Tables,
        connect: Callable[[], Connection],
        *,
        older_than: Callable[[], float | None],
        on_slice: Callable[[PurgedSlice], None] = lambda _slice: None,
        stopping: threading.Event | None = None,
        batch_size: int = BATCH_SIZE,
        patience: float = PATIENCE,
    ) -> None:
        self._tables = tables
        self._connect = connect
        self._older_than = older_than
        self._on_slice = on_slice
        self._stopping = threading.Event() if stopping is None else stopping
        self._batch_size = batch_size
        self._patience = patience
        self._round = _Round()

    def run_once(self) -> PurgeResult:
        """Go through both tables to the end, from where an error has left the round before."""
        started = had_turn = time.monotonic()
        while self._round.walk < len(_WALKS):
            seconds = self._older_than()
            if seconds is None or self._stopping.is_set():
                return self._ended("stopped", started)
            took = self._step(timedelta(seconds=seconds))
            if took is not None:
                self._stopping.wait(rest_after(took))
                had_turn = time.monotonic()
            elif time.monotonic() - had_turn < self._patience:
                self._stopping.wait(_TURN_REST * random.uniform(0.5, 1.0))  # noqa: S311  (guards nothing)
            else:
                return self._ended("aside", started)
        return self._ended("done", started)

    def skip(self) -> None:
        """Leave the pages in hand to the next round; for a statement that will not get through."""
        self._round.slices = self._round.slices.past()

    def _step(self, older_than: timedelta) -> float | None:
        """One statement; how many seconds it took, ``None`` if another session has the turn."""
        conn = self._connect()
        done, purge = self._round, _WALKS[self._round.walk]
        pages = retention.PageRange(done.slices.first, done.slices.end)
        asked = time.monotonic()
        found = purge(conn, self._tables, pages, older_than=older_than, limit=self._batch_size)
        took = time.monotonic() - asked
        if not found.took_turn:
            return None
        runs_walk = purge is retention.purge_ended_runs
        gone = PurgedSlice(found.rows, found.keys, 0) if runs_walk else PurgedSlice(0, 0, found.rows)
        done.statements += 1
        done.worked += took
        done.total += gone
        if found.rows:
            self._on_slice(gone)
        done.slices = done.slices.after(full=found.rows >= self._batch_size, took=took)
        if done.slices.first >= found.pages:
            done.walk, done.slices = done.walk + 1, Slices()
        return took

    def _ended(self, outcome: Literal["done", "aside", "stopped"], started: float) -> PurgeResult:
        ended, self._round = self._round, _Round()
        return PurgeResult(
            outcome=outcome,
            deleted=ended.total,
            statements=ended.statements,
            worked=ended.worked,
            duration=time.monotonic() - started,
        )
