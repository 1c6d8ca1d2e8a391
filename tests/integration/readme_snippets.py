"""The code blocks of store/README.md, by the names in front of them, and a place to run them in.

A block is introduced by ``<!-- snippet: name -->``. Every Python and SQL block has to have a name, every name has
to be claimed by a test (`claims`), and a test fails that does not take the blocks it claims: so no block stays
unexecuted. A test module gets the fixture by ``readme = readme_snippets.readme``. A block is compiled under its own
line numbers, so that a traceback points into the README.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from tests.conftest import Database

README: Final = Path(__file__).parents[2] / "store" / "README.md"
URL_IN_README: Final = "postgresql+psycopg://app@localhost/app"

# The table that the examples about orders suppose, and the whole of what the store has written.
ORDERS: Final = "CREATE TABLE orders (run_id uuid PRIMARY KEY, item varchar(20) NOT NULL, shipped bool DEFAULT false)"
RUNS: Final = "SELECT run_id FROM flow_run_controls ORDER BY run_id"
KEYS: Final = "SELECT run_id FROM flow_idempotency_keys ORDER BY run_id"

Check = TypeVar("Check", bound=Callable[..., Any])

_BLOCK = re.compile(
    r"^(?:<!-- snippet: (?P<name>\S+) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Snippet:
    """A code block; *line* is the line of the README on which its text begins. *name* is empty if it has none."""

    name: str
    language: str
    body: str
    line: int


def snippets() -> list[Snippet]:
    """Every fenced block of the README, in order."""
    page = README.read_text()
    return [
        Snippet(found["name"] or "", found["language"], found["body"], page.count("\n", 0, found.start("body")) + 1)
        for found in _BLOCK.finditer(page)
    ]


def snippet(name: str) -> Snippet:
    """The one block of that name."""
    [found] = [block for block in snippets() if block.name == name]
    return found


def claims(*names: str) -> Callable[[Check], Check]:
    """Mark a test as the check of these blocks; it must then take them all."""

    def mark(check: Check) -> Check:
        check.__dict__["claimed_snippets"] = frozenset(names)
        return check

    return mark


def claimed_by(check: object) -> frozenset[str]:
    """The blocks that a test has claimed."""
    found: frozenset[str] = getattr(check, "claimed_snippets", frozenset())
    return found


class Readme:
    """The blocks at work on a database: a namespace that they share, as they would share a module."""

    def __init__(self, database: Database) -> None:
        self.taken: set[str] = set()
        self.names: dict[str, Any] = {"__name__": "readme"}
        self._database = database

    def __getitem__(self, name: str) -> Any:
        """What a block has defined."""
        return self.names[name]

    def source(self, name: str) -> str:
        """The text of a block, with the test's database for the one in the README; counts as taken."""
        self.taken.add(name)
        return snippet(name).body.replace(URL_IN_README, self._database.url)

    def run(self, *blocks: str, **yours: Any) -> None:
        """Run Python blocks one after the other; *yours* are the names that the README leaves to its reader."""
        self.names |= yours
        for name in blocks:
            padding = "\n" * (snippet(name).line - 1)
            exec(compile(padding + self.source(name), README, "exec", dont_inherit=True), self.names)

    def sql(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement of the test's own, or a block of SQL, and commit it."""
        with self._database.engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return [tuple(row) for row in result] if result.returns_rows else []

    def make_overdue(self, run_id: UUID) -> None:
        """Let a run's deadline have passed a second ago."""
        self.sql("UPDATE flow_run_controls SET timeout_at_utc = now() - interval '1 s' WHERE run_id = :r", r=run_id)

    def close(self) -> None:
        """Close the connections that the blocks have opened."""
        for value in self.names.values():
            if isinstance(value, Engine):
                value.dispose()


@pytest.fixture
def readme(request: pytest.FixtureRequest, database: Database) -> Iterator[Readme]:
    """The blocks of the README on the test's database; every block that the test claims must have been taken."""
    running = Readme(database)
    yield running
    running.close()
    assert running.taken >= claimed_by(request.function)
