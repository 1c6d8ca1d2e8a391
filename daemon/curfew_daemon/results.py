"""The facts that flow outward: what a sweep, a batch and an observation found.

The sweeper produces these records; `events.py` turns them into log lines and `metrics.py` into series. They
know neither, hold no connection, and are immutable, so they may be handed to any thread. Every duration is in
seconds and every time is aware, in UTC, by the database's clock.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from curfew_store.records import ClaimedRun

_EARLIEST_DEADLINE = datetime(2000, 1, 1, tzinfo=UTC)


MarkedRun = ClaimedRun
"""One run that this daemon marked as timed out, as the store hands it out."""


@dataclass(frozen=True, slots=True)
class MarkedBatch:
    """The runs that one claim statement marked, and how long its round trip took."""

    runs: tuple[MarkedRun, ...]
    round_trip: float
    lags: tuple[float, ...] = field(init=False)
    """Seconds from each deadline to the acknowledged commit, in the order of `runs`.

    The stamp is the start of the claim, so the measured round trip is added: the lag may be overstated by the
    way there, and never flatters. A deadline before the year 2000 cannot have been set through the store (it is
    another writer's `-infinity`, say); it has no lag and is left out.
    """

    def __post_init__(self) -> None:
        """Computes the lags once, since several readers want them."""
        lags = tuple(
            (run.timed_out_at - run.deadline).total_seconds() + self.round_trip
            for run in self.runs
            if run.deadline >= _EARLIEST_DEADLINE
        )
        object.__setattr__(self, "lags", lags)


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What one sweep did, from its wake-up to the end of its drain."""

    reason: str  # why the sweep woke; one of `metrics.WAKE_REASONS`
    marked: int
    batches: int
    statements: int
    duration: float
    run_ids: tuple[UUID, ...]  # the first five that were marked
    lag_max: float | None  # None where nothing with a lag was marked
    next_due_in: float | None  # None where no later deadline is armed
    overdue_remains: bool
    overdue_age: float = 0.0  # of the earliest run that remains
    beaten: bool = False  # the run that the sweep woke for had been marked by another daemon
    full_look: float | None = None  # duration of the full look, None where the sweep needed none
    full_look_period: float = 0.0
    full_look_in: float | None = None  # when the next is due, None where the next poll does it
    slack: float = 0.0  # with which the sweep left runs to others


@dataclass(frozen=True, slots=True)
class Observation:
    """What a plain, lock-free look at the table found. A capped count stopped at its bound."""

    overdue: int
    overdue_capped: bool
    oldest_overdue_age: float | None
    armed: int | None  # None where the budget did not allow a count
    armed_capped: bool
    next_due_in: float | None
    duration: float


class DatabaseState(StrEnum):
    """What the daemon last learned of its database. Exactly one holds; only `UP` lets it enforce."""

    UP = "up"
    STARTING = "starting"
    UNREACHABLE = "unreachable"
    STANDBY = "standby"
    READ_ONLY = "read_only"
    AUTHENTICATION = "authentication"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    SHUTTING_DOWN = "shutting_down"
    DISK_FULL = "disk_full"
    SCHEMA_MISSING = "schema_missing"
    SCHEMA_OLD = "schema_old"
    UPSTREAM_ENGINE = "upstream_engine"
    LOCK_TIMEOUT = "lock_timeout"
    STATEMENT_TIMEOUT = "statement_timeout"
    DENIED = "denied"
    OTHER = "other"
