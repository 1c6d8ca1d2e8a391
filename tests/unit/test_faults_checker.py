"""The laboratory's checker: each invariant finds the history that breaks it, and nothing in one that does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import pytest

from curfew_store.enforcement import OVERDUE_REASON
from tests.faults.checker import INVARIANTS, TITLES, check
from tests.faults.chronicle import Change, KeyChange, Row
from tests.faults.fleet import Ending
from tests.faults.history import Call
from tests.faults.kinds.process import KINDS as PROCESS_KINDS
from tests.faults.nemesis import Struck
from tests.faults.record import DaemonFacts, EndState, LoggedMark, Record
from tests.faults.strikes import Moment, Strike, Violation

RUN: Final = UUID(int=1)
FLOW: Final = UUID(int=7)
BEGUN: Final = 1_000_000_000
DAEMON: Final = "curfewd lab-1"


def at(seconds: float) -> int:
    """A moment of the story, in microseconds."""
    return BEGUN + int(seconds * 1e6)


def moment(seconds: float) -> Moment:
    return Moment(seconds, at(seconds))


def armed(deadline: float | None = 5) -> Row:
    return Row(FLOW, "start", None, None if deadline is None else at(deadline), False, None, None, None, at(0), None)


def marked(row: Row, seconds: float, reason: str = OVERDUE_REASON) -> Row:
    stamp = at(seconds)
    return replace(row, timed_out_at=stamp, cancel_requested=True, cancel_requested_at=stamp, cancel_reason=reason)


def completed(row: Row, seconds: float) -> Row:
    return replace(row, completed_at=at(seconds))


def cancelled(row: Row, seconds: float, reason: str = "why") -> Row:
    return replace(row, cancel_requested=True, cancel_requested_at=at(seconds), cancel_reason=reason)


class Story:
    """A history told step by step; `record` is what the checker gets."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._row: dict[UUID, Row | None] = {}
        self.calls: list[Call] = []
        self.changes: list[Change] = []
        self.key_changes: list[KeyChange] = []
        self.struck: list[Struck] = []
        self.more: dict[str, Any] = {}

    def call(
        self, seconds: float, method: str, result: Any = None, *, run: UUID = RUN, outcome: Any = "ok", **arguments: Any
    ) -> int:
        number = next(self._numbers)
        named = {name.removeprefix("_"): value for name, value in arguments.items()}
        returned = moment(seconds + 0.01)
        self.calls.append(Call(number, "p", method, run, named, moment(seconds), returned, outcome, result))
        return number

    def change(
        self, seconds: float, row: Row | None, *, call: int | None = None, session: str = "lab p", run: UUID = RUN
    ) -> None:
        old = self._row.get(run)
        operation: Any = "INSERT" if old is None else "DELETE" if row is None else "UPDATE"
        number = len(self.changes) + 1
        moment_at = at(seconds)
        self.changes.append(Change(number, run, moment_at, moment_at, number, session, call, operation, old, row))
        self._row[run] = row

    def start(self, seconds: float = 0.0, deadline: float | None = 5, run: UUID = RUN) -> Row:
        row = armed(deadline)
        number = self.call(seconds, "configure_run", run=run)
        self.change(seconds + 0.005, row, call=number, run=run)
        return row

    def mark(self, seconds: float, row: Row, session: str = DAEMON) -> Row:
        self.change(seconds, marked(row, seconds), session=session)
        return marked(row, seconds)

    def strike(self, begin: float, end: float, recovery: float = 0.1, **more: Any) -> None:
        strike = Strike("F1", moment(begin), moment(end), "something", **more)
        self.struck.append(Struck(PROCESS_KINDS[0], strike, recovery))

    def record(self) -> Record:
        rows = {run: row for run, row in self._row.items() if row is not None}
        logged = [
            LoggedMark(change.run_id, change.old.timeout_at or 0, change.new.timed_out_at or 0)
            for change in self.changes
            if change.session == DAEMON and change.is_mark and change.old and change.new
        ]
        daemons = (DaemonFacts("lab-1", tuple(logged), len(logged), True, (20, 8, 1000), (20, 8, 1000)),)
        told: dict[str, Any] = {"rows": rows, "daemons": daemons, "ended_at": at(60)}
        return Record(
            calls=self.calls,
            changes=self.changes,
            key_changes=self.key_changes,
            struck=self.struck,
            **(told | self.more),
        )


def found(story: Story) -> set[str]:
    return {violation.invariant for violation in check(story.record())}


