"""How long recovery takes: a run that is overdue from the start, and the time until it is marked."""

from __future__ import annotations

import time
import uuid
from typing import Final

import psycopg

from tests.faults.lab import Lab
from tests.faults.producers import FLOW

__all__ = ["CANARY", "recovery_of"]

CANARY: Final = "canary"
_LOOK_EVERY: Final = 0.02


def recovery_of(lab: Lab, *, since: float, patience: float) -> float | None:
    """Seconds from *since* (monotonic) until a run armed now was seen marked; ``None`` if that took too long."""
    run_id = uuid.uuid4()
    armed = False
    while time.monotonic() - since < patience:
        try:
            with lab.admin("lab canary") as admin:
                if not armed:
                    admin.execute(
                        "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc)"
                        " VALUES (%s, %s, %s, clock_timestamp()) ON CONFLICT DO NOTHING",
                        (run_id, FLOW, CANARY),
                    )
                    armed = True
                while time.monotonic() - since < patience:
                    row = admin.execute(
                        "SELECT timed_out_at_utc IS NOT NULL FROM flow_run_controls WHERE run_id = %s", (run_id,)
                    ).fetchone()
                    if row and row[0]:
                        return time.monotonic() - since
                    lab.pause(_LOOK_EVERY)
        except psycopg.Error:
            # Another strike has taken the server; a run that was not committed is armed again.
            armed = False
            lab.pause(_LOOK_EVERY)
    return None
