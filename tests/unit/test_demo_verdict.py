"""The demo's verdict, computed from audit rows: each rule of what an arming is, and what breaks the promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from curfew_daemon.demo.verdict import AuditRow, Fault, Faults, Judge, Mark, RunImage, verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
RUN, OTHER, FLOW = UUID(int=1), UUID(int=2), UUID(int=9)


def at(seconds: float) -> datetime:
    """A moment so many seconds after the start."""
    return START + timedelta(seconds=seconds)


ARMED = RunImage(deadline=at(10))
MARKED = RunImage(deadline=at(10), timed_out_at=at(10.001), cancelled=True)


class History:
    """The audit rows of one run, written as the states that it went through."""

    def __init__(self, run_id: UUID = RUN, first_id: int = 1) -> None:
        self.rows: list[AuditRow] = []
        self._run_id = run_id
        self._next_id = first_id
        self._image: RunImage | None = None

    def to(
        self, image: RunImage, *, when: float = 0.0, committed: float | None = None, together: bool = False
    ) -> History:
        """The run's next state, in a transaction of its own unless it comes *together* with the last one."""
        transaction = self.rows[-1].transaction if together else self._next_id
        committed_at = None if committed is None else at(committed)
        self.rows.append(
            AuditRow(self._next_id, self._run_id, FLOW, transaction, at(when), committed_at, self._image, image)
        )
        self._image = image
        self._next_id += 1
        return self

    def marked(self, when: float = 10.001, *, together: bool = False) -> History:
        """The run's last state, with a mark on it."""
        assert self._image is not None
        image = replace(self._image, timed_out_at=at(when), cancelled=True)
        return self.to(image, when=when, committed=when + 0.001, together=together)


def faults(marks: Sequence[Mark]) -> list[set[Fault]]:
    """The faults of each mark."""
    return [set(mark.faults) for mark in marks]


def test_a_run_marked_once_after_its_deadline_is_right() -> None:
    """One arming, one mark, no fault; the lag runs from the replaced deadline to the commit."""
    marks = Judge().judge(History().to(ARMED).marked(10.001).rows)
    assert faults(marks) == [set()]
    assert marks[0].lag == pytest.approx(0.002)


def test_a_mark_at_the_very_deadline_is_not_early() -> None:
    """A deadline equal to now is due."""
    assert faults(Judge().judge(History().to(ARMED).marked(10).rows)) == [set()]


def test_without_commit_times_the_lag_ends_at_the_stamp() -> None:
    """A server that does not keep the times of commits leaves the mark's own stamp."""
    marks = Judge().judge(History().to(ARMED).to(MARKED, when=10.001).rows)
    assert marks[0].lag == pytest.approx(0.001)


@pytest.mark.parametrize(("stamped", "written"), [(9.999, 9.999), (9.999, 10.5), (10.5, 9.999)])
def test_a_mark_before_the_deadline_is_early(stamped: float, written: float) -> None:
    """Neither the stamp nor the clock at the time of writing may be before the deadline, and no lag is counted."""
    image = RunImage(deadline=at(10), timed_out_at=at(stamped), cancelled=True)
    marks = Judge().judge(History().to(ARMED).to(image, when=written).rows)
    assert faults(marks) == [{Fault.EARLY}]
    assert marks[0].lag is None


def test_a_mark_is_held_against_the_deadline_that_it_replaced() -> None:
    """The old row's deadline counts: a mark that moves the deadline in the same update hides nothing."""
    moved = RunImage(deadline=at(5), timed_out_at=at(6), cancelled=True)
    assert faults(Judge().judge(History().to(ARMED).to(moved, when=6).rows)) == [{Fault.EARLY}]


def test_an_arming_ends_when_the_run_is_marked() -> None:
    """A second stamp on the same arming is a second mark, however it comes about."""
    rows = History().to(ARMED).marked(10.001).marked(11).rows
    assert faults(Judge().judge(rows)) == [set(), {Fault.TWICE}]


def test_two_marks_in_one_transaction_are_one_too_many() -> None:
    """The first uses the arming up, the second has none."""
    rows = History().to(ARMED).marked(10.001).marked(11, together=True).rows
    assert faults(Judge().judge(rows)) == [set(), {Fault.TWICE}]


def test_taking_back_the_stamp_alone_arms_nothing() -> None:
    """A run that stays cancelled is latched, so a second mark belongs to the arming that had one already."""
    taken_back = RunImage(deadline=at(10), cancelled=True)
    rows = History().to(ARMED).marked(10.001).to(taken_back).marked(12).rows
    assert faults(Judge().judge(rows)) == [set(), {Fault.TWICE}]


def test_arming_and_marking_within_one_transaction_is_no_arming() -> None:
    """Only a commit arms: a mark taken back and set again in one transaction is a second mark."""
    rows = History().to(ARMED).marked(10.001).to(ARMED).marked(12, together=True).rows
    assert faults(Judge().judge(rows)) == [set(), {Fault.TWICE}]


