"""Clocks, zones and odd times: the database's clock counts, records are in UTC, and strange rows break nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from curfew_store import FlowRunControlRecord, FlowRunControlStore, RunConfiguration, RunTimedOut
from curfew_store.enforcement import claim_overdue, look_ahead
from curfew_store.schema import tables_in
from tests.integration.contract.facade import Facade, OpenFacade
from tests.integration.contract.rows import FLOW, Rows

HOUR = timedelta(hours=1)
FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
ODD = {
    "'-infinity'": FIRST,
    "'infinity'": LAST,
    "'0001-06-01 00:00:00+00 BC'": FIRST,
    "'0001-01-01 00:00:00+14'": FIRST,
    "'20000-01-01 00:00:00+00'": LAST,
    "'9999-12-31 23:59:59.999999-12'": LAST,
}
SESSIONS = ["Asia/Kathmandu", "America/St_Johns", "UTC"]
DATE_STYLES = ["ISO, MDY", "SQL, DMY", "German, DMY", "Postgres, YMD"]


def record_of(store: FlowRunControlStore, run_id: UUID, **kwargs: Any) -> FlowRunControlRecord:
    """The record of a run that is known to exist."""
    record = store.get_run_control(run_id, **kwargs)
    assert record is not None
    return record


@pytest.mark.contract("A-1", "A-3")
def test_a_timeout_counts_from_the_call(facade: Facade, rows: Rows) -> None:
    """In a transaction that has been open for a while, stamps and timeouts start at the call and not at its begin."""
    timeout, ten_seconds = timedelta(milliseconds=20), timedelta(seconds=10)
    ids = {name: uuid4() for name in ("configure", "batch", "start")}
    ended, marked, cancelled, completed, extended, beating = (
        rows.insert(state) for state in ("completed", "active", "active", "active", "active", "active")
    )
    rows.sql("UPDATE flow_run_controls SET timeout_at_utc = now() + interval '10 s' WHERE run_id = :run", run=beating)
    with facade.begin() as caller:
        then = caller.sql("SELECT clock_timestamp() FROM pg_sleep(0.1)")[0][0]
        store, options = facade.store, {"connection": caller.handle}
        store.configure_run(ids["configure"], FLOW, "t", timeout=timeout, **options)
        store.configure_runs([RunConfiguration(ids["batch"], FLOW, "t", timeout=timeout)], **options)
        store.start_run(FLOW, "t", run_id=ids["start"], timeout=timeout, **options)
        store.reopen_run(ended, timeout=timeout, **options)
        store.heartbeat(beating, timeout=ten_seconds, **options)
        store.mark_timed_out(marked, **options)
        store.request_cancel(cancelled, **options)
        store.complete_run(completed, **options)
        store.extend_deadline(extended, timeout=timeout, **options)
        deadlines = [record_of(store, run_id, **options).timeout_at_utc for run_id in (*ids.values(), ended, extended)]
        stamps = [
            record_of(store, marked, **options).timed_out_at_utc,
            record_of(store, cancelled, **options).cancel_requested_at_utc,
            record_of(store, completed, **options).completed_at_utc,
        ]
        renewed = record_of(store, beating, **options).timeout_at_utc
        caller.commit()
    assert all(d is not None and d >= then + timeout for d in deadlines)
    assert all(s is not None and s >= then for s in stamps)
    assert renewed is not None
    assert renewed >= then + ten_seconds


@pytest.mark.contract("A-1")
def test_the_clock_of_the_process_is_not_asked(store: FlowRunControlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the process's clock three days off, deadlines and stamps are those of the database."""
    real = datetime.now(UTC)
    monkeypatch.setattr("time.time", lambda: real.timestamp() + 3 * 86400)
    monkeypatch.setattr("time.time_ns", lambda: int((real.timestamp() + 3 * 86400) * 1e9))
    started = store.start_run(FLOW, "t", f"key-{uuid4()}", timeout=HOUR)
    store.request_cancel(started.run_id)
    record = record_of(store, started.run_id)
    assert record.timeout_at_utc is not None
    assert record.cancel_requested_at_utc is not None
    assert abs(record.timeout_at_utc - HOUR - real) < timedelta(minutes=1)
    assert abs(record.cancel_requested_at_utc - real) < timedelta(minutes=1)


