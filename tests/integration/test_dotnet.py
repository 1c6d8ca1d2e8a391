"""A .NET service and a Python one on the same tables: upstream's statements keep upstream's results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from curfew_store import FlowRunControlRecord, FlowRunControlStore, RunState, StartedRun
from curfew_store.enforcement import OVERDUE_REASON, claim_overdue
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration.upstream import DotNetService

FLOW = uuid4()
NIL = UUID(int=0)


@pytest.fixture
def net(database: Database) -> DotNetService:
    """A .NET service that has started on our database."""
    service = DotNetService(database.conninfo)
    service.start_host()
    return service


@pytest.fixture
def store(database: Database) -> FlowRunControlStore:
    """A Python service on the same database."""
    return FlowRunControlStore(database.engine)


@pytest.fixture
def run(net: DotNetService) -> UUID:
    """A run that the .NET service configured, with a deadline in an hour."""
    run_id = uuid4()
    net.configure(run_id, FLOW, "Manual", "Key-A", _in(hours=1))
    return run_id


def _in(**duration: float) -> datetime:
    return datetime.now(UTC) + timedelta(**duration)


def _record(store: FlowRunControlStore, run_id: UUID) -> FlowRunControlRecord:
    record = store.get_run_control(run_id)
    assert record is not None
    return record


def _claim(database: Database) -> list[UUID]:
    with database.engine.begin() as conn:
        return [run.run_id for run in claim_overdue(conn, tables_in("public"), limit=100)]


def _read(net: DotNetService, run_id: UUID) -> dict[str, Any]:
    record = net.get(run_id)
    assert record is not None
    return record


@pytest.mark.contract("T-5", "C-2")
def test_dotnet_configures_and_both_read_the_same(net: DotNetService, store: FlowRunControlStore) -> None:
    """A run that .NET configured has the four fields, no latch, and the same content for either reader."""
    run_id, deadline = uuid4(), _in(hours=1)
    net.configure(run_id, FLOW, "Manual", "Key-A", deadline)
    seen, record = _read(net, run_id), _record(store, run_id)
    assert seen == {name: getattr(record, name) for name in seen}
    assert (record.flow_id, record.trigger_key, record.idempotency_key) == (FLOW, "Manual", "Key-A")
    assert (record.timeout_at_utc, record.state, record.completed_at_utc) == (deadline, RunState.ACTIVE, None)


@pytest.mark.contract("T-5", "C-2")
@pytest.mark.parametrize("latch", ["cancel", "time out", "complete"])
def test_dotnet_configures_again_and_keeps_every_latch(
    net: DotNetService, store: FlowRunControlStore, run: UUID, latch: str
) -> None:
    """Upstream's upsert overwrites its four fields on our tables and leaves each latch of ours as it was."""
    latches = {"cancel": store.request_cancel, "time out": store.mark_timed_out, "complete": store.complete_run}
    assert latches[latch](run)
    before = _record(store, run)
    other_flow, deadline = uuid4(), _in(hours=-1)
    net.configure(run, other_flow, "Other", None, deadline)
    after = _record(store, run)
    kept = "cancel_requested cancel_reason cancel_requested_at_utc timed_out_at_utc completed_at_utc created_at_utc"
    assert [getattr(after, name) for name in kept.split()] == [getattr(before, name) for name in kept.split()]
    assert (after.flow_id, after.trigger_key, after.idempotency_key) == (other_flow, "Other", None)
    assert after.timeout_at_utc == deadline


@pytest.mark.contract("T-5", "Q-1", "Q-2")
def test_cancels_of_either_side_exclude_each_other(net: DotNetService, store: FlowRunControlStore, run: UUID) -> None:
    """The first cancel stands whoever sent it; the other side is told that it came second."""
    other = store.start_run(FLOW, "t").run_id
    assert net.request_cancel(run, "by .NET")
    assert not store.request_cancel(run, "by Python")
    assert not net.request_cancel(run, "again")
    assert store.request_cancel(other, "by Python")
    assert not net.request_cancel(other, "by .NET")
    assert (_record(store, run).cancel_reason, _read(net, other)["cancel_reason"]) == ("by .NET", "by Python")
    assert not net.request_cancel(uuid4(), None)
    assert _record(store, run).state is RunState.CANCEL_REQUESTED


