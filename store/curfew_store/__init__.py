"""Deadlines, cancel requests and idempotency keys of runs, kept in PostgreSQL.

A trigger service writes a run's control record with `FlowRunControlStore`, a step asks it whether the run
may go on, and the daemon ``curfewd`` marks the runs whose deadline has passed. The tables are those of
FlowOrchestrator, so .NET and Python services can share them. The package reads no environment, keeps no
global state and configures no logging.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curfew_store.deadlines import UNSET
from curfew_store.errors import (
    CurfewError,
    InvalidValue,
    KeyContended,
    MigrationError,
    RunAlreadyExists,
    RunCancelled,
    RunCompleted,
    RunStopped,
    RunTimedOut,
    SchemaMismatch,
    WrongType,
    is_transient,
)
from curfew_store.records import FlowRunControlRecord, RunConfiguration, RunState, StartedRun
from curfew_store.sync import FlowRunControlStore

if TYPE_CHECKING:
    from curfew_store.aio import AsyncFlowRunControlStore

__all__ = [
    "UNSET",
    "AsyncFlowRunControlStore",
    "CurfewError",
    "FlowRunControlRecord",
    "FlowRunControlStore",
    "InvalidValue",
    "KeyContended",
    "MigrationError",
    "RunAlreadyExists",
    "RunCancelled",
    "RunCompleted",
    "RunConfiguration",
    "RunState",
    "RunStopped",
    "RunTimedOut",
    "SchemaMismatch",
    "StartedRun",
    "WrongType",
    "is_transient",
]


def __getattr__(name: str) -> Any:
    # The async façade needs greenlet, which a base install does not have; it is imported when asked for.
    if name == "AsyncFlowRunControlStore":
        from curfew_store.aio import AsyncFlowRunControlStore  # noqa: PLC0415

        return AsyncFlowRunControlStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
