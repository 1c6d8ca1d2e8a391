"""What revisions are made of: steps that may be repeated from any point, online and as a script.

Every step looks before it acts, so that a finished one takes no lock at all, and waits for locks only as
long as the session's ``lock_timeout``; a step that lost that wait is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import sqlalchemy.exc
from alembic import op
from sqlalchemy import Connection, TextClause, text
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from curfew_store.errors import MigrationError, sqlstate_of
from curfew_store.schema import VERSION_TABLE

LOCK_ATTEMPTS: Final = 20

Columns = Mapping[str, tuple[str, bool]]
"""Column name to (type as PostgreSQL formats it, whether it is NOT NULL)."""


def offline() -> bool:
    """Whether a script is being written, with no database to ask."""
    return bool(op.get_context().as_sql)


def schema_name() -> str:
    """The schema that is being migrated."""
    return str(op.get_context().opts["curfew_schema"])


def _could_not_lock(error: BaseException) -> bool:
    return sqlstate_of(error) in {"55P03", "40P01"}


def patiently(action: Callable[[], None]) -> None:
    """Runs *action*, again where it could not get its lock in time; others get their turn in between."""
    retrying = Retrying(
        retry=retry_if_exception(_could_not_lock),
        stop=stop_after_attempt(LOCK_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.1, max=3),
        reraise=True,
    )
    try:
        retrying(action)
    except sqlalchemy.exc.DBAPIError as error:
        if _could_not_lock(error):
            raise MigrationError(
                f"a table stayed locked by others through {LOCK_ATTEMPTS} tries; nothing is broken, run the "
                "migration again when it is quieter (pg_stat_activity shows who holds the lock)"
            ) from error
        raise


def quoted(*names: str) -> str:
    """A qualified name, every part quoted."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def execute(sql: str) -> None:
    """One statement, tried again while locks are in the way."""
    patiently(lambda: op.execute(literal(sql)))


def literal(sql: str) -> TextClause:
    """*sql* with nothing in it taken for a parameter."""
    return text(sql.replace(":", "\\:"))


def asks(sql: str, **parameters: str) -> object:
    """The first value that *sql* answers; only online."""
    return op.get_bind().execute(text(sql), parameters).scalar()


def columns_of(conn: Connection, schema: str, table: str) -> dict[str, tuple[str, bool]]:
    """The columns of a table, empty where there is no such table."""
    rows = conn.execute(
        text(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull FROM pg_attribute a "
            "WHERE a.attrelid = to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:name AS text))) "
            "AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        {"schema": schema, "name": table},
    )
    return {name: (type_, not_null) for name, type_, not_null in rows}


def refuse_other_shape(schema: str, table: str, wanted: Columns, key: tuple[str, ...]) -> None:
    """Raises `MigrationError` if *table* exists with columns or a primary key that are not upstream's."""
    if offline():
        return
    found = columns_of(op.get_bind(), schema, table)
    if not found:
        return
    problems = [
        f"{name} should be {type_}{' NOT NULL' if not_null else ''}"
        for name, (type_, not_null) in wanted.items()
        if found.get(name) != (type_, not_null)
    ]
    primary = asks(
        "SELECT string_agg(a.attname, ',' ORDER BY k.place) FROM pg_index i, "
        "unnest(i.indkey\\:\\:int2[]) WITH ORDINALITY AS k(attnum, place), pg_attribute a "
        "WHERE i.indrelid = to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:name AS text))) "
        "AND i.indisprimary AND a.attrelid = i.indrelid AND a.attnum = k.attnum",
        schema=schema,
        name=table,
    )
    if primary != ",".join(key):
        problems.append(f"its primary key should be ({', '.join(key)})")
    if problems:
        raise MigrationError(
            f"{schema}.{table} exists and is not the table of FlowOrchestrator: {'; '.join(problems)}. "
            "Nothing was changed; choose another schema (CURFEW_SCHEMA) or mend the table"
        )


def create_foundation(schema: str) -> None:
    """The schema and the version table. Asks for the schema first: creating one needs a right on the database."""
    if offline() or not asks("SELECT to_regnamespace(quote_ident(:schema)) IS NOT NULL", schema=schema):
        execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
    # minimum_client says which releases can still work on the schema; a later revision raises it if it must.
    execute(
        f"CREATE TABLE IF NOT EXISTS {quoted(schema, VERSION_TABLE)} "
        "(version_num varchar(32) PRIMARY KEY, minimum_client integer NOT NULL DEFAULT 1)"
    )


def record_version(schema: str, version: str) -> None:
    """The version, in a script; online Alembic writes it."""
    table = quoted(schema, VERSION_TABLE)
    execute(f"INSERT INTO {table} (version_num) SELECT '{version}' WHERE NOT EXISTS (SELECT 1 FROM {table})")
    execute(f"UPDATE {table} SET version_num = '{version}' WHERE version_num < '{version}'")


def add_column(schema: str, table: str, name: str, definition: str) -> None:
    """A column, where it is missing. *definition* must not rewrite the table."""
    if offline() or name not in columns_of(op.get_bind(), schema, table):
        execute(f"ALTER TABLE {quoted(schema, table)} ADD COLUMN IF NOT EXISTS {quoted(name)} {definition}")


_INDEX_STATE = (
    "SELECT CASE WHEN i.indisvalid AND i.indrelid = to_regclass(format('%I.%I', CAST(:schema AS text), "
    "CAST(:table_name AS text))) THEN pg_get_indexdef(i.indexrelid) ELSE 'invalid' END FROM pg_index i "
    "WHERE i.indexrelid = to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:name AS text)))"
)


def create_index(schema: str, table: str, name: str, columns: str, where: str | None = None) -> None:
    """An index built CONCURRENTLY, where a valid one of that name is missing.

    A build that failed or was killed leaves an invalid index behind, which ``IF NOT EXISTS`` would take for
    the real one; it is dropped first. A valid index of our name with another definition is refused.
    """
    build = f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {quoted(name)} ON {quoted(schema, table)} ({columns})"
    build += f" WHERE {where}" if where else ""
    if offline():
        marker = "-- outside a transaction; if an earlier build failed, first: DROP INDEX CONCURRENTLY IF EXISTS "
        op.execute(literal(marker + quoted(schema, name) + "\n" + build))
        return

    def state() -> str | None:
        answer = asks(_INDEX_STATE, schema=schema, table_name=table, name=name)
        return None if answer is None else str(answer)

    def once() -> None:
        if state() == "invalid":
            op.execute(literal(f"DROP INDEX CONCURRENTLY IF EXISTS {quoted(schema, name)}"))
        if state() is None:
            op.execute(literal(build))

    patiently(once)
    definition = state()
    if definition is None or definition == "invalid":
        raise MigrationError(f"the index {schema}.{name} could not be built; run the migration again")
    if f"({columns})" not in definition.replace('"', "") or (where is not None) != (" WHERE " in definition):
        raise MigrationError(
            f"an index called {schema}.{name} exists with another definition ({definition}): drop or rename it, then "
            "run the migration again"
        )