@pytest.mark.parametrize(
    "ended",
    [
        RunImage(deadline=at(10), cancelled=True),
        RunImage(deadline=at(10), completed=True),
        RunImage(deadline=None),
    ],
    ids=["cancelled", "completed", "disarmed"],
)
def test_an_arming_ends_when_the_run_is_cancelled_completed_or_disarmed(ended: RunImage) -> None:
    """A mark after that belongs to no arming."""
    rows = History().to(ARMED).to(ended).marked(12).rows
    assert faults(Judge().judge(rows)) == [{Fault.UNARMED}]


def test_a_mark_on_a_run_that_was_inserted_with_it_is_unarmed() -> None:
    """No commit ever left that run with a deadline in force."""
    assert faults(Judge().judge(History().to(MARKED, when=11).rows)) == [{Fault.UNARMED}]


def test_another_deadline_is_another_arming() -> None:
    """A run whose deadline was moved is early before the new one, and right after it."""
    later = RunImage(deadline=at(20))
    assert faults(Judge().judge(History().to(ARMED).to(later).marked(12).rows)) == [{Fault.EARLY}]
    assert faults(Judge().judge(History().to(ARMED).to(later).marked(20.1).rows)) == [set()]


def test_a_run_that_is_armed_again_may_be_marked_again() -> None:
    """Extending or reopening a timed out run, even with the same deadline, is a new arming."""
    rows = History().to(ARMED).marked(10.001).to(ARMED).marked(12).rows
    assert faults(Judge().judge(rows)) == [set(), set()]


def test_other_changes_of_a_marked_run_are_no_marks() -> None:
    """A record written over keeps its stamp, and that is no second mark."""
    rewritten = replace(MARKED, deadline=at(30))
    assert len(Judge().judge(History().to(ARMED).to(MARKED, when=10.001).to(rewritten).rows)) == 1


def test_what_was_seen_in_earlier_portions_counts() -> None:
    """Rows may come in portions: the second mark is recognised in a later one."""
    rows = History().to(ARMED).marked(10.001).marked(11).rows
    judge = Judge()
    assert [faults(judge.judge([row])) for row in rows] == [[], [set()], [{Fault.TWICE}]]


def test_runs_are_told_apart_and_rows_may_come_in_any_order() -> None:
    """The order of one run's changes is that of their numbers, whatever order they arrive in."""
    one = History(RUN, 101).to(ARMED).marked(10.5).marked(11)
    other = History(OTHER, 1).to(ARMED).marked(9)
    marks = Judge().judge([*reversed(one.rows), *reversed(other.rows)])
    assert [mark.run_id for mark in marks] == [OTHER, RUN, RUN]
    assert faults(marks) == [{Fault.EARLY}, set(), {Fault.TWICE}]


def test_a_judge_forgets_runs_that_were_purged_and_no_others() -> None:
    """What is forgotten is bounded by the moment of the mark, so memory does not grow for ever."""
    judge = Judge()
    judge.judge(History(RUN, 1).to(ARMED).marked(10.5).rows + History(OTHER, 101).to(ARMED).marked(60).rows)
    judge.forget(at(30))
    old = RunImage(deadline=at(10), timed_out_at=at(10.5), cancelled=True)
    recent = replace(old, timed_out_at=at(60))
    again = [
        AuditRow(201, RUN, FLOW, 201, at(90), None, old, replace(old, timed_out_at=at(90))),
        AuditRow(202, OTHER, FLOW, 202, at(90), None, recent, replace(recent, timed_out_at=at(90))),
    ]
    # The forgotten run's second mark is still a fault: it had no arming.
    assert faults(judge.judge(again)) == [{Fault.UNARMED}, {Fault.TWICE}]


def noted(*marks: Mark) -> Faults:
    """The faults of these marks."""
    found = Faults()
    for mark in marks:
        found.add(mark)
    return found


def test_the_verdict_passes_when_runs_timed_out_and_nothing_was_wrong() -> None:
    """The one line says how many."""
    found = verdict(3, noted(Mark(RUN, FLOW)), [])
    assert (found.passed, found.offences) == (True, ())
    assert found.line.startswith("PASSED: 3 runs timed out")


def test_the_verdict_fails_when_nothing_was_shown() -> None:
    """Without a single timeout there is nothing that could have been wrong."""
    assert not verdict(0, noted(), []).passed


@pytest.mark.parametrize("fault", Fault)
def test_the_verdict_fails_and_names_the_run_of_each_fault(fault: Fault) -> None:
    """One mark at fault is enough, among any number that were right."""
    found = verdict(100, noted(Mark(RUN, FLOW, frozenset({fault}))), [])
    assert not found.passed
    assert [offence for offence in found.offences if fault.value in offence and str(RUN) in offence]


def test_the_verdict_fails_and_names_the_runs_left_overdue() -> None:
    """A run that nobody marked breaks the promise as well."""
    found = verdict(100, noted(), [OTHER])
    assert not found.passed
    assert str(OTHER) in found.offences[0]


def test_the_verdict_names_ten_runs_and_counts_the_rest() -> None:
    """A thousand faults still make a line that can be read."""
    many = [Mark(UUID(int=n), FLOW, frozenset({Fault.EARLY})) for n in range(1000)]
    (offence,) = verdict(1000, noted(*many), []).offences
    assert "the first of 1,000" in offence
    assert offence.count("00000000-") == 10
