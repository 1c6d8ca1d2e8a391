"""The pictures as geometry: where each mark stands, in percent of the plot, and what it says in words.

Pure. Percentages and no view box, so that a picture stretches with the page while its letters stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from curfew_daemon.status import wording
from curfew_daemon.status.history import MINUTES, Minute
from curfew_store.status_queries import DueMinute

__all__ = ["Chart", "Grid", "Mark", "falls_due", "lags", "timed_out"]

_FILL: Final = 0.72  # of a minute's width that its mark takes
_LEAST_LAG: Final = 0.0001
_CLOSEST: Final = 11.0  # percent between two labels of the scale, the height of its letters
_LAG_GRID: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0, 864_000.0)


@dataclass(frozen=True, slots=True)
class Mark:
    """One minute: a block from *y* down by *height*, and a tick at *tick* where there is one."""

    x: float
    width: float
    y: float
    height: float
    words: str
    kind: str = ""
    tick: float | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A horizontal line and what it stands for."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture; *description* says in words what it shows.

    *threshold* is the height of the dashed line, *unseen* the width of what lies before the start.
    """

    name: str
    title: str
    description: str
    marks: tuple[Mark, ...]
    grid: tuple[Grid, ...]
    axis: tuple[str, str, str]
    threshold: float | None = None
    unseen: float = 0.0


_PAST: Final = ("60 min ago", "30 min ago", "now")
_AHEAD: Final = ("now", "in 30 min", "in 60 min")


def lags(minutes: Sequence[Minute], late_after: float, up_for: float) -> Chart:
    """Median to greatest lag of each minute, on a logarithmic scale; what lies above *late_after* is late."""
    greatest = max((minute.lags.greatest or 0.0 for minute in minutes), default=0.0)
    top = max(3 * late_after, 2 * greatest)

    def height(seconds: float) -> float:
        share = math.log(max(seconds, _LEAST_LAG) / _LEAST_LAG) / math.log(top / _LEAST_LAG)
        return round(100 - 100 * share, 2)

    marks = []
    for place, minute in enumerate(minutes):
        median, worst = minute.lags.median, minute.lags.greatest
        if median is None or worst is None:
            continue
        x, width = _column(place, len(minutes))
        words = f"{_when(place, len(minutes))}: median {wording.duration(median)}, greatest {wording.duration(worst)}"
        kind = "late" if worst > late_after else ""
        y = height(worst)
        marks.append(Mark(x, width, y, round(height(median) - y, 2), words, kind, tick=height(median)))
    description = f"No run was marked {_span(up_for)}."
    if marks:
        description = f"Greatest lag {_span(up_for)}: {wording.duration(greatest)}."
    grid: list[Grid] = []
    for each in _LAG_GRID:
        if each < top and (not grid or grid[-1].y - height(each) >= _CLOSEST):
            grid.append(Grid(height(each), wording.duration(each).replace(".0", "")))
    return Chart(
        "lags",
        "Lag per minute",
        description,
        tuple(marks),
        tuple(grid),
        _PAST,
        threshold=height(late_after),
        unseen=_unseen(up_for),
    )


def timed_out(minutes: Sequence[Minute], up_for: float) -> Chart:
    """How many runs were marked in each minute."""
    counts = [minute.marked for minute in minutes]
    words = [f"{_when(place, len(counts))}: {wording.count(number)} timed out" for place, number in enumerate(counts)]
    if most := max(counts, default=0):
        place = len(counts) - 1 - counts[::-1].index(most)
        description = (
            f"{wording.count(sum(counts))} {_span(up_for)}, at most {wording.count(most)} in a minute: "
            f"{_when(place, len(counts))}."
        )
    else:
        description = f"None {_span(up_for)}."
    marks, grid = _bars(counts, words, [""] * len(counts))
    return Chart("timed-out", "Timed out per minute", description, marks, grid, _PAST, unseen=_unseen(up_for))


def falls_due(minutes: Sequence[DueMinute]) -> Chart:
    """How many runs fall due in each minute to come."""
    counts = [minute.count for minute in minutes]
    words = [
        f"{'within a minute' if place == 0 else f'in {place} min'}: {wording.count(minute.count, minute.capped)} due"
        for place, minute in enumerate(minutes)
    ]
    capped = sum(minute.capped for minute in minutes)
    if most := max(counts, default=0):
        description = f"{wording.count(sum(counts), capped > 0)} in the next hour."
        if capped:
            description += f" {capped} of the minutes hold more than {most:,} each, where counting stops."
        else:
            place = counts.index(most)
            description += f" At most {wording.count(most)} in a minute: {'now' if not place else f'in {place} min'}."
    else:
        description = "None in the next hour."
    marks, grid = _bars(counts, words, ["capped" if minute.capped else "" for minute in minutes])
    return Chart("falls-due", "Falls due per minute", description, marks, grid, _AHEAD)


def _bars(
    counts: Sequence[int], words: Sequence[str], kinds: Sequence[str]
) -> tuple[tuple[Mark, ...], tuple[Grid, ...]]:
    top = _round_number(max(counts, default=0))
    # A quiet hour gets no scale that it does not fill: one run is no full bar.
    scale = top / 0.94
    marks = []
    for place, (number, says, kind) in enumerate(zip(counts, words, kinds, strict=True)):
        if number:
            height = round(max(100 * number / scale, 1.5), 2)
            x, width = _column(place, len(counts))
            marks.append(Mark(x, width, round(100 - height, 2), height, says, kind))
    halves = (top, top // 2)
    return tuple(marks), tuple(Grid(round(100 - 100 * each / scale, 2), f"{each:,}") for each in halves)


def _column(place: int, of: int) -> tuple[float, float]:
    width = 100 / of
    return round(place * width + width * (1 - _FILL) / 2, 3), round(width * _FILL, 3)


def _round_number(most: int) -> int:
    """The least of 4, 10, 20, 40, 100, … that is not below *most*; each has a whole half."""
    power = 1
    while True:
        for factor in (4, 10, 20):
            if factor * power >= most:
                return factor * power
        power *= 10


def _span(up_for: float) -> str:
    return "in the last hour" if up_for >= 60 * MINUTES else "since the start"


def _unseen(up_for: float) -> float:
    """The width of the minutes before the start, of which this daemon knows nothing."""
    return round(100 * max(0, MINUTES - 1 - int(up_for // 60)) / MINUTES, 2)


def _when(place: int, of: int) -> str:
    back = of - 1 - place
    return "this minute" if back == 0 else f"{back} min ago"
