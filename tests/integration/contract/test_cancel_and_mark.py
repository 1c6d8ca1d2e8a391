"""`request_cancel` and `mark_timed_out`: reasons, stamps, and which of several calls wins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from curfew_store import FlowRunControlRecord, FlowRunControlStore, RunState
from tests.integration.contract.rows import Rows


def record_of(store: FlowRunControlStore, run_id: object) -> FlowRunControlRecord:
    """The record of a run that is known to exist."""
    record = store.get_run_control(run_id)  # type: ignore[arg-type]
    assert record is not None
    return record


@pytest.mark.contract("Q-1", "Q-2", "R-1")
@pytest.mark.parametrize("reason", [None, "", "because", "x" * 4000, "line\nbreak \x1b[31m ', %s {} \U0001f600"])
def test_the_first_cancel_stands(store: FlowRunControlStore, rows: Rows, reason: str | None) -> None:
    """The first call stores its reason as given and its time; a second one says no and changes nothing."""
    run_id = rows.insert("active")
    assert store.request_cancel(run_id, reason) is True
    first = record_of(store, run_id)
    assert (first.state, first.cancel_requested, first.cancel_reason) == (RunState.CANCEL_REQUESTED, True, reason)
    assert first.cancel_requested_at_utc is not None
    assert timedelta(0) <= first.cancel_requested_at_utc - first.created_at_utc < timedelta(seconds=10)
    before = rows.row(run_id)
    assert store.request_cancel(run_id, "another") is False
    assert rows.changed(before, run_id) == set()


@pytest.mark.contract("Q-1", "M-1", "D-1", "O-1")
@pytest.mark.parametrize("method", ["request_cancel", "mark_timed_out", "complete_run"])
def test_one_of_many_concurrent_calls_wins(store: FlowRunControlStore, rows: Rows, method: str) -> None:
    """Of eight calls at once exactly one answers True; so it is when the run is reopened afterwards."""
    run_id = rows.insert("active")
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda _: getattr(store, method)(run_id), range(8))) == [False] * 7 + [True]
        assert sorted(pool.map(lambda _: store.reopen_run(run_id), range(8))) == [False] * 7 + [True]
    assert record_of(store, run_id).state is RunState.ACTIVE


@pytest.mark.contract("M-2", "M-3", "A-1")
@pytest.mark.parametrize(
    ("state", "given", "kept"),
    [
        ("active", "late", "late"),
        ("active", "", ""),
        ("active", None, "Run timed out."),
        ("cancelled", "late", "late"),
        ("cancelled", None, "by a user"),
    ],
)
def test_the_reason_of_a_mark(store: FlowRunControlStore, rows: Rows, state: str, given: str | None, kept: str) -> None:
    """The given reason wins over that of an earlier cancel, which wins over the default; an earlier time stays."""
    run_id = rows.insert(state)
    cancelled_at = record_of(store, run_id).cancel_requested_at_utc
    assert store.mark_timed_out(run_id, given) is True
    record = record_of(store, run_id)
    assert (record.state, record.cancel_requested, record.cancel_reason) == (RunState.TIMED_OUT, True, kept)
    assert record.timed_out_at_utc is not None
    assert record.cancel_requested_at_utc == (cancelled_at or record.timed_out_at_utc)


@pytest.mark.contract("M-2")
def test_a_cancel_without_a_reason_leaves_the_default(store: FlowRunControlStore, rows: Rows) -> None:
    """Where neither the cancel nor the mark gave a reason, the mark's default is kept."""
    run_id = rows.insert("active")
    store.request_cancel(run_id)
    store.mark_timed_out(run_id)
    assert record_of(store, run_id).cancel_reason == "Run timed out."


@pytest.mark.contract("U-2", "U-4", "G-3")
def test_upstream_may_time_out_a_completed_run(store: FlowRunControlStore, rows: Rows) -> None:
    """Beside upstream's own tables the store works, and a mark by upstream after a completion reads as timed out."""
    rows.sql("CREATE TABLE IF NOT EXISTS flow_runs (id uuid PRIMARY KEY, status varchar(64) NOT NULL)")
    run_id = rows.insert("active")
    assert store.complete_run(run_id) is True
    rows.sql(
        "UPDATE flow_run_controls SET timed_out_at_utc = now(), cancel_requested = true, "
        "cancel_reason = COALESCE(NULL, cancel_reason, 'Run timed out.'), "
        "cancel_requested_at_utc = COALESCE(cancel_requested_at_utc, now()) "
        "WHERE run_id = :run AND timed_out_at_utc IS NULL",
        run=run_id,
    )
    record = record_of(store, run_id)
    assert record.state is RunState.TIMED_OUT
    assert record.completed_at_utc is not None
    assert store.complete_run(run_id) is False
    assert store.extend_deadline(run_id, timeout=timedelta(hours=1)) is False
    assert store.reopen_run(run_id) is True
    assert record_of(store, run_id).state is RunState.ACTIVE