def a_day_at_work() -> Story:
    """Runs that end in every way, and nothing wrong with any of them."""
    story = Story()
    row = story.start()
    story.call(1, "get_run_control", None, run=UUID(int=99))
    number = story.call(2, "extend_deadline", True, _0=at(8))
    row = replace(row, timeout_at=at(8))
    story.change(2.005, row, call=number)
    marked_row = story.mark(8.01, row)
    story.call(9, "complete_run", False)
    story.call(9.1, "ensure_may_run", "RunTimedOut")
    number = story.call(10, "reopen_run", True, timeout=50)
    story.change(10.005, replace(armed(59), trigger_key=marked_row.trigger_key), call=number)
    other = UUID(int=2)
    row = story.start(20, deadline=25, run=other)
    number = story.call(21, "request_cancel", True, run=other, _0="why")
    story.change(21.005, cancelled(row, 21.005), call=number, run=other)
    number = story.call(22, "complete_run", True, run=other)
    story.change(22.005, completed(cancelled(row, 21.005), 22.005), call=number, run=other)
    story.call(23, "request_cancel", False, run=other, _0="again")
    return story


def test_a_history_without_fault_has_no_violation() -> None:
    """Runs that are extended, marked, reopened, cancelled and completed as the contract says."""
    assert check(a_day_at_work().record()) == []


def early(story: Story) -> None:
    story.mark(4.9, story.start())


def stamped_early(story: Story) -> None:
    story.change(6, marked(story.start(), 4.9), session=DAEMON)


def late(story: Story) -> None:
    story.mark(7.2, story.start())


def late_after_an_outage(story: Story) -> None:
    story.strike(4, 9, outage=True)
    story.mark(11.2, story.start())


def overdue_at_rest(story: Story) -> None:
    story.start(deadline=90)
    story.more["end"] = EndState(overdue=(RUN,))


def twice(story: Story) -> None:
    row = story.mark(5.1, story.start())
    story.change(5.2, marked(row, 5.2), session=DAEMON)


def taken_back(story: Story) -> None:
    row = story.start()
    story.mark(5.1, row)
    story.change(5.2, replace(row, timeout_at=None))


def unseen(story: Story) -> None:
    row = story.start()
    story._row[RUN] = replace(row, timeout_at=at(4))
    story.mark(5.1, replace(row, timeout_at=at(4)))


def completed_then_marked(story: Story) -> None:
    row = completed(story.start(), 1)
    story.change(1, row, call=story.call(0.99, "complete_run", True))
    story.mark(5.1, row)


def cancelled_then_marked(story: Story) -> None:
    row = cancelled(story.start(), 1)
    story.change(1, row, call=story.call(0.99, "request_cancel", True, _0="why"))
    story.change(5.1, replace(row, timed_out_at=at(5.1), cancel_reason=OVERDUE_REASON), session=DAEMON)


def told_a_lie(story: Story) -> None:
    story.start(deadline=90)
    story.call(1, "complete_run", False)


def said_so_and_did_another(story: Story) -> None:
    row = story.start(deadline=90)
    story.change(1.005, replace(row, timeout_at=at(70)), call=story.call(1, "extend_deadline", True, _0=at(80)))


def failed_and_wrote(story: Story) -> None:
    row = story.start(deadline=90)
    number = story.call(1, "complete_run", outcome="failed")
    story.change(1.005, completed(row, 1.005), call=number)


def old_deadline(story: Story) -> None:
    row = story.start()
    story.change(1, replace(row, timeout_at=at(50)), call=story.call(0.99, "extend_deadline", True, _0=at(50)))
    story._row[RUN] = row
    story.mark(5.1, row)


def moved_by_the_mark(story: Story) -> None:
    row = story.start()
    story.change(5.1, replace(marked(row, 5.1), timeout_at=at(6)), session=DAEMON)


def cancel_lost(story: Story) -> None:
    row = story.start(deadline=90)
    number = story.call(1, "request_cancel", True, _0="why")
    story.change(1.005, cancelled(row, 1.005), call=number)
    story.change(2, row, call=story.call(1.99, "extend_deadline", True, _0=row.timeout_at))


def cancel_overwritten(story: Story) -> None:
    row = story.start(deadline=90)
    story.change(1.005, cancelled(row, 1.005), call=story.call(1, "request_cancel", True, _0="why"))
    number = story.call(2, "request_cancel", True, _0="another")
    story.change(2.005, cancelled(row, 2.005, "another"), call=number)


def two_winners(story: Story) -> None:
    for seconds, run in ((1, UUID(int=5)), (2, UUID(int=6))):
        told = {"run_id": str(run), "duplicate": False}
        number = story.call(seconds, "start_run", told, run=run, _0=str(FLOW), _1="start", _2="key")
        story.change(seconds, armed(90), call=number, run=run)
        story.key_changes.append(KeyChange(number, run, f"{FLOW}/start/key", at(seconds), number, "INSERT"))


