"""The bench's own parts: figures and what is shown of them, pictures, scenarios by name."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest

from tests.bench import __main__ as command
from tests.bench import disk, pictures, report
from tests.bench.frame import Bench, Figure

SVG = "{http://www.w3.org/2000/svg}"


def test_a_figure_is_judged_by_its_median_and_beside_its_reference() -> None:
    """Spread and ratio come from all the runs; a reference of nothing has no ratio."""
    figure = Figure("rate", [3.0, 1.0, 2.0], "x", reference=[4.0, 4.0, 5.0])
    assert (figure.median, figure.least, figure.greatest, figure.ratio) == (2.0, 1.0, 3.0, 0.5)
    assert figure.judged(lambda it: it.median < 3).met is True
    assert figure.with_goal("< 1").judged(lambda it: it.greatest < 1).met is False
    assert Figure("rate", [1.0], "x").ratio is None
    assert Figure("rate", [1.0], "x", reference=[0.0]).ratio is None


def test_what_was_measured_beside_a_disk_that_stood_still_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times at most, whatever was found, and never at full length; each repetition is said with its reason."""
    writes: list[float] = []
    said: list[str] = []

    @contextmanager
    def watched(_bench: object) -> Iterator[disk.Disk]:
        yield disk.Disk(longest=writes.pop(0))

    monkeypatch.setattr(disk, "watched_disk", watched)

    def measured(full: bool, *longest: float) -> tuple[int, float, int]:
        writes[:] = longest
        found = itertools.count(1)
        bench = cast("Bench", SimpleNamespace(full=full, say=said.append))
        number, seen = disk.beside_the_disk(bench, lambda: next(found))
        return number, seen.longest, len(writes)

    assert measured(False, 0.001, 9.0) == (1, 0.001, 1)
    assert said == []
    assert measured(False, 0.15, 0.002, 9.0) == (2, 0.002, 1)
    assert said == ["a write to the disk took 150 ms: measured again"]
    assert measured(False, 0.1, 0.2, 0.3, 0.4, 9.0) == (4, 0.4, 1)
    assert measured(True, 0.1, 9.0) == (1, 0.1, 1)


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
