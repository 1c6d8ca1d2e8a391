"""One browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.test_pgbouncer import pooled  # noqa: F401  the fixture
from tests.system.status.browser import Browser, browser
from tests.system.tools import npm

AXE = (
    "axe-core",
    "4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, the accessibility rules."""
    return (npm(*AXE) / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def started() -> Iterator[Browser]:
    """The browser of all tests."""
    with browser() as opened:
        yield opened


@pytest.fixture
def chromium(started: Browser) -> Browser:
    """The browser with an empty page; what the page of the test before still asked for is forgotten."""
    started.open("about:blank")
    started.events("")
    started.messages.clear()
    return started
