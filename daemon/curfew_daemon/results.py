"""The facts that flow outward: what a sweep, a batch and an observation found.

The sweeper produces these records; `events.py` turns them into log lines and `metrics.py` into series. They
know neither, hold no connection, and are immutable, so they may be handed to any thread. Every duration is in
seconds and every time is aware, in UTC, by the database's clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal, Self
from uuid import UUID

from curfew_store.records import ClaimedBatch, ClaimedRun

_EARLIEST_DEADLINE = datetime(2000, 1, 1, tzinfo=UTC)


MarkedRun = ClaimedRun
"""One run that this daemon marked as timed out, as the store hands it out."""


@dataclass(frozen=True, slots=True)
class MarkedBatch:
    """The runs that one claim statement marked, in the order of their deadlines, and how long its round trip took."""

    runs: Sequence[MarkedRun]
    round_trip: float
    lags: tuple[float, ...] = field(init=False)
    """Seconds from each deadline to the acknowledged commit, the greatest first.

    The stamp is the start of the claim, so the measured round trip is added: the lag may be overstated by the
    way there, and never flatters. A deadline before the year 2000 cannot have been set through the store (it is
    another writer's `-infinity`, say); it has no lag and is left out.
    """

    def __post_init__(self) -> None:
        """Computes the lags once, since several readers want them."""
        runs = self.runs if isinstance(self.runs, ClaimedBatch) else ClaimedBatch.of(self.runs)
        object.__setattr__(self, "runs", runs)
        object.__setattr__(self, "lags", tuple([age + self.round_trip for age in runs.ages(_EARLIEST_DEADLINE)]))

    @property
    def lag_max(self) -> float | None:
        """The greatest lag, ``None`` where no run has one."""
        return self.lags[0] if self.lags else None


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
    known_lag: float | None = None  # the largest lag among runs that an earlier sweep knew of
    beaten: bool = False  # a run that the sweep expected had been marked by another daemon
    full_look: float | None = None  # what the full look took the server, None where the sweep needed none
    full_look_period: float = 0.0
    full_look_in: float | None = None  # when the next is due, None where the next poll does it
    slack: float = 0.0  # the daemon's: how long it sleeps past a deadline that others may meet
    seen: tuple[datetime, float] | None = None  # the database's clock, and the monotonic one when it was asked


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


class ListenerState(StrEnum):
    """Whether hints of near deadlines are heard. Exactly one holds, or none before the first attempt."""

    OFF = "off"
    UP = "up"
    UNREACHABLE = "unreachable"
    SILENT = "silent"


class HintOutcome(StrEnum):
    """What came of a notification: a sooner sweep, nothing (the planned one comes in time), or no sense."""

    SOONER = "sooner"
    KNOWN = "known"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class PurgedSlice:
    """What a purge deleted: ended runs, the keys that went with them, and keys that pointed to no record."""

    runs: int = 0
    keys: int = 0
    orphaned_keys: int = 0

    def __add__(self, other: Self) -> "PurgedSlice":
        return PurgedSlice(self.runs + other.runs, self.keys + other.keys, self.orphaned_keys + other.orphaned_keys)


@dataclass(frozen=True, slots=True)
class PurgeResult:
    """One round of the purge. `done`: both tables were gone through; `aside`: another daemon was purging;
    `stopped`: it was told to stop.
    """

    outcome: Literal["done", "aside", "stopped"]
    deleted: PurgedSlice
    statements: int
    worked: float  # seconds within statements
    duration: float  # with the rests between them, since the last error if there was one
