"""The load of `proof_lag`: one run after the other, each armed a fixed time ahead of its deadline."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

FLOW: Final = UUID("0c0ffee0-0000-4000-8000-000000000002")
_LEAD_IN: Final = 0.2


@dataclass(frozen=True)
class Load:
    """*rate* runs a second for *seconds* seconds, armed *ahead* seconds before their deadlines."""

    rate: float
    seconds: float
    ahead: float = 5.0

    @property
    def count(self) -> int:
        """How many runs that makes."""
        return max(1, round(self.rate * self.seconds))


@dataclass(frozen=True)
class Produced:
    """The runs with their deadlines, and for each the seconds from the end of its arming to its deadline.

    A lead well below the load's *ahead* says that the producer could not keep up.
    """

    runs: list[tuple[UUID, datetime]]
    leads: list[float]


def produce(load: Load, arm: Callable[[UUID, datetime], None]) -> Produced:
    """Call *arm* for each run at its time, from this thread, and return what was armed.

    Deadlines lie evenly, whatever the calls take: each is *ahead* after the moment its call is scheduled for. The
    wall clock counts, since deadlines are moments; server and producer share this machine's.
    """
    begin = time.time() + _LEAD_IN
    runs: list[tuple[UUID, datetime]] = []
    leads: list[float] = []
    for number in range(load.count):
        moment = begin + number / load.rate
        time.sleep(max(0.0, moment - time.time()))
        deadline = datetime.fromtimestamp(moment, UTC) + timedelta(seconds=load.ahead)
        run_id = uuid.uuid4()
        arm(run_id, deadline)
        leads.append(deadline.timestamp() - time.time())
        runs.append((run_id, deadline))
    return Produced(runs, leads)
