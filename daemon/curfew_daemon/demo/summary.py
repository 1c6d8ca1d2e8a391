"""What the demo showed, in a few lines that say how each figure was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from curfew_daemon.demo.happenings import Kind, Tally, counted, milliseconds
from curfew_daemon.demo.verdict import Fault, Faults, Verdict, verdict

__all__ = ["WHAT_NEXT", "Summary"]

WHAT_NEXT = (
    "Next: start runs from a service of your own: README.md, A producer",
    "      enforce their deadlines, with `curfewd run`: README.md, An operator",
)


@dataclass(frozen=True, slots=True)
class Summary:
    """The result. *lag* says from what to what it was measured; *daemon_count* is what ``/metrics`` says."""

    elapsed: float
    lag: str
    tally: Tally
    faults: Faults
    overdue: Sequence[UUID]
    still_armed: int
    daemon_count: int | None

    @property
    def verdict(self) -> Verdict:
        """Whether the demo passed."""
        return verdict(self.tally.counts[Kind.TIMED_OUT], self.faults, self.overdue)

    def lines(self) -> list[str]:
        """The figures, a line each."""
        count = self.tally.counts
        runs = (
            f"{count[Kind.STARTED]:,} started in {self.elapsed:.0f} s: {count[Kind.COMPLETED]:,} completed, "
            f"{count[Kind.CANCELLED]:,} cancelled, {count[Kind.TIMED_OUT]:,} timed out"
        )
        on_the_way = (
            f"{count[Kind.EXTENDED]:,} extended, {count[Kind.HEARTBEAT]:,} heartbeats, "
            f"{count[Kind.DUPLICATE]:,} duplicate requests answered"
        )
        faults = ", ".join(f"{fault.value} {self.faults.count(fault)}" for fault in Fault)
        return [
            f"runs       {runs}",
            f"on the way {on_the_way}",
            *([f"left alone {self.still_armed:,} not due yet when it was stopped"] if self.still_armed else []),
            *self._lag_lines(),
            f"daemon     counted {_or_unknown(self.daemon_count)} timed out, by its own /metrics",
            f"audit      {faults}, still overdue {len(self.overdue)}",
        ]

    def _lag_lines(self) -> list[str]:
        lags = self.tally.lags
        if not lags.count:
            return ["lag        none: no run timed out"]
        p50, p99, longest = (milliseconds(lags.quantile(share)) for share in (0.5, 0.99, 1.0))
        return [
            f"lag        p50 {p50}, p99 {p99}, max {longest}, over {counted(lags.count)}",
            f"           {self.lag}",
        ]


def _or_unknown(count: int | None) -> str:
    return "an unknown number" if count is None else f"{count:,}"