def orphaned_key(story: Story) -> None:
    number = story.call(1, "start_run", outcome="unknown", _0=str(FLOW), _1="start", _2="key")
    story.key_changes.append(KeyChange(1, RUN, f"{FLOW}/start/key", at(1), number, "INSERT"))


def told_of_a_stranger(story: Story) -> None:
    told = {"run_id": str(UUID(int=5)), "duplicate": True}
    story.call(1, "start_run", told, _0=str(FLOW), _1="start", _2="key")


def acknowledged_and_lost(story: Story) -> None:
    story.call(1, "configure_run")


def read_what_never_was(story: Story) -> None:
    row = story.start(deadline=90)
    shown = {f"{name}_utc" if name.endswith("_at") else name: value for name, value in vars(row).items()}
    story.call(1, "get_run_control", shown | {"timeout_at_utc": at(33)})


def half_a_mark(story: Story) -> None:
    row = story.start()
    story.change(5.1, replace(row, timed_out_at=at(5.1)), session=DAEMON)


def daemon_inserted(story: Story) -> None:
    story.change(1, armed(90), session=DAEMON)


def marked_the_unarmed(story: Story) -> None:
    story.mark(5.1, story.start(deadline=None))


def over_the_limit(story: Story) -> None:
    story.more["batch_size"] = 0
    story.mark(5.1, story.start())


def bystander_touched(story: Story) -> None:
    story.more["bystanders"] = {RUN: armed(90)}
    story.change(1, armed(91))


def bystander_gone(story: Story) -> None:
    story.more["bystanders"] = {RUN: armed(90)}


def never_logged(story: Story) -> None:
    story.mark(5.1, story.start())
    story.more["daemons"] = (DaemonFacts("lab-1"),)


def logged_twice(story: Story) -> None:
    story.mark(5.1, story.start())
    mark = LoggedMark(RUN, at(5), at(5.1))
    story.more["daemons"] = (DaemonFacts("lab-1", (mark, mark)),)


def logged_out_of_thin_air(story: Story) -> None:
    story.more["daemons"] = (DaemonFacts("lab-1", (LoggedMark(RUN, at(5), at(5.1)),)),)


def miscounted(story: Story) -> None:
    story.more["daemons"] = (DaemonFacts("lab-1", (), 1),)


def left_in_a_transaction(story: Story) -> None:
    story.more["end"] = EndState(sessions=("lab p (idle in transaction)",))


def leaking_files(story: Story) -> None:
    story.more["daemons"] = (
        DaemonFacts("lab-1", at_start=(20, 8, 1000)),
        DaemonFacts("lab-9", at_end=(90, 8, 1000)),
    )


def broken_index(story: Story) -> None:
    story.more["end"] = EndState(schema=("the index is not valid",))


def died(story: Story) -> None:
    story.more["endings"] = (Ending("lab-1", 1, meant=False),)


def deaf(story: Story) -> None:
    story.more["daemons"] = (DaemonFacts("lab-1", ready=False),)


def slow_to_recover(story: Story) -> None:
    story.strike(1, 2, recovery=PROCESS_KINDS[0].recovery + 1)


def strike_saw(story: Story) -> None:
    story.strike(1, 2, found=(Violation("I14", "it outlived SIGTERM"),))


def leaked(story: Story) -> None:
    story.more["end"] = EndState(leaks=("the password stands in lab-1.log",))


def another_plan(story: Story) -> None:
    story.more |= {"planned_digest": "a", "struck_digest": "b"}


BROKEN: Final[dict[str, tuple[Callable[[Story], None], ...]]] = {
    "I1": (early, stamped_early),
    "I2": (late, late_after_an_outage, overdue_at_rest),
    "I3": (twice, taken_back, unseen),
    "I4": (completed_then_marked, cancelled_then_marked, told_a_lie, said_so_and_did_another, failed_and_wrote),
    "I5": (old_deadline, moved_by_the_mark),
    "I6": (cancel_lost, cancel_overwritten),
    "I7": (two_winners, orphaned_key, told_of_a_stranger),
    "I8": (acknowledged_and_lost,),
    "I9": (read_what_never_was, half_a_mark),
    "I10": (daemon_inserted, marked_the_unarmed, over_the_limit, bystander_touched, bystander_gone),
    "I11": (never_logged, logged_twice, logged_out_of_thin_air, miscounted),
    "I12": (left_in_a_transaction, leaking_files),
    "I13": (broken_index,),
    "I14": (died, deaf, slow_to_recover, strike_saw),
    "I15": (leaked,),
    "I16": (another_plan,),
}


