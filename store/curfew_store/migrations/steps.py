"""What revisions are made of: steps that may be repeated from any point, online and as a script.

Every step looks before it acts, so that a finished one takes no lock at all, and waits for locks only as
long as the session's ``lock_timeout``; a step that lost that wait is tried again (`beside_traffic` has those that
nobody queues behind, and that wait without a bound). Longer than other modules, so that
all steps and the look that each takes first stand in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import sqlalchemy.exc
from alembic import op
from sqlalchemy import Connection, text
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from curfew_store.errors import MigrationError, sqlstate_of
from curfew_store.migrations import beside_traffic, partitions
from curfew_store.migrations.beside_traffic import literal
from curfew_store.schema import VERSION_TABLE, quoted

LOCK_ATTEMPTS: Final = 20

Columns = Mapping[str, tuple[str, bool, bool]]
"""Column name to (type as PostgreSQL formats it, whether it is NOT NULL, whether it has a default)."""


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


def execute(sql: str) -> None:
    """One statement, tried again while locks are in the way."""
    patiently(lambda: op.execute(literal(sql)))


def asks(sql: str, **parameters: str) -> object:
    """The first value that *sql* answers; only online."""
    return op.get_bind().execute(text(sql), parameters).scalar()


_RELATION = "to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:name AS text)))"


def columns_of(conn: Connection, schema: str, table: str) -> dict[str, tuple[str, bool, bool]]:
    """The columns of a table, empty where there is no such table."""
    rows = conn.execute(
        text(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef FROM pg_attribute a "
            f"WHERE a.attrelid = {_RELATION} AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        {"schema": schema, "name": table},
    )
    return {name: (type_, not_null, has_default) for name, type_, not_null, has_default in rows}


def missing_columns(schema: str, table: str, names: Iterable[str]) -> list[str]:
    """Which of these columns a table lacks: all of them where there is no such table; only online."""
    found = columns_of(op.get_bind(), schema, table)
    return [name for name in names if name not in found]


def refuse_other_shape(schema: str, table: str, wanted: Columns, key: tuple[str, ...], ours: Columns) -> None:
    """Raises `MigrationError` if *table* exists and could not serve both FlowOrchestrator and us.

    *wanted* are upstream's columns, which must be there; *ours* may be missing, and must fit if they are not.
    """
    found = columns_of(op.get_bind(), schema, table)
    if not found:
        return
    expected = {**wanted, **{name: shape for name, shape in ours.items() if name in found}}
    problems = [_should_be(name, shape) for name, shape in expected.items() if found.get(name) != shape]
    primary = asks(
        "SELECT string_agg(a.attname, ',' ORDER BY k.place) FROM pg_index i, "
        "unnest(i.indkey\\:\\:int2[]) WITH ORDINALITY AS k(attnum, place), pg_attribute a "
        f"WHERE i.indrelid = {_RELATION} AND i.indisprimary AND a.attrelid = i.indrelid AND a.attnum = k.attnum",
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


def _should_be(name: str, shape: tuple[str, bool, bool]) -> str:
    type_, not_null, has_default = shape
    return (
        f"{name} should be {type_}{' NOT NULL' if not_null else ''}{' with' if has_default else ', without'} a default"
    )


def exists(schema: str, name: str) -> bool:
    """Whether a relation of this name is there; only online."""
    return bool(asks(f"SELECT {_RELATION} IS NOT NULL", schema=schema, name=name))


def create_table(schema: str, name: str, columns: str) -> None:
    """A table, where it is missing; looks first, since even ``IF NOT EXISTS`` needs the right to create."""
    if offline() or not exists(schema, name):
        execute(f"CREATE TABLE IF NOT EXISTS {quoted(schema, name)} ({columns})")


def share_owner(schema: str, name: str, like: str) -> None:
    """Gives a table the owner of another, so that every member of the owning role can use it.

    Only online: a script is run by whoever owns the tables.
    """
    owner = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = "
    if not offline():
        wanted = asks(owner + _RELATION, schema=schema, name=like)
        if asks(owner + _RELATION, schema=schema, name=name) != wanted:
            execute(f"ALTER TABLE {quoted(schema, name)} OWNER TO {quoted(str(wanted))}")


def create_foundation(schema: str) -> None:
    """The schema and the version table. Asks for the schema first: creating one needs a right on the database."""
    if offline():
        # IF NOT EXISTS asks for that right even where the schema exists.
        missing = f"to_regnamespace({_string(quoted(schema))}) IS NULL"
        block = f"BEGIN IF {missing} THEN CREATE SCHEMA {quoted(schema)}; END IF; END"
        execute(f"DO {_string(block)}")
    elif not asks("SELECT to_regnamespace(quote_ident(:schema)) IS NOT NULL", schema=schema):
        execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
    # minimum_client says which releases can still work on the schema; a later revision raises it if it must.
    create_table(
        schema, VERSION_TABLE, "version_num varchar(32) PRIMARY KEY, minimum_client integer NOT NULL DEFAULT 1"
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


def set_parameters(schema: str, table: str, parameters: Mapping[str, str]) -> None:
    """Storage parameters, where none of them is set: what an operator chose stays.

    Of a table that has been partitioned its partitions get them. Readers and writers are not held up.
    """
    relation = f"to_regclass({_string(quoted(schema, table))})"
    names = ", ".join(map(_string, parameters))
    wanted = ", ".join(f"{name} = {value}" for name, value in parameters.items())
    # One block for both ways of running it, since a script has nobody to look first.
    block = (
        "DECLARE found oid; BEGIN FOR found IN SELECT c.oid FROM pg_class c WHERE c.relkind = 'r' "
        f"AND (c.oid = {relation} OR c.oid IN (SELECT relid FROM pg_partition_tree({relation}) WHERE isleaf)) "
        f"AND NOT EXISTS (SELECT FROM pg_options_to_table(c.reloptions) WHERE option_name IN ({names})) "
        f"LOOP EXECUTE concat('ALTER TABLE ', CAST(found AS regclass), ' SET ({wanted})'); END LOOP; END"
    )
    execute(f"DO {_string(block)}")


def _string(value: str) -> str:
    """A string in SQL."""
    return "'" + value.replace("'", "''") + "'"


_INDEX_STATE = (
    "SELECT i.indisvalid, i.indisunique, i.indrelid = to_regclass(format('%I.%I', CAST(:schema AS text), "
    "CAST(:table_name AS text))), pg_get_indexdef(i.indexrelid), coalesce(pg_get_expr(i.indpred, i.indrelid), '') "
    f"FROM pg_index i WHERE i.indexrelid = {_RELATION}"
)


class _Found(NamedTuple):
    """What the catalogue says of an index, in the order of `_INDEX_STATE`."""

    valid: bool
    unique: bool
    on_table: bool
    definition: str
    predicate: str


@dataclass(frozen=True)
class Index:
    """An index as a revision wants it: not unique, on *columns*, of the rows *where* something holds."""

    name: str
    table: str
    columns: str
    where: str = ""

    @property
    def content(self) -> str:
        """What follows the table's name in a definition."""
        return f"({self.columns})" + (f" WHERE {self.where}" if self.where else "")

    def build(self, schema: str) -> str:
        """The statement that builds it beside the traffic."""
        table = quoted(schema, self.table)
        return f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {quoted(self.name)} ON {table} {self.content}"

    def is_what(self, found: _Found) -> bool:
        """Whether an index that the catalogue describes is this one."""
        same = _bare(found.predicate) == _bare(self.where) and f"({self.columns})" in found.definition.replace('"', "")
        return same and found.on_table and not found.unique


