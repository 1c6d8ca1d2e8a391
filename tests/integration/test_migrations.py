"""Migrations: from nothing, repeated, by several at once, with locks in the way and without the rights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, text

from curfew_store import FlowRunControlStore, MigrationError, SchemaMismatch, StartedRun
from curfew_store import migrate as migrate_module
from curfew_store.enforcement import claim_overdue, look_ahead
from curfew_store.migrate import upgrade
from curfew_store.migrations import steps
from curfew_store.schema import tables_in
from curfew_store.testing import DatabaseTemplate
from curfew_store.version import CLIENT, LATEST, verify
from tests.conftest import Database
from tests.integration.roles import engine_as, new_role
from tests.integration.sessions import in_background, onlooker
from tests.integration.shapes import MIGRATED, catalogue_of, shape_of
from tests.integration.upstream import STARTUP_BATCH

SCHEMA_NAMES = [
    "Upper Case",
    'quo"te',
    "apo'strophe",
    "per%cent %s %(limit)s",
    "co:lon :limit ::text",
    "back\\slash \\: \\",
    "select",
    "dot.ted",
    "semi;colon -- comment",
    "new\nline",
    "é" * 31 + "x",
]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that gives up at once on any lock that it would have to wait for."""
    monkeypatch.setattr(migrate_module, "DDL_LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(steps, "LOCK_ATTEMPTS", 1)


@pytest.fixture
def holder(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """Another session in a transaction of its own."""
    with psycopg.connect(database.conninfo) as conn:
        yield conn
        conn.rollback()


@pytest.mark.contract("T-1", "T-2", "T-3", "T-6")
def test_an_empty_database_gets_upstreams_tables_and_the_additions(empty_database: Database) -> None:
    """From nothing, a migration makes exactly the columns, keys and indexes of the contract."""
    assert upgrade(empty_database.engine) == (None, LATEST)
    assert shape_of(empty_database.engine) == MIGRATED


@pytest.fixture(scope="module")
def many_schemas(curfew_database: DatabaseTemplate) -> Iterator[Engine]:
    """One database for all names of schemas."""
    name = curfew_database.create(empty=True)
    engine = create_engine(curfew_database.server.sqlalchemy_url(name))
    yield engine
    engine.dispose()
    curfew_database.drop(name)


@pytest.mark.contract("T-8")
@pytest.mark.parametrize("schema", SCHEMA_NAMES)
def test_any_schema_name_will_do(many_schemas: Engine, schema: str) -> None:
    """Whatever characters the name of the schema holds, it is migrated and every kind of statement works."""
    engine = many_schemas
    assert upgrade(engine, schema=schema) == (None, LATEST)
    assert upgrade(engine, schema=schema) == (LATEST, LATEST)
    assert shape_of(engine, schema) == MIGRATED
    store, flow, run = FlowRunControlStore(engine, schema=schema), uuid4(), uuid4()
    assert store.start_run(flow, "t", "k", run_id=run, timeout=timedelta(hours=1)) == StartedRun(run, False)
    assert store.extend_deadline(run, None)
    assert store.extend_deadline(run, timeout=timedelta(microseconds=1))
    with engine.connect() as conn:
        assert look_ahead(conn, tables_in(schema)).overdue
        assert [claimed.run_id for claimed in claim_overdue(conn, tables_in(schema), limit=5)] == [run]
        conn.commit()
        assert conn.exec_driver_sql("SELECT to_regclass('public.flow_run_controls')").scalar() is None


def test_a_repeated_migration_changes_nothing(database: Database) -> None:
    """Migrating an up-to-date schema leaves every row of its catalogue as it is."""
    before = catalogue_of(database.engine)
    assert upgrade(database.engine) == (LATEST, LATEST)
    assert catalogue_of(database.engine) == before


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        ("DROP INDEX ix_flow_run_controls_armed", "ix_flow_run_controls_armed"),
        ("DROP INDEX ix_flow_idempotency_keys_run_id", "ix_flow_idempotency_keys_run_id"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_flow_run_controls_armed'\\:\\:regclass",
            "ix_flow_run_controls_armed",
        ),
        (
            "ALTER TABLE flow_run_controls DROP COLUMN completed_at_utc",
            "flow_run_controls.completed_at_utc, ix_flow_run_controls_armed",
        ),
        ("DROP TABLE flow_idempotency_keys", "flow_idempotency_keys"),
        ("DROP TABLE flow_run_controls", "flow_run_controls"),
    ],
)
@pytest.mark.parametrize("version", [LATEST, "0001"])
def test_what_a_partial_restore_left_out_is_made(database: Database, damage: str, missing: str, version: str) -> None:
    """Though the version says that it is there: it is named, made, and nothing else is touched."""
    with database.engine.begin() as conn:
        conn.execute(text(damage))
        conn.exec_driver_sql("UPDATE curfew_schema_version SET version_num = %s", (version,))
    told: list[str] = []
    assert upgrade(database.engine, tell=told.append) == (version, LATEST)
    assert told[0] == f"version {LATEST} is recorded, yet missing or invalid: {missing}"
    assert shape_of(database.engine) == MIGRATED
    told.clear()
    assert upgrade(database.engine, tell=told.append) == (LATEST, LATEST)
    assert told == []


