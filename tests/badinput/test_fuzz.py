"""Each property with few and always the same examples; `python -m tests.badinput.fuzz` looks for others."""

from __future__ import annotations

import pytest

from tests.badinput.properties import PROPERTIES, of_the_pages
from tests.unit.test_http import Daemon, serving


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property(name: str) -> None:
    """No input brings anything but a result or the error that is documented for it."""
    PROPERTIES[name].tried(150 if name == "call" else 60)


def test_any_bytes_for_the_pages() -> None:
    """Whatever a client sends is answered or dropped, shows nothing of itself, and writes no line."""
    with serving(Daemon().app()) as url, of_the_pages(url) as pages:
        pages.tried(60)
