"""The producer's guide: every block of code in it is run, and does to the database what the text around it says.

Here the blocks with which a trigger service starts runs; the modules beside this one hold the others.
"""

from __future__ import annotations

import importlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
import sqlalchemy.exc

from curfew_store.enforcement import claim_overdue
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration import readme_snippets
from tests.integration.readme_snippets import (
    KEYS,
    ORDERS,
    README,
    RUNS,
    URL_IN_README,
    Readme,
    claimed_by,
    claims,
    snippets,
)

readme = readme_snippets.readme
TEN_MINUTES = timedelta(minutes=10)


def _sweep(database: Database) -> set[UUID]:
    """What the daemon does: claim whatever is due."""
    with database.engine.connect() as connection:
        alone = connection.execution_options(isolation_level="AUTOCOMMIT")
        return {run.run_id for run in claim_overdue(alone, tables_in("public"), limit=100)}


def test_every_block_has_a_check() -> None:
    """Each Python and SQL block has a name, claimed by one test; a URL in one is the one that tests replace."""
    names = [path.stem for path in Path(__file__).parent.glob("test_store_readme*.py")]
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    checks = [check for module in modules for name, check in vars(module).items() if name.startswith("test_")]
    named = [block.name for block in snippets() if block.language in {"python", "sql"}]
    assert sorted(named) == sorted(name for check in checks for name in claimed_by(check))
    assert {block.language for block in snippets() if not block.name} == {"sh", "mermaid"}
    assert re.findall("```|~~~", README.read_text()) == ["```"] * 2 * len(snippets()), "a block that is not recognised"
    addresses = [line for block in snippets() for line in block.body.splitlines() if "postgresql" in line]
    assert all(URL_IN_README in line for line in addresses)


@claims("trigger")
def test_a_trigger_service_in_fifteen_lines(readme: Readme, database: Database) -> None:
    """A request arms and dispatches one run, its duplicate finds it, and only a completed run is spared the mark."""
    dispatched: list[UUID] = []
    readme.run("trigger", dispatch=dispatched.append)
    assert sum(1 for line in readme.source("trigger").splitlines() if line) <= 15
    first, again, other = readme["trigger"]("order-17"), readme["trigger"]("order-17"), readme["trigger"]("order-18")
    assert first == again != other
    assert dispatched == [first, other]
    lengths = "SELECT run_id, timeout_at_utc - created_at_utc FROM flow_run_controls"
    armed = {run_id for run_id, length in readme.sql(lengths) if TEN_MINUTES <= length < 2 * TEN_MINUTES}
    assert armed == {first, other}

    readme["store"].complete_run(first)
    readme.make_overdue(first)
    readme.make_overdue(other)
    assert _sweep(database) == {other}


@claims("async-trigger")
async def test_an_asynchronous_trigger_service(readme: Readme) -> None:
    """The asynchronous service arms and dispatches one run for two requests with the same key."""
    dispatched: list[UUID] = []

    async def dispatch(run_id: UUID) -> None:
        dispatched.append(run_id)

    readme.run("async-trigger", dispatch=dispatch)
    assert sum(1 for line in readme.source("async-trigger").splitlines() if line) <= 15
    try:
        first = await readme["trigger"]("order-17")
        assert await readme["trigger"]("ORDER-17") == first
    finally:
        await readme["async_engine"].dispose()
    assert dispatched == [first]
    assert readme.sql("SELECT run_id, timeout_at_utc > now() FROM flow_run_controls") == [(first, True)]


@claims("fastapi")
async def test_fastapi_with_the_callers_transaction(readme: Readme) -> None:
    """Run and order are committed together or not at all; a bad key is a 422 and leaves nothing."""
    readme.sql(ORDERS)
    readme.run("trigger", "fastapi")

    async def post(item: str, key: str | None) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        # Starlette's own TestClient warns about httpx; the transport beneath it does not.
        transport = httpx.ASGITransport(readme["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://orders.test") as client:
            return await client.post("/orders", params={"item": item}, headers=headers)

    first, again = await post("book", "order-17"), await post("pen", "order-17")
    assert first.status_code == again.status_code == 202
    assert first.json() == again.json()
    run_id = UUID(first.json()["run_id"])
    assert readme.sql("SELECT run_id, item FROM orders") == [(run_id, "book")]

    with pytest.raises(sqlalchemy.exc.DataError):
        await post("a name of more than twenty characters", "order-18")
    assert [(await post("book", key)).status_code for key in (" ", "k" * 257, None)] == [422, 422, 422]
    assert readme.sql(RUNS) == readme.sql(KEYS) == readme.sql("SELECT run_id FROM orders") == [(run_id,)]


@claims("orm")
def test_an_orm_session(readme: Readme) -> None:
    """Run and ORM object are committed together or not at all, and a duplicate adds neither."""
    readme.sql(ORDERS)
    readme.run("trigger", "orm")
    run_id = readme["create_order"]("book", "order-17")
    assert readme["create_order"]("pen", "order-17") == run_id
    with pytest.raises(sqlalchemy.exc.DataError):
        readme["create_order"]("a name of more than twenty characters", "order-18")
    assert readme.sql("SELECT run_id, item FROM orders") == [(run_id, "book")]
    assert readme.sql(RUNS) == readme.sql(KEYS) == [(run_id,)]


@claims("deadlines")
def test_the_three_kinds_of_deadline(readme: Readme) -> None:
    """A timeout counts from the call, a moment is kept as it is, and neither means none."""
    readme.run("trigger", "deadlines")
    found = readme.sql("SELECT run_id, timeout_at_utc - created_at_utc, timeout_at_utc FROM flow_run_controls")
    seen = {run_id: (length, moment) for run_id, length, moment in found}
    assert timedelta(hours=24) <= seen[readme["relative"].run_id][0] < timedelta(hours=24, minutes=1)
    assert seen[readme["absolute"].run_id][1] == datetime(2030, 1, 1, 6, tzinfo=UTC)
    assert seen[readme["unbounded"].run_id] == (None, None)


@claims("keys")
def test_keys_in_any_spelling_are_one(readme: Readme) -> None:
    """Keys that differ in case and white space start one run, and the record keeps the text as it was given."""
    readme.run("trigger", "keys")
    assert readme.sql("SELECT trigger_key, idempotency_key FROM flow_idempotency_keys") == [("order", "order-17")]
    assert readme.sql("SELECT trigger_key, idempotency_key FROM flow_run_controls") == [("order", "Order-17")]
