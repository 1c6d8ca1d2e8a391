"""One run that the database refuses to mark keeps none of the others from being marked."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy.exc
from sqlalchemy import Connection
from typer.testing import CliRunner

from curfew_daemon.cli import app
from curfew_daemon.isolation import Isolation
from curfew_daemon.lifecycle import Exit
from curfew_daemon.once import sweep_until_done
from curfew_daemon.passes import MOST_VANISHED
from curfew_daemon.results import MarkedBatch
from curfew_daemon.sweeper import Sweeper
from curfew_store import enforcement
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.faults.daemons import DaemonProcess
from tests.integration.contract.rows import Rows
from tests.integration.sessions import eventually
from tests.integration.settings import settings_for

TABLES = tables_in("public")


class Bench:
    """A sweeper, what it marked, and what was refused; the clock of its isolation is set by hand."""

    def __init__(self, conn: Connection, batch_size: int = 500) -> None:
        self.now = 0.0
        self.marked: set[UUID] = set()
        self.refused: list[UUID] = []
        self.beats = 0
        self.sweeper = Sweeper(
            TABLES,
            lambda: conn,
            batch_size=lambda: batch_size,
            on_batch=self._batch,
            beat=self._beat,
            isolation=Isolation(lambda run, _pause, _error: self.refused.append(run), clock=lambda: self.now),
        )

    def _batch(self, batch: MarkedBatch) -> None:
        self.marked |= {run.run_id for run in batch.runs}

    def _beat(self) -> None:
        self.beats += 1


def poison(rows: Rows, *runs: UUID) -> None:
    """A trigger that raises for these runs."""
    rows.sql("CREATE TABLE poisoned (run_id uuid)")
    for run in runs:
        rows.sql("INSERT INTO poisoned VALUES (:run)", run=run)
    rows.sql(
        "CREATE FUNCTION raise_on_poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT FROM public.poisoned WHERE run_id = OLD.run_id) THEN RAISE EXCEPTION 'poison'; END IF;"
        " RETURN NEW; END $$"
    )
    rows.sql("CREATE TRIGGER poison BEFORE UPDATE ON flow_run_controls FOR EACH ROW EXECUTE FUNCTION raise_on_poison()")


def overdue(rows: Rows, count: int) -> list[UUID]:
    """Overdue runs, the earliest first."""
    return [rows.insert(timeout_at_utc=f"now() - interval '{count - n} seconds'") for n in range(count)]


@pytest.mark.parametrize("place", [0, 7, 19], ids=["first", "middle", "last"])
def test_a_run_that_is_refused_keeps_no_other_from_being_marked(rows: Rows, conn: Connection, place: int) -> None:
    """Wherever it lies in the batch: the same sweep marks all others and tells which one was refused."""
    runs = overdue(rows, 20)
    poison(rows, runs[place])
    bench = Bench(conn)
    before = rows.row(runs[place])

    result = bench.sweeper.run_once()

    assert bench.marked == set(runs) - {runs[place]}
    assert bench.refused == [runs[place]]
    assert result.marked == 19
    assert result.overdue_remains
    assert rows.changed(before, runs[place]) == set()


def test_runs_that_others_hold_are_not_blamed(rows: Rows, conn: Connection) -> None:
    """Ahead of the run at fault lie locked ones, which the claim passed over: marked as soon as they are free."""
    runs = overdue(rows, 6)
    poison(rows, runs[3])
    bench = Bench(conn)
    with rows.held(f"SELECT 1 FROM flow_run_controls WHERE run_id IN ('{runs[0]}', '{runs[1]}') FOR UPDATE"):
        bench.sweeper.run_once()
        assert bench.refused == [runs[3]]
        assert bench.marked == {runs[2], runs[4], runs[5]}
    bench.sweeper.run_once()
    assert bench.marked == set(runs) - {runs[3]}


def test_a_trigger_of_the_whole_statement_blames_no_run(rows: Rows, conn: Connection) -> None:
    """It raises for any claim, so the sweep fails as a whole, and marks everything once the trigger is gone."""
    runs = overdue(rows, 3)
    rows.sql("CREATE FUNCTION frozen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'frozen'; END $$")
    rows.sql("CREATE TRIGGER frozen BEFORE UPDATE ON flow_run_controls EXECUTE FUNCTION frozen()")
    bench = Bench(conn)
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="frozen"):
        bench.sweeper.run_once()
    assert bench.refused == []
    rows.sql("DROP TRIGGER frozen ON flow_run_controls")
    bench.sweeper.run_once()
    assert bench.marked == set(runs)


def test_a_run_at_fault_that_is_gone_when_it_is_looked_for(
    rows: Rows, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few times that may happen; then the sweep fails and does not go on for ever."""
    poison(rows, *overdue(rows, 1))
    bench = Bench(conn)
    looks: list[None] = []
    monkeypatch.setattr(enforcement, "first_due", lambda *_args, **_named: looks.append(None))
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="poison"):
        bench.sweeper.run_once()
    assert len(looks) == MOST_VANISHED + 1
    assert bench.refused == []