@pytest.mark.usefixtures("impatient")
def test_a_repeated_migration_waits_for_no_lock(database: Database, holder: psycopg.Connection[Any]) -> None:
    """An up-to-date schema is not locked at all: not even an exclusive lock on its tables is in the way."""
    holder.execute("LOCK TABLE flow_run_controls, flow_idempotency_keys IN ACCESS EXCLUSIVE MODE")
    assert upgrade(database.engine) == (LATEST, LATEST)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("lock", ["LOCK TABLE {} IN ACCESS SHARE MODE", "DELETE FROM {}"])
def test_steps_that_are_done_wait_for_no_lock(database: Database, holder: psycopg.Connection[Any], lock: str) -> None:
    """A migration killed before it could record its version finds each step done and takes no lock for it."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql("DELETE FROM curfew_schema_version")
        conn.exec_driver_sql("INSERT INTO flow_run_controls (run_id) SELECT gen_random_uuid()")
    for table in ("flow_run_controls", "flow_idempotency_keys"):
        holder.execute(lock.format(table))
    assert upgrade(database.engine) == (None, LATEST)
    assert shape_of(database.engine) == MIGRATED


_PROCESS = """
import sys
from sqlalchemy import create_engine
from curfew_store.migrate import upgrade
print("ready", flush=True)
sys.stdin.readline()
print(*upgrade(create_engine(sys.argv[1])))
"""


def test_several_processes_may_migrate_at_once(empty_database: Database) -> None:
    """Of four processes started together one makes the schema, and all four find it up to date."""
    command = [sys.executable, "-W", "error", "-c", _PROCESS, empty_database.url]
    processes = [subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = sorted(process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0] * 4
    assert answers == [f"{LATEST} {LATEST}\n"] * 3 + [f"None {LATEST}\n"]
    assert shape_of(empty_database.engine) == MIGRATED


def test_two_schemas_of_one_database_migrate_side_by_side(database: Database, holder: psycopg.Connection[Any]) -> None:
    """A migration that is held up in one schema holds up none in another."""
    _forget_armed_index(database.engine)
    holder.execute("INSERT INTO flow_run_controls (run_id) SELECT gen_random_uuid()")
    with onlooker(database.conninfo) as admin, in_background(lambda: upgrade(database.engine)) as held_up:
        admin.await_waiters(1)
        command = [sys.executable, "-c", _OTHER_SCHEMA, database.url]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == f"None {LATEST}\n"
        assert not held_up.done()
        holder.rollback()
        assert held_up.result() == (None, LATEST)


_OTHER_SCHEMA = """
import sys
from sqlalchemy import create_engine
from curfew_store.migrate import upgrade
print(*upgrade(create_engine(sys.argv[1]), schema="elsewhere"))
"""


def _forget_armed_index(engine: Engine) -> None:
    """Take a schema back to where only the last index is missing."""
    with engine.begin() as conn:
        conn.exec_driver_sql("DROP INDEX ix_flow_run_controls_armed")
        conn.exec_driver_sql("DELETE FROM curfew_schema_version")


def test_waiting_for_another_migration_is_told_once_and_bounded(
    database: Database, holder: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for another migration is told so once, and gives up after the time that it was given."""
    monkeypatch.setattr(steps, "LOCK_ATTEMPTS", 3)  # without mutual exclusion the two would fight for long
    _forget_armed_index(database.engine)
    holder.execute("INSERT INTO flow_run_controls (run_id) SELECT gen_random_uuid()")
    told: list[str] = []
    with onlooker(database.conninfo) as admin, in_background(lambda: upgrade(database.engine)) as working:
        admin.await_waiters(1)
        with pytest.raises(MigrationError, match=r"another migration of schema 'public' .* pg_locks"):
            upgrade(database.engine, wait=0.15, on_wait=lambda: told.append("waits"))
        holder.rollback()
        assert working.result() == (None, LATEST)
    assert told == ["waits"]


