"""The invariants, judged afterwards over a `Record`: each is a function from the record to its violations.

`INVARIANTS` maps each number to its functions; `check` applies them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tests.faults.checker import accounts, calls, keys, lateness, marks, remains
from tests.faults.checker.losses import without_lost_calls
from tests.faults.record import Record
from tests.faults.strikes import Violation

__all__ = ["INVARIANTS", "TITLES", "check"]

Judge = Callable[[Record], list[Violation]]

INVARIANTS: Final[Mapping[str, tuple[Judge, ...]]] = {
    "I1": (marks.never_early,),
    "I2": (lateness.never_late, lateness.nothing_overdue_at_rest),
    "I3": (marks.once_per_arming,),
    "I4": (marks.ended_runs_left_alone, calls.told_the_truth),
    "I5": (marks.deadline_in_force,),
    "I6": (marks.cancel_stands,),
    "I7": (keys.one_registration, keys.no_orphans),
    "I8": (calls.nothing_lost,),
    "I9": (calls.reads_are_true, marks.mark_is_whole),
    "I10": (marks.only_the_due, marks.within_the_limit, remains.bystanders_untouched),
    "I11": (accounts.logged_once, accounts.counted),
    "I12": (remains.nothing_held, remains.no_growth),
    "I13": (remains.schema_sound,),
    "I14": (remains.alive, lateness.recovered_in_time, remains.strikes_content),
    "I15": (remains.nothing_leaked,),
    "I16": (remains.as_planned,),
}

TITLES: Final[Mapping[str, str]] = {
    "I1": "never before the deadline",
    "I2": "never later than the outage and two seconds",
    "I3": "exactly once per arming",
    "I4": "one end only, and every caller told the truth",
    "I5": "an extension is honoured",
    "I6": "a cancel is honoured, its first reason and time stand",
    "I7": "one registration per key, and no key without its run",
    "I8": "whatever was acknowledged is kept",
    "I9": "a read shows what was there, and writes nothing",
    "I10": "nothing but due runs is touched, and no more than the limit at once",
    "I11": "logs and counters tell what is in the table",
    "I12": "no session, lock, file or thread is left behind",
    "I13": "tables and indexes are sound",
    "I14": "every daemon lives, works again in time, and ends as documented",
    "I15": "no secret shows",
    "I16": "the same seed plans the same strikes",
}


def check(record: Record) -> list[Violation]:
    """Every violation of every invariant, in their order."""
    record = without_lost_calls(record)
    return [violation for judges in INVARIANTS.values() for judge in judges for violation in judge(record)]
