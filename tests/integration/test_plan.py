"""`curfewd plan`: what it lists, what it says of another engine, and that nothing changes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from curfew_daemon.plan import planned, render
from curfew_store.errors import SchemaMismatch
from tests.conftest import Database
from tests.integration.contract.rows import FLOW, Rows
from tests.integration.settings import settings_for


def test_overdue_runs_are_listed_and_nothing_changes(rows: Rows, database: Database) -> None:
    """One line per flow and the totals; not a row is written."""
    for _ in range(3):
        rows.insert("overdue")
    rows.insert("active")
    before = rows.everything()
    head, line, total = render(planned(settings_for(database), None), None)
    assert head.split() == ["flow", "overdue", "earliest", "deadline", "latest", "deadline"]
    assert line.split()[:2] == [str(FLOW), "3"]
    assert total == "3 overdue now (times in UTC)"
    assert rows.everything() == before


def test_what_falls_due_later_is_counted_apart(rows: Rows, database: Database) -> None:
    """Within the time that was asked for, and the line above the numbers says which."""
    rows.insert("overdue")
    rows.insert(timeout_at_utc="now() + interval '10 minutes'")
    rows.insert(timeout_at_utc="now() + interval '3 hours'")
    head, line, total = render(planned(settings_for(database), timedelta(hours=1)), "1h")
    assert "within 1h" in head
    assert line.split()[:3] == [str(FLOW), "1", "1"]
    assert total == "1 overdue now, 1 more within 1h (times in UTC)"


def test_an_empty_plan_is_one_line(database: Database) -> None:
    """Nothing to mark is said in so many words."""
    assert list(render(planned(settings_for(database), None), None)) == ["0 overdue now (times in UTC)"]


def test_odd_deadlines_can_be_listed(rows: Rows, database: Database) -> None:
    """Minus infinity is overdue and has a printable time."""
    rows.insert(timeout_at_utc="'-infinity'")
    assert len(list(render(planned(settings_for(database), None), None))) == 3


def test_another_engines_runs_are_listed_with_a_note(rows: Rows, database: Database) -> None:
    """The plan is what an operator looks at there, so it works, and says why nothing is marked."""
    rows.insert("overdue")
    rows.sql("CREATE TABLE flow_runs ()")
    *_, total, note = render(planned(settings_for(database), None), None)
    assert total.startswith("1 overdue")
    assert "flow_runs" in note
    assert "`purge` to delete" in note


def test_a_missing_schema_is_an_error(empty_database: Database) -> None:
    """As everywhere: the schema's own error, which names the command to run."""
    with pytest.raises(SchemaMismatch, match="migrate"):
        planned(settings_for(empty_database), None)
