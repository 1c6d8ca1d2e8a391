"""Indexes on tables that an operator has partitioned: built beside the traffic, one partition after the other.

PostgreSQL builds no index CONCURRENTLY on a partitioned table. Its own recipe is used instead: an index of the
parent ONLY, which is invalid as long as a partition has none; for each partition an index CONCURRENTLY, which is then
attached; with the last one the parent's becomes valid, and partitions made later get theirs with it.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from zlib import crc32

from alembic import op
from sqlalchemy import text

from curfew_store.errors import MigrationError
from curfew_store.migrations import beside_traffic
from curfew_store.migrations.beside_traffic import literal
from curfew_store.schema import quoted

_RELATION: Final = "to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:name AS text)))"
_IS_PARTITIONED: Final = f"SELECT relkind = 'p' FROM pg_class WHERE oid = {_RELATION}"
_PARTITIONS: Final = (
    "SELECT n.nspname, c.relname, c.relkind\\:\\:text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
    f"JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.inhparent = {_RELATION} ORDER BY c.oid"
)
_ATTACHED: Final = (
    "SELECT n.nspname, t.relname FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid "
    "JOIN pg_class t ON t.oid = x.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace "
    f"WHERE i.inhparent = {_RELATION}"
)
_INVALID: Final = f"SELECT NOT indisvalid FROM pg_index WHERE indexrelid = {_RELATION}"


class Partition(NamedTuple):
    """A partition by its schema, which need not be the parent's, and its name."""

    schema: str
    name: str


def is_partitioned(schema: str, table: str) -> bool:
    """Whether *table* is the parent of partitions; only online."""
    return bool(op.get_bind().execute(text(_IS_PARTITIONED), {"schema": schema, "name": table}).scalar())


def partitions_of(schema: str, table: str) -> list[Partition]:
    """The partitions of *table*, none where it has none; only online.

    Raises `MigrationError` for partitions that are partitioned again or are foreign tables.
    """
    rows = op.get_bind().execute(text(_PARTITIONS), {"schema": schema, "name": table}).all()
    for partition_schema, name, kind in rows:
        if kind != "r":
            raise MigrationError(
                f"{partition_schema}.{name} is a partition of {schema}.{table} and not a plain table: tables may be "
                "partitioned once, into tables of the same server"
            )
    return [Partition(partition_schema, name) for partition_schema, name, _ in rows]


def build_index(schema: str, name: str, table: str, columns: str) -> None:
    """Build the index *name* of the parent, or go on with one that an earlier attempt has begun.

    *columns* is what follows the table's name: the columns in parentheses and the predicate.
    """
    parent = quoted(schema, name)
    op.execute(literal(f"CREATE INDEX IF NOT EXISTS {quoted(name)} ON ONLY {quoted(schema, table)} {columns}"))
    attached = {tuple(row) for row in op.get_bind().execute(text(_ATTACHED), {"schema": schema, "name": name})}
    for partition in partitions_of(schema, table):
        if partition in attached:
            continue
        own = f"{name}_{crc32(partition.name.encode()):08x}"
        if op.get_bind().execute(text(_INVALID), {"schema": partition.schema, "name": own}).scalar():
            beside_traffic.drop_index(partition.schema, own)
        build = f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {quoted(own)} ON {quoted(*partition)} {columns}"
        beside_traffic.build_index(build, partition.schema, own)
        op.execute(literal(f"ALTER INDEX {parent} ATTACH PARTITION {quoted(partition.schema, own)}"))
