"""What the store takes and hands out are facts: they cannot be changed, and nothing can be put onto them."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

import pytest

import curfew_store

MODULES = [
    importlib.import_module(f"curfew_store.{module.name}") for module in pkgutil.iter_modules(curfew_store.__path__)
]
CLASSES = [
    found
    for module in MODULES
    for found in vars(module).values()
    if isinstance(found, type) and dataclasses.is_dataclass(found) and found.__module__ == module.__name__
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_value_is_frozen_and_slotted(kind: Any) -> None:
    """Every data class of the store, public or not, is immutable and has no room for another attribute."""
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)


def test_the_public_records_are_among_them() -> None:
    """The list is not empty by accident."""
    assert {"FlowRunControlRecord", "RunConfiguration", "StartedRun"} <= {kind.__name__ for kind in CLASSES}
