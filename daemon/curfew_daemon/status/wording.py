"""Numbers as a person reads them: durations in two units at most, counts with separators."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

__all__ = ["ago", "ahead", "brief_count", "clock_time", "count", "duration", "duration_parts", "whole"]

_NARROW: Final = "\u202f"  # a narrow space that does not break
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_YEAR: Final = 365 * 86400


def duration_parts(seconds: float) -> list[tuple[str, str]]:
    """A duration as pairs of number and unit: one pair below a minute, two from there on."""
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return [(_three_digits(seconds * 1000), "ms")]
    if seconds < 59.95:
        return [(_three_digits(seconds), "s")]
    if seconds >= 10 * _YEAR:
        return [(f"over {int(seconds // (10 * _YEAR)) * 10}", "years")]
    whole = round(seconds)
    place = next(place for place, (size, _) in enumerate(_UNITS) if whole >= size)
    (size, unit), (smaller, smaller_unit) = _UNITS[place], _UNITS[place + 1]
    rest = whole % size // smaller
    return [(f"{whole // size:,}", unit)] + ([(str(rest), smaller_unit)] if rest else [])


def duration(seconds: float) -> str:
    """A duration on one line: ``1.8 ms``, ``42 s``, ``4 min 12 s``, ``3 h 20 min``."""
    return " ".join(f"{number}{_NARROW}{unit}" for number, unit in duration_parts(seconds))


def whole(seconds: float) -> str:
    """A duration in whole seconds, ``0 s`` or ``4 min 12 s``: a page that is drawn each second shows no more."""
    return f"{max(0, int(seconds))}{_NARROW}s" if seconds < 60 else duration(int(seconds))


def ago(seconds: float) -> str:
    """How long ago, in whole seconds."""
    return "just now" if seconds < 1 else f"{whole(seconds)} ago"


def ahead(seconds: float) -> str:
    """How far ahead, in whole seconds."""
    return "now" if seconds < 1 else f"in {whole(seconds)}"


def brief_count(number: int, capped: bool = False) -> str:
    """A count where there is little room."""
    return f"{number:,}+" if capped else f"{number:,}"


def count(number: int, capped: bool = False) -> str:
    """A count; a capped one says that there are more."""
    return f"more than {number:,}" if capped else f"{number:,}"


def clock_time(moment: datetime) -> str:
    """A moment in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _three_digits(value: float) -> str:
    if value < 9.95:
        return f"{value:.1f}"
    return f"{value:.0f}"
