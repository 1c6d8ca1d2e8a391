"""The mixed load: threads that start, configure, extend, renew, cancel, complete, reopen and read runs.

Each thread keeps to its own runs mostly, and meddles with the others' at times, so that calls race. What a thread
does follows from the seed; how the threads interleave does not.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol
from uuid import UUID

from sqlalchemy import create_engine

from tests.faults.history import Client, History

__all__ = ["FLOW", "Producers"]

FLOW: Final = UUID("0c0ffee0-0000-4000-8000-000000000003")
_SESSION: Final = "-c statement_timeout=4000 -c lock_timeout=2000 -c idle_in_transaction_session_timeout=3000"
_RECENT: Final = 40
# How often each method is called, in parts of the whole.
_WEIGHTS: Final[dict[str, int]] = {
    "start_run": 28,
    "configure_run": 12,
    "extend_deadline": 10,
    "heartbeat": 6,
    "request_cancel": 8,
    "complete_run": 12,
    "reopen_run": 6,
    "get_run_control": 10,
    "ensure_may_run": 3,
    "mark_timed_out": 2,
    "try_register_idempotency_key": 2,
    "find_run_id_by_idempotency_key": 1,
}


class Load(Protocol):
    """How much they do: threads, calls a second over all of them, seconds to the latest deadline, and the seed."""

    @property
    def producers(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def horizon(self) -> float: ...
    @property
    def seed(self) -> int: ...


class Producers:
    """As many threads and calls as *load* says; `start`, and `close` at the end."""

    def __init__(self, history: History, url: str, load: Load) -> None:
        count = load.producers
        self.recent: deque[UUID] = deque(maxlen=_RECENT * max(1, count))
        self._stopping = threading.Event()
        self._paused = threading.Event()
        each = load.rate / max(1, count)
        self._threads = [
            threading.Thread(
                target=_Producer(number, url, history, self.recent, load).work,
                args=(each, self._stopping, self._paused),
                name=f"lab-producer-{number}",
                daemon=True,
            )
            for number in range(1, count + 1)
        ]

    def start(self) -> None:
        """Let them work."""
        for thread in self._threads:
            thread.start()

    def pause(self) -> None:
        """Let them end the call in hand and begin no other."""
        self._paused.set()

    def resume(self) -> None:
        """Let them go on."""
        self._paused.clear()

    def close(self) -> None:
        """Stop them and wait for the calls in hand; may be repeated."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(30)


class _Producer:
    """One thread's choices."""

    def __init__(self, number: int, url: str, history: History, recent: deque[UUID], load: Load) -> None:
        name = f"producer {number}"
        self._rng = random.Random(load.seed * 1000 + number)
        self._horizon = round(load.horizon * 1e6)
        engine = create_engine(
            url,
            pool_size=1,
            max_overflow=0,
            connect_args={
                "application_name": f"lab {name}",
                "options": _SESSION,
                "connect_timeout": 2,
                "tcp_user_timeout": 4000,
                "keepalives_idle": 2,
                "keepalives_interval": 1,
                "keepalives_count": 2,
            },
        )
        self._client = Client(name, engine, history)
        self._engine = engine
        self._own: deque[UUID] = deque(maxlen=_RECENT)
        self._recent = recent

    def work(self, rate: float, stopping: threading.Event, paused: threading.Event) -> None:
        methods = random.Random(self._rng.random()).choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=10_000)
        number = 0
        due = time.monotonic()
        while not stopping.wait(max(0.0, due - time.monotonic())):
            # What an outage has left undone is not made up for.
            due = max(due + self._rng.expovariate(rate), time.monotonic() - 1)
            if paused.is_set():
                continue
            self._do(methods[number % len(methods)])
            number += 1
        self._engine.dispose()

    def _do(self, method: str) -> None:
        doings: dict[str, Callable[[UUID], object]] = {
            "configure_run": self._configure,
            "extend_deadline": self._extend,
            "heartbeat": lambda run: self._client.call("heartbeat", run, timeout=self._soon()),
            "request_cancel": lambda run: self._client.call("request_cancel", run, f"cancel {self._rng.random()}"),
            "mark_timed_out": lambda run: self._client.call("mark_timed_out", run, f"mark {self._rng.random()}"),
            "reopen_run": lambda run: self._client.call("reopen_run", run, timeout=self._soon()),
        }
        if method == "start_run" or not self._own:
            self._start()
        elif method == "try_register_idempotency_key":
            self._client.call(method, None, FLOW, "register", self._key(), self._new_id())
        elif method == "find_run_id_by_idempotency_key":
            self._client.call(method, None, FLOW, "start", self._key())
        else:
            run = self._rng.choice(list(self._own)) if self._rng.random() < 0.7 else self._another()
            if method in doings:
                doings[method](run)
            else:
                self._client.call(method, run)

    def _another(self) -> UUID:
        return self._rng.choice(list(self._recent))

    def _start(self) -> None:
        run_id = self._new_id()
        key = self._key() if self._rng.random() < 0.5 else None
        deadline = self._soon() if self._rng.random() < 0.9 else None
        self._client.call("start_run", None, FLOW, "start", key, run_id=run_id, timeout=deadline)
        # Whatever the outcome: the next calls find out.
        self._own.append(run_id)
        self._recent.append(run_id)

    def _configure(self, run: UUID) -> None:
        chance = self._rng.random()
        deadline = None if chance < 0.1 else self._moment()
        if chance > 0.6:
            run = self._new_id()
            self._own.append(run)
            self._recent.append(run)
        self._client.call("configure_run", run, FLOW, "configure", None, deadline)

    def _extend(self, run: UUID) -> None:
        chance = self._rng.random()
        deadline = None if chance < 0.05 else self._moment()
        self._client.call("extend_deadline", run, deadline)

    def _new_id(self) -> UUID:
        return UUID(int=self._rng.getrandbits(128), version=4)

    def _key(self) -> str:
        # Few enough for several producers to want the same.
        return f"key-{self._rng.randrange(4000)}"

    def _soon(self) -> timedelta:
        return timedelta(microseconds=self._rng.randint(50_000, self._horizon))

    def _moment(self) -> datetime:
        """From a second ago to the horizon, by a clock that is the server's too."""
        return datetime.now(UTC) + timedelta(microseconds=self._rng.randint(-1_000_000, self._horizon))
