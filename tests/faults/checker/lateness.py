"""Invariants of time: how long an armed run may stay overdue, and how long recovery may take."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from tests.faults.checker.marks import by_run
from tests.faults.chronicle import INFINITE, Change
from tests.faults.record import Record
from tests.faults.strikes import Strike, Violation

__all__ = ["LIMIT", "Overdue", "never_late", "nothing_overdue_at_rest", "overdue_spans", "recovered_in_time"]

LIMIT: Final = 2_000_000
"""The longest that a run may be overdue while nothing excuses it, in microseconds."""

MARK: Final = 4_000
"""What a mark is reckoned to take, in microseconds: the promise is for no more than two seconds' work.

So long it took one daemon of four, the others killed, frozen or starved, beside a second laboratory on two cores: 875
marks in 4.4 s, 1,025 in 3.8 s, each with a row of the audit and a line of the log. A claim that reads the whole table
takes longer.
"""

Span = tuple[int, int]


@dataclass(frozen=True)
class Overdue:
    """A time for which a run was armed and its deadline had passed, in microseconds since 1970.

    *story* says how it came to be armed and who ended it, for whoever looks for the cause.
    """

    run_id: UUID
    begin: int
    end: int
    story: str = ""


def overdue_spans(record: Record) -> Iterator[Overdue]:
    """For each arming, the time from the deadline (or from the arming, if that was later) to its end.

    Both the arming and its end count from their commits: a run of a long transaction can be marked no sooner.
    """
    for run_id, changes in by_run(record).items():
        for change, following in zip(changes, [*changes[1:], None], strict=True):
            row = change.new
            if row is None or not row.armed or row.timeout_at is None or abs(row.timeout_at) == INFINITE:
                continue
            end = record.ended_at if following is None else _seen(following)
            begin = max(row.timeout_at, _seen(change))
            if end > begin:
                past = "in the past" if row.timeout_at < change.at else "ahead"
                ended = "nobody" if following is None else following.session
                story = f"armed by {change.session} (call {change.call}) for a moment {past}, ended by {ended}"
                yield Overdue(run_id, begin, end, story)


def _seen(change: Change) -> int:
    return change.at if change.committed is None else change.committed


def never_late(record: Record) -> list[Violation]:
    """No run is overdue for more than two seconds at a stretch that neither an outage nor a standstill excuses.

    While others are marked it may be longer by the work on them: with a thousand runs due at once the last has to wait.
    One whose row changes hands meanwhile is counted from each change: only the deadlines of a run that is left
    alone are promised.
    """
    outages = [span for each in record.struck if (span := _outage(each.strike)) is not None]
    marked = sorted(_seen(change) for change in record.changes if change.is_mark)
    found = []
    for overdue in overdue_spans(record):
        if overdue.end - overdue.begin <= LIMIT:
            continue
        held = [
            (each.strike.began.wall, each.strike.ended.wall)
            for each in record.struck
            if overdue.run_id in each.strike.held
        ]
        span = (overdue.begin, overdue.end)
        for begin, end in _uncovered(span, [*outages, *held, *record.stalls]):
            marks = bisect_right(marked, end) - bisect_left(marked, begin)
            if end - begin > LIMIT + MARK * marks:
                waited = f"{(end - begin) / 1e6:.2f} s without excuse, {marks:,} marks meanwhile"
                said = f"{overdue.run_id} was overdue for {waited}; {overdue.story}"
                found.append(Violation("I2", said, overdue.end, lateness=True))
                break
    return found


def nothing_overdue_at_rest(record: Record) -> list[Violation]:
    """With the faults over and time to catch up, nothing armed is overdue."""
    return [Violation("I2", f"{run_id} is still overdue at the end") for run_id in record.end.overdue]


def recovered_in_time(record: Record) -> list[Violation]:
    """After each strike a fresh canary is marked within the bound of its kind, unless another outage came between.

    The time in which the whole machine stood still does not count.
    """
    found = []
    for struck in record.struck:
        if struck.recovery is None or struck.recovery <= struck.kind.recovery:
            continue
        begin = struck.strike.ended.wall
        wait = (begin, begin + int(struck.recovery * 1e6))
        if sum(end - begin for begin, end in _uncovered(wait, record.stalls)) <= struck.kind.recovery * 1e6:
            continue
        others = [
            span
            for other in record.struck
            if other is not struck and (span := _outage(other.strike)) is not None and _touch(span, wait)
        ]
        if not others:
            found.append(
                Violation(
                    "I14",
                    f"{struck.strike.did}: recovered only after {struck.recovery:.1f} s",
                    code=struck.strike.code,
                    lateness=True,
                )
            )
    return found


def _outage(strike: Strike) -> Span | None:
    if not strike.outage:
        return None
    return strike.began.wall, strike.ended.wall + int(strike.grace * 1e6)


def _touch(one: Span, other: Span) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _uncovered(whole: Span, excuses: Iterable[Span]) -> Iterator[Span]:
    """The parts of the time from the one moment to the other that no excuse covers."""
    begin = whole[0]
    for start, end in sorted(span for span in excuses if _touch(span, whole)):
        if start > begin:
            yield begin, start
        begin = max(begin, end)
    if begin < whole[1]:
        yield begin, whole[1]