def _bare(predicate: str) -> str:
    """A predicate without what PostgreSQL adds when it prints one."""
    return "".join(each for each in predicate.casefold() if each not in "() \n")


def create_index(schema: str, index: Index) -> None:
    """An index built CONCURRENTLY, where a valid one of that name is missing.

    A build that failed or was killed leaves an invalid index behind, which ``IF NOT EXISTS`` would take for
    the real one; it is dropped first. An index of our name with another definition is refused.
    """
    if offline():
        remark = "outside a transaction; if an earlier build failed, first: DROP INDEX CONCURRENTLY IF EXISTS "
        op.execute(literal(comment(remark + quoted(schema, index.name)) + index.build(schema)))
        return
    patiently(lambda: _build(schema, index))


def lacks_index(schema: str, index: Index) -> bool:
    """Whether a valid *index* of that definition is missing; not where its table is locked exclusively; only online."""
    try:
        found = _find(schema, index)
    except sqlalchemy.exc.DBAPIError as error:
        if _could_not_lock(error):
            return False  # PostgreSQL locks the table to print a predicate; whoever holds it is not to be in the way
        raise
    return found is None or not found.valid or not index.is_what(found)


def _build(schema: str, index: Index) -> None:
    found = _find(schema, index)
    if found is None or (found.on_table and not found.valid):
        _make(schema, index, found)
        found = _find(schema, index)
    if found is None or not found.valid:
        raise MigrationError(f"the index {schema}.{index.name} could not be built; run the migration again")
    if not index.is_what(found):
        raise MigrationError(
            f"an index called {schema}.{index.name} exists with another definition ({found.definition}): drop or "
            "rename it, then run the migration again"
        )


def _make(schema: str, index: Index, begun: _Found | None) -> None:
    """Builds an index; of what an earlier attempt has *begun*, a plain table's is dropped and partitions' are kept."""
    if partitions.is_partitioned(schema, index.table):
        partitions.build_index(schema, index.name, index.table, index.content)
        return
    if begun is not None:
        beside_traffic.drop_index(schema, index.name)
    beside_traffic.build_index(index.build(schema), schema, index.name)


def _find(schema: str, index: Index) -> _Found | None:
    parameters = {"schema": schema, "table_name": index.table, "name": index.name}
    row = op.get_bind().execute(text(_INDEX_STATE), parameters).one_or_none()
    return None if row is None else _Found(*row)


def comment(remark: str) -> str:
    """A line of a script that does nothing, whatever is in it."""
    return "-- " + " ".join(remark.splitlines()) + "\n"
