"""What a phase of `proof_lag` came to: lag to the commit, and the judge's verdict on every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from tests.bench.load import Produced
from tests.faults import audit

IN_TIME: Final = 1.0
"""Seconds before its deadline by which a run must be armed to be measured: the daemon's default poll interval,
within which it promises no more than that interval."""

# The row's xmin is the transaction that marked it: nothing writes to it after.
_LAGS = """
SELECT run_id, extract(epoch FROM pg_xact_commit_timestamp(xmin) - timeout_at_utc)::float8
FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL
"""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of *values* that at least *share* of them do not exceed (nearest rank); 0 < share <= 1.

    Raises `ValueError` for no values and for another share.
    """
    if not values or not 0 < share <= 1:
        raise ValueError("a percentile needs values and a share above 0 and up to 1")
    # The product may come out a hair above a whole number: 0.07 * 100 is 7.000000000000001.
    rank = math.ceil(round(share * len(values), 9))
    return sorted(values)[rank - 1]


@dataclass(frozen=True)
class Lag:
    """Lag in seconds from the deadline to the commit, over the runs that were armed in time and marked.

    ``None`` where there are none. *over_1s* counts those of them that were marked more than a second late.
    *armed_late* runs had less than `IN_TIME` left when their arming ended, *least_lead* is the least of all; they
    are judged like the others, but their lag would be the producer's.
    """

    n: int
    marked: int
    armed_late: int
    p50: float | None
    p99: float | None
    max: float | None
    over_1s: int
    early: int
    twice: int
    missed: int
    least_lead: float

    @property
    def ok(self) -> bool:
        """Whether each run was marked, once and not early."""
        return self.marked == self.n and not (self.early or self.twice or self.missed)


def measure(conn: Connection, produced: Produced) -> Lag:
    """Read the lags of a database with an audit; needs ``track_commit_timestamp``.

    A run counts as early also where its commit is before its deadline.
    """
    late = {run for (run, _), lead in zip(produced.runs, produced.leads, strict=True) if lead < IN_TIME}
    found = [(run, lag) for run, lag in conn.exec_driver_sql(_LAGS)]
    lags = [lag for run, lag in found if run not in late]
    verdict = audit.judge(conn)
    return Lag(
        n=verdict.expected,
        marked=verdict.marked,
        armed_late=len(late),
        p50=percentile(lags, 0.50) if lags else None,
        p99=percentile(lags, 0.99) if lags else None,
        max=max(lags, default=None),
        over_1s=sum(lag > 1 for lag in lags),
        early=max(verdict.early, sum(lag < 0 for _, lag in found)),
        twice=verdict.twice,
        missed=verdict.missed,
        least_lead=min(produced.leads),
    )
