"""Invariants of what is left at the end: rows that nobody meant, sessions, files, sound tables, living daemons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from tests.faults.record import Record
from tests.faults.strikes import Violation

__all__ = [
    "alive",
    "as_planned",
    "bystanders_untouched",
    "no_growth",
    "nothing_held",
    "nothing_leaked",
    "schema_sound",
    "strikes_content",
]

MORE_FILES: Final = 8
MORE_THREADS: Final = 6
MORE_BYTES: Final = 60 << 20


def bystanders_untouched(record: Record) -> list[Violation]:
    """The runs that no call and no deadline concerned are as they were."""
    touched = {change.run_id for change in record.changes} & record.bystanders.keys()
    found = [Violation("I10", f"bystander {run_id} was written") for run_id in sorted(touched)]
    found += [
        Violation("I10", f"bystander {run_id} is not as it was")
        for run_id, row in record.bystanders.items()
        if record.rows.get(run_id) != row
    ]
    return found


def nothing_held(record: Record) -> list[Violation]:
    """At rest no session, lock or prepared transaction is there that should not be."""
    return _all("I12", [*record.end.sessions, *record.end.locks, *record.end.prepared])


def no_growth(record: Record) -> list[Violation]:
    """A daemon that lived to the end holds about what the daemons held at the start."""
    found = []
    starts = [each.at_start for each in record.daemons if each.at_start is not None]
    if not starts:
        return []
    bounds = [
        max(start[position] for start in starts) + more
        for position, more in enumerate((MORE_FILES, MORE_THREADS, MORE_BYTES))
    ]
    for daemon in record.daemons:
        for held, bound, what in zip(daemon.at_end or (), bounds, ("files", "threads", "bytes"), strict=False):
            if held > bound:
                found.append(Violation("I12", f"{daemon.instance} holds {held} {what}, more than {bound}"))
    return found


def schema_sound(record: Record) -> list[Violation]:
    """Indexes are valid and complete, and the schema has one version."""
    return _all("I13", record.end.schema)


def alive(record: Record) -> list[Violation]:
    """No daemon ended unless it was made to, those that are left are ready, and none met an error it did not expect."""
    found = [
        Violation("I14", f"{ending.instance} ended by itself with {ending.exit_code}")
        for ending in record.endings
        if not ending.meant
    ]
    found += [
        Violation("I14", f"{daemon.instance} is not ready at the end")
        for daemon in record.daemons
        if daemon.ready is False
    ]
    found += [
        Violation("I14", f"{daemon.instance} logged {line:.160}")
        for daemon in record.daemons
        for line in daemon.tracebacks
    ]
    return found


def strikes_content(record: Record) -> list[Violation]:
    """What the strikes themselves saw violated."""
    return [replace(violation, code=each.strike.code) for each in record.struck for violation in each.strike.found]


def nothing_leaked(record: Record) -> list[Violation]:
    """The password is in no log and on no page."""
    return _all("I15", record.end.leaks)


def as_planned(record: Record) -> list[Violation]:
    """What was struck is what the seed plans."""
    if record.planned_digest == record.struck_digest:
        return []
    return [Violation("I16", f"struck {record.struck_digest}, planned {record.planned_digest}")]


def _all(invariant: str, said: Iterable[str]) -> list[Violation]:
    return [Violation(invariant, each) for each in said]
