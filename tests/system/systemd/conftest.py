"""One booted machine with the daemon installed by the README for all tests of the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.systemd.machine import Machine, booted, build_wheel


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    build_wheel(folder)
    return folder


@pytest.fixture(scope="session")
def installed_once(wheels: Path) -> Iterator[Machine]:
    """The machine after the README's "Install"."""
    with booted(wheels) as machine:
        machine.follow("Install")
        yield machine


@pytest.fixture
def machine(installed_once: Machine) -> Machine:
    """The machine with a daemon that runs with the shipped unit and the shipped settings."""
    installed_once.reset()
    return installed_once
