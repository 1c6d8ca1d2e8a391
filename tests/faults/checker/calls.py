"""Invariants over the answers that callers got, compared with the versions that a row went through.

The chronicle orders the versions of a row. A call saw one of those that may have been current between its
invocation and its return; its answer must be right for one of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from tests.faults.checker.marks import by_run
from tests.faults.checker.model import METHODS, effect
from tests.faults.chronicle import Change, Row
from tests.faults.history import Call
from tests.faults.record import Record
from tests.faults.strikes import Violation

__all__ = ["nothing_lost", "reads_are_true", "told_the_truth"]

SKEW: Final = 1_000
"""Two readings of the same clock by two processes, in microseconds."""

_SHOWN: Final = {
    "flow_id": "flow_id",
    "trigger_key": "trigger_key",
    "timeout_at_utc": "timeout_at",
    "cancel_requested": "cancel_requested",
    "cancel_reason": "cancel_reason",
    "cancel_requested_at_utc": "cancel_requested_at",
    "timed_out_at_utc": "timed_out_at",
    "completed_at_utc": "completed_at",
}


@dataclass(frozen=True)
class _Version:
    """A state of a row: written no earlier than *since*, and surely gone by *until* where that is known."""

    row: Row | None
    since: int
    until: int | None


class _Versions:
    """The states of every row, from its absence on."""

    def __init__(self, record: Record) -> None:
        returned = {
            call.number: call.returned.wall
            for call in record.calls
            if call.returned is not None and call.outcome == "ok"
        }
        self._of: dict[UUID, list[_Version]] = {}
        for run_id, changes in by_run(record).items():
            self._of[run_id] = list(_versions(changes, returned))

    def during(self, call: Call) -> Iterator[Row | None]:
        """The states that may have been current while *call* was under way."""
        assert call.run_id is not None
        until = None if call.returned is None else call.returned.wall + SKEW
        for version in self._of.get(call.run_id, [_Version(None, 0, None)]):
            begun = until is None or version.since <= until
            if begun and (version.until is None or version.until >= call.invoked.wall - SKEW):
                yield version.row


def _versions(changes: list[Change], returned: dict[int, int]) -> Iterator[_Version]:
    # Committed for sure at the return of the call that made it, or of any later one's.
    sure: list[int | None] = []
    earliest: int | None = None
    for change in reversed(changes):
        known = returned.get(change.call or 0)
        if known is not None:
            earliest = known if earliest is None else min(earliest, known)
        sure.append(earliest)
    sure.reverse()
    yield _Version(None, 0, sure[0] if changes else None)
    for number, change in enumerate(changes):
        until = sure[number + 1] if number + 1 < len(changes) else None
        yield _Version(change.new, change.at, until)


def told_the_truth(record: Record) -> list[Violation]:
    """Each answer is the contract's for a state that the row was in, and each change is what its call does there."""
    versions = _Versions(record)
    written = _by_call(record)
    found: list[Violation] = []
    for call in record.calls:
        if call.method not in METHODS or call.run_id is None:
            continue
        made = written.get(call.number, [])
        if made:
            found += _of_a_writer(call, made)
        elif call.outcome == "ok" and not _possible(call, list(versions.during(call))):
            found.append(
                Violation("I4", f"{call.method} of {call.run_id} said {call.result!r:.80}: no state allows it")
            )
    return found


def _of_a_writer(call: Call, made: list[Change]) -> Iterator[Violation]:
    if len(made) > 1:
        yield Violation("I4", f"{call.method} of {call.run_id} wrote {len(made)} times")
    for change in made:
        does = effect(call.method, call.arguments, change.old, change.new)
        if does.row is None or does.row != change.new:
            yield Violation("I4", f"{call.method} of {call.run_id} left {change.new}, not {does.row}")
        if call.outcome == "failed":
            yield Violation("I4", f"{call.method} of {call.run_id} failed ({call.error}) and wrote all the same")
        if call.outcome == "ok" and call.result != does.answer:
            yield Violation("I4", f"{call.method} of {call.run_id} wrote and said {call.result!r:.80}")


def _possible(call: Call, states: list[Row | None]) -> bool:
    if call.method == "ensure_may_run":
        # With the row held by somebody else the verdict on a lapsed deadline is given without a mark.
        answer = call.result if isinstance(call.result, str | None) else "may run"
        lapsed = answer == "RunTimedOut" and any(row is not None and row.armed for row in states)
        return lapsed or any(effect(call.method, {}, row, None).answer == answer for row in states)
    if call.method == "heartbeat" and call.result is False:
        # An overdue run is refused as well.
        return True
    return any(effect(call.method, call.arguments, row, row).answer == call.result is False for row in states)


def nothing_lost(record: Record) -> list[Violation]:
    """Every write that was acknowledged is in the chronicle, unless a strike is known to lose such."""
    written = {change.call for change in record.changes} | {change.call for change in record.key_changes}
    lossy = sorted(
        (each.strike.began.wall - int(each.strike.loses * 1e6), each.strike.ended.wall)
        for each in record.struck
        if each.strike.loses
    )
    return [
        Violation("I8", f"{call.method} of {call.run_id} was acknowledged and is lost (call {call.number})")
        for call in record.calls
        if call.outcome == "ok" and _wrote(call) and call.number not in written and not _within(call, lossy)
    ]


def _wrote(call: Call) -> bool:
    if call.method in {"configure_run", "configure_runs"}:
        return True
    if call.method == "start_run":
        return isinstance(call.result, dict) and not call.result["duplicate"]
    return call.result is True


def _within(call: Call, spans: list[tuple[int, int]]) -> bool:
    return call.returned is not None and any(begin <= call.returned.wall <= end for begin, end in spans)


def reads_are_true(record: Record) -> list[Violation]:
    """A read shows one of the states that the row may have been in, and changes nothing."""
    versions = _Versions(record)
    written = _by_call(record)
    found = []
    for call in record.calls:
        if call.method != "get_run_control" or call.outcome != "ok" or call.run_id is None:
            continue
        if call.number in written:
            found.append(Violation("I9", f"a read of {call.run_id} wrote"))
        if not any(_shows(call.result, row) for row in versions.during(call)):
            found.append(Violation("I9", f"a read of {call.run_id} shows what never was: {call.result}"))
    return found


def _shows(result: Any, row: Row | None) -> bool:
    if result is None or row is None:
        return result is row
    return all(str(result[shown]) == str(getattr(row, name)) for shown, name in _SHOWN.items())


def _by_call(record: Record) -> dict[int, list[Change]]:
    found: dict[int, list[Change]] = defaultdict(list)
    for change in record.changes:
        if change.call is not None:
            found[change.call].append(change)
    return found
