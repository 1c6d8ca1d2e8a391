"""Invariants of the daemons' own books: what they logged and counted, against the chronicle."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final
from uuid import UUID

from tests.faults.record import Record
from tests.faults.strikes import Violation

__all__ = ["counted", "logged_once"]

MARGIN: Final = 10_000_000
"""How long before and after a strike an answer may have been lost to it, in microseconds."""

Mark = tuple[UUID, int]


def _marks(record: Record) -> dict[str, dict[Mark, int]]:
    """By instance: each mark as run and stamp, with the moment of the change."""
    found: dict[str, dict[Mark, int]] = defaultdict(dict)
    for change in record.changes:
        if change.by_daemon and change.is_mark and change.new is not None and change.new.timed_out_at is not None:
            found[change.session.split()[1]][change.run_id, change.new.timed_out_at] = change.at
    return found


def logged_once(record: Record) -> list[Violation]:
    """A daemon logs each of its marks once, and none that is not its own; an answer lost to a strike excuses it."""
    found = []
    made = _marks(record)
    elsewhere = frozenset[Mark]().union(*(each.strike.elsewhere for each in record.struck))
    for daemon in record.daemons:
        logged = Counter((each.run_id, each.timed_out_at) for each in daemon.logged)
        mine = made.get(daemon.instance, {})
        for mark, times in logged.items():
            if times > 1:
                found.append(Violation("I11", f"{daemon.instance} logged the mark of {mark[0]} {times} times"))
            if mark not in mine and mark not in elsewhere and not _lost(record, mark[1]):
                found.append(Violation("I11", f"{daemon.instance} logged a mark of {mark[0]} that it never made"))
        for mark, at in mine.items():
            if mark not in logged and not _excused(record, daemon.instance, at):
                found.append(Violation("I11", f"{daemon.instance} marked {mark[0]} and did not log it"))
    return found


def counted(record: Record) -> list[Violation]:
    """The counter of each daemon that lives is the number of its marks that it logged."""
    return [
        Violation("I11", f"{daemon.instance} counted {daemon.counted} marks and logged {len(daemon.logged)}")
        for daemon in record.daemons
        if daemon.counted is not None and daemon.counted != len(daemon.logged)
    ]


def _lost(record: Record, at: int) -> bool:
    """Whether a strike may have taken a mark of that moment out of the table."""
    return any(
        each.strike.began.wall - int(each.strike.loses * 1e6) <= at <= each.strike.ended.wall
        for each in record.struck
        if each.strike.loses
    )


def _excused(record: Record, instance: str, at: int) -> bool:
    return any(
        instance in each.strike.lame
        and each.strike.began.wall - MARGIN <= at <= each.strike.ended.wall + int(each.strike.grace * 1e6) + MARGIN
        for each in record.struck
    )
