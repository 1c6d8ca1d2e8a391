"""The tables as an operator partitions them: by hash, before `migrate` is run. deploy/SCALING.md holds the recipe.

As a plug-in this makes every test database one of partitioned tables: `pytest -p tests.integration.partitioned PATH`.
The contract of the store and the sweeper's tests hold there as well; tests that look at the catalogue do not.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine

from curfew_store import testing
from curfew_store.migrate import upgrade

PARTITIONS = 8
_PAGE = Path(__file__).resolve().parents[2] / "deploy" / "SCALING.md"
_RECIPE = re.compile(r"<!-- partitions:begin -->\n+```sql\n(.*?)```\n", re.DOTALL)


def recipe() -> str:
    """The SQL of the page, for the tables in the first schema of the search path."""
    found = _RECIPE.search(_PAGE.read_text(encoding="utf-8"))
    assert found is not None, "the page has lost its recipe"
    return found[1]


def partition(conn: Connection) -> None:
    """Follow the recipe in an empty database."""
    conn.exec_driver_sql(recipe().replace("%", "%%"))


def partition_and_migrate(engine: Engine) -> None:
    """What an operator does, in this order."""
    with engine.begin() as conn:
        partition(conn)
    upgrade(engine)


def pytest_configure(config: pytest.Config) -> None:
    """Only as a plug-in: make the template of test databases a partitioned one."""

    def migrated(self: testing.DatabaseTemplate) -> str:
        if self._template is None:
            self._template = f"{self._prefix}_template"
            self._execute(f"CREATE DATABASE {self._template}")
            engine = create_engine(self.server.sqlalchemy_url(self._template))
            partition_and_migrate(engine)
            engine.dispose()
        return self._template

    testing.DatabaseTemplate._migrated_template = migrated  # type: ignore[method-assign]
