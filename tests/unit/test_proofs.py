"""The proofs' own parts: the judge is seen to find what is planted, the load and the arithmetic to be right."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, text

from curfew_store import FlowRunControlStore, RunState, enforcement
from curfew_store.schema import tables_in
from tests.bench import proof_lag
from tests.bench.lag import Lag, percentile
from tests.bench.load import Load, produce
from tests.conftest import Database
from tests.faults import audit, runs
from tests.faults.plants import ONE_BYSTANDER, ONE_EXPECTED, PLANTS, plant

ROOT = Path(__file__).resolve().parents[2]
OVERDUE, OTHERS = 6, 10


@pytest.fixture
def proven(database: Database) -> Iterator[Connection]:
    """A database on which all went well: overdue runs were marked by the daemon's claim, others left alone."""
    store, rng = FlowRunControlStore(database.engine), random.Random(1)
    with database.engine.begin() as conn:
        audit.install(conn)
        now = runs.database_now(conn)
        runs.add_bystanders(store, conn, rng, OTHERS, now)
        runs.arm(store, conn, [(uuid4(), now - timedelta(seconds=number + 1)) for number in range(OVERDUE)])
    with database.engine.begin() as conn:
        conn.exec_driver_sql("TRUNCATE proof.change")
        audit.snapshot(conn)
    with database.engine.begin() as conn:
        enforcement.claim_overdue(conn, tables_in("public"), limit=100)
    with database.engine.connect() as conn:
        yield conn


def test_judge_passes_runs_that_were_marked_once(proven: Connection) -> None:
    """A database on which all went well passes, and the verdict says how much was judged."""
    verdict = audit.judge(proven)
    assert verdict.ok
    assert (verdict.expected, verdict.marked, verdict.bystanders) == (OVERDUE, OVERDUE, OTHERS)
    assert audit.unmarked(proven) == 0


@pytest.mark.parametrize("fault", sorted(PLANTS))
def test_judge_finds_each_planted_fault(proven: Connection, fault: str) -> None:
    """One planted fault of a kind is one in the count of its kind and in no other."""
    plant(proven, fault)
    verdict = audit.judge(proven)
    assert not verdict.ok
    counts = {kind: getattr(verdict, kind) for kind in PLANTS}
    assert counts == dict.fromkeys(PLANTS, 0) | {fault: 1}


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        (f"DELETE FROM flow_run_controls WHERE {ONE_BYSTANDER}", "touched"),
        ("INSERT INTO flow_run_controls (run_id) VALUES (gen_random_uuid())", "touched"),
        (f"DELETE FROM flow_run_controls WHERE {ONE_EXPECTED}", "missed"),
        (f"DELETE FROM proof.change WHERE {ONE_EXPECTED}", "missed"),
        (f"UPDATE flow_run_controls SET timed_out_at_utc = now() WHERE {ONE_EXPECTED}", "twice"),
        (f"UPDATE flow_run_controls SET timeout_at_utc = now() WHERE {ONE_EXPECTED}", "wrong"),
    ],
    ids=["bystander deleted", "row from nowhere", "run deleted", "mark not audited", "stamped again", "deadline moved"],
)
def test_judge_finds_other_ways_to_go_wrong(proven: Connection, statement: str, fault: str) -> None:
    """What no daemon should ever do is found too, each under its own count."""
    proven.execute(text(statement))
    verdict = audit.judge(proven)
    assert not verdict.ok
    assert getattr(verdict, fault) == 1


def test_judge_finds_a_bystander_that_changed_behind_the_audit(proven: Connection) -> None:
    """A row that is as before in content, but was written again, is found by its xmin alone."""
    proven.exec_driver_sql("ALTER TABLE flow_run_controls DISABLE TRIGGER record_change")
    plant(proven, "touched")
    assert audit.judge(proven).touched == 1


def test_judge_does_not_pass_where_nothing_was_expected(database: Database) -> None:
    """An empty proof proves nothing."""
    with database.engine.begin() as conn:
        audit.install(conn)
        assert not audit.judge(conn).ok


def test_bystanders_are_of_every_kind_and_due_but_for_their_latch(proven: Connection) -> None:
    """Each kind of other runs is there, and the latched ones have lapsed deadlines."""
    rows = proven.exec_driver_sql(
        "SELECT trigger_key, run_id, timeout_at_utc < now() AS lapsed FROM flow_run_controls"
        " WHERE trigger_key <> 'overdue'"
    ).all()
    store, found = FlowRunControlStore(proven.engine), set()
    for row in rows:
        record = store.get_run_control(row.run_id)
        assert record is not None
        found.add((row.trigger_key, record.state, row.lapsed))
    assert found == {
        ("live", RunState.ACTIVE, False),
        ("deadline-free", RunState.ACTIVE, None),
        ("cancelled", RunState.CANCEL_REQUESTED, True),
        ("completed", RunState.COMPLETED, True),
        ("timed-out", RunState.TIMED_OUT, True),
    }