def _adopt(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.exec_driver_sql(STARTUP_BATCH)


def test_a_lock_in_the_way_is_waited_for_again(empty_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that could not get its lock in time lets others through and is tried again."""
    monkeypatch.setattr(migrate_module, "DDL_LOCK_TIMEOUT", "20ms")
    _adopt(empty_database.engine)
    lost: list[str] = []
    with psycopg.connect(empty_database.conninfo) as other:
        other.execute("LOCK TABLE flow_run_controls IN ACCESS EXCLUSIVE MODE")

        def count(context: Any) -> None:
            lost.append(context.original_exception.sqlstate)
            if len(lost) == 3:
                other.rollback()

        event.listen(empty_database.engine, "handle_error", count)
        assert upgrade(empty_database.engine) == (None, LATEST)
    assert lost == ["55P03"] * 3
    assert shape_of(empty_database.engine) == MIGRATED


def test_a_lock_that_stays_ends_the_migration_with_a_remedy(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its tries the migration says whom to look for, and can be run again when the lock has gone."""
    monkeypatch.setattr(migrate_module, "DDL_LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(steps, "LOCK_ATTEMPTS", 2)
    _adopt(empty_database.engine)
    with psycopg.connect(empty_database.conninfo) as other:
        other.execute("LOCK TABLE flow_run_controls IN ACCESS SHARE MODE")
        with pytest.raises(MigrationError, match=r"stayed locked .* through 2 tries.*pg_stat_activity"):
            upgrade(empty_database.engine)
    assert upgrade(empty_database.engine) == (None, LATEST)
    assert shape_of(empty_database.engine) == MIGRATED


def test_a_migration_leaves_no_setting_behind(empty_database: Database) -> None:
    """The session settings of a migration do not come back to a user of the same pool, nor does its lock."""
    engine = create_engine(empty_database.url, pool_size=1, max_overflow=0)
    with engine.connect() as conn:
        before = conn.exec_driver_sql("SHOW lock_timeout").scalar()
    upgrade(engine)
    with engine.connect() as conn:
        assert conn.exec_driver_sql("SHOW lock_timeout").scalar() == before
        held = (
            "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            "WHERE l.locktype = 'advisory' AND d.datname = current_database()"
        )
        assert conn.exec_driver_sql(held).scalar() == 0
    engine.dispose()


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A role that may do nothing in particular."""
    with new_role(database, "role") as name:
        yield name


@pytest.mark.parametrize("schema", ["forbidden", "absent"])
def test_a_role_without_rights_is_told_who_should_migrate(database: Database, role: str, schema: str) -> None:
    """A role that may create nothing gets a `MigrationError` that names the remedy, and nothing is made."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql("CREATE SCHEMA forbidden")
        conn.exec_driver_sql(f"GRANT USAGE ON SCHEMA forbidden TO {role}")
    with pytest.raises(MigrationError, match=r"may not change schema .*permission denied.*migrate as the owner"):
        upgrade(engine_as(role, database), schema=schema)
    assert catalogue_of(database.engine, schema) == set()


def test_a_role_that_owns_no_table_is_told_who_should_migrate(database: Database, role: str) -> None:
    """Adopting tables of another owner is refused with the remedy, and they stay as they were."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql("CREATE SCHEMA shared")
        conn.exec_driver_sql(f"GRANT ALL ON SCHEMA shared TO {role}")
        conn.exec_driver_sql("SET LOCAL search_path = shared")
        conn.exec_driver_sql(STARTUP_BATCH)
    with pytest.raises(MigrationError, match=r"must be owner .*member of the role that owns them"):
        upgrade(engine_as(role, database), schema="shared")
    assert "completed_at_utc" not in str(shape_of(database.engine, "shared")["columns"])


def test_an_up_to_date_schema_asks_for_no_right_to_change_it(database: Database, role: str) -> None:
    """A role that may only read finds that there is nothing to migrate."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        conn.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    assert upgrade(engine_as(role, database)) == (LATEST, LATEST)


@pytest.mark.contract("Z-6")
def test_a_schema_that_demands_a_newer_client_is_refused(database: Database) -> None:
    """A migration that raised the lowest client is believed, by the store and by an older migration."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql(f"UPDATE curfew_schema_version SET minimum_client = {CLIENT + 1}")
    with database.engine.connect() as conn, pytest.raises(SchemaMismatch, match="upgrade curfewd") as caught:
        verify(conn, tables_in("public"))
    assert (caught.value.schema, caught.value.found) == ("public", LATEST)
    with pytest.raises(SchemaMismatch, match="upgrade curfewd"):
        FlowRunControlStore(database.engine).get_run_control(uuid4())
    with pytest.raises(SchemaMismatch, match="upgrade curfewd"):
        upgrade(database.engine)


@pytest.mark.contract("Z-6")
def test_a_newer_schema_that_still_serves_is_accepted(database: Database) -> None:
    """A schema of a later release is worked with, and an older release's migration has nothing to do."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql("UPDATE curfew_schema_version SET version_num = '9999'")
    assert FlowRunControlStore(database.engine).get_run_control(uuid4()) is None
    assert upgrade(database.engine) == ("9999", "9999")


@pytest.mark.contract("T-8")
def test_schemas_do_not_see_each_other(database: Database) -> None:
    """The same run and the same key live independently in two schemas of one database."""
    upgrade(database.engine, schema="other")
    here, there = FlowRunControlStore(database.engine), FlowRunControlStore(database.engine, schema="other")
    flow, run = uuid4(), uuid4()
    for store in (here, there):
        assert store.start_run(flow, "t", "k", run_id=run) == StartedRun(run, False)
    assert here.request_cancel(run, "only here")
    record = there.get_run_control(run)
    assert record is not None
    assert not record.cancel_requested
