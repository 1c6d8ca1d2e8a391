"""Takes one safety away from a daemon, for `tests.faults.sabotage`.

Python imports this module by itself where its folder is on PYTHONPATH. It acts on daemons alone, and on those that are
but threads of a crowd, and only where ``LAB_SABOTAGE`` names what to take away; nothing in the product knows of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final


def _replace(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def _due_without(*names: str) -> None:
    """The claim's predicate loses some of its parts, in the CTE and in the UPDATE."""
    from sqlalchemy import and_, func

    from curfew_store import enforcement

    def due(controls: Any) -> Any:
        columns = controls.c
        parts = {
            "timed_out": columns.timed_out_at_utc.is_(None),
            "completed": columns.completed_at_utc.is_(None),
            "cancelled": ~columns.cancel_requested,
            "deadline": columns.timeout_at_utc <= func.now(),
        }
        left = [part for name, part in parts.items() if name not in names]
        return and_(columns.timeout_at_utc.is_not(None), *left)

    _replace(enforcement, "due", due)


def _wait_for_locks() -> None:
    """SKIP LOCKED becomes a wait."""
    from sqlalchemy import Select

    whole = Select.with_for_update

    def waiting(self: Any, *, skip_locked: bool = False, **named: Any) -> Any:
        return whole(self, **named)

    _replace(Select, "with_for_update", waiting)


def _no_limit() -> None:
    """One claim takes all that is due."""
    from curfew_store import enforcement

    limited = enforcement.claim_overdue

    def unlimited(*given: Any, limit: int, **named: Any) -> Any:
        return limited(*given, limit=1_000_000, **named)

    _replace(enforcement, "claim_overdue", unlimited)


def _no_full_looks() -> None:
    """Nothing is ever looked for behind the mark."""
    from curfew_daemon.scan import LowWaterMark

    _replace(LowWaterMark, "look_from", lambda self: self._since)


def _unbounded_waits() -> None:
    """No answer is waited for any shorter than for ever."""
    from curfew_daemon import database

    _replace(database, "_bounded", lambda answers, _seconds: answers)


def _no_isolation() -> None:
    """A run that is refused fails the sweep."""
    from curfew_daemon.isolation import Isolation

    _replace(Isolation, "refuse", lambda _self, _run, _error: False)


def _no_reconnect() -> None:
    """A connection that failed is kept."""
    from curfew_daemon.database import Link

    _replace(Link, "drop", lambda _self: None)


def _retries_after(seconds: float) -> None:
    """A failure is followed by one pause, whatever came before and whoever else waits."""
    from dataclasses import replace

    from curfew_daemon.wake import Pace, Wake

    def after(self: Pace, **_: Any) -> tuple[Pace, Wake]:
        return replace(self, failures=self.failures + 1, slack=0.0), Wake(seconds, "retry")

    _replace(Pace, "after_failure", after)


def _unspread() -> None:
    """Pauses after failures double as they did, but no fleet spreads them over a time."""
    from curfew_daemon import wake

    paced = wake.Pace.after_failure

    def bunched(self: wake.Pace, *, longest: float, chance: float, spread: float = 0.0) -> tuple[wake.Pace, wake.Wake]:
        return paced(self, longest=longest, chance=chance)

    _replace(wake.Pace, "after_failure", bunched)
    _replace(wake, "observer_pause", lambda _spread, _chance: 0.0)


def _fall_on_errors() -> None:
    """An error of the database ends the process."""
    from curfew_daemon.enforcer import Enforcer

    _replace(Enforcer, "_failed", lambda _self, _error: os._exit(70))


def _sleepy() -> None:
    """Deadlines are not looked ahead for, and polls come seldom."""
    from curfew_daemon.wake import Pace, Wake

    _replace(Pace, "after_sweep", lambda self, _seen, **_named: (self, Wake(5.0, "poll")))


SABOTAGES: Final[dict[str, Callable[[], None]]] = {
    # A mark sets the cancel flag too, so each of the two parts covers for the other.
    "marks the timed out": lambda: _due_without("timed_out", "cancelled"),
    "marks the completed": lambda: _due_without("completed"),
    "marks the cancelled": lambda: _due_without("cancelled"),
    "marks before the deadline": lambda: _due_without("deadline"),
    "waits for locked rows": _wait_for_locks,
    "knows no limit": _no_limit,
    "never looks behind its mark": _no_full_looks,
    "waits for ever": _unbounded_waits,
    "keeps dead connections": _no_reconnect,
    "retries after 8 s": lambda: _retries_after(8.0),
    "retries at once": lambda: _retries_after(0.0),
    "spreads no reconnects": _unspread,
    "dies of database errors": _fall_on_errors,
    "isolates no run": _no_isolation,
    "polls every 5 s": _sleepy,
}
"""What each takes away, by the words of the report."""

if {"curfew_daemon", "tests.faults.crowd"}.intersection(sys.orig_argv) and (_name := os.environ.get("LAB_SABOTAGE")):
    SABOTAGES[_name]()
