"""The image, built once for all tests of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import tools
from tests.system.image.container import Container, built, make_base


@pytest.fixture(scope="session")
def base() -> Path:
    """A minimal Debian with Python, kept in the checkout: making it takes a minute."""
    folder = tools.prepared() / "image-base"
    ready = folder.with_suffix(".ready")  # beside it: what is inside gets into the image
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_base(folder, tools.debian("debootstrap"))
        ready.touch()
    return folder


@pytest.fixture(scope="session")
def image(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """What `docker build` would make, but for the base."""
    with built(base, tmp_path_factory.mktemp("image")) as container:
        yield container
