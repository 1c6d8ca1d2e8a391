"""Facts that are handed out, to any thread: nobody can change them, and none carries more than its fields."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

import pytest

import curfew_store
from curfew_daemon import isolation, passes, results, slices, sweeper, wake

_MODULES = [
    importlib.import_module(f"curfew_store.{each.name}") for each in pkgutil.iter_modules(curfew_store.__path__)
]
OF_THE_STORE = [
    found
    for module in _MODULES
    for found in vars(module).values()
    if isinstance(found, type) and dataclasses.is_dataclass(found) and found.__module__ == module.__name__
]
OF_THE_DAEMON = [
    isolation._Aside,
    passes.Tally,
    results.MarkedBatch,
    results.SweepResult,
    slices.Slices,
    sweeper._Look,
    wake.Pace,
    wake.Seen,
    wake.Wake,
]


@pytest.mark.parametrize("kind", [*OF_THE_STORE, *OF_THE_DAEMON], ids=lambda kind: kind.__name__)
def test_values_are_frozen(kind: type) -> None:
    """No field can be set; only a tally counts up."""
    value: Any = object.__new__(kind)
    for field in dataclasses.fields(kind):
        if kind is passes.Tally:
            setattr(value, field.name, None)
        else:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, None)


@pytest.mark.parametrize("kind", [*OF_THE_STORE, *OF_THE_DAEMON], ids=lambda kind: kind.__name__)
def test_values_are_slotted(kind: Any) -> None:
    """There may be many of them, so none has a dictionary."""
    assert "__slots__" in vars(kind)


def test_the_public_records_are_among_them() -> None:
    """The list is not empty by accident."""
    assert {"FlowRunControlRecord", "RunConfiguration", "StartedRun"} <= {kind.__name__ for kind in OF_THE_STORE}
