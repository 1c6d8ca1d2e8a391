"""The builders and the validator, fetched on first use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system import tools
from tests.system.kubernetes import builders
from tests.system.kubernetes.builders import Builder
from tests.system.kubernetes.validator import Validator


@pytest.fixture(scope="session", params=["oldest", "between", "newest"])
def builder(request: pytest.FixtureRequest) -> Builder:
    """Each kustomize in turn."""
    found: Builder | None = getattr(builders, request.param)()
    if found is None:
        pytest.skip(builders.NEWEST_NEEDED)
    return found


@pytest.fixture(scope="session")
def reference() -> Builder:
    """The kustomize that every machine with the tests' packages has."""
    return builders.oldest()


@pytest.fixture(scope="session")
def validator() -> Validator:
    """kubernetes-validate, in its own environment."""
    return Validator(tools.environment(Path(__file__).with_name("kubernetes-validate.txt")))