def test_batches_that_take_too_long_get_smaller(rows: Rows, conn: Connection) -> None:
    """Where a row takes its time, a batch that the server cancelled is tried again with fewer runs, sweep by sweep."""
    runs = overdue(rows, 60)
    rows.sql(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$"
    )
    rows.sql("CREATE TRIGGER dawdle BEFORE UPDATE ON flow_run_controls FOR EACH ROW EXECUTE FUNCTION dawdle()")
    bench = Bench(conn, batch_size=64)
    conn.exec_driver_sql("SET statement_timeout = '300ms'")
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="statement timeout"):
        bench.sweeper.run_once()
    assert not bench.marked
    for _ in range(20):  # one that has grown too large fails again, with what the ones before it marked
        with contextlib.suppress(sqlalchemy.exc.DBAPIError):
            bench.sweeper.run_once()
        if bench.marked == set(runs):
            break
    assert bench.marked == set(runs)


def test_several_refused_runs_are_each_found(rows: Rows, conn: Connection) -> None:
    """Neighbours too, and in batches of any size."""
    runs = overdue(rows, 30)
    bad = {runs[3], runs[4], runs[17], runs[29]}
    poison(rows, *bad)
    bench = Bench(conn, batch_size=6)
    bench.sweeper.run_once()
    assert bench.marked == set(runs) - bad
    assert set(bench.refused) == bad


def test_batches_grow_again_behind_a_refused_run(rows: Rows, conn: Connection) -> None:
    """300 runs behind it take a few claims, not one each."""
    runs = overdue(rows, 300)
    poison(rows, runs[0])
    bench = Bench(conn)
    result = bench.sweeper.run_once()
    assert bench.marked == set(runs[1:])
    assert result.batches < 12


def test_while_it_is_set_aside_a_refused_run_costs_no_attempt(rows: Rows, conn: Connection) -> None:
    """The next sweep marks what fell due since, in one batch, and refuses nothing again."""
    runs = overdue(rows, 3)
    poison(rows, runs[0])
    bench = Bench(conn)
    bench.sweeper.run_once()
    new = rows.insert(timeout_at_utc="now()")
    result = bench.sweeper.run_once("deadline")
    assert new in bench.marked
    assert bench.refused == [runs[0]]
    assert result.batches == 1


def test_a_refused_run_is_marked_once_its_fault_is_gone(rows: Rows, conn: Connection) -> None:
    """After its pause it is tried again, and marked like any other."""
    runs = overdue(rows, 3)
    poison(rows, runs[1])
    bench = Bench(conn)
    bench.sweeper.run_once()
    rows.sql("DELETE FROM poisoned")
    bench.sweeper.run_once()
    assert runs[1] not in bench.marked
    bench.now += 1.0
    assert not bench.sweeper.run_once().overdue_remains
    assert bench.marked == set(runs)


