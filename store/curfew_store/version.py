"""Whether the tables in the database are the ones that this package needs.

Nothing is asked at import or at construction: the first call of a store looks, once, and the answer is
kept if it was good. An error of the server that can only mean a wrong schema is turned into
`SchemaMismatch` later as well, for tables that change under a running service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import sqlalchemy.exc
from sqlalchemy import ColumnElement, Connection, bindparam, func, literal_column, select

from curfew_store.errors import SchemaMismatch, sqlstate_of
from curfew_store.execution import PLAINLY
from curfew_store.schema import VERSION_TABLE, Tables

T = TypeVar("T")

__all__ = ["CLIENT", "LATEST", "NEEDED", "VerifiedOnce", "found_version", "translated", "verify"]

NEEDED: Final = "0001"
"""The revision that this package needs; a newer one will do unless it says otherwise."""

LATEST: Final = "0002"
"""The revision that `curfew_store.migrate` leads to."""

CLIENT: Final = 1
"""What a migration's ``minimum_client`` is compared with."""

_UNDEFINED = {"42P01": "a table of curfewd is missing", "42703": "a column of curfewd is missing"}


def relation_exists(conn: Connection, schema: str, name: str) -> bool:
    """Whether *schema* has a relation called *name* that this role may look up."""
    return conn.execute(select(relation(schema, name)), execution_options=PLAINLY).scalar_one()


def relation(schema: str, name: str) -> ColumnElement[bool]:
    """`relation_exists` as a column of a statement."""
    # pg_catalog by name: a function of anybody's in the search path whose types fit better would be called instead.
    qualified = func.pg_catalog.format(literal_column("'%I.%I'"), bindparam("schema", schema), bindparam("name", name))
    return func.pg_catalog.to_regclass(qualified).is_not(None)


def found_version(conn: Connection, tables: Tables) -> tuple[str, int] | None:
    """The recorded revision and the lowest client that it still serves; ``None`` where there is none.

    Looks for the table first: selecting from a missing one would abort a transaction of the caller's.
    """
    if not relation_exists(conn, tables.schema, VERSION_TABLE):
        return None
    version = tables.version.c
    newest = select(version.version_num, version.minimum_client).order_by(version.version_num.desc())
    row = conn.execute(newest.limit(1), execution_options=PLAINLY).one_or_none()
    return None if row is None else (row.version_num, row.minimum_client)


def verify(conn: Connection, tables: Tables) -> str:
    """The version in the database, if this package can work with it, else `SchemaMismatch`."""
    found = found_version(conn, tables)
    if found is None:
        raise SchemaMismatch(tables.schema, None, NEEDED)
    version, minimum_client = found
    if version < NEEDED:
        raise SchemaMismatch(tables.schema, version, NEEDED)
    if minimum_client > CLIENT:
        problem = (
            f"schema {tables.schema!r} is at version {version}, which this release is too old for: upgrade curfewd"
        )
        raise SchemaMismatch(tables.schema, version, NEEDED, problem)
    return version


@contextmanager
def translated(schema: str) -> Iterator[None]:
    """Turns "no such table" and "no such column" of the server into `SchemaMismatch`, keeping the cause."""
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        problem = _UNDEFINED.get(sqlstate_of(error) or "")
        if problem is None:
            raise
        raise SchemaMismatch(schema, None, NEEDED, f"{problem} in schema {schema!r}") from error


class VerifiedOnce:
    """Puts `verify` before an operation until it has succeeded once."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._verified = False

    def __call__(self, operation: Callable[[Connection], T]) -> Callable[[Connection], T]:
        """*operation*, preceded by the check if that is still owed."""
        if self._verified:
            return operation

        def verified(conn: Connection) -> T:
            verify(conn, self._tables)
            self._verified = True
            return operation(conn)

        return verified
