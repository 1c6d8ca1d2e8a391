"""An upgrade as the operator does it: migrate first, this release keeps working, then it is replaced.

The next release is played by one more revision of the tables; this one is itself, in processes and as functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from curfew_daemon.lifecycle import Exit
from curfew_store import SchemaMismatch
from curfew_store.testing import DatabaseTemplate
from curfew_store.version import LATEST
from tests.conftest import Database
from tests.e2e.conftest import Table
from tests.e2e.daemon_process import DaemonProcess, curfewd
from tests.integration.calls_of_roles import CALLS, STORE_CALLS, disconnect, is_allowed
from tests.integration.contract.facade import AsyncFacade, Facade, Loop, SyncFacade
from tests.integration.contract.rows import FLOW
from tests.integration.deployed_roles import deployed, lifecycle
from tests.integration.next_migration import NEXT, migrate_as_next_release
from tests.integration.sessions import in_background, onlooker, together
from tests.integration.shapes import catalogue_of, shape_of

FAILED_SWEEPS = 'curfew_sweeps_total{outcome="error"}'


@pytest.fixture
def rows(database: Database) -> Iterator[Table]:
    """The tables of the test's database, without the store."""
    seen = Table(database.url)
    yield seen
    seen.close()


@pytest.fixture(params=["sync", "async"])
def facades(request: pytest.FixtureRequest, database: Database) -> Iterator[list[Facade]]:
    """Two stores of one kind: one to be used before a change of the tables, one only after it."""
    loop = Loop()

    def opened() -> Facade:
        return SyncFacade(database.url) if request.param == "sync" else AsyncFacade(loop, database.url)

    both = [opened(), opened()]
    yield both
    for each in both:
        each.close()
    loop.close()


@pytest.fixture(autouse=True, scope="module")
def disconnected() -> Iterator[None]:
    """Give up the connections that the calls keep."""
    yield
    disconnect()


def running(database: Database) -> DaemonProcess:
    """A daemon that needs not be waited for long."""
    return DaemonProcess(database.conninfo, CURFEW_POLL_INTERVAL="0.2", CURFEW_RECONNECT_MAX="0.2")


def ask_for_client(rows: Table, minimum: int) -> None:
    """Write the lowest client that the schema serves, as a revision does that older releases cannot live with."""
    rows.sql("UPDATE curfew_schema_version SET minimum_client = :minimum", minimum=minimum)


def test_the_next_revision_adds_and_changes_nothing_else(database: Database, tmp_path: Path) -> None:
    """The stand-in is additive: one column and one index more, the rest and the minimum client as they were."""
    before = shape_of(database.engine)
    assert migrate_as_next_release(database.engine, tmp_path) == (LATEST, NEXT)
    after = shape_of(database.engine)
    *kept, added = after["columns"]["flow_run_controls"]
    assert added[0] == "priority"
    assert after["indexes"].pop("ix_flow_run_controls_priority")[0]
    assert after["versions"] == [(NEXT, 1)]
    assert after | {"columns": after["columns"] | {"flow_run_controls": kept}, "versions": [(LATEST, 1)]} == before


def test_every_call_of_a_store_works_on_the_next_schema(
    facades: list[Facade], database: Database, rows: Table, tmp_path: Path
) -> None:
    """Both façades, a store that was at work before the migration and one that is made after it."""
    facades[0].store.start_run(FLOW, "t")
    migrate_as_next_release(database.engine, tmp_path)
    for facade in facades:
        for name, call in STORE_CALLS.items():
            assert call(facade.store, rows), name


def test_every_function_of_the_daemon_works_on_the_next_schema(database: Database, rows: Table, tmp_path: Path) -> None:
    """The sweep and the observation beside it, `once`, `plan` and `check`."""
    migrate_as_next_release(database.engine, tmp_path)
    for name in ("curfewd run", "curfewd once", "curfewd plan", "curfewd check"):
        assert is_allowed(CALLS[name], database.conninfo, rows), name


def test_the_commands_of_this_release_leave_the_next_schema_alone(
    database: Database, rows: Table, tmp_path: Path
) -> None:
    """`check` and `once` do their work, and `migrate` calls the newer schema up to date and touches nothing."""
    migrate_as_next_release(database.engine, tmp_path)
    run = rows.insert("overdue")
    before = catalogue_of(database.engine)
    results = {each: curfewd(each, CURFEW_DATABASE_URL=database.conninfo) for each in ("check", "migrate", "once")}
    assert {each: result.returncode for each, result in results.items()} == dict.fromkeys(results, Exit.OK)
    assert f"schema public is at version {NEXT}" in results["check"].stdout
    assert results["migrate"].stdout == f"schema public is up to date at {NEXT}\n"
    assert "marked 1 runs" in results["once"].stdout
    rows.await_marked(run)
    assert catalogue_of(database.engine) == before


