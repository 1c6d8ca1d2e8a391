"""``curfewd once``: sweep until nothing is due, and stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from curfew_daemon.config import Settings
from curfew_daemon.enforcer import seen_by
from curfew_daemon.failures import shown
from curfew_daemon.isolation import Isolation
from curfew_daemon.links import make_link
from curfew_daemon.results import SweepResult
from curfew_daemon.sweeper import Sweeper
from curfew_daemon.wake import Pace
from curfew_store.schema import tables_in

__all__ = ["Outcome", "sweep_until_done"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all sweeps together did, in *duration* seconds of sweeping and *waited* between the sweeps.

    *overdue_remains*: until patience ran out, others held rows locked, or the database refused to mark these runs:
    *refused*, with what it said.
    """

    marked: int
    duration: float
    lag_max: float | None
    overdue_remains: bool
    waited: float = 0.0
    refused: Mapping[UUID, str] = field(default_factory=dict)


def sweep_until_done(settings: Settings, patience: float) -> Outcome:
    """Mark everything that is overdue; wait up to *patience* seconds for runs that others hold locked.

    The time that marking takes is no part of them. Raises what the database raises: this is for cron, which tries
    again by itself.
    """
    refused: dict[UUID, str] = {}
    link = make_link(lambda: settings, statement_timeout=settings.statement_timeout)
    sweeper = Sweeper(
        tables_in(settings.schema_name),
        link.connection,
        batch_size=lambda: settings.batch_size,
        on_batch=lambda _batch: None,
        isolation=Isolation(lambda run_id, _retry_in, error: refused.update({run_id: shown(error).partition("\n")[0]})),
    )
    results: list[SweepResult] = []
    pace, waited = Pace(), 0.0
    try:
        while True:
            results.append(sweeper.run_once())
            last = results[-1]
            pace, wake = pace.after_sweep(replace(seen_by(last), next_due_in=None), poll_interval=1.0)
            if not last.overdue_remains or waited + wake.delay > patience:
                break
            time.sleep(wake.delay)
            waited += wake.delay
    finally:
        link.close()
    return Outcome(
        marked=sum(result.marked for result in results),
        duration=sum(result.duration for result in results),
        lag_max=max((result.lag_max for result in results if result.lag_max is not None), default=None),
        overdue_remains=last.overdue_remains,
        waited=waited,
        refused=refused,
    )
