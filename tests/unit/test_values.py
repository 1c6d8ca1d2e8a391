"""Facts that are handed out, to any thread: nobody can change them, and none carries more than its fields."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from curfew_daemon import isolation, passes, results, slices, sweeper, wake
from curfew_store import deadlines, enforcement, hints, inspection, observation, operations, records, retention, schema
from curfew_store import status_queries as queries

SLOTTED = [
    deadlines.Deadline,
    enforcement.Verdict,
    hints.Hint,
    inspection.PlannedFlow,
    inspection.ServerFacts,
    isolation._Aside,
    observation.Gauges,
    observation.Observed,
    observation.Page,
    observation.PageBounds,
    operations.WritesOnce,
    passes.Tally,
    queries.DueMinute,
    queries.OverdueRun,
    records.ClaimedRun,
    records.FlowRunControlRecord,
    records.LookAhead,
    records.RunConfiguration,
    records.ScanStart,
    records.StartedRun,
    results.MarkedBatch,
    results.SweepResult,
    retention.PageRange,
    retention.PurgedRange,
    slices.Slices,
    sweeper._Look,
    wake.Pace,
    wake.Seen,
    wake.Wake,
]


@pytest.mark.parametrize("kind", [*SLOTTED, schema.Tables], ids=lambda kind: kind.__name__)
def test_values_are_frozen(kind: type) -> None:
    """No field can be set; only a tally counts up."""
    value: Any = object.__new__(kind)
    for field in dataclasses.fields(kind):
        if kind is passes.Tally:
            setattr(value, field.name, None)
        else:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, None)


@pytest.mark.parametrize("kind", SLOTTED, ids=lambda kind: kind.__name__)
def test_values_are_slotted(kind: type) -> None:
    """There may be many of them, so none has a dictionary."""
    assert not hasattr(object.__new__(kind), "__dict__")


def test_a_batch_of_claimed_runs_is_slotted() -> None:
    """It is no dataclass and as small as one."""
    assert not hasattr(records.ClaimedBatch([]), "__dict__")
