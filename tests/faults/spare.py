"""Runs of a strike's own: armed past the proxies, on record like the producers'."""

from __future__ import annotations

import random
import uuid
from datetime import timedelta
from uuid import UUID

from curfew_store.records import RunConfiguration
from tests.faults.lab import Lab
from tests.faults.producers import FLOW

__all__ = ["armed_runs"]


def armed_runs(lab: Lab, rng: random.Random, count: int, *, within: float, at_least: float = 0.05) -> list[UUID]:
    """So many new runs whose deadlines pass within *within* seconds; nobody else knows of them."""
    runs = [uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(count)]
    configurations = [
        RunConfiguration(run, FLOW, "spare", timeout=timedelta(seconds=rng.uniform(at_least, max(at_least, within))))
        for run in runs
    ]
    lab.client.call("configure_runs", None, configurations)
    return runs
