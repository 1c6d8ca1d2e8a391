"""Every call of every producer: when it was invoked, when it returned, and what it said.

A `Client` is a real store on an engine of its own whose statements carry the number of the call that sent them, as
a comment; the audit trigger reads it back. So each change in the database is known by its call, also of a call
whose answer was lost.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import Engine, event

from curfew_store import FlowRunControlStore, is_transient
from curfew_store.errors import KeyContended, RunCancelled, RunCompleted, RunTimedOut
from curfew_store.records import FlowRunControlRecord, RunConfiguration, StartedRun
from tests.faults.strikes import Moment, now

__all__ = ["Call", "Client", "History", "micros"]

Outcome = Literal["ok", "failed", "unknown"]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_VERDICTS: Final = (RunTimedOut, RunCompleted, RunCancelled)


def micros(moment: datetime) -> int:
    """*moment* in microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


@dataclass(frozen=True)
class Call:
    """One call of a producer. *outcome* is "ok", "failed" (nothing was written) or "unknown" (perhaps it was).

    *arguments* and *result* hold what the checker needs in plain values, times in microseconds since 1970.
    """

    number: int
    client: str
    method: str
    run_id: UUID | None
    arguments: dict[str, Any]
    invoked: Moment
    returned: Moment | None = None
    outcome: Outcome = "unknown"
    result: Any = None
    error: str | None = None


class History:
    """The calls of all clients; may be written from any thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._lock = threading.Lock()

    def invoke(self, client: str, method: str, run_id: UUID | None, arguments: dict[str, Any]) -> Call:
        """Take down a call that begins."""
        with self._lock:
            call = Call(next(self._numbers), client, method, run_id, arguments, now())
            self._calls[call.number] = call
        return call

    def finish(self, call: Call, outcome: Outcome, result: Any = None, error: str | None = None) -> Call:
        """Take down how it ended."""
        done = replace(call, returned=now(), outcome=outcome, result=result, error=error)
        with self._lock:
            self._calls[call.number] = done
        return done

    def calls(self) -> list[Call]:
        """All calls so far in the order of their invocation."""
        with self._lock:
            return [self._calls[number] for number in sorted(self._calls)]


class Client:
    """A store whose calls are on record; one thread uses it at a time."""

    def __init__(self, name: str, engine: Engine, history: History) -> None:
        self.name = name
        self._history = history
        self._store = FlowRunControlStore(engine)
        self._number: int | None = None
        event.listen(engine, "before_cursor_execute", self._sign, retval=True)

    def call(self, method: str, run_id: UUID | None = None, /, *values: Any, **named: Any) -> Call:
        """Call a method of the store with *run_id* first, if it is given, and take down what happens.

        An error that a retry could cure leaves the outcome unknown; so does any error while a connection was
        lost. It never raises for the database's sake.
        """
        arguments = {str(position): _plain(value) for position, value in enumerate(values)}
        arguments |= {name: _plain(value) for name, value in named.items()}
        call = self._history.invoke(self.name, method, run_id, arguments)
        self._number = call.number
        try:
            given = values if run_id is None else (run_id, *values)
            result = _plain(getattr(self._store, method)(*given, **named))
        except _VERDICTS as verdict:
            return self._history.finish(call, "ok", type(verdict).__name__)
        except Exception as error:  # noqa: BLE001  (whatever it is, it belongs on record)
            lost = is_transient(error) and not isinstance(error, KeyContended)
            outcome: Outcome = "unknown" if lost else "failed"
            return self._history.finish(call, outcome, error=f"{type(error).__name__}: {error}".splitlines()[0])
        finally:
            self._number = None
        return self._history.finish(call, "ok", result)

    def _sign(self, _conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return (statement if self._number is None else f"{statement} /* call {self._number} */"), parameters


def _plain(value: Any) -> Any:
    """*value* as plain data: times in microseconds since 1970, spans in seconds, records as dictionaries."""
    match value:
        case datetime():
            return micros(value)
        case timedelta():
            return value.total_seconds()
        case UUID():
            return str(value)
        case list():
            return [_plain(each) for each in value]
        case StartedRun() | FlowRunControlRecord() | RunConfiguration():
            return {name: _plain(getattr(value, name)) for name in value.__slots__}
        case _:
            return value
