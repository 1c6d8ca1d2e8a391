"""The modelled table: deadlines in order, rows that are locked, and a clock that may be stepped."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from itertools import pairwise

FREE, LOCKED, GONE = 0, 1, 2
_COMPACT_AT = 50_000
_NEVER = float("inf")

Place = tuple[float, int]
"""A deadline by the database's clock, and the number of its run: a place in the index."""


@dataclass
class DatabaseClock:
    """True time plus an offset, which changes at each of the *steps*: (moment, change in seconds)."""

    steps: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        offset, self._segments = 0.0, [(0.0, 0.0)]
        for moment, change in sorted(self.steps):
            offset += change
            self._segments.append((moment, offset))

    def at(self, moment: float) -> float:
        """What the clock shows."""
        return moment + next(offset for begin, offset in reversed(self._segments) if begin <= moment)

    def due_since(self, deadline: float, moment: float) -> float:
        """From when on a deadline that has passed at *moment* has been passed without a break."""
        since = moment
        bounds = [*self._segments, (_NEVER, 0.0)]
        for (begin, offset), (end, _) in reversed(list(pairwise(bounds))):
            if begin > moment:
                continue
            reached = deadline - offset
            if reached >= min(end, moment) and since < moment:
                break  # not yet due at the end of this segment: a step made it so
            since = max(begin, reached)
            if reached > begin:
                break
        return since


class ArmedRuns:
    """The armed runs in the order of the index. Runs are numbers; what a claim locked nobody else may take."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._head = 0
        self.state = bytearray()
        self.held_until: dict[int, float] = {}

    def arm(self, place: Place) -> None:
        """A run is visible from now on; mostly its deadline is later than all others'."""
        self.state.extend(bytes(max(0, place[1] + 1 - len(self.state))))
        if not self._places or place > self._places[-1]:
            self._places.append(place)
        else:
            bisect.insort(self._places, place, lo=0)
            self._head = min(self._head, bisect.bisect_left(self._places, place))

    def lock_due(self, now: float, moment: float, limit: int, after: Place | None) -> list[Place]:
        """Up to *limit* places behind *after* that are due by the clock's *now* and free; locked from here on."""
        found: list[Place] = []
        places, state = self._places, self.state
        index = self._head if after is None else max(self._head, bisect.bisect_right(places, after))
        while index < len(places) and len(found) < limit:
            place = places[index]
            if place[0] > now:
                break
            index += 1
            if state[place[1]] == FREE and self.held_until.get(place[1], 0.0) <= moment:
                state[place[1]] = LOCKED
                found.append(place)
        return found

    def release(self, places: list[Place], *, marked: bool) -> None:
        """The end of a claim: its runs are marked, or free again."""
        for _, number in places:
            self.state[number] = GONE if marked else FREE
        while self._head < len(self._places) and self.state[self._places[self._head][1]] == GONE:
            self._head += 1
        if self._head > _COMPACT_AT:
            del self._places[: self._head]
            self._head = 0

    def edges(self, now: float, since: float | None) -> tuple[Place | None, Place | None]:
        """The earliest place that is due, from *since* on, and the first that is not; locked ones included."""
        begin = 0 if since is None else bisect.bisect_left(self._places, (since, -1))
        overdue = self._first(max(begin, self._head))
        following = self._first(max(self._head, bisect.bisect_right(self._places, (now, 1 << 62))))
        return (None if overdue is None or overdue[0] > now else overdue), following

    def _first(self, index: int) -> Place | None:
        places, state = self._places, self.state
        while index < len(places):
            if state[places[index][1]] != GONE:
                return places[index]
            index += 1
        return None
