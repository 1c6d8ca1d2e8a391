"""Every bad input: a typed error that names the parameter, nothing written, the connection still usable."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from curfew_store import CurfewError, InvalidValue, WrongType
from tests.integration.contract.facade import Facade
from tests.integration.contract.rows import FLOW, Rows

# Constants all, since pytest-xdist wants the same test ids in every worker.
RUN = UUID("5f0d2c6e-8a57-4c0b-9d7e-3c1a0b9f6e21")
HOUR = timedelta(hours=1)
NOW = datetime(2030, 5, 1, tzinfo=UTC)
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001
EAST = timezone(timedelta(hours=14))
WEST = timezone(-timedelta(hours=14))


class Foreign:
    """A value of no type that the store knows."""

    def __repr__(self) -> str:
        return "foreign"


# Values that are refused wherever a parameter of the name occurs: the parameter, its values, and the error.
NO_UUID: list[Any] = [None, str(RUN), RUN.bytes, 7, Foreign()]
NO_TEXT: list[Any] = [b"key", 7, 1.5, ["key"], Foreign()]
LONG = "k" * 257
NO_KEYS = ["a\0b", "\ud800", "k\udfff", LONG, " " * 257, "\u4e2d" * 257, "k" * 3000, "x" * 10_000_000]
NO_MOMENTS = [
    NAIVE,
    datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2000, 1, 1, tzinfo=EAST),
    datetime(9999, 1, 1, tzinfo=UTC),
    datetime(9998, 12, 31, 23, tzinfo=WEST),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=EAST),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=WEST),
]
NO_DATETIMES: list[Any] = ["2030-01-01T00:00:00+00:00", 1893456000, 1.5, date(2030, 1, 1), HOUR, float("inf")]
NO_DURATIONS = [timedelta(0), timedelta(microseconds=-1), -HOUR, timedelta.min, timedelta.max, timedelta(days=365_001)]
NO_TIMEDELTAS: list[Any] = [10, 10.0, float("nan"), float("inf"), 1e308, 2**63, True, False, "10", NOW]

BAD: dict[str, list[tuple[type[Exception], list[Any]]]] = {
    "run_id": [(TypeError, NO_UUID), (ValueError, [UUID(int=0)])],
    "flow_id": [(TypeError, NO_UUID)],
    "trigger_key": [(TypeError, [None, *NO_TEXT]), (ValueError, NO_KEYS)],
    "idempotency_key": [(TypeError, NO_TEXT), (ValueError, ["", " \t\u3000", *NO_KEYS])],
    "reason": [(TypeError, NO_TEXT), (ValueError, ["a\0b", "\ud800", "r" * 4001, "r" * 1_000_000])],
    "timeout_at_utc": [(TypeError, NO_DATETIMES), (ValueError, NO_MOMENTS)],
    "new_timeout_at_utc": [(TypeError, NO_DATETIMES), (ValueError, NO_MOMENTS)],
    "before": [(TypeError, [None, *NO_DATETIMES]), (ValueError, NO_MOMENTS)],
    "timeout": [(TypeError, NO_TIMEDELTAS), (ValueError, NO_DURATIONS)],
    "limit": [(TypeError, [None, "10", 1.5, True]), (ValueError, [0, -1, 2**63])],
}

# Good arguments for each method; each named parameter of `BAD` among them is spoilt in turn.
GOOD: dict[str, dict[str, Any]] = {
    "configure_run": {
        "run_id": RUN,
        "flow_id": FLOW,
        "trigger_key": "t",
        "idempotency_key": "k",
        "timeout_at_utc": None,
        "timeout": None,
    },
    "start_run": {
        "flow_id": FLOW,
        "trigger_key": "t",
        "idempotency_key": "k",
        "run_id": RUN,
        "timeout_at_utc": None,
        "timeout": None,
    },
    "get_run_control": {"run_id": RUN},
    "request_cancel": {"run_id": RUN, "reason": "r"},
    "mark_timed_out": {"run_id": RUN, "reason": "r"},
    "complete_run": {"run_id": RUN},
    "extend_deadline": {"run_id": RUN, "new_timeout_at_utc": NOW},
    "heartbeat": {"run_id": RUN, "timeout": HOUR},
    "reopen_run": {"run_id": RUN, "timeout_at_utc": None, "timeout": None},
    "ensure_may_run": {"run_id": RUN},
    "find_run_id_by_idempotency_key": {"flow_id": FLOW, "trigger_key": "t", "idempotency_key": "k"},
    "try_register_idempotency_key": {"flow_id": FLOW, "trigger_key": "t", "idempotency_key": "k", "run_id": RUN},
    "purge": {"before": NOW, "limit": 1},
}
# `None` means "hand one out" here, and "none at all" there.
OPTIONAL = {("start_run", "run_id")}


def cases() -> Iterator[Any]:
    """Every method with every one of its parameters spoilt in every way."""
    for method, good in GOOD.items():
        for parameter in good:
            for error, values in BAD[parameter]:
                for value in values:
                    if value is None and (method, parameter) in OPTIONAL:
                        continue
                    shown = str(value) if isinstance(value, datetime | timedelta) else repr(value)
                    shown = shown if len(shown) < 40 else f"{type(value).__name__} of {len(shown)}"
                    yield pytest.param(method, {parameter: value}, error, id=f"{method}-{parameter}-{shown}")
    required = ("find_run_id_by_idempotency_key", "try_register_idempotency_key")
    yield from (pytest.param(m, {"idempotency_key": None}, TypeError, id=f"{m}-no key") for m in required)
    both = {"timeout_at_utc": NOW, "timeout": HOUR}
    for method in ("configure_run", "start_run", "reopen_run"):
        yield pytest.param(method, both, ValueError, id=f"{method}-both deadlines")
    yield pytest.param("heartbeat", {"timeout": None}, TypeError, id="heartbeat-no timeout")
    yield pytest.param("extend_deadline", {"new_timeout_at_utc": NOW, "timeout": HOUR}, ValueError, id="extend-both")


CASES = list(cases())


@pytest.fixture(scope="module")
def armed(rows: Rows) -> UUID:
    """A run and a key that a bad call could damage."""
    rows.sql(
        "INSERT INTO flow_run_controls (run_id, timeout_at_utc, cancel_reason) VALUES (:run, now() + '1 hour', 'mine') "
        "ON CONFLICT DO NOTHING",
        run=RUN,
    )
    rows.insert_key(RUN, "a key of another run")
    return RUN


@pytest.mark.contract("Z-1", "Z-2", "A-3", "F-1", "K-6", "K-7", "K-8", "R-2")
@pytest.mark.parametrize(("method", "spoilt", "error"), CASES)
def test_bad_input_is_refused(
    facade: Facade, rows: Rows, armed: UUID, method: str, spoilt: dict[str, Any], error: type[Exception]
) -> None:
    """The error has the expected type, says which parameter it is, and nothing has been sent to the database."""
    before = rows.everything()
    with facade.begin() as caller:
        transaction = caller.sql("SELECT pg_current_xact_id()::text")
        options = {} if method == "ensure_may_run" else {"connection": caller.handle}
        with pytest.raises(error) as raised:
            getattr(facade.store, method)(**GOOD[method] | spoilt, **options)
        assert caller.sql("SELECT pg_current_xact_id()::text") == transaction
        caller.commit()
    assert isinstance(raised.value, WrongType if error is TypeError else InvalidValue)
    assert isinstance(raised.value, CurfewError)
    assert raised.value.parameter in spoilt
    assert str(raised.value).startswith(raised.value.parameter)
    assert len(str(raised.value)) < 300
    assert rows.everything() == before


@pytest.mark.contract("Z-2")
@pytest.mark.parametrize("runs", [None, 7, [None], ["run"], [RUN], [{"run_id": RUN}]], ids=repr)
def test_a_batch_of_something_else(facade: Facade, rows: Rows, runs: Any) -> None:
    """What is no iterable of run configurations is a TypeError of the store's, and nothing is written."""
    before = rows.everything()
    with pytest.raises(WrongType) as raised:
        facade.store.configure_runs(runs)
    assert raised.value.parameter == "runs"
    assert rows.everything() == before


@pytest.mark.contract("Z-2", "X-1")
@pytest.mark.parametrize("kind", ["the other façade's", "an engine", "a string", "a driver's connection"])
def test_a_connection_of_the_wrong_kind(facade: Facade, rows: Rows, kind: str) -> None:
    """Anything but a connection of the façade's own kind is a TypeError that says what to pass."""
    run_id = rows.insert("active")
    before = rows.row(run_id)
    wrong: dict[str, Any] = {
        "the other façade's": facade.wrong_connection(),
        "an engine": facade.engine,
        "a string": "connection",
        "a driver's connection": object(),
    }
    with pytest.raises(TypeError, match="connection"):
        facade.store.request_cancel(run_id, connection=wrong[kind])
    assert rows.changed(before, run_id) == set()
