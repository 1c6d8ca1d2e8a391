"""How a purge goes through a table: which pages the next statement takes, and how long to rest after it. Pure.

A statement should take so little time that nobody notices it, whether it finds a thousand old rows on a few pages or
none on thousands. So the number of pages follows from what the last ones took.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["Slices", "rest_after"]

LONGEST: Final = 0.02
"""Seconds that a statement should take at most."""

FEWEST: Final = 4
MOST: Final = 1024
_REST_RATIO: Final = 3.0
_SHORTEST_REST: Final = 0.001


@dataclass(frozen=True, slots=True)
class Slices:
    """A place in a table, and how many pages the next statement takes from there."""

    first: int = 0
    pages: int = 32

    @property
    def end(self) -> int:
        """The first page that the next statement does not take."""
        return self.first + self.pages

    def after(self, *, full: bool, took: float) -> Slices:
        """What comes after a statement that took so many seconds; *full*: it stopped at its limit of rows.

        A full one is followed by a smaller one at the same place: the pages hold more than it may delete.
        """
        fewer = max(FEWEST, self.pages // 2)
        if full:
            return replace(self, pages=fewer)
        if took < LONGEST / 4:
            return Slices(self.end, min(MOST, self.pages * 2))
        return Slices(self.end, fewer if took > LONGEST else self.pages)

    def past(self) -> Slices:
        """Behind pages that cost a statement its time limit or a lock that it waited for; the next walk sees them."""
        return Slices(self.end, FEWEST)


def rest_after(took: float) -> float:
    """Seconds to rest after a statement that took so many: it works a quarter of the time at most."""
    return max(_SHORTEST_REST, _REST_RATIO * took)