@pytest.mark.parametrize(
    ("invariant", "break_it"),
    [(invariant, break_it) for invariant, stories in BROKEN.items() for break_it in stories],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_an_invariant_finds_the_history_that_breaks_it(invariant: str, break_it: Callable[[Story], None]) -> None:
    """A history with one thing wrong violates the invariant that forbids it."""
    story = Story()
    break_it(story)
    assert invariant in found(story)


def test_every_invariant_has_a_history_that_breaks_it() -> None:
    """No invariant goes unproven, and each has its words in the report."""
    assert list(BROKEN) == list(INVARIANTS) == list(TITLES)


@pytest.mark.parametrize("excuse", ["outage", "held", "grace"])
def test_a_strike_excuses_what_it_says(excuse: str) -> None:
    """A deadline within an outage, on a row that is held, or within the grace may be met two seconds afterwards."""
    story = Story()
    end = 5 if excuse == "grace" else 9
    held = frozenset({RUN} if excuse == "held" else ())
    story.strike(4, end, outage=excuse != "held", held=held, grace=4.0 if excuse == "grace" else 0.0)
    story.mark(10.9, story.start())
    assert found(story) == set()


def test_a_lost_answer_excuses_a_missing_log_line() -> None:
    """A daemon that a strike made lame may miss the log line of a mark made around then."""
    story = Story()
    story.strike(5, 6, lame=frozenset({"lab-1"}))
    story.mark(5.1, story.start())
    story.more["daemons"] = (DaemonFacts("lab-1"),)
    assert found(story) == set()


def test_a_standstill_of_the_machine_counts_neither_as_overdue_nor_as_recovery() -> None:
    """What is left is judged: two seconds of a mark's lateness, and the bound of the kind that struck."""
    bound = PROCESS_KINDS[0].recovery
    for more, broken in ((-0.1, set()), (0.1, {"I2", "I14"})):
        story = Story()
        story.mark(5 + 3 + 2 + more, story.start())
        story.strike(4, 5, recovery=3 + bound + more)
        story.more["stalls"] = [(at(5), at(8))]
        assert found(story) == broken


def test_the_work_on_others_counts_for_as_long_as_it_is_reckoned_to_take() -> None:
    """Behind a hundred marks a run may be overdue for 0.4 s more; marks from before its time give it nothing."""
    for marked_at, of_others, broken in ((7.3, 6, set()), (7.5, 6, {"I2"}), (7.3, 4.9, {"I2"})):
        story = Story()
        row = story.start()
        for number in range(100):
            other = UUID(int=1000 + number)
            early = story.start(0.001 * number, deadline=4.5, run=other)
            story.change(of_others, marked(early, of_others), session=DAEMON, run=other)
        story.mark(marked_at, row)
        assert found(story) == broken, (marked_at, of_others)


def test_what_is_a_matter_of_time_alone_says_so() -> None:
    """Of all histories that break something, only those in which a right thing came too late."""
    late_ones = {
        break_it.__name__
        for break_it in itertools.chain(*BROKEN.values())
        if any(violation.lateness for violation in judged(break_it))
    }
    assert late_ones == {"late", "late_after_an_outage", "slow_to_recover"}


def judged(break_it: Callable[[Story], None]) -> list[Violation]:
    story = Story()
    break_it(story)
    return check(story.record())


def test_a_mark_on_another_primary_is_in_no_chronicle() -> None:
    """Its line in the log is right if the strike saw that very mark there, by its stamp too."""
    for stamp, broken in ((5.1, set()), (5.2, {"I11"})):
        story = Story()
        story.strike(4, 6, elsewhere=frozenset({(RUN, at(stamp))}))
        story.more["daemons"] = (DaemonFacts("lab-1", (LoggedMark(RUN, at(5), at(5.1)),)),)
        assert found(story) == broken


def test_only_marks_of_its_time_are_lost_with_a_failover() -> None:
    """A line in the log about a mark that nobody finds is excused while acknowledged writes were lost, and not else."""
    for stamp, broken in ((5.1, set()), (3.9, {"I11"}), (6.1, {"I11"})):
        story = Story()
        story.strike(5, 6, loses=1.0)
        story.more["daemons"] = (DaemonFacts("lab-1", (LoggedMark(RUN, at(3), at(stamp)),)),)
        assert found(story) == broken


def test_lateness_counts_from_commit_to_commit() -> None:
    """A run armed in a long transaction is not overdue before its end; a mark that commits late is late."""
    for armed_at, marked_at, broken in ((6, 7.9, set()), (5, 7.1, {"I2"})):
        story = Story()
        story.mark(6.9, story.start())
        first, last = story.changes
        story.changes = [replace(first, committed=at(armed_at)), replace(last, committed=at(marked_at))]
        assert found(story) == broken
