"""Fields that others left in rows which have no latch: a call sets what it promises to set."""

from __future__ import annotations

import pytest

from curfew_store import FlowRunControlStore, RunState
from tests.integration.contract.rows import Rows

LEFT = {"cancel_reason": "'left by others'"}


@pytest.mark.contract("Q-1")
@pytest.mark.parametrize("reason", ["mine", None])
def test_a_cancel_sets_its_own_reason(store: FlowRunControlStore, rows: Rows, reason: str | None) -> None:
    """A reason that stands in an active row is nobody's: the cancel that latches brings its own, or none."""
    run = rows.insert("active", **LEFT)
    assert store.request_cancel(run, reason)
    record = store.get_run_control(run)
    assert record is not None
    assert (record.state, record.cancel_reason) == (RunState.CANCEL_REQUESTED, reason)


@pytest.mark.contract("M-2")
def test_a_mark_keeps_what_stands_there_and_needs_a_reason_of_its_own_to_replace_it(
    store: FlowRunControlStore, rows: Rows
) -> None:
    """Whoever wrote it, a reason gives way to a given one only."""
    kept, replaced = rows.insert("active", **LEFT), rows.insert("active", **LEFT)
    assert store.mark_timed_out(kept)
    assert store.mark_timed_out(replaced, "late")
    assert [getattr(store.get_run_control(run), "cancel_reason", "") for run in (kept, replaced)] == [
        "left by others",
        "late",
    ]
