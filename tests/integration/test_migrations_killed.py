"""Migrations that were killed: at every statement, in the middle of an index build, and by SIGKILL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import NullPool

from curfew_store import migrate as migrate_module
from curfew_store.migrate import upgrade
from curfew_store.migrations import steps
from curfew_store.version import LATEST
from tests.conftest import Database
from tests.integration.sessions import Onlooker, eventually, in_background, onlooker
from tests.integration.shapes import MIGRATED, shape_of
from tests.integration.upstream import STARTUP_BATCH

_BUILDING = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE %s AND wait_event_type = 'Lock'"
)


def _engine_killed_at(database: Database, admin: Onlooker, statement_number: int) -> tuple[Engine, list[str]]:
    """An engine whose backend is ended before the given statement, and the statements that it sent."""
    engine = create_engine(database.url, poolclass=NullPool)
    sent: list[str] = []

    def kill(conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if len(sent) == statement_number:
            admin.terminate(conn.connection.driver_connection.info.backend_pid)
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", kill)
    return engine, sent


@pytest.mark.contract("T-4")
@pytest.mark.parametrize("adopted", [False, True], ids=["from nothing", "adopting"])
def test_a_migration_killed_at_any_statement_ends_right_when_run_again(empty_database: Database, adopted: bool) -> None:
    """Whichever statement the server's process died before, the next run makes what the contract says."""
    number = 0
    finished = False
    with onlooker(empty_database.conninfo) as admin:
        while not finished:
            schema = f"killed_at_{number}"
            if adopted:
                admin.rows(f"CREATE SCHEMA {schema}")
                admin.rows(f"SET search_path = {schema}; {STARTUP_BATCH}".replace("%", "%%"))
                admin.rows(f"INSERT INTO {schema}.flow_run_controls (run_id) SELECT gen_random_uuid()")
            engine, sent = _engine_killed_at(empty_database, admin, number)
            try:
                upgrade(engine, schema=schema)
                finished = True
            except sqlalchemy.exc.DBAPIError as error:
                assert error.connection_invalidated, f"{sent[-1]} failed for another reason"  # noqa: PT017
                assert upgrade(empty_database.engine, schema=schema)[1] == LATEST
            assert shape_of(empty_database.engine, schema) == MIGRATED, sent[number : number + 1]
            assert admin.ask(f"SELECT count(*) FROM {schema}.flow_run_controls") == int(adopted)
            number += 1
    assert len(sent) == number - 1
    assert sum("CONCURRENTLY" in statement for statement in sent) == (1 if adopted else 2)


@contextmanager
def _unfinished_build(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A schema that lacks the armed index, and a writer's open transaction that any build waits for."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql("DROP INDEX ix_flow_run_controls_armed")
        conn.exec_driver_sql("DELETE FROM curfew_schema_version")
    with psycopg.connect(database.conninfo) as writer:
        writer.execute("INSERT INTO flow_run_controls (run_id) SELECT gen_random_uuid()")
        yield writer
        writer.rollback()


def _armed_index_is_valid(database: Database) -> bool | None:
    indexes = shape_of(database.engine)["indexes"]
    state = indexes.get("ix_flow_run_controls_armed")
    return None if state is None else bool(state[0])


def _pid_of_build(admin: Onlooker) -> int:
    eventually(lambda: admin.ask(_BUILDING, "CREATE INDEX CONCURRENTLY%"), "the build waits for the writer")
    return int(admin.ask(_BUILDING, "CREATE INDEX CONCURRENTLY%"))


def test_an_invalid_index_left_by_a_killed_build_is_replaced(database: Database) -> None:
    """A build that died leaves an invalid index of our name; the next run drops it and builds a valid one."""
    with _unfinished_build(database) as writer, onlooker(database.conninfo) as admin:
        with in_background(lambda: upgrade(database.engine)) as killed:
            admin.terminate(_pid_of_build(admin))
            assert isinstance(killed.exception(), sqlalchemy.exc.OperationalError)
        assert _armed_index_is_valid(database) is False
        writer.rollback()
    assert upgrade(database.engine) == (None, LATEST)
    assert shape_of(database.engine) == MIGRATED


_BUILT_FOR_LONG = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE %s "
    "AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '200 ms'"
)


def test_a_build_waits_once_for_an_older_transaction(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it lasts, one build sits it out, and what it waits for is told before."""
    monkeypatch.setattr(migrate_module, "DDL_LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(steps, "LOCK_ATTEMPTS", 2)
    builds: list[str] = []
    told: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: builds.append(args[2]))
    with (
        _unfinished_build(database) as writer,
        onlooker(database.conninfo) as admin,
        in_background(lambda: upgrade(database.engine, tell=told.append)) as migration,
    ):
        eventually(
            lambda: migration.done() or admin.ask(_BUILT_FOR_LONG, "CREATE INDEX CONCURRENTLY%"),
            "the build has waited for longer than any other lock is waited for",
        )
        writer.rollback()
        assert migration.result() == (None, LATEST)
    assert sum("CONCURRENTLY" in statement for statement in builds) == 1
    assert [line for line in told if "older have to end first" in line] == told
    assert "public.ix_flow_run_controls_armed" in told[0]
    assert shape_of(database.engine) == MIGRATED


def test_only_builds_wait_for_locks_without_a_bound(empty_database: Database) -> None:
    """Whatever others would queue behind keeps the bound, also after a build."""
    bounds: dict[bool, set[str]] = {True: set(), False: set()}

    def note(conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(("CREATE", "ALTER", "DROP", "DO")):
            bound = conn.connection.driver_connection.execute("SHOW lock_timeout").fetchone()[0]
            bounds["CONCURRENTLY" in statement].add(bound)

    event.listen(empty_database.engine, "before_cursor_execute", note)
    upgrade(empty_database.engine)
    with empty_database.engine.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_flow_run_controls_armed'::regclass"
        )
    assert upgrade(empty_database.engine) == (LATEST, LATEST)
    assert bounds == {True: {"0"}, False: {migrate_module.DDL_LOCK_TIMEOUT}}
    assert shape_of(empty_database.engine) == MIGRATED


_PROCESS = """
import sys
from sqlalchemy import create_engine
from curfew_store.migrate import upgrade
from curfew_store.version import LATEST
upgrade(create_engine(sys.argv[1]))
"""


def test_the_successor_of_a_process_killed_in_a_build_waits_for_its_backend(database: Database) -> None:
    """SIGKILL leaves the server at work on the index; the next migration waits for that and ends right."""
    waiting: list[None] = []
    with _unfinished_build(database) as writer, onlooker(database.conninfo) as admin:
        process = subprocess.Popen([sys.executable, "-c", _PROCESS, database.url])
        _pid_of_build(admin)
        process.kill()
        process.wait()

        def release() -> None:
            waiting.append(None)
            writer.rollback()

        assert upgrade(database.engine, on_wait=release)[1] == LATEST
    assert waiting == [None]
    assert shape_of(database.engine) == MIGRATED
