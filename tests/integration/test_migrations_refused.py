"""What a migration refuses to adopt, and the same migration as a script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from curfew_store import MigrationError
from curfew_store.migrate import script, upgrade
from curfew_store.migrations import partitions, steps
from curfew_store.schema import tables_in
from curfew_store.version import LATEST, verify
from tests.conftest import Database
from tests.integration.roles import new_role
from tests.integration.shapes import MIGRATED, catalogue_of, quoted, shape_of
from tests.integration.upstream import STARTUP_BATCH

_WITHOUT_KEY = "ALTER TABLE flow_idempotency_keys DROP CONSTRAINT flow_idempotency_keys_pkey"

WRONG_SHAPES = {
    "a type": (
        "ALTER TABLE flow_run_controls ALTER timeout_at_utc TYPE timestamp",
        r"flow_run_controls .*timeout_at_utc should be timestamp with time zone",
    ),
    "a length": (
        "ALTER TABLE flow_idempotency_keys ALTER trigger_key TYPE varchar(100)",
        r"flow_idempotency_keys .*trigger_key should be character varying\(256\) NOT NULL",
    ),
    "a missing column": (
        "ALTER TABLE flow_run_controls DROP COLUMN cancel_reason",
        "cancel_reason should be text",
    ),
    "a nullable column": (
        "ALTER TABLE flow_run_controls ALTER cancel_requested DROP NOT NULL",
        "cancel_requested should be boolean NOT NULL",
    ),
    "two columns": (
        "ALTER TABLE flow_run_controls DROP COLUMN flow_id; ALTER TABLE flow_run_controls DROP COLUMN trigger_key",
        "flow_id should be uuid NOT NULL.*; trigger_key should be",
    ),
    "another key": (
        f"{_WITHOUT_KEY}, ADD PRIMARY KEY (flow_id, idempotency_key, trigger_key)",
        r"primary key should be \(flow_id, trigger_key, idempotency_key\)",
    ),
    "no key": (
        "ALTER TABLE flow_run_controls DROP CONSTRAINT flow_run_controls_pkey",
        r"primary key should be \(run_id\)",
    ),
    "a missing default": (
        "ALTER TABLE flow_run_controls ALTER cancel_requested DROP DEFAULT",
        "cancel_requested should .*default",
    ),
    "our column in another type": (
        "ALTER TABLE flow_run_controls ADD COLUMN completed_at_utc text",
        "completed_at_utc should be timestamp with time zone",
    ),
}

OTHER_INDEXES = {
    "columns": "CREATE INDEX ix_flow_run_controls_armed ON flow_run_controls (timeout_at_utc) "
    "WHERE timeout_at_utc IS NOT NULL",
    "direction": "CREATE INDEX ix_flow_run_controls_armed ON flow_run_controls (timeout_at_utc DESC, run_id) "
    "WHERE timeout_at_utc IS NOT NULL",
    "no predicate": "CREATE INDEX ix_flow_run_controls_armed ON flow_run_controls (timeout_at_utc, run_id)",
    "another predicate": "CREATE INDEX ix_flow_run_controls_armed ON flow_run_controls "
    "(timeout_at_utc, run_id) WHERE cancel_requested",
    "unique": "DROP INDEX ix_flow_idempotency_keys_run_id; "
    "CREATE UNIQUE INDEX ix_flow_idempotency_keys_run_id ON flow_idempotency_keys (run_id)",
    "another table": "CREATE TABLE archive (timeout_at_utc timestamptz, run_id uuid); "
    "CREATE INDEX ix_flow_run_controls_armed ON archive (timeout_at_utc, run_id)",
}


def _adopted_but_for(database: Database, change: str) -> None:
    with psycopg.connect(database.conninfo) as conn:
        conn.execute(STARTUP_BATCH)
        conn.execute(change)


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_a_table_of_another_shape_is_refused_by_column(empty_database: Database, shape: str) -> None:
    """A table of our name that is not upstream's is left alone, and the message names what differs."""
    change, message = WRONG_SHAPES[shape]
    _adopted_but_for(empty_database, change)
    before = catalogue_of(empty_database.engine)
    with pytest.raises(MigrationError, match=message):
        upgrade(empty_database.engine)
    assert catalogue_of(empty_database.engine) == before


@pytest.mark.parametrize("other", OTHER_INDEXES)
def test_an_index_of_our_name_with_another_definition_is_refused(empty_database: Database, other: str) -> None:
    """A valid index that took our name is somebody's: it is named, and neither used nor dropped."""
    _adopted_but_for(empty_database, OTHER_INDEXES[other])
    name = re.findall(r"INDEX (ix_\w+) ON", OTHER_INDEXES[other])[0]
    identity = f"SELECT oid, relfilenode FROM pg_class WHERE relname = '{name}'"
    with psycopg.connect(empty_database.conninfo, autocommit=True) as conn:
        before = conn.execute(identity).fetchall()
        with pytest.raises(MigrationError, match=rf"{name} exists with another definition .*CREATE.*rename it"):
            upgrade(empty_database.engine)
        assert conn.execute(identity).fetchall() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("ALTER TABLE flow_run_controls DROP CONSTRAINT flow_run_controls_pkey", r"primary key should be \(run_id\)"),
        ("ALTER TABLE flow_run_controls DROP COLUMN cancel_reason", "cancel_reason should be text"),
        (
            f"DROP INDEX ix_flow_run_controls_armed; {OTHER_INDEXES['another predicate']}",
            "ix_flow_run_controls_armed exists with another definition",
        ),
    ],
    ids=["key", "column", "index"],
)
def test_what_cannot_be_made_anew_is_named_though_the_version_is_recorded(
    database: Database, damage: str, message: str
) -> None:
    """An up-to-date version does not hide a table or an index that is not ours."""
    with psycopg.connect(database.conninfo) as conn:
        conn.execute(damage)
    with pytest.raises(MigrationError, match=message):
        upgrade(database.engine)


