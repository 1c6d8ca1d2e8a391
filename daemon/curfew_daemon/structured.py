"""structlog, without rich: the one place that imports it.

structlog looks for rich while it is imported, for tracebacks that no log of ours is rendered with, and `typer` has
brought it along. It would be a fifth of what starting takes, and 3 MB for as long as the daemon runs.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["structlog"]


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """A package that has not been imported yet cannot be imported inside."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # how Python's import system spells it
    try:
        yield
    finally:
        del sys.modules[name]


with _missing("rich"):
    import structlog
