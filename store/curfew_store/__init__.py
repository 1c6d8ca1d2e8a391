"""Deadlines, cancel requests and idempotency keys of runs, kept in PostgreSQL.

A trigger service writes a run's control record with `FlowRunControlStore`, a step asks it whether the run
may go on, and the daemon ``curfewd`` marks the runs whose deadline has passed. The tables are those of
FlowOrchestrator, so .NET and Python services can share them. The package reads no environment, keeps no
global state and configures no logging.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curfew_store.aio import AsyncFlowRunControlStore
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

_HOMES = {
    "AsyncFlowRunControlStore": "aio",
    "FlowRunControlRecord": "records",
    "FlowRunControlStore": "sync",
    "RunConfiguration": "records",
    "RunState": "records",
    "StartedRun": "records",
    "UNSET": "deadlines",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the async façade needs greenlet, which a base install lacks, and pytest imports
    # this package in every run of every project that has it installed (for the fixtures in `testing`).
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