@pytest.mark.parametrize("count", [1, 7, 250, 1000])
def test_plan_of_runs_follows_from_the_seed(count: int) -> None:
    """The same seed gives the same runs, as many as asked for and none twice; another seed others."""
    now = datetime(2030, 1, 1, tzinfo=UTC)
    armed, batches = runs.planned(random.Random(5), count, now, 10.0)
    ids = [run for run, _ in armed] + [run for batch in batches for run, _ in batch]
    assert len(ids) == len(set(ids)) == count
    assert (armed, batches) == runs.planned(random.Random(5), count, now, 10.0)
    assert (armed, batches) != runs.planned(random.Random(6), count, now, 10.0)


def test_feed_repeats_what_an_outage_interrupted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose connection is cut is armed again, and each run is expected once."""
    store, whole = FlowRunControlStore(database.engine), runs.arm
    cut: list[int] = []

    def cut_once(store: FlowRunControlStore, conn: Connection, batch: list[runs.Run]) -> None:
        whole(store, conn, batch)
        if not cut:
            cut.append(1)
            conn.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    with database.engine.begin() as conn:
        audit.install(conn)
        _, batches = runs.planned(random.Random(1), 500, runs.database_now(conn), 0.01)
    monkeypatch.setattr(runs, "arm", cut_once)
    assert runs.feed(database.engine, store, batches, 0.01) == 1
    with database.engine.connect() as conn:
        assert audit.judge(conn).expected == audit.unmarked(conn) == 250


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0], 0.5, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
        ([float(number) for number in range(1, 101)], 0.99, 99.0),
        ([float(number) for number in range(1, 101)], 0.07, 7.0),
        ([1.0, 2.0], 0.99, 2.0),
        ([1.0, 2.0], 1.0, 2.0),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[float], share: float, expected: float) -> None:
    """The smallest value that at least that share does not exceed, whatever the order."""
    assert percentile(values, share) == expected


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_percentile_of_nothing_is_an_error(values: list[float], share: float) -> None:
    """No values, or a share outside of its range, have no percentile."""
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)


def test_load_spaces_deadlines_evenly_even_where_arming_is_slow() -> None:
    """Deadlines follow the schedule, not the calls; a producer that falls behind shows in the least lead."""
    calls: list[tuple[UUID, datetime]] = []

    def slow_once(run_id: UUID, deadline: datetime) -> None:
        calls.append((run_id, deadline))
        if len(calls) == 3:
            time.sleep(0.1)

    produced = produce(Load(rate=200, seconds=0.05, ahead=1.0), slow_once)
    gaps = {round((late - early).total_seconds(), 4) for (_, early), (_, late) in pairwise(calls)}
    assert (len(calls), gaps) == (10, {0.005})
    assert produced.runs == calls
    assert 0.5 < min(produced.leads) < 0.91 < max(produced.leads)


def test_table_shows_a_side_without_figures_and_the_ratio() -> None:
    """Missing figures are dashes, present ones milliseconds, and the ratio is of what both sides have."""
    ours = Lag(100, 100, 0, 0.002, 0.004, 0.01, 0, 0, 0, 0, 4.99)
    theirs = Lag(100, 50, 7, 0.02, None, None, 3, 0, 0, 50, -4.5)
    lines = proof_lag.table({"curfewd": ours, "apscheduler": theirs})
    assert lines[1].split()[3:] == ["100", "100.0%", "2.0", "4.0", "10.0", "0", "0", "0", "0", "0", "4.99", "s"]
    assert lines[2].split()[-11:] == ["50.0%", "20.0", "-", "-", "3", "0", "0", "50", "7", "-4.50", "s"]
    assert lines[3].split()[-3:] == ["x10.0", "-", "-"]


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as make runs it."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_proof_once_fails_for_a_planted_fault_alone() -> None:
    """A small real proof, with kills and both restarts, finds the one fault that was planted, and exits with 1."""
    small = ("--overdue", "300", "--bystanders", "50", "--seconds", "2")
    done = run("tests.faults.proof_once", *small, "--plant", "touched")
    verdict = done.stdout.splitlines()[-1]
    assert verdict.startswith("proof-once: FAIL seed=1 marked=300 twice=0 early=0 missed=0 touched=1 wrong=0"), done
    assert "restarts=2 (fast+immediate)" in verdict
    assert done.returncode == 1


def test_proof_lag_measures_both_sides(tmp_path: Path) -> None:
    """A small real measurement marks every run on both sides, prints the table and writes the figures."""
    figures = tmp_path / "lag.json"
    small = ("--rate", "20", "--seconds", "1", "--ahead", "1.5")
    done = run("tests.bench.proof_lag", *small, "--json", str(figures))
    assert done.returncode == 0, done
    assert "p99 ms" in done.stdout
    for lag in json.loads(figures.read_text())["sides"].values():
        assert (lag["n"], lag["marked"], lag["early"], lag["twice"], lag["missed"]) == (20, 20, 0, 0, 0)
        assert 0 < lag["p50"] <= lag["p99"] <= lag["max"]
