"""Every method on a run in every state: what it answers, and exactly which columns it writes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from curfew_store import (
    FlowRunControlRecord,
    FlowRunControlStore,
    RunCancelled,
    RunCompleted,
    RunConfiguration,
    RunTimedOut,
    StartedRun,
)
from tests.integration.contract.rows import OTHER_FLOW, STATES, Rows

HOUR = timedelta(hours=1)
FIELDS = {"flow_id", "trigger_key", "idempotency_key", "timeout_at_utc"}
CANCEL = {"cancel_requested", "cancel_reason", "cancel_requested_at_utc"}
MARK = CANCEL | {"timed_out_at_utc"}
COMPLETION = {"completed_at_utc"}
DEADLINE = {"timeout_at_utc"}
NOTHING: set[str] = set()
RECORD = FlowRunControlRecord

Outcome = tuple[object, set[str]]
ENDED: dict[str, Outcome] = {
    "cancelled": (False, NOTHING),
    "timed_out": (False, NOTHING),
    "timed_out_after_cancel": (False, NOTHING),
    "completed": (False, NOTHING),
    "completed_after_cancel": (False, NOTHING),
}
UNKNOWN_IS_FALSE: dict[str, Outcome] = {"unknown": (False, NOTHING)}

METHODS: dict[str, Callable[[FlowRunControlStore, UUID], Any]] = {
    "configure_run": lambda s, r: s.configure_run(r, OTHER_FLOW, "Other", "Key", timeout=2 * HOUR),
    "configure_run without a deadline": lambda s, r: s.configure_run(r, OTHER_FLOW, "Other", "Key"),
    "configure_runs": lambda s, r: s.configure_runs([RunConfiguration(r, OTHER_FLOW, "Other", "Key", timeout=HOUR)]),
    "get_run_control": lambda s, r: s.get_run_control(r),
    "request_cancel": lambda s, r: s.request_cancel(r, "enough"),
    "mark_timed_out": lambda s, r: s.mark_timed_out(r, "late"),
    "mark_timed_out without a reason": lambda s, r: s.mark_timed_out(r),
    "complete_run": lambda s, r: s.complete_run(r),
    "extend_deadline": lambda s, r: s.extend_deadline(r, timeout=2 * HOUR),
    "extend_deadline to none": lambda s, r: s.extend_deadline(r, None),
    "heartbeat": lambda s, r: s.heartbeat(r, timeout=2 * HOUR),
    "reopen_run": lambda s, r: s.reopen_run(r, timeout=2 * HOUR),
    "reopen_run without a deadline": lambda s, r: s.reopen_run(r),
    "ensure_may_run": lambda s, r: s.ensure_may_run(r),
    "start_run": lambda s, r: s.start_run(OTHER_FLOW, "Other", run_id=r),
}

CONFIGURED: dict[str, Outcome] = dict.fromkeys(STATES, (None, FIELDS))
UNCONFIGURED = CONFIGURED | {"disarmed": (None, FIELDS - DEADLINE)}
EXPECTED: dict[str, dict[str, Outcome]] = {
    "configure_run": CONFIGURED,
    "configure_run without a deadline": UNCONFIGURED,
    "configure_runs": CONFIGURED,
    "get_run_control": dict.fromkeys(STATES, (RECORD, NOTHING)) | {"unknown": (None, NOTHING)},
    "request_cancel": ENDED
    | UNKNOWN_IS_FALSE
    | {"active": (True, CANCEL), "disarmed": (True, CANCEL), "overdue": (True, CANCEL)},
    "mark_timed_out": ENDED
    | UNKNOWN_IS_FALSE
    | {
        "active": (True, MARK),
        "disarmed": (True, MARK),
        "overdue": (True, MARK),
        "cancelled": (True, {"timed_out_at_utc", "cancel_reason"}),
    },
    "mark_timed_out without a reason": ENDED
    | UNKNOWN_IS_FALSE
    | {
        "active": (True, MARK),
        "disarmed": (True, MARK),
        "overdue": (True, MARK),
        "cancelled": (True, {"timed_out_at_utc"}),
    },
    "complete_run": ENDED
    | UNKNOWN_IS_FALSE
    | {
        "active": (True, COMPLETION),
        "disarmed": (True, COMPLETION),
        "overdue": (True, COMPLETION),
        "cancelled": (True, COMPLETION),
    },
    "extend_deadline": ENDED
    | UNKNOWN_IS_FALSE
    | {
        "active": (True, DEADLINE),
        "disarmed": (True, DEADLINE),
        "overdue": (True, DEADLINE),
        "cancelled": (True, DEADLINE),
        "timed_out": (True, DEADLINE | MARK),
        "timed_out_after_cancel": (True, DEADLINE | {"timed_out_at_utc"}),
    },
    "extend_deadline to none": ENDED
    | UNKNOWN_IS_FALSE
    | {
        "active": (True, DEADLINE),
        "disarmed": (True, {"xmin"}),
        "overdue": (True, DEADLINE),
        "cancelled": (True, DEADLINE),
        "timed_out": (True, DEADLINE | MARK),
        "timed_out_after_cancel": (True, DEADLINE | {"timed_out_at_utc"}),
    },
    "heartbeat": ENDED
    | UNKNOWN_IS_FALSE
    | {"active": (True, DEADLINE), "disarmed": (False, NOTHING), "overdue": (False, NOTHING)},
    "reopen_run": UNKNOWN_IS_FALSE
    | {
        "active": (False, NOTHING),
        "disarmed": (False, NOTHING),
        "overdue": (False, NOTHING),
        "cancelled": (True, DEADLINE | CANCEL),
        "timed_out": (True, DEADLINE | MARK),
        "timed_out_after_cancel": (True, DEADLINE | MARK),
        "completed": (True, DEADLINE | COMPLETION),
        "completed_after_cancel": (True, DEADLINE | COMPLETION | CANCEL),
    },
    "ensure_may_run": {
        "unknown": (None, NOTHING),
        "active": (RECORD, NOTHING),
        "disarmed": (RECORD, NOTHING),
        "overdue": (RunTimedOut, MARK),
        "cancelled": (RunCancelled, NOTHING),
        "timed_out": (RunTimedOut, NOTHING),
        "timed_out_after_cancel": (RunTimedOut, NOTHING),
        "completed": (RunCompleted, NOTHING),
        "completed_after_cancel": (RunCompleted, NOTHING),
    },
    "start_run": dict.fromkeys(STATES, (StartedRun, NOTHING)),
}
EXPECTED["reopen_run without a deadline"] = EXPECTED["reopen_run"]

contract = pytest.mark.contract
CLAUSES = {
    "configure_run": contract("C-1", "C-2"),
    "configure_runs": contract("B-1"),
    "get_run_control": contract("G-1"),
    "request_cancel": contract("Q-1", "Q-2", "Q-3"),
    "mark_timed_out": contract("M-1", "M-4", "M-5"),
    "complete_run": contract("D-1", "D-2", "D-3"),
    "extend_deadline": contract("L-1", "L-3", "L-4", "L-5"),
    "heartbeat": contract("H-1", "H-2"),
    "reopen_run": contract("O-1", "O-2"),
    "ensure_may_run": contract("W-1", "W-2", "W-3"),
    "start_run": contract("S-4"),
}
CASES = [
    pytest.param(method, state, *outcome, id=f"{method}-{state}", marks=CLAUSES[method.partition(" ")[0]])
    for method, outcomes in EXPECTED.items()
    for state, outcome in outcomes.items()
]


@pytest.mark.parametrize(("method", "state", "answer", "written"), CASES)
def test_each_method_in_each_state(
    store: FlowRunControlStore, rows: Rows, method: str, state: str, answer: Any, written: set[str]
) -> None:
    """A method answers by the state of the run and writes the columns that the contract names, no others."""
    run_id = rows.insert(state)
    bystander = rows.insert(state)
    before, beside = rows.row(run_id), rows.row(bystander)

    if isinstance(answer, type) and issubclass(answer, Exception):
        with pytest.raises(answer) as raised:
            METHODS[method](store, run_id)
        assert raised.value.run_id == run_id  # type: ignore[attr-defined]
    else:
        result = METHODS[method](store, run_id)
        if isinstance(answer, type):
            assert isinstance(result, (FlowRunControlRecord, StartedRun))
            assert type(result) is answer
            assert result.run_id == run_id
        else:
            assert result is answer

    assert rows.changed(before, run_id) == written
    assert rows.changed(beside, bystander) == NOTHING


def test_the_matrix_is_complete() -> None:
    """Every method of the matrix says what it does in every state, the unknown run included where it inserts none."""
    for method, outcomes in EXPECTED.items():
        inserts = method.startswith(("configure", "start"))
        assert outcomes.keys() | ({"unknown"} if inserts else set()) == STATES.keys() | {"unknown"}, method
    assert EXPECTED.keys() == METHODS.keys()