def days_until_the_offset_changes(zone: str) -> int:
    """How many days from now the first day lies that has another offset than today."""
    now = datetime.now(ZoneInfo(zone))
    return next(n for n in range(1, 400) if (now + timedelta(days=n)).utcoffset() != now.utcoffset()) + 1


@pytest.mark.contract("A-2")
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_a_timeout_across_a_change_of_summer_time(facade: Facade, zone: str) -> None:
    """A timeout of some days is so many times 24 hours, also where the session's zone changes its offset meanwhile."""
    timeout = timedelta(days=days_until_the_offset_changes(zone))
    configured, batched = uuid4(), uuid4()
    with facade.begin() as caller:
        caller.sql(f"SET LOCAL TimeZone = '{zone}'")
        facade.store.configure_run(configured, FLOW, "t", timeout=timeout, connection=caller.handle)
        facade.store.configure_runs([RunConfiguration(batched, FLOW, "t", timeout=timeout)], connection=caller.handle)
        caller.commit()
    for run_id in (configured, batched):
        record = record_of(facade.store, run_id)
        assert record.timeout_at_utc is not None
        assert abs(record.timeout_at_utc - record.created_at_utc - timeout) < timedelta(minutes=1)


@pytest.mark.contract("F-2", "A-4")
@pytest.mark.parametrize(
    "moment",
    [
        datetime(2000, 1, 1, tzinfo=UTC),
        datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2030, 1, 1, 3, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        datetime(1999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=1))),
        datetime(2026, 3, 29, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    ],
    ids=str,
)
def test_a_moment_is_the_moment_it_is_in_utc(store: FlowRunControlStore, moment: datetime) -> None:
    """Any zone, fold or gap: the record shows the same instant in UTC, to the microsecond, in every way of arming."""
    first, second, third = uuid4(), uuid4(), uuid4()
    store.configure_run(first, FLOW, "t", timeout_at_utc=moment)
    store.configure_runs([RunConfiguration(second, FLOW, "t", timeout_at_utc=moment)])
    store.start_run(FLOW, "t", run_id=third)
    store.extend_deadline(third, moment)
    for run_id in (first, second, third):
        shown = record_of(store, run_id).timeout_at_utc
        assert shown == moment.astimezone(UTC)
        assert shown.tzinfo is UTC


@pytest.mark.contract("F-5")
@pytest.mark.parametrize("style", DATE_STYLES)
@pytest.mark.parametrize("zone", SESSIONS)
def test_times_are_in_utc_whatever_the_session(open_facade: OpenFacade, rows: Rows, zone: str, style: str) -> None:
    """The session's TimeZone and DateStyle change neither what is written nor what is read, joined or not."""
    moment = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    options = f"-c timezone={zone} -c datestyle={style.replace(' ', '')}"
    facade = open_facade(connect_args={"options": options})
    run_id, marked = uuid4(), rows.insert("timed_out_after_cancel")
    facade.store.configure_run(run_id, FLOW, "t", timeout_at_utc=moment)
    assert rows.sql(
        "SELECT timeout_at_utc = timestamptz '2031-02-03 04:05:06.000789+00' FROM flow_run_controls WHERE run_id = :r",
        r=run_id,
    ) == [(True,)]
    with facade.begin() as caller:
        records = [record_of(facade.store, run_id), record_of(facade.store, run_id, connection=caller.handle)]
    assert [r.timeout_at_utc for r in records] == [moment, moment]
    record, now = record_of(facade.store, marked), datetime.now(UTC)
    assert (record.created_at_utc.tzinfo, record.timed_out_at_utc and record.timed_out_at_utc.tzinfo) == (UTC, UTC)
    assert abs(record.created_at_utc - now) < timedelta(minutes=1)
    facade.close()