def test_the_loop_beats_between_the_attempts(rows: Rows, conn: Connection) -> None:
    """Finding the run at fault takes several statements, and each is followed by a beat."""
    runs = overdue(rows, 2)
    quiet = Bench(conn)
    quiet.sweeper.run_once()
    runs = overdue(rows, 2)
    poison(rows, runs[0])
    bench = Bench(conn)
    bench.sweeper.run_once()
    assert bench.beats >= quiet.beats + 4  # 500, 62, 7 and 1 run


def test_an_error_that_is_no_rows_fault_ends_the_sweep(rows: Rows, conn: Connection) -> None:
    """A table that is missing is not searched for a run at fault."""
    bench = Bench(conn)
    rows.sql("ALTER TABLE flow_run_controls RENAME TO elsewhere")
    with pytest.raises(sqlalchemy.exc.ProgrammingError):
        bench.sweeper.run_once("deadline")
    assert bench.refused == []


def test_a_claim_that_skips_runs_keeps_to_its_index(rows: Rows, conn: Connection) -> None:
    """Leaving runs out costs no other plan."""
    rows.sql(
        "INSERT INTO flow_run_controls (run_id, timeout_at_utc) SELECT gen_random_uuid(), now() - interval '1 hour'"
        " + n * interval '1 ms' FROM generate_series(1, 3000) n"
    )
    skipped = [row[0] for row in rows.sql("SELECT run_id FROM flow_run_controls ORDER BY timeout_at_utc LIMIT 3")]
    first = enforcement.first_due(conn, TABLES, skipping=skipped)
    claimed = enforcement.claim_overdue(conn, TABLES, limit=5, skipping=skipped)
    assert claimed[0].run_id == first
    assert not {run.run_id for run in claimed} & set(skipped)
    sql, constants = enforcement._claim_text(TABLES, continued=False, skipping=True)
    plan = conn.exec_driver_sql(f"EXPLAIN {sql}", constants | {"limit": 500, "skipping": skipped}).scalars().all()
    assert "ix_flow_run_controls_armed" in "\n".join(plan)


def test_once_says_which_run_is_refused(rows: Rows, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """`curfewd once` marks the others, names the one that the database refuses, and exits with a failure."""
    runs = overdue(rows, 3)
    poison(rows, runs[1])
    outcome = sweep_until_done(settings_for(database), patience=0)
    assert (outcome.marked, outcome.overdue_remains) == (2, True)
    assert dict(outcome.refused) == {runs[1]: "poison"}
    monkeypatch.setenv("CURFEW_DATABASE_URL", database.conninfo)
    shown = CliRunner().invoke(app, ["once", "--wait", "1s"])
    assert shown.exit_code == Exit.FAILURE
    assert f"the database refuses to mark 1 overdue runs, {runs[1]} first: poison" in shown.stderr


def test_a_running_daemon_says_and_counts_what_is_refused(rows: Rows, database: Database, tmp_path: Path) -> None:
    """The event names the run and the error, the counter counts it, and a run due later is marked in time."""
    runs = overdue(rows, 2)
    poison(rows, runs[0])
    with DaemonProcess("isolating", database.conninfo, tmp_path, {}) as daemon:
        daemon.wait_until_ready()
        late = rows.insert(timeout_at_utc="now() + interval '200 milliseconds'")
        eventually(lambda: (rows.row(late) or {})["timed_out_at_utc"] is not None, "the later run is marked")
        eventually(lambda: '"run_refused"' in daemon.log.read_text(), "the refusal is told")
        said = next(json.loads(line) for line in daemon.log.read_text().splitlines() if "run_refused" in line)
        assert (said["run_id"], said["level"], said["retry_in_s"]) == (str(runs[0]), "error", 1.0)
        assert "poison" in said["error"]
        counted = [
            line for line in daemon.page("/metrics").splitlines() if line.startswith("curfew_marks_refused_total")
        ]
        assert float(counted[0].split()[1]) >= 1
        assert daemon.page("/readyz")
    assert (rows.row(runs[1]) or {})["timed_out_at_utc"] is not None