def test_a_running_daemon_marks_before_while_and_after_a_migration(
    database: Database, rows: Table, tmp_path: Path
) -> None:
    """Each run within its time, no failed sweep and no state but up, though a build of the migration is held up."""

    def mark_one() -> None:
        run = rows.insert(timeout_at_utc="now() + interval '200 ms'")
        rows.await_marked(run)
        assert 0 <= rows.lateness(run) < 2

    with running(database) as daemon, onlooker(database.conninfo) as admin:
        daemon.wait_up()
        mark_one()
        # A snapshot that is older than the index: the build waits for it, and keeps the column that is there already.
        with rows.engine.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
            reader.exec_driver_sql("SELECT 1")
            with in_background(lambda: migrate_as_next_release(database.engine, tmp_path)) as migration:
                admin.await_waiters(1)
                assert "priority" in (rows.row(rows.insert("completed")) or {})
                mark_one()
                assert not migration.done()
                reader.rollback()
                assert migration.result() == (LATEST, NEXT)
        mark_one()
        assert daemon.metric(FAILED_SWEEPS) == 0
        assert daemon.stop() == 0
    assert [line["new"] for line in daemon.said("database_state_changed")] == ["up"]
    assert {line["level"] for line in daemon.lines} == {"info"}


def test_a_daemon_that_was_rolled_back_starts_on_the_next_schema(
    database: Database, rows: Table, tmp_path: Path
) -> None:
    """This release, started when the tables are migrated already, is ready and marks, without a word of complaint."""
    migrate_as_next_release(database.engine, tmp_path)
    run = rows.insert("overdue")
    with running(database) as daemon:
        daemon.wait_page("/readyz", 200, "ok")
        rows.await_marked(run)
        assert daemon.stop() == 0
    assert {line["level"] for line in daemon.lines} == {"info"}


def test_the_roles_hold_between_the_migration_and_the_next_run_of_their_script(
    curfew_database: DatabaseTemplate, tmp_path: Path
) -> None:
    """Least privilege does not stop this release: with the new column there, and again once `roles.sql` was run."""
    with deployed(curfew_database) as deployment:
        assert migrate_as_next_release(deployment.engine("migrator"), tmp_path) == (LATEST, NEXT)
        lifecycle(deployment)
        again = deployment.run_script()
        assert (again.returncode, again.stderr) == (0, "")
        lifecycle(deployment)


def test_a_store_that_is_too_old_says_so(facades: list[Facade], database: Database, rows: Table) -> None:
    """A store that starts is refused with the remedy; one at work goes on; lowering the bar lets both work."""
    working, starting = (each.store for each in facades)
    run = working.start_run(FLOW, "t").run_id
    ask_for_client(rows, 2)
    with pytest.raises(SchemaMismatch, match="too old for: upgrade curfewd"):
        starting.get_run_control(run)
    assert working.get_run_control(run) is not None
    ask_for_client(rows, 1)
    assert starting.get_run_control(run) is not None


def test_commands_that_are_too_old_end_with_the_code_for_the_schema(database: Database, rows: Table) -> None:
    """Exit code 5, the remedy on the terminal, and nothing marked."""
    run = rows.insert("overdue")
    before = rows.row(run)
    ask_for_client(rows, 2)
    commands = ("once", "plan", "check", "migrate")
    results = together([partial(curfewd, each, CURFEW_DATABASE_URL=database.conninfo) for each in commands])
    for command, result in zip(commands, results, strict=True):
        assert result.returncode == Exit.SCHEMA, command
        assert "upgrade curfewd" in result.stdout + result.stderr, command
    assert not rows.changed(before, run)


def test_a_running_daemon_that_is_too_old_waits_and_resumes(database: Database, rows: Table) -> None:
    """From its next connection on it is alive, not ready, and marks nothing; with the bar lowered it goes on."""
    with running(database) as daemon, onlooker(database.conninfo) as admin:
        daemon.wait_up()
        ask_for_client(rows, 2)
        before = len(daemon.lines)
        admin.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'curfewd %%'")
        refused = daemon.wait_for("database_state_changed", after=before, new="schema_old")
        assert "upgrade curfewd" in refused["error"]
        assert daemon.wait_page("/readyz", 503, "schema_old")
        assert daemon.get("/healthz")[0] == 200
        run = rows.insert("overdue")
        untouched = rows.row(run)
        daemon.wait_sample(FAILED_SWEEPS, daemon.metric(FAILED_SWEEPS) + 2)
        assert not rows.changed(untouched, run)
        ask_for_client(rows, 1)
        daemon.wait_for("database_state_changed", after=before, new="up")
        rows.await_marked(run)
        daemon.wait_page("/readyz", 200)
        assert daemon.stop() == 0
