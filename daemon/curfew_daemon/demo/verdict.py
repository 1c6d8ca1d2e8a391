"""Judges every mark by the audit rows alone: pure, without a database and without trust in the daemon.

An arming is a commit that leaves an unlatched run with a deadline. It ends when the run is marked, cancelled,
completed, disarmed or given another deadline. Each arming may be marked once, and not before its deadline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from itertools import groupby
from typing import Final
from uuid import UUID

from curfew_daemon.demo.happenings import counted

__all__ = ["AuditRow", "Fault", "Faults", "Judge", "Mark", "RunImage", "Verdict", "verdict"]

_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class RunImage:
    """What a control record said before or after a change."""

    deadline: datetime | None
    timed_out_at: datetime | None = None
    completed: bool = False
    cancelled: bool = False

    @property
    def armed(self) -> bool:
        """Whether a commit that leaves the record like this is an arming."""
        latched = self.timed_out_at is not None or self.completed or self.cancelled
        return self.deadline is not None and not latched


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change of one run; *old* is ``None`` for an insert, *committed_at* where it is not known."""

    id: int
    run_id: UUID
    flow_id: UUID
    transaction: int
    statement_at: datetime
    committed_at: datetime | None
    old: RunImage | None
    new: RunImage

    @property
    def marks(self) -> bool:
        """Whether this change stamped the run as timed out, for the first time or anew."""
        before = None if self.old is None else self.old.timed_out_at
        return self.new.timed_out_at is not None and self.new.timed_out_at != before


class Fault(Enum):
    """What can be wrong with a mark."""

    EARLY = "early"
    TWICE = "twice"
    UNARMED = "unarmed"


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark as judged. *deadline* is the one that it replaced; *lag* runs from there, in seconds.

    *lag* ends at the commit where its time is known, else at the stamp; ``None`` for a mark that is at fault.
    """

    run_id: UUID
    flow_id: UUID
    faults: frozenset[Fault] = frozenset()
    deadline: datetime | None = None
    lag: float | None = None


class Judge:
    """Takes audit rows as they are committed and judges the marks among them.

    Rows may come in any number of portions, as long as a portion holds whole transactions and no run's
    changes come out of order. Remembers one moment for each run that was marked and not armed again.
    """

    def __init__(self) -> None:
        self._marked: dict[UUID, datetime] = {}

    def judge(self, rows: Iterable[AuditRow]) -> list[Mark]:
        """The marks among *rows*, in the order in which they were made."""
        by_run = sorted(rows, key=lambda row: (row.run_id, row.id))
        marks: list[tuple[int, Mark]] = []
        for _, changes in groupby(by_run, key=lambda row: (row.run_id, row.transaction)):
            marks += self._judge_transaction(list(changes))
        return [mark for _, mark in sorted(marks, key=lambda pair: pair[0])]

    def forget(self, before: datetime) -> None:
        """Forget the runs marked before a moment; for runs whose records have been purged."""
        self._marked = {run_id: at for run_id, at in self._marked.items() if at >= before}

    def _judge_transaction(self, changes: Sequence[AuditRow]) -> Iterator[tuple[int, Mark]]:
        # Only commits count: what a transaction does and undoes in between arms nothing.
        armed = changes[0].old is not None and changes[0].old.armed
        for row in changes:
            if row.marks:
                yield row.id, self._judged(row, armed=armed)
                armed = False
        if changes[-1].new.armed:
            self._marked.pop(changes[-1].run_id, None)

    def _judged(self, row: AuditRow, *, armed: bool) -> Mark:
        assert row.new.timed_out_at is not None
        deadline = None if row.old is None else row.old.deadline
        faults = set()
        # A stamp may lie either way, so neither it nor the clock of the statement may be before the deadline.
        if deadline is not None and min(row.new.timed_out_at, row.statement_at) < deadline:
            faults.add(Fault.EARLY)
        if not armed:
            faults.add(Fault.TWICE if row.run_id in self._marked else Fault.UNARMED)
        self._marked[row.run_id] = row.statement_at
        if faults or deadline is None:
            return Mark(row.run_id, row.flow_id, frozenset(faults), deadline)
        lag = ((row.committed_at or row.new.timed_out_at) - deadline).total_seconds()
        return Mark(row.run_id, row.flow_id, deadline=deadline, lag=lag)


class Faults:
    """Counts the faults and remembers the first few runs of each kind."""

    def __init__(self) -> None:
        self._counts: Counter[Fault] = Counter()
        self._runs: dict[Fault, list[UUID]] = {fault: [] for fault in Fault}

    def add(self, mark: Mark) -> None:
        """Note the faults of one mark, if it has any."""
        for fault in mark.faults:
            self._counts[fault] += 1
            if len(self._runs[fault]) < _NAMED and mark.run_id not in self._runs[fault]:
                self._runs[fault].append(mark.run_id)

    def count(self, fault: Fault) -> int:
        """How many marks had this fault."""
        return self._counts[fault]

    @property
    def runs(self) -> Mapping[Fault, Sequence[UUID]]:
        """The runs to name, at most ten of each kind."""
        return self._runs


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the demo passed, in one *line*, with the *offences*, one line each, that name the runs."""

    passed: bool
    line: str
    offences: tuple[str, ...] = ()


_MEANING = {
    Fault.EARLY: "marked before the deadline",
    Fault.TWICE: "marked more than once for one arming",
    Fault.UNARMED: "marked with no deadline in force (cancelled, completed or disarmed)",
}


def verdict(timed_out: int, faults: Faults, overdue: Sequence[UUID]) -> Verdict:
    """The verdict over *timed_out* runs, their *faults* and the runs that are still *overdue*, unmarked."""
    offences = [
        f"{fault.value}: {_MEANING[fault]}: {_named(faults.runs[fault], faults.count(fault))}"
        for fault in Fault
        if faults.count(fault)
    ]
    if overdue:
        offences.append(f"overdue: past the deadline and not marked: {_named(overdue, len(overdue))}")
    if offences:
        return Verdict(False, "FAILED: the promise was broken, by these runs:", tuple(offences))
    if not timed_out:
        return Verdict(False, "FAILED: no run timed out, so nothing was shown; let it play longer")
    return Verdict(True, f"PASSED: {counted(timed_out)} timed out, each marked once, none early, and no other run.")


def _named(runs: Sequence[UUID], count: int) -> str:
    shown = ", ".join(map(str, runs[:_NAMED]))
    return shown if count <= min(len(runs), _NAMED) else f"{shown} (the first of {count:,})"
