"""Producers that can be killed in the middle of a call: processes of their own, one call of the store each."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection as Pipe
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, Final, Self
from uuid import UUID

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from curfew_store import AsyncFlowRunControlStore, FlowRunControlStore, RunConfiguration
from curfew_store.errors import RunTimedOut

__all__ = ["CALLS", "FACADES", "FLOW", "NAME", "Call", "Producer", "sibling"]

NAME: Final = "producer to be killed"
FLOW: Final = UUID("0c0ffee0-0000-4000-8000-0000000000dd")
_HOUR: Final = timedelta(hours=1)
_TWO: Final = timedelta(hours=2)

Shape = str
"""How a run stands before its call: ``none``, ``active``, ``lapsed``, ``ended``, or ``old``: it ended two days ago."""


@dataclass(frozen=True)
class Call:
    """A call of the method *method* on a run that stands as *shape* says."""

    method: str
    shape: Shape
    values: Callable[[UUID], tuple[Any, ...]]
    named: Mapping[str, Any] = field(default_factory=dict)
    id_is_named: bool = False

    def on(self, run: UUID) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """The method, its values and its named parameters."""
        return self.method, self.values(run), dict(self.named) | ({"run_id": run} if self.id_is_named else {})


def sibling(run: UUID) -> UUID:
    """The second run of a call for several."""
    return UUID(int=run.int ^ 1)


def _of_run(*more: Any) -> Callable[[UUID], tuple[Any, ...]]:
    return lambda run: (run, *more)


CALLS: Final = {
    "start_run": Call("start_run", "none", lambda _: (FLOW, "kill"), {"timeout": _HOUR}, id_is_named=True),
    "start_run, with a key": Call(
        "start_run", "none", lambda run: (FLOW, "kill", str(run)), {"timeout": _HOUR}, id_is_named=True
    ),
    "configure_run": Call("configure_run", "none", _of_run(FLOW, "kill"), {"timeout": _HOUR}),
    "configure_runs": Call(
        "configure_runs",
        "none",
        lambda run: ([RunConfiguration(each, FLOW, "kill", timeout=_HOUR) for each in (run, sibling(run))],),
    ),
    "try_register_idempotency_key": Call(
        "try_register_idempotency_key", "none", lambda run: (FLOW, "kill", str(run), run)
    ),
    "request_cancel": Call("request_cancel", "active", _of_run("enough")),
    "mark_timed_out": Call("mark_timed_out", "active", _of_run()),
    "complete_run": Call("complete_run", "active", _of_run()),
    "extend_deadline": Call("extend_deadline", "active", _of_run(), {"timeout": _TWO}),
    "heartbeat": Call("heartbeat", "active", _of_run(), {"timeout": _TWO}),
    "reopen_run": Call("reopen_run", "ended", _of_run(), {"timeout": _TWO}),
    "ensure_may_run": Call("ensure_may_run", "lapsed", _of_run()),
    "purge": Call("purge", "old", lambda _: (datetime.now(UTC) - timedelta(days=1),), {"limit": 10}),
    "get_run_control": Call("get_run_control", "active", _of_run()),
    "find_run_id_by_idempotency_key": Call(
        "find_run_id_by_idempotency_key", "old", lambda run: (FLOW, "kill", str(run))
    ),
}
"""Every method of the store, on a run for which it has something to do."""

FACADES: Final = ("FlowRunControlStore", "AsyncFlowRunControlStore")

_FORK: Final[ForkServerContext] = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload([__name__])


class Producer:
    """A process that has called the store before, and makes one more call when it is told to; a context manager."""

    def __init__(self, url: str, facade: str, call: Call, run: UUID) -> None:
        self._pipe, self._theirs = _FORK.Pipe()
        self._process: ForkServerProcess = _FORK.Process(
            target=_produce, args=(self._theirs, url, facade, *call.on(run)), daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()  # so that its end is seen, whatever ends it
        self._told("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def begin(self) -> None:
        """Have it make its call."""
        self._pipe.send("begin")

    def finished(self) -> None:
        """Return when the call has; raises `AssertionError` if it failed."""
        self._told("done")

    def kill(self) -> None:
        """SIGKILL; when this returns it has gone."""
        self._process.kill()
        self._process.join()

    def _told(self, word: str) -> None:
        said = self._pipe.recv()
        assert said == word, said


def _produce(pipe: Pipe, url: str, facade: str, method: str, values: tuple[Any, ...], named: dict[str, Any]) -> None:
    try:
        if facade == "FlowRunControlStore":
            _call(pipe, url, method, values, named)
        else:
            asyncio.run(_call_async(pipe, url, method, values, named))
    except Exception as error:  # noqa: BLE001  (told to the test, which fails for it)
        pipe.send(f"{type(error).__name__}: {error}")


# The first call of a store and of a connection sends more than is the method's own.
_WARM: Final = FLOW  # a run that nobody knows


def _call(pipe: Pipe, url: str, method: str, values: tuple[Any, ...], named: dict[str, Any]) -> None:
    store = FlowRunControlStore(create_engine(url, pool_size=1, connect_args={"application_name": NAME}))
    store.complete_run(_WARM)
    pipe.send("ready")
    pipe.recv()
    with suppress(RunTimedOut):
        getattr(store, method)(*values, **named)
    pipe.send("done")


async def _call_async(pipe: Pipe, url: str, method: str, values: tuple[Any, ...], named: dict[str, Any]) -> None:
    engine = create_async_engine(url, pool_size=1, connect_args={"application_name": NAME})
    store = AsyncFlowRunControlStore(engine)
    await store.complete_run(_WARM)
    pipe.send("ready")
    pipe.recv()
    with suppress(RunTimedOut):
        await getattr(store, method)(*values, **named)
    pipe.send("done")
    await engine.dispose()
