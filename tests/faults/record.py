"""All that a laboratory has to show at its end, as plain data: what the checker judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from tests.faults.chronicle import Change, KeyChange, Row
from tests.faults.fleet import Ending
from tests.faults.history import Call
from tests.faults.nemesis import Struck

__all__ = ["DaemonFacts", "EndState", "LoggedMark", "Record"]


@dataclass(frozen=True)
class LoggedMark:
    """A daemon's own word that it marked a run; times in microseconds since 1970."""

    run_id: UUID
    deadline: int
    timed_out_at: int


@dataclass(frozen=True)
class DaemonFacts:
    """One daemon: what it logged, and, if it lived to the end, what it counted and held.

    *at_start* and *at_end* are open files, threads and resident bytes; *ready* is its own answer at the end.
    """

    instance: str
    logged: tuple[LoggedMark, ...] = ()
    counted: int | None = None
    ready: bool | None = None
    at_start: tuple[int, int, int] | None = None
    at_end: tuple[int, int, int] | None = None
    tracebacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class EndState:
    """The server at rest: each is a list of what should not be there, in words."""

    overdue: tuple[UUID, ...] = ()
    sessions: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    prepared: tuple[str, ...] = ()
    schema: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """The history of the calls, the chronicle of the tables, the strikes, and what is left."""

    calls: Sequence[Call] = ()
    changes: Sequence[Change] = ()
    key_changes: Sequence[KeyChange] = ()
    rows: dict[UUID, Row] = field(default_factory=dict)
    keys: dict[str, UUID] = field(default_factory=dict)
    struck: Sequence[Struck] = ()
    daemons: Sequence[DaemonFacts] = ()
    endings: Sequence[Ending] = ()
    bystanders: dict[UUID, Row] = field(default_factory=dict)
    end: EndState = field(default_factory=EndState)
    stalls: Sequence[tuple[int, int]] = ()
    """When the whole machine stood still, in microseconds since 1970: see `tests.faults.stalls`."""
    batch_size: int = 500
    ended_at: int = 0
    planned_digest: str = ""
    struck_digest: str = ""