@pytest.mark.contract("T-5", "M-1", "M-2", "M-3")
def test_a_timeout_by_dotnet_is_one_to_us(net: DotNetService, store: FlowRunControlStore, run: UUID) -> None:
    """Upstream's mark reads as timed out with upstream's default reason, and neither side marks it again."""
    assert net.mark_timed_out(run, None)
    assert not net.mark_timed_out(run, "again")
    assert not store.mark_timed_out(run, "again")
    assert not store.request_cancel(run)
    assert not store.complete_run(run)
    record = _record(store, run)
    assert (record.state, record.cancel_reason) == (RunState.TIMED_OUT, "Run timed out.")
    assert record.cancel_requested_at_utc == record.timed_out_at_utc is not None
    assert not net.mark_timed_out(uuid4(), None)


@pytest.mark.contract("T-5", "M-2", "E-6")
def test_a_timeout_by_us_is_one_to_dotnet(database: Database, net: DotNetService, run: UUID) -> None:
    """After our claim upstream finds the run timed out, with the sweep's reason, and cannot cancel it."""
    assert net.extend(run, _in(seconds=-1))
    assert _claim(database) == [run]
    assert not net.mark_timed_out(run, "late")
    assert not net.request_cancel(run, "late")
    seen = _read(net, run)
    assert seen["cancel_requested"]
    assert seen["timed_out_at_utc"] == seen["cancel_requested_at_utc"] is not None
    assert seen["cancel_reason"] == OVERDUE_REASON


@pytest.mark.contract("T-5", "M-2", "L-4")
def test_a_user_cancel_before_a_timeout_by_dotnet_keeps_its_reason(
    net: DotNetService, store: FlowRunControlStore, run: UUID
) -> None:
    """Upstream marks a cancelled run too, with its cancel's reason; our extension leaves that cancel be."""
    assert store.request_cancel(run, "by a user")
    cancelled = _record(store, run)
    assert net.mark_timed_out(run, None)
    timed_out = _record(store, run)
    assert (timed_out.state, timed_out.cancel_reason) == (RunState.TIMED_OUT, "by a user")
    assert timed_out.cancel_requested_at_utc == cancelled.cancel_requested_at_utc
    assert store.extend_deadline(run, _in(hours=2))
    extended = _record(store, run)
    assert (extended.state, extended.cancel_reason) == (RunState.CANCEL_REQUESTED, "by a user")


@pytest.mark.contract("T-5", "L-3", "E-7")
def test_a_run_extended_by_dotnet_is_claimed_again(
    database: Database, net: DotNetService, store: FlowRunControlStore, run: UUID
) -> None:
    """Upstream's extension takes our mark back whole; the run is armed again and marked once more when due."""
    assert net.extend(run, _in(seconds=-2))
    assert _claim(database) == [run]
    deadline = _in(hours=1)
    assert net.extend(run, deadline)
    record = _record(store, run)
    assert (record.state, record.timeout_at_utc) == (RunState.ACTIVE, deadline)
    assert (record.cancel_requested, record.cancel_reason, record.cancel_requested_at_utc) == (False, None, None)
    assert _claim(database) == []
    assert net.extend(run, _in(seconds=-1))
    assert _claim(database) == [run]
    assert _claim(database) == []
    assert net.extend(run, None)
    assert _record(store, run).timeout_at_utc is None
    assert not net.extend(uuid4(), None)


@pytest.mark.contract("T-5", "L-3")
def test_a_timeout_by_dotnet_is_taken_back_by_our_extension(
    net: DotNetService, store: FlowRunControlStore, run: UUID
) -> None:
    """Upstream's mark stamps both columns alike, so our extension knows that the cancel came with it."""
    assert net.mark_timed_out(run, "Run exceeded its timeout deadline.")
    deadline = _in(hours=3)
    assert store.extend_deadline(run, deadline)
    seen = _read(net, run)
    assert (seen["timeout_at_utc"], seen["timed_out_at_utc"]) == (deadline, None)
    assert (seen["cancel_requested"], seen["cancel_reason"], seen["cancel_requested_at_utc"]) == (False, None, None)


@pytest.mark.contract("T-5", "L-4")
def test_a_user_cancel_survives_an_extension_by_dotnet(
    net: DotNetService, store: FlowRunControlStore, run: UUID
) -> None:
    """Upstream's extension of a cancelled run that did not time out changes the deadline alone."""
    assert store.request_cancel(run, "by a user")
    before = _record(store, run)
    assert net.extend(run, None)
    after = _record(store, run)
    assert after.timeout_at_utc is None
    assert (after.state, after.cancel_reason) == (RunState.CANCEL_REQUESTED, "by a user")
    assert after.cancel_requested_at_utc == before.cancel_requested_at_utc


