"""Two primaries at once: who stays with the first, and what daemons do on the second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import psycopg

from tests.faults import chronicle
from tests.faults.checker import marks
from tests.faults.chronicle import Change
from tests.faults.lab import Lab, Violation
from tests.faults.record import Record

__all__ = ["Split"]

_SWEEPS: Final = (
    "SELECT pid, split_part(application_name, ' ', 2), query_start > to_timestamp(%s / 1000000.0) FROM pg_stat_activity"
    " WHERE usename = 'lab_daemon' AND application_name ~ '^curfewd [^ ]+$'"
)
"""The sessions that sweep, and not those of observers, which bear more in their names."""
_CHANGES: Final = (
    "SELECT number, (extract(epoch FROM at) * 1000000)::bigint FROM lab.change"
    " WHERE at >= to_timestamp(%s / 1000000.0) - interval '1 second'"
)
"""Both primaries count on from the same number, but not in the same microsecond."""
_AWAY_WITHIN: Final = 10.0
_SWEEPS_WITHIN: Final = 3.0  # three polls
_HOLD_FOR_EACH: Final[tuple[Callable[[Record], list[Violation]], ...]] = (
    marks.never_early,
    marks.once_per_arming,
    marks.ended_runs_left_alone,
    marks.deadline_in_force,
    marks.cancel_stands,
    marks.mark_is_whole,
    marks.only_the_due,
    marks.within_the_limit,
)
"""What holds of the changes on any primary, whatever another one says."""


class Split:
    """Begun on the primary with which the lab goes on, before there is another."""

    def __init__(self, first: psycopg.Connection[Any]) -> None:
        self._first = first
        self._before = self._sweeping(0)
        self.stayed: frozenset[str] = frozenset()
        """The daemons whose session on the first has lived all the while; known once it has been judged."""

    def judged(
        self, second: psycopg.Connection[Any], lab: Lab, since: int
    ) -> tuple[tuple[Violation, ...], frozenset[tuple[UUID, int]]]:
        """What is wrong with the changes on the second since the first went on alone, and the marks made there.

        Both have what happened before that, at some moment after *since* (microseconds). No daemon gets through to the
        second any more; those that are there are sent away, so that all they did is known.
        """
        _sent_away(second, lab)
        changes = chronicle.changes(second)
        shared = set(self._first.execute(_CHANGES, (since,)).fetchall())
        record = Record(
            calls=lab.history.calls(), changes=changes, batch_size=int(lab.fleet.settings["CURFEW_BATCH_SIZE"])
        )
        found = [
            replace(violation, said=f"on a second primary: {violation.said}")
            for judge in _HOLD_FOR_EACH
            for violation in judge(record)
            if violation.at is None or violation.at >= since
        ]
        made = [
            change
            for change in changes
            if change.by_daemon and change.at >= since and (change.number, change.at) not in shared
        ]
        found += self._on_both(lab, made)
        elsewhere = {
            (change.run_id, change.new.timed_out_at)
            for change in made
            if change.is_mark and change.new is not None and change.new.timed_out_at is not None
        }
        return tuple(found), frozenset(elsewhere)

    def _on_both(self, lab: Lab, made: list[Change]) -> list[Violation]:
        """A daemon that sweeps on in its old session on the first has no business on the second."""
        last = {change.session.split()[1]: change.at for change in made}
        self.stayed = frozenset(self._staying())
        give_up = time.monotonic() + _SWEEPS_WITHIN
        found: dict[str, Violation] = {}
        # A session of the first that its daemon has left may still be listed; it sweeps no more.
        while (suspects := last.keys() & self._staying().keys() - found.keys()) and time.monotonic() < give_up:
            for instance in suspects:
                if self._staying(last[instance]).get(instance):
                    said = f"{instance} changed rows on a second primary and sweeps on the first as before"
                    found[instance] = Violation("I10", said, last[instance])
            lab.pause(0.05)
        return list(found.values())

    def _staying(self, since: int = 0) -> dict[str, bool]:
        """Those in the sessions that they had before; whether each has sent a statement after *since*."""
        now = self._sweeping(since)
        return {instance: swept for pid, (instance, swept) in now.items() if pid in self._before}

    def _sweeping(self, since: int) -> Mapping[int, tuple[str, bool]]:
        return {pid: (instance, bool(swept)) for pid, instance, swept in self._first.execute(_SWEEPS, (since,))}


def _sent_away(second: psycopg.Connection[Any], lab: Lab) -> None:
    """Return once no daemon has a session there."""
    give_up = time.monotonic() + _AWAY_WITHIN
    statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lab_daemon'"
    while second.execute(statement).fetchall():
        if time.monotonic() > give_up:
            raise TimeoutError("daemons have sessions on the second primary still")
        lab.pause(0.02)
