"""What happens to runs while the demo plays, and the running count of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

__all__ = ["Happening", "Kind", "Lags", "Tally", "counted", "milliseconds", "short"]


class Kind(Enum):
    """Kinds of happenings; the value is the word on the screen."""

    STARTED = "started"
    DUPLICATE = "duplicate"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXTENDED = "extended"
    HEARTBEAT = "heartbeat"
    TIMED_OUT = "TIMED OUT"


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened to one run; *detail* finishes the sentence."""

    kind: Kind
    run_id: UUID
    flow: str
    detail: str
    elapsed: float = 0.0
    """Seconds since the first run was started."""
    lag: float | None = None
    """For `Kind.TIMED_OUT`: seconds from the deadline to the mark."""


def short(run_id: UUID) -> str:
    """The end of a run's id: the front of these ids is the time, and the same for all of a demo."""
    return f"..{run_id.hex[-8:]}"


def milliseconds(seconds: float) -> str:
    """A lag for people: three significant digits in milliseconds, or seconds from one second on."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.3g} ms"


def counted(runs: int) -> str:
    """So many runs, in words that fit one run too."""
    return "1 run" if runs == 1 else f"{runs:,} runs"


class Lags:
    """Lags in seconds, kept to three significant digits, so that the memory stays bounded for ever."""

    def __init__(self) -> None:
        self._counts: Counter[float] = Counter()
        self.count = 0

    def add(self, seconds: float) -> None:
        """Count one lag."""
        self._counts[float(f"{seconds:.2e}")] += 1
        self.count += 1

    def quantile(self, share: float) -> float:
        """The smallest lag that at least *share* of all lags do not exceed; 0.0 if there are none."""
        wanted, seen = share * self.count, 0
        for lag, count in sorted(self._counts.items()):
            seen += count
            if seen >= wanted:
                return lag
        return 0.0

    def histogram(self, bounds: Iterable[float]) -> list[int]:
        """How many lags lie below each bound and not below the one before, and how many beyond the last."""
        limits = [*bounds]
        counts = [0] * (len(limits) + 1)
        for lag, count in self._counts.items():
            counts[sum(lag >= limit for limit in limits)] += count
        return counts


@dataclass
class Tally:
    """The counts of everything so far."""

    counts: Counter[Kind] = field(default_factory=Counter)
    lags: Lags = field(default_factory=Lags)

    def add(self, happening: Happening) -> None:
        """Count one happening."""
        self.counts[happening.kind] += 1
        if happening.lag is not None:
            self.lags.add(happening.lag)
