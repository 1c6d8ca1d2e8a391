"""When the purge job runs again, and what an error means for it; no database."""

from __future__ import annotations

from typing import Any, cast

import psycopg.errors
import pytest

from curfew_daemon.database import Link
from curfew_daemon.failures import REMEDIES
from curfew_daemon.purger import Purger
from curfew_daemon.results import DatabaseState, PurgedSlice, PurgeResult
from curfew_daemon.retention import Retention, remedy_for
from curfew_store.schema import tables_in

DONE = PurgeResult("done", PurgedSlice(), 2, 0.1, 0.4)


class Heard:
    """What was said, and a link that counts how often it was given up and cancelled."""

    def __init__(self) -> None:
        self.purged_rounds: list[PurgeResult] = []
        self.failures: list[DatabaseState] = []
        self.drops = 0
        self.cancels = 0

    def purged_slice(self, deleted: PurgedSlice) -> None:
        """Nothing is deleted here."""

    def purged(self, result: PurgeResult) -> None:
        self.purged_rounds.append(result)

    def purge_failed(self, state: DatabaseState, error: Exception) -> None:
        self.failures.append(state)

    def connection(self) -> None:
        """Never asked for."""

    def drop(self) -> None:
        self.drops += 1

    def cancel(self) -> None:
        self.cancels += 1

    close = drop


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def retention(heard: Heard) -> Retention:
    link = cast("Link", heard)
    return Retention(tables_in("public"), link, heard, older_than=lambda: 3600.0, interval=lambda: 1000.0)


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the next rounds come to: a result, or an error to raise."""
    coming: list[Any] = []

    def run_once(_: Purger) -> PurgeResult:
        outcome = coming.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return cast("PurgeResult", outcome)

    monkeypatch.setattr(Purger, "run_once", run_once)
    return coming


def test_rounds_are_an_interval_apart_and_drift(heard: Heard, retention: Retention, outcomes: list[Any]) -> None:
    """A tenth more or less, so that daemons started together do not stay so; no connection is kept between them."""
    outcomes += [DONE] * 50
    delays = [retention.serve() for _ in range(50)]
    assert all(900 <= delay <= 1100 for delay in delays)
    assert max(delays) - min(delays) > 20
    assert (len(heard.purged_rounds), heard.drops) == (50, 50)


def test_failures_are_answered_by_growing_pauses(heard: Heard, retention: Retention, outcomes: list[Any]) -> None:
    """From a second to a minute, jittered; a round that ends well begins anew."""
    outcomes += [psycopg.OperationalError("connection refused")] * 10
    delays = [retention.serve() for _ in range(10)]
    assert all(2**n / 2 <= delay <= 2**n for n, delay in enumerate(delays[:5], start=1))
    assert all(30 <= delay <= 60 for delay in delays[5:])
    assert heard.failures == [DatabaseState.UNREACHABLE] * 10
    outcomes += [DONE, psycopg.OperationalError("connection refused")]
    retention.serve()
    assert retention.serve() <= 2


def test_a_defect_of_ours_is_told_and_survived(heard: Heard, retention: Retention, outcomes: list[Any]) -> None:
    """It is no state of the database that explains anything, and the job goes on."""
    outcomes += [ZeroDivisionError("planted")]
    assert retention.serve() <= 2
    assert heard.failures == [DatabaseState.OTHER]


def test_pages_are_passed_by_only_where_they_are_what_is_in_the_way(
    heard: Heard, retention: Retention, outcomes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock or a time limit is of these pages; a lack of rights or of a database is not."""
    skipped: list[int] = []
    monkeypatch.setattr(Purger, "skip", lambda _: skipped.append(len(heard.failures)))
    outcomes += [
        psycopg.errors.LockNotAvailable("lock timeout"),
        psycopg.errors.InsufficientPrivilege("permission denied"),
        psycopg.errors.QueryCanceled("statement timeout"),
        psycopg.OperationalError("gone"),
    ]
    for _ in range(4):
        retention.serve()
    assert skipped == [0, 2]


def test_what_a_stop_cancelled_is_no_failure(heard: Heard, retention: Retention, outcomes: list[Any]) -> None:
    """Nothing is said about it."""
    outcomes += [psycopg.errors.QueryCanceled("canceling statement due to user request")]
    retention.stop()
    retention.cancel()
    retention.serve()
    retention.close()
    assert (heard.failures, heard.cancels, heard.drops) == ([], 1, 2)


@pytest.mark.parametrize("own_url", [True, False])
@pytest.mark.parametrize("state", [state for state in DatabaseState if state is not DatabaseState.UP])
def test_every_state_has_a_remedy_that_names_the_right_url(state: DatabaseState, own_url: bool) -> None:
    """That of the purge where it has one; a lack of rights always leads to it."""
    remedy = remedy_for(state, own_url=own_url)
    assert remedy
    if own_url:
        assert "CURFEW_DATABASE_URL" not in remedy
    elif state is not DatabaseState.DENIED:
        assert remedy == REMEDIES[state]
    assert state is not DatabaseState.DENIED or "CURFEW_PURGE_URL" in remedy
