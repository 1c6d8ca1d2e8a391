"""What a failover to an asynchronous standby takes with it, calls and all."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.faults.record import Record

__all__ = ["without_lost_calls"]

_SECOND: Final = 1_000_000


def without_lost_calls(record: Record) -> Record:
    """The record without calls that returned while a strike was losing what was acknowledged and left no change.

    Neither what such a call wrote nor what it read has to be in the chronicle, which was lost with it: it is as if
    nobody had been told. One whose change is there saw only what is there as well, since a standby has all up to
    some point and nothing after it. Without such a strike the record is returned as it is.
    """
    spans = [
        (each.strike.began.wall - int(each.strike.loses * _SECOND), each.strike.ended.wall)
        for each in record.struck
        if each.strike.loses
    ]
    if not spans:
        return record
    written = {change.call for change in record.changes} | {change.call for change in record.key_changes}
    kept = [
        call
        for call in record.calls
        if call.returned is None
        or call.number in written
        or not any(begin <= call.returned.wall <= end for begin, end in spans)
    ]
    return replace(record, calls=kept)
