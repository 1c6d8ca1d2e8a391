"""The claim as it is sent: what stands in it for a reason that no other test can see."""

from __future__ import annotations

import pytest
from sqlalchemy.dialects.postgresql import psycopg

from curfew_store.enforcement import claim_statement
from curfew_store.schema import tables_in


@pytest.mark.contract("E-1")
@pytest.mark.parametrize("continued", [False, True])
def test_the_claim_says_that_its_limit_and_locks_happen_once(continued: bool) -> None:
    """The CTE is materialised by its own words, not because this PostgreSQL happens not to inline one that locks."""
    sql = str(claim_statement(tables_in("public"), continued=continued).compile(dialect=psycopg.dialect()))  # type: ignore[no-untyped-call]
    assert sql.startswith("WITH due AS MATERIALIZED ")
    assert sql.count("FOR NO KEY UPDATE SKIP LOCKED") == sql.count("LIMIT") == 1


@pytest.mark.contract("E-1")
def test_the_update_judges_once_more_what_it_marks() -> None:
    """The UPDATE repeats the predicate in a CASE, for engines whose SKIP LOCKED may hand out an older version."""
    sql = str(claim_statement(tables_in("public"), continued=False).compile(dialect=psycopg.dialect()))  # type: ignore[no-untyped-call]
    marking = sql[sql.index("UPDATE public.flow_run_controls" if "UPDATE public" in sql else 'UPDATE "public"') :]
    condition = marking[marking.index("WHERE") : marking.index("RETURNING")]
    assert "= ANY" in condition
    assert "CASE WHEN" in condition
    for part in ("timed_out_at_utc IS NULL", "completed_at_utc IS NULL", "cancel_requested", "timeout_at_utc <= now()"):
        assert part in condition[condition.index("CASE WHEN") :]
