"""The two façades side by side: the same names, parameters and results, and nothing hidden in the package."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
import typing
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

import curfew_store
from curfew_daemon.config import VARIABLES
from curfew_daemon.metrics import Metrics
from curfew_store import (
    AsyncFlowRunControlStore,
    FlowRunControlRecord,
    FlowRunControlStore,
    InvalidValue,
    RunConfiguration,
    RunState,
    StartedRun,
    WrongType,
    schema,
)

KINDS: list[type] = [FlowRunControlStore, AsyncFlowRunControlStore]
URL = "postgresql+psycopg://nobody@127.0.0.1:1/nowhere"


def methods_of(kind: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a class."""
    return {name: m for name, m in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def shape(method: Callable[..., Any]) -> list[tuple[str, Any, Any, Any]]:
    """The parameters of a method, with the asynchronous types replaced by the synchronous ones."""
    hints = typing.get_type_hints(method)
    plain: dict[Any, Any] = {AsyncConnection | None: Connection | None, AsyncEngine: Engine}
    return [
        (p.name, p.kind, p.default, plain.get(hints.get(p.name), hints.get(p.name)))
        for p in inspect.signature(method).parameters.values()
    ]


@pytest.mark.contract("N-2", "X-1")
@pytest.mark.parametrize("name", sorted(methods_of(FlowRunControlStore)))
def test_both_facades_have_the_same_signature(name: str) -> None:
    """Names, order, kinds, defaults, types and results agree; only the connection differs, and that one is awaited."""
    sync, other = methods_of(FlowRunControlStore)[name], methods_of(AsyncFlowRunControlStore)[name]
    assert shape(sync) == shape(other)
    assert typing.get_type_hints(sync)["return"] == typing.get_type_hints(other)["return"]
    assert inspect.iscoroutinefunction(other)
    assert not inspect.iscoroutinefunction(sync)
    assert inspect.getdoc(sync)
    assert inspect.getdoc(other)


@pytest.mark.contract("N-2")
def test_both_facades_have_the_same_methods_and_constructor() -> None:
    """No method is missing from either; a store is made from an engine and, by keyword, a schema and a horizon."""
    assert methods_of(FlowRunControlStore).keys() == methods_of(AsyncFlowRunControlStore).keys()
    assert shape(FlowRunControlStore.__init__) == shape(AsyncFlowRunControlStore.__init__)
    engine, named, horizon = list(inspect.signature(FlowRunControlStore).parameters.values())
    assert (engine.name, engine.kind) == ("engine", engine.POSITIONAL_OR_KEYWORD)
    assert (named.name, named.kind, named.default) == ("schema", named.KEYWORD_ONLY, "public")
    assert (horizon.name, horizon.kind, horizon.default) == ("notify_within", horizon.KEYWORD_ONLY, None)


SIGNATURES: dict[str, tuple[str, object]] = {
    "configure_run": (
        "(run_id, flow_id, trigger_key, idempotency_key=None, timeout_at_utc=None, *, timeout=None, connection=None)",
        type(None),
    ),
    "configure_runs": ("(runs, *, connection=None)", type(None)),
    "start_run": (
        (
            "(flow_id, trigger_key, idempotency_key=None, *, run_id=None, timeout_at_utc=None, timeout=None, "
            "connection=None)"
        ),
        StartedRun,
    ),
    "get_run_control": ("(run_id, *, connection=None)", FlowRunControlRecord | None),
    "ensure_may_run": ("(run_id)", FlowRunControlRecord | None),
    "request_cancel": ("(run_id, reason=None, *, connection=None)", bool),
    "mark_timed_out": ("(run_id, reason=None, *, connection=None)", bool),
    "complete_run": ("(run_id, *, connection=None)", bool),
    "extend_deadline": ("(run_id, new_timeout_at_utc=UNSET, *, timeout=UNSET, connection=None)", bool),
    "heartbeat": ("(run_id, *, timeout, connection=None)", bool),
    "reopen_run": ("(run_id, timeout_at_utc=None, *, timeout=None, connection=None)", bool),
    "find_run_id_by_idempotency_key": (
        "(flow_id, trigger_key, idempotency_key, *, connection=None)",
        UUID | None,
    ),
    "try_register_idempotency_key": ("(flow_id, trigger_key, idempotency_key, run_id, *, connection=None)", bool),
    "purge": ("(before, *, limit, connection=None)", int),
}


@pytest.mark.contract("N-2", "N-4")
def test_the_signatures_of_the_contract() -> None:
    """Each method has the parameters, in upstream's names where it is upstream's, and the result of the contract."""
    methods = methods_of(FlowRunControlStore)
    assert methods.keys() == SIGNATURES.keys()
    for name, (expected, result) in SIGNATURES.items():
        signature = inspect.signature(methods[name])
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
        shown = str(signature.replace(parameters=bare, return_annotation=signature.empty))
        assert shown == expected, name
        assert typing.get_type_hints(methods[name])["return"] == result, name


@pytest.mark.contract("N-3")
def test_every_public_name_is_exported() -> None:
    """What the documentation speaks of can be imported from the package itself, and `__all__` is true and sorted."""
    exported = set(curfew_store.__all__)
    assert list(curfew_store.__all__) == sorted(curfew_store.__all__, key=lambda n: (n.upper() != n, n))
    assert all(getattr(curfew_store, name) is not None for name in exported)
    needed = {"AsyncFlowRunControlStore", "FlowRunControlStore", "FlowRunControlRecord", "RunState", "StartedRun"}
    needed |= {"RunConfiguration", "UNSET", "is_transient", *curfew_store.errors.__all__}
    assert exported >= needed
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = curfew_store.Nothing


@pytest.mark.contract("G-2")
def test_records_are_frozen() -> None:
    """A record has the columns of the table as its fields, and none of the store's results can be changed."""
    record = FlowRunControlRecord(
        uuid4(), uuid4(), "t", None, None, False, None, None, None, datetime(2030, 1, 1, tzinfo=UTC), None
    )
    columns = schema.tables_in("public").controls.columns
    assert [field.name for field in dataclasses.fields(record)] == [column.name for column in columns]
    for frozen in (record, StartedRun(uuid4(), duplicate=False), RunConfiguration(uuid4(), uuid4(), "t")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen.run_id = uuid4()  # type: ignore[misc]


@pytest.mark.contract("G-3", "G-4")
@pytest.mark.parametrize("timed_out", [True, False])
@pytest.mark.parametrize("completed", [True, False])
@pytest.mark.parametrize("cancelled", [True, False])
def test_the_order_of_states(timed_out: bool, completed: bool, cancelled: bool) -> None:
    """Timed out outweighs completed, which outweighs cancelled; a lapsed deadline alone is still active."""
    then = datetime(2020, 1, 1, tzinfo=UTC)
    record = FlowRunControlRecord(
        run_id=uuid4(),
        flow_id=uuid4(),
        trigger_key="t",
        idempotency_key=None,
        timeout_at_utc=then,
        cancel_requested=cancelled,
        cancel_reason=None,
        cancel_requested_at_utc=then if cancelled else None,
        timed_out_at_utc=then if timed_out else None,
        created_at_utc=then,
        completed_at_utc=then if completed else None,
    )
    ended = RunState.COMPLETED if completed else RunState.CANCEL_REQUESTED if cancelled else RunState.ACTIVE
    assert record.state is (RunState.TIMED_OUT if timed_out else ended)
    assert [state.name for state in RunState] == ["TIMED_OUT", "COMPLETED", "CANCEL_REQUESTED", "ACTIVE"]


@pytest.mark.contract("Z-2", "T-8")
@pytest.mark.parametrize(
    ("name", "error"),
    [
        *((bad, InvalidValue) for bad in ("", "a\0b", "\ud800", "s" * 64, "\u00e9" * 32, "pg_catalog", "pg_toast")),
        ("information_schema", InvalidValue),
        *((bad, WrongType) for bad in (None, 7, b"public")),
    ],
    ids=repr,
)
def test_schemas_that_are_refused(name: Any, error: type[Exception]) -> None:
    """A name that PostgreSQL would not take, would cut, or keeps for itself is refused when the store is made."""
    with pytest.raises(error, match="schema"):
        FlowRunControlStore(create_engine(URL), schema=name)
    with pytest.raises(error, match="schema"):
        AsyncFlowRunControlStore(create_async_engine(URL), schema=name)


@pytest.mark.contract("Z-2", "V-1")
@pytest.mark.parametrize(
    ("horizon", "error"),
    [
        *((timedelta(seconds=bad), InvalidValue) for bad in (0, -1, 60.000001)),
        *((bad, WrongType) for bad in (1, 0.5, "1s", True)),
    ],
    ids=repr,
)
def test_horizons_that_are_refused(horizon: Any, error: type[Exception]) -> None:
    """Hints reach a minute at most, and the horizon is a duration."""
    with pytest.raises(error, match="notify_within"):
        FlowRunControlStore(create_engine(URL), notify_within=horizon)
    with pytest.raises(error, match="notify_within"):
        AsyncFlowRunControlStore(create_async_engine(URL), notify_within=horizon)
    assert FlowRunControlStore(create_engine(URL), notify_within=timedelta(minutes=1))


@pytest.mark.contract("Z-2")
def test_engines_that_are_refused() -> None:
    """A store takes an engine of its own kind for psycopg, and says so when it is given another."""
    sync, other, elsewhere = create_engine(URL), create_async_engine(URL), create_engine("sqlite://")
    no_engines: list[Any] = [URL, None, object()]
    for bad in (other, *no_engines):
        with pytest.raises(WrongType, match="AsyncEngine"):
            FlowRunControlStore(bad)
    for bad in (sync, *no_engines):
        with pytest.raises(WrongType, match="FlowRunControlStore takes an Engine"):
            AsyncFlowRunControlStore(bad)
    with pytest.raises(InvalidValue, match=r"postgresql\+psycopg"):
        FlowRunControlStore(elsewhere)


@pytest.mark.contract("N-1")
def test_the_names_of_the_distribution() -> None:
    """One distribution brings the command and both packages; settings and metrics carry its prefix."""
    distribution = importlib.metadata.distribution("curfewd")
    assert [e.value for e in distribution.entry_points if e.name == "curfewd"] == ["curfew_daemon.__main__:main"]
    assert all(importlib.util.find_spec(name) for name in ("curfew_store", "curfew_daemon"))
    assert {variable.partition("_")[0] for variable in VARIABLES.values()} == {"CURFEW"}
    # process_ and python_ are the client library's own, under the names that it gives them everywhere.
    prefixes = {family.name.partition("_")[0] for family in Metrics().registry.collect()}
    assert prefixes == {"curfew", "process", "python"}


SILENT = """
import logging, os, sys
import psycopg, sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

class Watched(dict):
    def __getitem__(self, key):
        assert not key.startswith(("CURFEW", "PG")), key
        return super().__getitem__(key)
    def get(self, key, default=None):
        return self[key] if key in self else default

engines = sqlalchemy.create_engine(sys.argv[1]), create_async_engine(sys.argv[1])
before = list(logging.root.handlers), logging.root.level, set(logging.root.manager.loggerDict)
os.environ = Watched(os.environ)
from curfew_store import AsyncFlowRunControlStore, FlowRunControlStore
FlowRunControlStore(engines[0])
AsyncFlowRunControlStore(engines[1])
after = list(logging.root.handlers), logging.root.level, set(logging.root.manager.loggerDict)
assert before == after, (before, after)
print("silent")
"""


@pytest.mark.contract("Z-7", "Z-6")
def test_the_store_reads_no_environment_and_configures_no_logging() -> None:
    """Import and construction look at none of our variables or libpq's, and leave logging as it was."""
    environment = os.environ | {"CURFEW_SCHEMA": "elsewhere", "CURFEW_DATABASE_URL": "elsewhere"}
    done = subprocess.run(
        [sys.executable, "-c", SILENT, URL], env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.stdout, done.stderr) == ("silent\n", "")


@pytest.mark.contract("Z-7")
def test_two_stores_share_nothing() -> None:
    """Stores for two schemas of one engine hold their own tables and leave the engine as it was."""
    engine = create_engine(URL)
    options = dict(engine.get_execution_options())
    one, two = FlowRunControlStore(engine), FlowRunControlStore(engine, schema="two")
    assert (one._tables.schema, two._tables.schema) == ("public", "two")
    assert dict(engine.get_execution_options()) == options


def test_the_package_lists_its_names_and_has_no_others() -> None:
    """What is exported is found by dir(), and asking for anything else is the usual error."""
    assert set(curfew_store.__all__) <= set(dir(curfew_store))
    with pytest.raises(AttributeError, match="no attribute 'something'"):
        curfew_store.something  # noqa: B018


def test_an_asynchronous_engine_of_another_database_is_refused() -> None:
    """The message names the driver that is needed and the one that was given."""
    engine = AsyncEngine.__new__(AsyncEngine)
    engine.sync_engine = create_engine("sqlite://")
    with pytest.raises(InvalidValue, match=r"postgresql\+psycopg://, not sqlite://"):
        AsyncFlowRunControlStore(engine)
