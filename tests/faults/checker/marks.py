"""Invariants over single changes of control rows and their order within a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from uuid import UUID

from curfew_store.enforcement import OVERDUE_REASON
from tests.faults.chronicle import Change, Row
from tests.faults.record import Record
from tests.faults.strikes import Violation

__all__ = [
    "by_run",
    "cancel_stands",
    "deadline_in_force",
    "ended_runs_left_alone",
    "enforced",
    "mark_is_whole",
    "never_early",
    "once_per_arming",
    "only_the_due",
    "within_the_limit",
]


def by_run(record: Record) -> dict[UUID, list[Change]]:
    """The changes of each run in their order."""
    found: dict[UUID, list[Change]] = defaultdict(list)
    for change in record.changes:
        found[change.run_id].append(change)
    return found


def enforced(record: Record) -> list[tuple[Change, Row, Row]]:
    """The marks of overdue runs, by a daemon or by a step's check, with the rows before and after.

    `mark_timed_out` is not among them: it asks for no deadline.
    """
    steps = {call.number for call in record.calls if call.method == "ensure_may_run"}
    return [
        (change, change.old, change.new)
        for change in record.changes
        if change.is_mark and change.old and change.new and (change.by_daemon or change.call in steps)
    ]


def never_early(record: Record) -> list[Violation]:
    """Each mark is stamped, and made, no earlier than the deadline that it replaced a row with."""
    return [
        Violation("I1", f"{change.run_id} marked {old.timeout_at - earliest} µs early by {change.session}", change.at)
        for change, old, new in enforced(record)
        if old.timeout_at is not None
        and (earliest := min(new.timed_out_at or 0, change.at, change.statement_at)) < old.timeout_at
    ]


def deadline_in_force(record: Record) -> list[Violation]:
    """A mark leaves the deadline as it was: the one that was last set, by an extension too, is the one that passed."""
    found = []
    last: dict[UUID, int | None] = {}
    for change in record.changes:
        if change.is_mark and change.old is not None and change.new is not None:
            if change.new.timeout_at != change.old.timeout_at:
                found.append(Violation("I5", f"the mark of {change.run_id} moved its deadline", change.at))
            if change.run_id in last and last[change.run_id] != change.old.timeout_at:
                found.append(
                    Violation("I5", f"{change.run_id} was marked for a deadline that no longer held", change.at)
                )
        last[change.run_id] = None if change.new is None else change.new.timeout_at
    return found


def once_per_arming(record: Record) -> list[Violation]:
    """A stamp never becomes another one, is taken back only by a call that may, and each row follows from the last."""
    found = []
    may = {call.number: call.method for call in record.calls}
    for run_id, changes in by_run(record).items():
        previous: Row | None = None
        for change in changes:
            if change.old != previous:
                found.append(
                    Violation("I3", f"{run_id}: a change that nobody saw, before {change.operation}", change.at)
                )
            previous = change.new
            if change.old is None or change.new is None or change.old.timed_out_at is None:
                continue
            if change.new.timed_out_at is not None and change.new.timed_out_at != change.old.timed_out_at:
                found.append(Violation("I3", f"{run_id} was marked again by {change.session}", change.at))
            taken_back = change.new.timed_out_at is None
            if taken_back and may.get(change.call or 0) not in {"extend_deadline", "reopen_run"}:
                found.append(Violation("I3", f"the mark of {run_id} was taken back by {change.session}", change.at))
    return found


def ended_runs_left_alone(record: Record) -> list[Violation]:
    """No completed run is ever marked, by anybody; no cancelled one is marked by a sweep."""
    found = []
    for change in record.changes:
        if not change.is_mark or change.old is None:
            continue
        if change.old.completed_at is not None:
            found.append(
                Violation("I4", f"{change.run_id} was completed and then marked by {change.session}", change.at)
            )
        if change.by_daemon and change.old.cancel_requested:
            found.append(
                Violation("I4", f"{change.run_id} was cancelled and then marked by {change.session}", change.at)
            )
    return found


def cancel_stands(record: Record) -> list[Violation]:
    """While the cancel flag stays up its time stays, and so does its reason unless a timeout came on top."""
    found = []
    reopened = {call.number for call in record.calls if call.method == "reopen_run"}
    for change in record.changes:
        old, new = change.old, change.new
        if old is None or new is None or not old.cancel_requested or change.call in reopened:
            continue
        by_timeout = old.timed_out_at is not None and old.cancel_requested_at == old.timed_out_at
        if not new.cancel_requested:
            if not by_timeout:
                found.append(Violation("I6", f"the cancel of {change.run_id} was lost to {change.session}", change.at))
            continue
        if new.cancel_requested_at != old.cancel_requested_at:
            found.append(
                Violation("I6", f"the time of the cancel of {change.run_id} was moved by {change.session}", change.at)
            )
        if new.cancel_reason != old.cancel_reason and not change.is_mark:
            found.append(Violation("I6", f"the reason of the cancel of {change.run_id} was changed", change.at))
    return found


def mark_is_whole(record: Record) -> list[Violation]:
    """An enforced mark sets flag, stamp, time and reason together, and the two stamps are the same."""
    return [
        Violation("I9", f"the mark of {change.run_id} is not whole: {new}", change.at)
        for change, _, new in enforced(record)
        if not new.cancel_requested
        or new.cancel_reason != OVERDUE_REASON
        or new.cancel_requested_at != new.timed_out_at
    ]


def only_the_due(record: Record) -> list[Violation]:
    """A daemon changes nothing but an armed and due run, and of that nothing but the columns of a mark."""
    found = []
    for change in record.changes:
        if not change.by_daemon:
            continue
        if change.old is None or change.new is None or not change.is_mark:
            found.append(Violation("I10", f"{change.session} made a {change.operation} of {change.run_id}", change.at))
            continue
        if not change.old.armed:
            found.append(Violation("I10", f"{change.session} marked {change.run_id}, which was not armed", change.at))
        fields = {"cancel_requested", "cancel_reason", "cancel_requested_at", "timed_out_at"}
        same = {name: getattr(change.old, name) for name in fields}
        if replace(change.new, **same) != change.old:
            found.append(
                Violation("I10", f"{change.session} changed more of {change.run_id} than a mark does", change.at)
            )
    return found


def within_the_limit(record: Record) -> list[Violation]:
    """No statement of a daemon changes more rows than its batch size."""
    sizes = Counter((change.xid, change.session) for change in record.changes if change.by_daemon)
    return [
        Violation("I10", f"one statement of {session} changed {size} rows, with batches of {record.batch_size}")
        for (_, session), size in sizes.items()
        if size > record.batch_size
    ]
