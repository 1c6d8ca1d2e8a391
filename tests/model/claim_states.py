"""The values of the small model of the claim: rows, locks, actors, and what a call or a mark does to a row.

Times are numbers: the clock shows 1, then 2; a deadline is 1, 2 or 3 (never reached), or 0 for none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

DAEMONS: Final = (0, 1)
PRODUCERS: Final = (2, 3)


class Row(NamedTuple):
    """A control record."""

    deadline: int
    cancelled: str = ""
    """``user``, ``mark`` (the flag came with the mark), or nothing."""
    marked: bool = False
    completed: bool = False


class Hold(NamedTuple):
    """A row lock: whose, the new version if there is one yet, and who waits for it, in order."""

    actor: int
    version: Row | None = None
    waiting: tuple[int, ...] = ()


class Daemon(NamedTuple):
    """One claim: ``ready``, ``locking``, ``locked`` (all that it will), ``marked`` or ``ended``."""

    phase: str = "ready"
    now: int = 0
    clock: int = 0
    todo: tuple[int, ...] = ()
    locked: tuple[int, ...] = ()


class Producer(NamedTuple):
    """One call: ``ready``, ``waiting``, ``called`` or ``ended``; *answer* is what the call has returned."""

    phase: str = "ready"
    answer: bool | None = None


class Call(NamedTuple):
    """What a producer calls: ``configure``, ``extend``, ``cancel`` or ``complete``."""

    method: str
    run: int
    deadline: int = 0


class State(NamedTuple):
    """Everything. *rows* are committed; a row that does not exist is ``None``."""

    rows: tuple[Row | None, ...]
    held: tuple[Hold | None, ...]
    daemons: tuple[Daemon, ...] = (Daemon(), Daemon())
    producers: tuple[Producer, ...] = (Producer(), Producer())
    clock: int = 1


class Action(NamedTuple):
    """One step of one actor; the clock is nobody's."""

    kind: str
    actor: int = -1


@dataclass(frozen=True)
class Scenario:
    """Where it begins, what the producers call, and how many runs a claim may take."""

    rows: tuple[Row | None, ...]
    calls: tuple[Call, Call]
    limit: int

    def begin(self) -> State:
        """The first state."""
        return State(self.rows, (None,) * len(self.rows))


@dataclass(frozen=True)
class Rules:
    """The claim's safeties; the shipped claim has them all. Without one it is a mutant."""

    skips_locked: bool = True
    rechecks: bool = True
    due_when_equal: bool = True
    passes_marked: bool = True
    passes_cancelled: bool = True
    passes_completed: bool = True
    database_clock: bool = True
    keeps_limit: bool = True

    def due(self, row: Row | None, now: int) -> bool:
        """The claim's predicate."""
        if row is None or not row.deadline or row.deadline > now:
            return False
        if row.deadline == now and not self.due_when_equal:
            return False
        return not (
            (row.marked and self.passes_marked)
            or (row.cancelled and self.passes_cancelled)
            or (row.completed and self.passes_completed)
        )


SHIPPED: Final = Rules()


def marked(row: Row) -> Row:
    """The version that a mark writes."""
    return row._replace(marked=True, cancelled=row.cancelled or "mark")


def wanted(call: Call, row: Row | None) -> bool:
    """Whether the call changes a row that it finds like this."""
    if call.method == "configure":
        return True
    if row is None or row.completed:
        return False
    if call.method == "extend":
        return True
    return not row.marked and (call.method == "complete" or not row.cancelled)


def changed(call: Call, row: Row | None) -> Row:
    """The version that the call writes."""
    old = Row(0) if row is None else row
    if call.method == "configure":
        return old._replace(deadline=call.deadline)
    if call.method == "extend":
        cancelled = "" if old.cancelled == "mark" else old.cancelled
        return old._replace(deadline=call.deadline, marked=False, cancelled=cancelled)
    return old._replace(cancelled="user") if call.method == "cancel" else old._replace(completed=True)
