"""The hook with which a service's own autogenerate leaves our tables alone."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Index, Integer, MetaData, String, Table

from curfew_store.alembic import include_object
from curfew_store.migrate import upgrade
from curfew_store.schema import tables_in
from tests.conftest import Database

OURS = {"flow_run_controls", "flow_idempotency_keys", "curfew_schema_version"}


def _of_a_service() -> MetaData:
    metadata = MetaData()
    table = Table("orders", metadata, Column("id", Integer, primary_key=True), Column("status", String(20)))
    Index("ix_orders_status", table.c.status)
    return metadata


def _proposals(database: Database, metadata: MetaData, **options: Any) -> list[tuple[str, str]]:
    """What autogenerate would write: the kind of each change and the name of what it concerns."""
    with database.engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"target_metadata": metadata, **options})
        changes = compare_metadata(context, metadata)
    return sorted((kind, thing.name) for kind, thing, *_ in changes)


def test_without_the_hook_autogenerate_would_drop_our_tables(database: Database) -> None:
    """A service that shares the database and does not use the hook is told to drop what is ours."""
    proposals = _proposals(database, _of_a_service())
    assert {name for kind, name in proposals if kind == "remove_table"} == OURS
    assert ("remove_index", "ix_flow_run_controls_armed") in proposals


def test_with_the_hook_autogenerate_sees_the_services_tables_alone(database: Database) -> None:
    """The hook hides our tables and their indexes, and nothing of the service's."""
    metadata = _of_a_service()
    expected = [("add_index", "ix_orders_status"), ("add_table", "orders")]
    assert _proposals(database, metadata, include_object=include_object) == expected
    with database.engine.begin() as conn:
        metadata.create_all(conn)
        conn.exec_driver_sql("CREATE TABLE left_over (id integer)")
    assert _proposals(database, metadata, include_object=include_object) == [("remove_table", "left_over")]


def test_the_hook_works_for_a_schema_of_its_own(database: Database) -> None:
    """Our tables are hidden in whichever schema autogenerate looks."""
    upgrade(database.engine, schema="runs")
    options = {"include_object": include_object, "include_schemas": True}
    kinds = {kind for kind, _ in _proposals(database, _of_a_service(), **options)}
    assert kinds == {"add_table", "add_index"}


def test_our_own_metadata_agrees_with_the_migrated_tables(database: Database) -> None:
    """A service that lists our tables in its metadata gets no proposal either, with the hook or without."""
    metadata = tables_in("public").controls.metadata
    for options in ({}, {"include_object": include_object}):
        proposals = _proposals(database, metadata, include_schemas=True, **options)
        assert proposals == []


@pytest.mark.parametrize(
    ("kind", "name"), [("table", "orders"), ("table", None), ("column", "flow_run_controls"), ("schema", "public")]
)
def test_the_hook_has_no_opinion_on_anything_else(kind: str, name: str | None) -> None:
    """Objects that do not hang on our tables are left to the service, whatever they are called."""
    assert include_object(None, name, kind, True, None)