@pytest.mark.contract("F-5")
def test_a_zone_that_the_caller_sets_later(facade: Facade) -> None:
    """A caller who changes zone and style in the open transaction reads the same record before and after."""
    run_id = uuid4()
    with facade.begin() as caller:
        facade.store.configure_run(run_id, FLOW, "t", timeout=HOUR, connection=caller.handle)
        before = record_of(facade.store, run_id, connection=caller.handle)
        caller.sql("SET LOCAL TimeZone = 'Asia/Kathmandu'")
        caller.sql("SET LOCAL DateStyle = 'SQL, DMY'")
        assert record_of(facade.store, run_id, connection=caller.handle) == before


@pytest.mark.contract("F-3", "F-4")
@pytest.mark.parametrize("odd", ODD)
def test_odd_times_of_others_can_be_read(store: FlowRunControlStore, rows: Rows, odd: str) -> None:
    """Every time column of a record shows an inexpressible time as the nearest that Python has."""
    names = ("timeout", "cancel_requested", "timed_out", "created", "completed")
    run_id = rows.insert("active", **{f"{name}_at_utc": odd for name in names})
    record = record_of(store, run_id)
    assert [getattr(record, f"{name}_at_utc") for name in names] == [ODD[odd]] * 5


@pytest.mark.contract("F-3", "E-2", "E-5", "E-6", "A-4")
def test_odd_deadlines_do_not_break_a_claim(store: FlowRunControlStore, rows: Rows) -> None:
    """-infinity and years before 1 are overdue and marked with the rest; infinity and far years never fall due."""
    run_ids = {odd: rows.insert("active", timeout_at_utc=odd) for odd in ODD}
    run_ids |= {state: rows.insert(state) for state in ("overdue", "active", "disarmed", "cancelled", "completed")}
    before = {name: rows.row(run_id) for name, run_id in run_ids.items()}
    due = {odd for odd, shown in ODD.items() if shown == FIRST} | {"overdue"}
    with rows.engine.connect() as connection:
        marked = claim_overdue(connection, tables_in("public"), limit=1000)
        ahead = look_ahead(connection, tables_in("public"))
    assert {run.run_id for run in marked} & set(run_ids.values()) == {run_ids[name] for name in due}
    assert [run.deadline for run in marked] == sorted(run.deadline for run in marked)
    assert {run.deadline for run in marked if run.run_id != run_ids["overdue"]} >= {FIRST}
    assert ahead.overdue is False
    assert ahead.next_due_in is not None
    for name, run_id in run_ids.items():
        if name in due:
            record = record_of(store, run_id)
            assert record.cancel_reason == "Run exceeded its timeout deadline."
            assert record.cancel_requested_at_utc == record.timed_out_at_utc is not None
        else:
            assert rows.changed(before[name], run_id) == set(), name


@pytest.mark.contract("F-3", "W-3", "H-2")
def test_odd_deadlines_and_the_other_methods(store: FlowRunControlStore, rows: Rows) -> None:
    """A run due since ever is stopped and not renewed; one that is never due goes on, is extended and cancelled."""
    since_ever, never = rows.insert("active", timeout_at_utc="'-infinity'"), rows.insert(timeout_at_utc="'infinity'")
    assert store.heartbeat(since_ever, timeout=HOUR) is False
    with pytest.raises(RunTimedOut) as raised:
        store.ensure_may_run(since_ever)
    assert raised.value.record.timeout_at_utc == FIRST
    assert store.ensure_may_run(never) is not None
    assert store.heartbeat(never, timeout=HOUR) is True
    assert store.extend_deadline(since_ever, timeout=HOUR) is True
    assert store.ensure_may_run(since_ever) is not None
    assert store.complete_run(never) is True
