"""What the store hands out: frozen facts about a run, no rows and no dictionaries."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Self, overload
from uuid import UUID

__all__ = [
    "ClaimedBatch",
    "ClaimedRun",
    "FlowRunControlRecord",
    "LookAhead",
    "RunConfiguration",
    "RunState",
    "ScanStart",
    "StartedRun",
]


class RunState(Enum):
    """What a control record says of its run. The first that applies, in this order."""

    TIMED_OUT = "timed_out"
    COMPLETED = "completed"
    CANCEL_REQUESTED = "cancel_requested"
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class FlowRunControlRecord:
    """One row of ``flow_run_controls``. All times are aware and in UTC.

    A time that Python cannot express (only other writers can produce one) is shown as the nearest that it
    can: ``-infinity`` and years before 1 as 0001-01-01, ``infinity`` and years after 9999 as the last
    microsecond of 9999.
    """

    run_id: UUID
    flow_id: UUID
    trigger_key: str
    idempotency_key: str | None
    timeout_at_utc: datetime | None
    cancel_requested: bool
    cancel_reason: str | None
    cancel_requested_at_utc: datetime | None
    timed_out_at_utc: datetime | None
    created_at_utc: datetime
    """When the record was written; for a row adopted from FlowOrchestrator, when it was adopted."""
    completed_at_utc: datetime | None

    @property
    def state(self) -> RunState:
        """The state of the run. A lapsed deadline that nobody has marked yet does not show here."""
        if self.timed_out_at_utc is not None:
            return RunState.TIMED_OUT
        if self.completed_at_utc is not None:
            return RunState.COMPLETED
        return RunState.CANCEL_REQUESTED if self.cancel_requested else RunState.ACTIVE


@dataclass(frozen=True, slots=True)
class StartedRun:
    """The answer of `start_run`.

    *duplicate* says that this call wrote nothing and *run_id* is the run of an earlier call. If that is the
    run id which you passed in, the earlier call was yours: its transaction had committed, so dispatch it.
    """

    run_id: UUID
    duplicate: bool


@dataclass(frozen=True, slots=True)
class RunConfiguration:
    """One run for `configure_runs`; the fields are the parameters of `configure_run`."""

    run_id: UUID
    flow_id: UUID
    trigger_key: str
    idempotency_key: str | None = None
    timeout_at_utc: datetime | None = None
    timeout: timedelta | None = None


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that one claim marked as timed out. *deadline* is shown as in `FlowRunControlRecord`."""

    run_id: UUID
    flow_id: UUID
    deadline: datetime
    timed_out_at: datetime


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

ClaimedRow = tuple[float, str, str, float]
"""Deadline, run id, flow id and stamp of a claimed run as the server sends them; times in seconds since 1970."""


class ClaimedBatch(Sequence[ClaimedRun]):
    """The runs that one claim marked, in the order of their deadlines; made ready only where they are asked for.

    A drain marks many thousand runs a second and looks at a few of them, so a batch keeps what the server sent:
    *rows*, which it takes over and sorts.
    """

    __slots__ = ("_rows",)

    def __init__(self, rows: list[ClaimedRow]) -> None:
        rows.sort()
        self._rows = rows

    @classmethod
    def of(cls, runs: Iterable[ClaimedRun]) -> Self:
        """A batch of runs that are at hand."""
        return cls(
            [(_seconds(run.deadline), str(run.run_id), str(run.flow_id), _seconds(run.timed_out_at)) for run in runs]
        )

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> ClaimedRun: ...

    @overload
    def __getitem__(self, place: slice) -> list[ClaimedRun]: ...

    def __getitem__(self, place: int | slice) -> ClaimedRun | list[ClaimedRun]:
        if isinstance(place, slice):
            return [_run(row) for row in self._rows[place]]
        return _run(self._rows[place])

    def __iter__(self) -> Iterator[ClaimedRun]:
        return map(_run, self._rows)

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same runs."""
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"<ClaimedBatch of {len(self)}>"

    def ages(self, since: datetime) -> list[float]:
        """Seconds from deadline to stamp of the runs with a deadline not before *since*, the greatest first."""
        rows, bound = self._rows, _seconds(since)
        if rows and rows[0][0] < bound:
            rows = rows[bisect_left(rows, (bound,)) :]  # the shorter tuple comes before its longer kin
        return [stamp - deadline for deadline, _, _, stamp in rows]


def _run(row: ClaimedRow) -> ClaimedRun:
    deadline, run_id, flow_id, stamp = row
    return ClaimedRun(UUID(run_id), UUID(flow_id), moment(deadline), moment(stamp))


def moment(seconds: float) -> datetime:
    """The moment so many seconds after 1970, or the nearest that Python can express."""
    try:
        return _EPOCH + timedelta(microseconds=round(seconds * 1_000_000))
    except OverflowError:
        return _EARLIEST if seconds < 0 else _LATEST


def _seconds(moment: datetime) -> float:
    return (moment - _EPOCH).total_seconds()


_FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class ScanStart:
    """A place in the index of armed deadlines, before every run with this *deadline* or a later one."""

    deadline: datetime
    run_id: UUID = _FIRST


@dataclass(frozen=True, slots=True)
class LookAhead:
    """What lies ahead of a sweep, by the database's clock.

    *next_due_in*: seconds from the start of the statement to the earliest armed deadline that is still in
    the future, ``None`` where there is none. *earliest_overdue*: the earliest deadline of an armed run that is
    due and not marked, locked ones included, from where the look began. *now*: when the statement began. *took*: for
    how many seconds the server was at it, whatever the network added. *expected_marked*: whether the run that was asked
    for has been marked, at the moment asked for or later; ``None`` if none was asked for.
    """

    next_due_in: float | None
    next_run_id: UUID | None
    earliest_overdue: datetime | None
    now: datetime
    took: float = 0.0
    expected_marked: bool | None = None

    @property
    def overdue(self) -> bool:
        """Whether armed runs are due and not marked."""
        return self.earliest_overdue is not None
