"""The bench's frame on a real server: databases, the reference, repetition, and a scenario that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from tests.bench import __main__ as command
from tests.bench import backlog, lateness
from tests.bench.frame import Bench, Figure
from tests.conftest import Database


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Iterator[Bench]:
    """A bench on the tests' server, whose lag cannot be told."""
    url = database.url.replace("postgresql+psycopg", "postgresql")
    with Bench(database_url=url, pictures=tmp_path, runs=2, say=lambda _text: None) as opened:
        yield opened


def test_a_scenario_that_fails_does_not_stop_the_others(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured is shown and written, with the machine beside it; the exit code says that something failed."""

    def broken(_bench: Bench) -> list[Figure]:
        raise RuntimeError("no such luck")

    scenarios = {
        "drain": SimpleNamespace(TITLE="fails", run=broken),
        "horizon": SimpleNamespace(TITLE="works", run=lambda _bench: [Figure("speed", [1.0], "x", "> 2", False)]),
        "idle": None,
    }
    monkeypatch.setattr(command, "found", scenarios.__getitem__)
    url = database.url.replace("postgresql+psycopg", "postgresql")
    file = tmp_path / "figures.json"
    given = ["--only", "drain,horizon,idle", "--database-url", url, "--json", str(file)]
    assert command.main(given) == 1
    assert "missed: speed" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert [figure["met"] for figure in written["scenarios"]["horizon"]] == [False]
    assert set(written["scenarios"]) == {"horizon"}
    assert {"cores", "PostgreSQL", "load_before", "load_after"} <= set(written["machine"])
    assert command.main(["--only", "horizon", "--database-url", url]) == 0
    assert command.main(["--only", "horizon", "--strict", "--database-url", url]) == 1


def test_a_database_of_the_frame_is_new_and_gone_afterwards(bench: Bench) -> None:
    """Migrated inside; nobody finds it outside; a name that would need quotes is refused."""
    with bench.database("frame") as database:
        assert database.scalar("SELECT count(*) FROM flow_run_controls") == 0
        url = database.url
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)
    with pytest.raises(ValueError, match="ordinary"), bench.database("of mine"):
        pass


def test_the_reference_marks_a_backlog_that_it_finds_and_sleeps_until_a_deadline(bench: Bench) -> None:
    """The bare loop enforces: it is what the daemon is measured beside."""
    with bench.database("reference") as database, bench.reference(database, batch=10) as pids:
        with backlog.frozen(pids):
            backlog.fill(database, 55)
            assert database.scalar("SELECT count(*) FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL") == 0
        backlog.wait_until_marked(database, 55)
        backlog.empty(database)
        lateness.arm(database, 3, lateness.now(database) + timedelta(seconds=0.3), 0.1)
        backlog.wait_until_marked(database, 3)
        assert database.scalar("SELECT count(*) FROM flow_run_controls WHERE timed_out_at_utc < timeout_at_utc") == 0


def test_a_picture_is_kept_only_where_it_is_wanted(bench: Bench, tmp_path: Path, database: Database) -> None:
    """In the folder that was named."""
    bench.picture("one", "<svg/>")
    assert (tmp_path / "one.svg").read_text() == "<svg/>"
    Bench().picture("two", "<svg/>")
    assert not (tmp_path / "two.svg").exists()


def test_measuring_is_repeated_as_often_as_was_asked(bench: Bench) -> None:
    """And the seed of a run decides what its generators give."""
    numbers = iter([1.0, 2.0, 3.0])
    assert bench.repeat("so often", lambda: next(numbers)) == [1.0, 2.0]
    assert bench.rng("a").random() == Bench().rng("a").random() != bench.rng("b").random()
    assert bench.tells_commits in {True, False}
