"""The last hour of this daemon in memory: one slot per minute, and in each how many runs were marked and how late.

Bounded: sixty slots, each with a histogram of fixed size, whatever was marked. The lags of a minute are kept in
buckets twenty to a decade, so a percentile is right within 6 %; the greatest is exact.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["MINUTES", "History", "Lags", "Minute"]

MINUTES: Final = 60
_PER_DECADE: Final = 20
_SMALLEST: Final = -4  # 0.1 ms, as a power of ten
_BOUNDS: Final = tuple(10 ** (_SMALLEST + place / _PER_DECADE) for place in range(10 * _PER_DECADE + 1))  # to 11 days


@dataclass(slots=True)
class _Slot:
    """What was marked within one minute."""

    number: int
    marked: int = 0
    greatest: float | None = None
    places: Counter[int] = field(default_factory=Counter)  # how many lags fell into each bucket


@dataclass(frozen=True, slots=True)
class Lags:
    """How late runs were marked, in seconds; ``None`` throughout where none was."""

    median: float | None
    p99: float | None
    greatest: float | None


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute: how many runs were marked, and their lags."""

    marked: int
    lags: Lags


class History:
    """The last `MINUTES` minutes by a clock that the caller reads (monotonic seconds). Not safe across threads."""

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}

    def add(self, now: float, marked: int, lags: Sequence[float]) -> None:
        """Takes one batch; cheap enough for every batch of a drain (0.02 ms for 500 runs of one hour)."""
        number = int(now // 60)
        slot = self._slots.get(number)
        if slot is None:
            self._forget(number)
            slot = self._slots[number] = _Slot(number)
        slot.marked += marked
        if lags:
            ordered = sorted(lags)
            slot.greatest = ordered[-1] if slot.greatest is None else max(slot.greatest, ordered[-1])
            # Bucket by bucket rather than lag by lag: a batch has many lags in few buckets.
            start = 0
            while start < len(ordered):
                place = bisect_left(_BOUNDS, ordered[start])
                end = bisect_right(ordered, _BOUNDS[place], start) if place < len(_BOUNDS) else len(ordered)
                slot.places[place] += end - start
                start = end

    def minutes(self, now: float) -> list[Minute]:
        """Every minute of the last hour, oldest first; the last one is still running."""
        last = int(now // 60)
        slots = (self._slots.get(number) for number in range(last - MINUTES + 1, last + 1))
        return [Minute(0, Lags(None, None, None)) if slot is None else _minute(slot) for slot in slots]

    def total(self, now: float, minutes: int = MINUTES) -> Minute:
        """The last so many minutes as one, the running one among them."""
        last = int(now // 60)
        merged = _Slot(last)
        for number in range(last - minutes + 1, last + 1):
            if slot := self._slots.get(number):
                merged.marked += slot.marked
                merged.greatest = max(_known(merged.greatest, slot.greatest), default=None)
                merged.places.update(slot.places)
        return _minute(merged)

    def _forget(self, number: int) -> None:
        for old in [each for each in self._slots if each <= number - MINUTES]:
            del self._slots[old]


def _known(*values: float | None) -> Iterable[float]:
    return (value for value in values if value is not None)


def _minute(slot: _Slot) -> Minute:
    median, p99 = (_percentile(slot, share) for share in (0.5, 0.99))
    return Minute(slot.marked, Lags(median, p99, slot.greatest))


def _percentile(slot: _Slot, share: float) -> float | None:
    """The middle of the bucket that holds the percentile, and never more than the greatest lag."""
    if slot.greatest is None:
        return None
    rank = math.ceil(share * sum(slot.places.values()))
    for place in sorted(slot.places):
        rank -= slot.places[place]
        if rank <= 0:
            middle = _BOUNDS[min(place, len(_BOUNDS) - 1)] / 10 ** (0.5 / _PER_DECADE)
            return min(middle, slot.greatest)
    raise AssertionError("a rank is within the count")