@pytest.mark.contract("U-4", "G-3", "L-5")
def test_a_run_timed_out_by_dotnet_after_its_completion_reads_as_timed_out(
    net: DotNetService, store: FlowRunControlStore, run: UUID
) -> None:
    """Upstream knows nothing of our completion; what it marked afterwards is timed out to every reader."""
    assert store.complete_run(run)
    assert net.mark_timed_out(run, "swept by .NET")
    record = _record(store, run)
    assert record.completed_at_utc is not None
    assert (record.state, record.cancel_reason) == (RunState.TIMED_OUT, "swept by .NET")
    assert not store.extend_deadline(run, None)
    assert not store.mark_timed_out(run)
    assert store.reopen_run(run)
    assert _record(store, run).state is RunState.ACTIVE


@pytest.mark.contract("E-5", "D-1")
def test_a_completed_run_that_dotnet_extends_is_never_claimed(
    database: Database, net: DotNetService, store: FlowRunControlStore, run: UUID
) -> None:
    """Upstream may set any deadline on a run that we completed; it stays completed."""
    assert store.complete_run(run)
    assert net.extend(run, _in(hours=-1))
    assert _claim(database) == []
    assert _record(store, run).state is RunState.COMPLETED


@pytest.mark.contract("T-5", "K-1", "K-5", "I-1", "I-2", "I-3")
def test_a_key_of_either_side_is_found_by_the_other(net: DotNetService, store: FlowRunControlStore, run: UUID) -> None:
    """A key belongs to who registered it first, in whichever language and spelling the other asks for it."""
    other = uuid4()
    assert net.register(FLOW, "Manual ", " Key-A", run)
    assert not store.try_register_idempotency_key(FLOW, "manual", "KEY-a", other)
    assert store.find_run_id_by_idempotency_key(FLOW, "MANUAL", "key-A ") == run
    assert store.start_run(FLOW, " Manual", "key-a", run_id=other) == StartedRun(run, duplicate=True)
    assert store.try_register_idempotency_key(FLOW, "Webhook", " Key-A ", other)
    assert not net.register(FLOW, "webhook", "key-a", run)
    assert net.find(FLOW, "WEBHOOK", "KEY-A") == other
    assert net.find(uuid4(), "webhook", "key-a") is None


@pytest.mark.contract("T-5", "K-1", "S-1")
def test_a_run_that_we_started_is_a_duplicate_to_dotnet(net: DotNetService, store: FlowRunControlStore) -> None:
    """The trigger path of .NET (find, register, find) ends at the run that `start_run` made."""
    started = store.start_run(FLOW, "Webhook", "Order 7", timeout=timedelta(minutes=5))
    assert not started.duplicate
    assert net.find(FLOW, "webhook", "order 7") == started.run_id
    assert not net.register(FLOW, "webhook", "order 7", uuid4())
    seen = _read(net, started.run_id)
    assert (seen["trigger_key"], seen["idempotency_key"]) == ("Webhook", "Order 7")


@pytest.mark.contract("T-5")
def test_the_retention_of_dotnet_deletes_records_and_keys_of_both_sides(
    net: DotNetService, store: FlowRunControlStore, run: UUID
) -> None:
    """What belongs to runs completed before the cutoff goes, at the cutoff it stays; a freed key starts anew."""
    cutoff = datetime(2024, 5, 1, tzinfo=UTC)
    ours = store.start_run(FLOW, "Manual", "ours").run_id
    kept = store.start_run(FLOW, "Manual", "kept").run_id
    assert net.register(FLOW, "Manual", "theirs", run)
    for run_id, completed_at in ((run, -1), (ours, -1), (kept, 0)):
        net.start_run(run_id, FLOW, "Manual")
        assert net.finish_run(run_id, cutoff + timedelta(seconds=completed_at))
    net.clean_up(cutoff)
    assert [store.get_run_control(run_id) is None for run_id in (run, ours, kept)] == [True, True, False]
    assert store.find_run_id_by_idempotency_key(FLOW, "Manual", "theirs") is None
    assert store.find_run_id_by_idempotency_key(FLOW, "Manual", "kept") == kept
    assert not store.start_run(FLOW, "Manual", "ours").duplicate


@pytest.mark.contract("T-1", "T-5")
def test_a_record_with_nothing_but_its_id_has_upstreams_defaults(
    database: Database, store: FlowRunControlStore
) -> None:
    """An insert of the id alone leaves the nil flow, an empty trigger key and no latch."""
    run_id = uuid4()
    with psycopg.connect(database.conninfo) as conn:
        conn.execute("INSERT INTO flow_run_controls (run_id) VALUES (%s)", [run_id])
    record = _record(store, run_id)
    assert (record.flow_id, record.trigger_key, record.idempotency_key) == (NIL, "", None)
    assert (record.timeout_at_utc, record.state) == (None, RunState.ACTIVE)
