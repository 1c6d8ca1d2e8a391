"""The bench's own parts: figures and what is shown of them, pictures, and the frame on a real server."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from tests.bench import __main__ as command
from tests.bench import backlog, lateness, pictures, report
from tests.bench.frame import Bench, Figure
from tests.conftest import Database

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Iterator[Bench]:
    """A bench on the tests' server, whose lag cannot be told."""
    url = database.url.replace("postgresql+psycopg", "postgresql")
    with Bench(database_url=url, pictures=tmp_path, runs=2, say=lambda _text: None) as opened:
        yield opened


def test_a_figure_is_judged_by_its_median_and_beside_its_reference() -> None:
    """Spread and ratio come from all the runs; a reference of nothing has no ratio."""
    figure = Figure("rate", [3.0, 1.0, 2.0], "x", reference=[4.0, 4.0, 5.0])
    assert (figure.median, figure.least, figure.greatest, figure.ratio) == (2.0, 1.0, 3.0, 0.5)
    assert figure.judged(lambda it: it.median < 3).met is True
    assert figure.with_goal("< 1").judged(lambda it: it.greatest < 1).met is False
    assert Figure("rate", [1.0], "x").ratio is None
    assert Figure("rate", [1.0], "x", reference=[0.0]).ratio is None


def test_the_table_says_what_was_missed() -> None:
    """A line per figure with its verdict; figures without a goal have none."""
    lines = report.table(
        [
            Figure("fast enough", [70_123.4], "marks/s", ">= 1", True, [35_000.0]),
            Figure("too slow", [0.01234, 0.5, 12.0], "ms", "< 0.1", False),
            Figure("so it is", [0.0], "ms"),
        ]
    )
    assert " ".join(lines[1].split()) == "fast enough 70,123 70,123 70,123 marks/s 35,000 2.00 >= 1 met"
    assert " ".join(lines[2].split()) == "too slow 0.500 0.0123 12.0 ms < 0.1 MISSED"
    assert " ".join(lines[3].split()) == "so it is 0 0 0 ms"


def test_pictures_are_drawn_to_scale_and_well_formed() -> None:
    """Bars are as high as their values, points where the axes say; names are escaped."""
    y = pictures.Axis("marks/s", [0, 50, 100])
    tree = ET.fromstring(pictures.bars("a < b", "note & more", y, ["one", "two"], [("s", [50.0, 100.0])]))
    heights = [float(each.get("height", "0")) for each in tree.iter(f"{SVG}rect") if each.get("class") == "fill s0"]
    assert heights[-1] == pytest.approx(2 * heights[-2], rel=0.01)
    assert "a < b. note & more" in [each.text for each in tree.iter(f"{SVG}title")]

    x = pictures.Axis("size", [1, 100], log=True)
    drawn = pictures.lines("t", "n", x, y, [pictures.Series("s", [(1, 0), (10, 50), (1000, 100)], dashed=True)])
    (line,) = ET.fromstring(drawn).iter(f"{SVG}polyline")
    (left, low), (middle, half), (right, high) = (
        tuple(float(each) for each in point.split(",")) for point in line.get("points", "").split()
    )
    assert (middle - left) == pytest.approx(right - middle)
    assert (low - half) == pytest.approx(half - high)
    assert "dash" in line.get("class", "")


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


def test_a_name_that_is_no_scenario_is_refused() -> None:
    """Before anything is started."""
    with pytest.raises(SystemExit):
        command.parsed(["--only", "speed"])
    assert command.found("no_such_module") is None


@pytest.mark.parametrize("name", command.SCENARIOS)
def test_every_scenario_is_there(name: str) -> None:
    """A module with a title of one line and something to run."""
    scenario = command.found(name)
    assert scenario is not None
    assert "\n" not in scenario.TITLE
    assert callable(scenario.run)


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
