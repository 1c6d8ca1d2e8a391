"""Runs for daemons to mark."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.conftest import Database
from tests.integration.contract.rows import Rows
from tests.integration.sessions import eventually


class Table(Rows):
    """The tables of a database on which a daemon works."""

    def await_marked(self, *runs: UUID) -> None:
        """Return once all of them are marked."""
        asked = "SELECT count(*) FROM flow_run_controls WHERE run_id = ANY(:runs) AND timed_out_at_utc IS NOT NULL"
        eventually(lambda: self.sql(asked, runs=list(runs))[0][0] == len(runs), f"{len(runs)} runs are marked")

    def lateness(self, run: UUID) -> float:
        """Seconds from the deadline of a marked run to its stamp, by the server's clock."""
        asked = (
            "SELECT extract(epoch FROM timed_out_at_utc - timeout_at_utc) FROM flow_run_controls WHERE run_id = :run"
        )
        return float(self.sql(asked, run=run)[0][0])


@pytest.fixture
def rows(database: Database) -> Iterator[Table]:
    """The tables of the test's database, without the store."""
    seen = Table(database.url)
    yield seen
    seen.close()
