"""Invariants of idempotency keys."""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.faults.history import Call
from tests.faults.record import Record
from tests.faults.strikes import Violation

__all__ = ["no_orphans", "one_registration"]


def one_registration(record: Record) -> list[Violation]:
    """A key is written once, and every call that wanted it was told of that one run."""
    found = []
    holders: dict[str, set[UUID]] = defaultdict(set)
    for change in record.key_changes:
        if change.operation == "INSERT":
            holders[change.key].add(change.run_id)
    for key, runs in holders.items():
        if len(runs) > 1:
            found.append(Violation("I7", f"{key} was registered for {len(runs)} runs"))
    winners: dict[str, list[str]] = defaultdict(list)
    for call in record.calls:
        wanted = _key_of(call)
        if wanted is None or call.outcome != "ok":
            continue
        told = _told(call)
        if told is not None and told not in {str(run) for run in holders.get(wanted, ())}:
            found.append(Violation("I7", f"{call.method} was told that {told} holds {wanted}, which does not"))
        if _won(call):
            winners[wanted].append(f"call {call.number}")
    found += [
        Violation("I7", f"{key} was given to {', '.join(calls)}") for key, calls in winners.items() if len(calls) > 1
    ]
    return found


def no_orphans(record: Record) -> list[Violation]:
    """A key that `start_run` wrote has its run, written by the same call."""
    runs = {(change.call, change.run_id) for change in record.changes if change.operation == "INSERT"}
    starts = {call.number for call in record.calls if call.method == "start_run"}
    return [
        Violation("I7", f"{change.key} was registered for {change.run_id}, which was not started with it")
        for change in record.key_changes
        if change.operation == "INSERT" and change.call in starts and (change.call, change.run_id) not in runs
    ]


def _key_of(call: Call) -> str | None:
    # Flow, trigger key and key are the first three values; the load uses keys that are in their normal form.
    if call.method not in {"start_run", "try_register_idempotency_key"} or call.arguments.get("2") is None:
        return None
    return "/".join(str(call.arguments[position]) for position in "012")


def _told(call: Call) -> str | None:
    return call.result["run_id"] if isinstance(call.result, dict) else None


def _won(call: Call) -> bool:
    return call.result is True or (isinstance(call.result, dict) and not call.result["duplicate"])