_TOKEN = re.compile(r"""--[^\n]*|'(?:[^']|'')*'|"(?:[^"]|"")*"|;|[^'";-]+|-""")


def statements(sql: str) -> Iterator[str]:
    """The statements of a script, split as psql does: not inside quotes or comments."""
    tokens: list[str] = []
    for token in _TOKEN.findall(sql):
        if token == ";":
            yield "".join(tokens).strip()
            tokens = []
        elif not token.startswith("--"):
            tokens.append(token)
    assert not "".join(tokens).strip(), "the script ends inside a statement"


def _run_script(conn: psycopg.Connection[Any], sql: str) -> None:
    for statement in statements(sql):
        conn.execute(statement.encode())


@pytest.mark.parametrize("schema", ["public", 'Of "x" 100%s; it\'s :a\\b'])
@pytest.mark.parametrize("adopted", [False, True], ids=["from nothing", "adopting"])
def test_the_script_makes_what_the_migration_makes(empty_database: Database, schema: str, adopted: bool) -> None:
    """Run by hand, once and again, the printed SQL makes the same schema, and the package accepts it."""
    engine = empty_database.engine
    with psycopg.connect(empty_database.conninfo, autocommit=True) as conn:
        if adopted:
            conn.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
            conn.execute(f"SET search_path = {quoted(schema)}")
            conn.execute(STARTUP_BATCH)
            conn.execute("RESET search_path")
        _run_script(conn, script(schema=schema))
        assert shape_of(engine, schema) == MIGRATED
        before = catalogue_of(engine, schema)
        _run_script(conn, script(schema=schema))
    assert catalogue_of(engine, schema) == before
    with engine.connect() as sa_conn:
        assert verify(sa_conn, tables_in(schema)) == LATEST
    assert upgrade(engine, schema=schema) == (LATEST, LATEST)


def test_the_script_needs_no_right_to_create_schemas(empty_database: Database) -> None:
    """Whoever owns the schema and the tables can run it; only where the schema is missing must somebody create it."""
    sql = script(schema="o'urs")
    with (
        new_role(empty_database, "owner") as role,
        psycopg.connect(empty_database.conninfo, autocommit=True) as conn,
    ):
        conn.execute(f'CREATE SCHEMA "o\'urs" AUTHORIZATION {role}'.encode())
        conn.execute(f"SET ROLE {role}".encode())
        conn.execute('SET search_path = "o\'urs"')
        conn.execute(STARTUP_BATCH)
        for _ in range(2):
            _run_script(conn, sql)
        assert shape_of(empty_database.engine, "o'urs") == MIGRATED
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="for database"):
            _run_script(conn, script(schema="absent"))


def test_the_script_marks_what_cannot_run_in_a_transaction() -> None:
    """A comment above each CONCURRENTLY statement says so, and how to clear away a failed build."""
    sql = script(schema="runs")
    builds = re.findall(r"^(.*)\nCREATE INDEX CONCURRENTLY IF NOT EXISTS \"(\w+)\"", sql, re.MULTILINE)
    assert [name for _, name in builds] == ["ix_flow_idempotency_keys_run_id", "ix_flow_run_controls_armed"]
    for comment, name in builds:
        assert comment.startswith("-- outside a transaction")
        assert comment.endswith(f'DROP INDEX CONCURRENTLY IF EXISTS "runs"."{name}"')
    assert sql.count("CONCURRENTLY IF NOT EXISTS") == 2


def test_a_script_that_ran_on_a_newer_schema_leaves_its_version(database: Database) -> None:
    """The script of an older release does not turn the recorded version back."""
    with psycopg.connect(database.conninfo, autocommit=True) as conn:
        conn.execute("UPDATE curfew_schema_version SET version_num = '9999', minimum_client = 7")
        _run_script(conn, script())
    assert shape_of(database.engine)["versions"] == [("9999", 7)]


def test_an_index_that_does_not_become_valid_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that reports success and leaves an invalid index behind is not taken for done."""
    invalid = steps._Found(valid=False, unique=False, on_table=False, definition="", predicate="")
    monkeypatch.setattr(steps, "_find", lambda *_: invalid)
    monkeypatch.setattr(partitions, "is_partitioned", lambda *_: False)
    with pytest.raises(MigrationError, match="could not be built; run the migration again"):
        steps._build("public", steps.Index("an_index", "a_table", "a_column"))
