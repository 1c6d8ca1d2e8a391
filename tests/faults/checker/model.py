"""What each call of the store says and does to a row, as a function of the row: the contract in small.

Stamps are the server's, so `effect` takes them from the row that was found afterwards; what it says about all other
columns, and about the answer, follows from the row before alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from curfew_store.enforcement import OVERDUE_REASON
from tests.faults.chronicle import Row

__all__ = ["METHODS", "Effect", "effect"]


@dataclass(frozen=True)
class Effect:
    """The answer of a call, and the row as it leaves it; *row* is ``None`` where nothing is written."""

    answer: Any
    row: Row | None = None


DEFAULT_REASON: Final = "Run timed out."
REFUSED: Final = Effect(answer=False)


def effect(method: str, arguments: dict[str, Any], before: Row | None, after: Row | None) -> Effect:
    """What *method* says and does on the row *before*; free stamps and relative deadlines are taken from *after*."""
    return METHODS[method](arguments, before, after)


def _deadline(arguments: dict[str, Any], after: Row | None, position: str, name: str) -> int | None:
    """The deadline that a call sets: the moment given, or, for a span from the server's now, what came of it."""
    if arguments.get("timeout") is not None:
        return None if after is None else after.timeout_at
    at = arguments.get(position, arguments.get(name))
    return None if at is None else int(at)


def _cancel(arguments: dict[str, Any], before: Row | None, after: Row | None) -> Effect:
    if before is None or before.cancel_requested or before.timed_out_at is not None or before.completed_at is not None:
        return REFUSED
    stamp = None if after is None else after.cancel_requested_at
    row = replace(before, cancel_requested=True, cancel_reason=arguments.get("0"), cancel_requested_at=stamp)
    return Effect(True, row)


def _complete(_: dict[str, Any], before: Row | None, after: Row | None) -> Effect:
    if before is None or before.timed_out_at is not None or before.completed_at is not None:
        return REFUSED
    return Effect(True, replace(before, completed_at=None if after is None else after.completed_at))


def _mark(arguments: dict[str, Any], before: Row | None, after: Row | None) -> Effect:
    if before is None or before.timed_out_at is not None or before.completed_at is not None:
        return REFUSED
    return Effect(True, _marked(before, arguments.get("0") or before.cancel_reason or DEFAULT_REASON, after))


def _marked(before: Row, reason: str, after: Row | None) -> Row:
    stamp = None if after is None else after.timed_out_at
    first = stamp if before.cancel_requested_at is None else before.cancel_requested_at
    return replace(before, timed_out_at=stamp, cancel_requested=True, cancel_reason=reason, cancel_requested_at=first)


def _extend(arguments: dict[str, Any], before: Row | None, after: Row | None) -> Effect:
    if before is None or before.completed_at is not None:
        return REFUSED
    deadline = _deadline(arguments, after, "0", "new_timeout_at_utc")
    row = replace(before, timeout_at=deadline, timed_out_at=None)
    if before.timed_out_at is not None and before.cancel_requested_at == before.timed_out_at:
        row = replace(row, cancel_requested=False, cancel_reason=None, cancel_requested_at=None)
    return Effect(True, row)


def _heartbeat(_: dict[str, Any], before: Row | None, after: Row | None) -> Effect:
    # Whether it was overdue at that moment, the row alone does not say: both answers are possible for an armed one.
    if before is None or not before.armed or after is None:
        return REFUSED
    return Effect(True, replace(before, timeout_at=max(before.timeout_at or 0, after.timeout_at or 0)))


def _reopen(arguments: dict[str, Any], before: Row | None, after: Row | None) -> Effect:
    if before is None or not (
        before.cancel_requested or before.timed_out_at is not None or before.completed_at is not None
    ):
        return REFUSED
    row = replace(
        before,
        timeout_at=_deadline(arguments, after, "0", "timeout_at_utc"),
        timed_out_at=None,
        completed_at=None,
        cancel_requested=False,
        cancel_reason=None,
        cancel_requested_at=None,
    )
    return Effect(True, row)


def _ensure(_: dict[str, Any], before: Row | None, after: Row | None) -> Effect:
    """The answer is the verdict's name, or what was read; only a lapsed deadline is written."""
    if before is None:
        return Effect(None)
    if before.timed_out_at is not None:
        return Effect("RunTimedOut")
    if before.completed_at is not None:
        return Effect("RunCompleted")
    if before.cancel_requested:
        return Effect("RunCancelled")
    if after is not None and before.timeout_at is not None:
        return Effect("RunTimedOut", _marked(before, OVERDUE_REASON, after))
    return Effect("may run")


METHODS: Final[dict[str, Callable[[dict[str, Any], Row | None, Row | None], Effect]]] = {
    "request_cancel": _cancel,
    "complete_run": _complete,
    "mark_timed_out": _mark,
    "extend_deadline": _extend,
    "heartbeat": _heartbeat,
    "reopen_run": _reopen,
    "ensure_may_run": _ensure,
}
"""The calls that change a row which is there; `configure_run` and `start_run` may also make one."""
