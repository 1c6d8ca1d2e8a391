"""The tables as SQLAlchemy knows them are the tables as the migrations make them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Table, inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from curfew_store.schema import Tables, tables_in
from tests.conftest import Database

TABLES = ["controls", "keys", "version"]


@pytest.fixture
def known() -> Tables:
    return tables_in("public")


def _type(kind: Any) -> str:
    return str(kind.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]


def _default(column: Any) -> str:
    return "" if column.server_default is None else str(column.server_default.arg)


@pytest.mark.parametrize("name", TABLES)
def test_columns(database: Database, known: Tables, name: str) -> None:
    """Order, types, lengths, and which may be missing; a default is the same but for the cast that PostgreSQL shows."""
    table: Table = getattr(known, name)
    found = inspect(database.engine).get_columns(table.name, schema="public")
    assert [(each["name"], _type(each["type"]), each["nullable"]) for each in found] == [
        (column.name, _type(column.type), column.nullable) for column in table.columns
    ]
    assert [(each["name"], (each["default"] or "").partition("::")[0]) for each in found] == [
        (column.name, _default(column)) for column in table.columns
    ]


@pytest.mark.parametrize("name", TABLES)
def test_primary_keys(database: Database, known: Tables, name: str) -> None:
    """The same columns in the same order."""
    table: Table = getattr(known, name)
    found = inspect(database.engine).get_pk_constraint(table.name, schema="public")
    assert found["constrained_columns"] == [column.name for column in table.primary_key]


@pytest.mark.parametrize("name", TABLES)
def test_indexes(database: Database, known: Tables, name: str) -> None:
    """The same columns, and a partial one has a predicate that PostgreSQL spells alike."""
    table: Table = getattr(known, name)
    found = {each["name"]: each for each in inspect(database.engine).get_indexes(table.name, schema="public")}
    assert found.keys() == {index.name for index in table.indexes}
    for index in table.indexes:
        made = found[index.name]
        assert made["column_names"] == [column.name for column in index.columns]
        assert not made["unique"]
        spelled = str(CreateIndex(index).compile(dialect=postgresql.dialect())).partition(" WHERE ")[2]  # type: ignore[no-untyped-call]
        told = str(made.get("dialect_options", {}).get("postgresql_where", ""))
        assert told.replace("(", "").replace(")", "") == spelled.replace("(", "").replace(")", "")
