"""Tables that are missing, old, too new or gone meanwhile: `SchemaMismatch` at the first call, and its remedy."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from curfew_store import AsyncFlowRunControlStore, FlowRunControlStore, SchemaMismatch, is_transient
from curfew_store.migrate import upgrade
from tests.integration.contract.facade import OpenFacade
from tests.integration.contract.rows import FLOW, Rows

MIGRATED = 'CURFEW "Café" %s'


@pytest.fixture(scope="module")
def schemas(url: str, rows: Rows) -> Rows:
    """Schemas in every condition: without our tables, with an old version, with newer ones, and a usable one."""
    rows.sql("CREATE SCHEMA without_tables")
    versions = {"old": ("0000", 1), "newer": ("9999", 1), "newer_for_others": ("9999", 2), "unversioned": None}
    for schema, version in versions.items():
        rows.sql(f"CREATE SCHEMA {schema}")
        for table in ("flow_run_controls", "flow_idempotency_keys", "curfew_schema_version"):
            rows.sql(f"CREATE TABLE {schema}.{table} (LIKE public.{table} INCLUDING ALL)")
        if version:
            rows.sql(f"INSERT INTO {schema}.curfew_schema_version VALUES (:v, :m)", v=version[0], m=version[1])
    rows.sql("CREATE SCHEMA upstream")
    rows.sql("CREATE TABLE upstream.flow_run_controls (LIKE public.flow_run_controls INCLUDING ALL)")
    engine = create_engine(url)
    upgrade(engine, schema=MIGRATED)
    engine.dispose()
    return rows


BAD = {
    "missing": (None, "curfewd migrate"),
    "without_tables": (None, "curfewd migrate"),
    "upstream": (None, "curfewd migrate"),
    "unversioned": (None, "curfewd migrate"),
    "old": ("0000", "curfewd migrate"),
    "newer_for_others": ("9999", "upgrade curfewd"),
}


@pytest.mark.contract("Z-6", "Z-1")
@pytest.mark.parametrize("schema", BAD)
def test_a_schema_that_will_not_do(open_facade: OpenFacade, schemas: Rows, schema: str) -> None:
    """Construction succeeds; each call says what was found, what is needed and what to do; no transaction is lost."""
    found, remedy = BAD[schema]
    facade = open_facade(schema)
    for _ in range(2):
        with pytest.raises(SchemaMismatch, match=remedy) as raised:
            facade.store.start_run(FLOW, "t", "key")
        assert (raised.value.schema, raised.value.found, raised.value.needed) == (schema, found, "0001")
        assert schema in str(raised.value)
        assert not is_transient(raised.value)
    with facade.begin() as caller:
        with pytest.raises(SchemaMismatch):
            facade.store.get_run_control(uuid4(), connection=caller.handle)
        assert caller.sql("SELECT 1") == [(1,)]
    facade.close()


@pytest.mark.contract("Z-6", "T-8")
@pytest.mark.parametrize("schema", ["newer", MIGRATED])
def test_a_schema_that_will_do(open_facade: OpenFacade, schemas: Rows, schema: str) -> None:
    """A newer version and a schema of any name work, and their runs are not seen from elsewhere."""
    facade, elsewhere = open_facade(schema), open_facade()
    started = facade.store.start_run(FLOW, "t", "key")
    assert facade.store.get_run_control(started.run_id) is not None
    assert elsewhere.store.get_run_control(started.run_id) is None
    assert elsewhere.store.find_run_id_by_idempotency_key(FLOW, "t", "key") is None
    facade.close()
    elsewhere.close()


@pytest.mark.contract("Z-6", "Z-3")
def test_tables_that_go_away_under_a_running_service(open_facade: OpenFacade, schemas: Rows) -> None:
    """A store that worked says SchemaMismatch, with the server's error as its cause, and works again afterwards."""
    facade = open_facade()
    assert facade.store.get_run_control(uuid4()) is None
    for away, back in [
        ("TABLE flow_run_controls RENAME TO away", "TABLE away RENAME TO flow_run_controls"),
        (
            "TABLE flow_run_controls RENAME completed_at_utc TO away",
            "TABLE flow_run_controls RENAME away TO completed_at_utc",
        ),
    ]:
        schemas.sql(f"ALTER {away}")
        with pytest.raises(SchemaMismatch, match="curfewd migrate") as raised:
            facade.store.get_run_control(uuid4())
        assert raised.value.__cause__ is not None
        schemas.sql(f"ALTER {back}")
        assert facade.store.get_run_control(uuid4()) is None
    facade.close()


@pytest.mark.contract("Z-6")
def test_a_store_notices_that_it_was_migrated(open_facade: OpenFacade, schemas: Rows, url: str) -> None:
    """After `migrate` the same store works: a refusal is not remembered."""
    later = f"later_{uuid4().hex}"
    facade = open_facade(later)
    with pytest.raises(SchemaMismatch):
        facade.store.get_run_control(uuid4())
    engine = create_engine(url)
    upgrade(engine, schema=later)
    engine.dispose()
    assert facade.store.get_run_control(uuid4()) is None
    facade.close()


@pytest.mark.contract("Z-6", "Z-7")
def test_construction_touches_no_database() -> None:
    """Both stores can be made for a server that does not exist."""
    nowhere = "postgresql+psycopg://nobody@127.0.0.1:1/nowhere"
    FlowRunControlStore(create_engine(nowhere))
    AsyncFlowRunControlStore(create_async_engine(nowhere))
