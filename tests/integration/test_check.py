"""`curfewd check`: every finding provoked on a real server, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from psycopg.conninfo import make_conninfo

from curfew_daemon import check as module
from curfew_daemon.check import Finding, Level, examine
from curfew_daemon.lifecycle import Exit
from curfew_store.inspection import ServerFacts, server_facts
from tests.conftest import Database
from tests.integration.contract.rows import Rows
from tests.integration.settings import settings_for

GOOD = "-c statement_timeout=5s -c lock_timeout=2s -c idle_in_transaction_session_timeout=10s -c synchronous_commit=on"


def findings(conninfo: str, options: str = GOOD) -> dict[str, Finding]:
    """The findings by topic, as a role with these settings of its own would get them."""
    found = list(examine(settings_for(make_conninfo(conninfo, options=options))))
    assert all(finding.remedy for finding in found if finding.level is not Level.OK)
    return {finding.topic: finding for finding in found}


def bad(found: dict[str, Finding]) -> dict[str, Level]:
    return {topic: finding.level for topic, finding in found.items() if finding.level is not Level.OK}


def test_a_database_in_order_has_nothing_to_do(rows: Rows, database: Database) -> None:
    """Every topic is looked at, all are good, and nothing has changed."""
    rows.insert("overdue")
    before = rows.everything()
    found = findings(database.conninfo)
    assert bad(found) == {}
    assert list(found) == ["settings", "connection", "timeouts", "clock", "schema", "rights", "claim", "keys"]
    assert rows.everything() == before


@pytest.mark.parametrize(
    ("option", "topic", "remedy"),
    [
        ("statement_timeout=0", "timeouts", "SET statement_timeout"),
        ("lock_timeout=0", "timeouts", "SET lock_timeout"),
        ("idle_in_transaction_session_timeout=0", "timeouts", "SET idle_in_transaction_session_timeout"),
        ("default_transaction_isolation=serializable", "isolation", "read committed"),
        ("synchronous_commit=off", "durability", "synchronous_commit = on"),
    ],
)
def test_settings_of_the_role_are_warnings(database: Database, option: str, topic: str, remedy: str) -> None:
    """What a pooler would leave in force is named, with the statement that mends it."""
    found = findings(database.conninfo, f"{GOOD} -c {option}")
    assert bad(found) == {topic: Level.WARNING}
    assert remedy in found[topic].remedy


def test_a_read_only_server_is_an_error(database: Database) -> None:
    """Nothing can be marked there; the rest is examined all the same."""
    found = findings(database.conninfo, f"{GOOD} -c default_transaction_read_only=on")
    assert bad(found) == {"database": Level.ERROR}
    assert found["database"].exit is Exit.DATABASE
    assert "claim" in found


@pytest.mark.parametrize(
    ("change", "topic", "words"),
    [
        (lambda facts: replace(facts, recovery=True), "database", "standby"),
        (lambda facts: replace(facts, version=130005), "connection", "PostgreSQL 13.5"),
        (lambda facts: replace(facts, version=190000), "connection", "PostgreSQL 19.0"),
        (lambda facts: replace(facts, clock=facts.clock + timedelta(seconds=7.5)), "clock", "+7."),
        (lambda facts: replace(facts, clock=facts.clock - timedelta(seconds=7.5)), "clock", "-7."),
    ],
)
def test_what_this_server_is_not(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[ServerFacts], ServerFacts],
    topic: str,
    words: str,
) -> None:
    """A standby, an untested version and a clock that is off, from the facts of a real session, changed."""
    monkeypatch.setattr(module, "server_facts", lambda conn: change(server_facts(conn)))
    found = findings(database.conninfo)
    assert list(bad(found)) == [topic]
    assert words in found[topic].message


@pytest.mark.parametrize(
    ("conninfo", "topic", "code"),
    [("host=/nowhere", "database", Exit.DATABASE), ("host=no-such-host.invalid", "database", Exit.DATABASE)],
)
def test_a_database_out_of_reach_ends_the_examination(conninfo: str, topic: str, code: Exit) -> None:
    """What builds on a connection is left out."""
    found = findings(conninfo)
    assert list(found) == ["settings", topic]
    assert (found[topic].level, found[topic].exit) == (Level.ERROR, code)


def test_a_missing_schema_is_an_error_that_names_the_command(empty_database: Database) -> None:
    """The server was good; the tables are not there."""
    found = findings(empty_database.conninfo)
    assert bad(found) == {"schema": Level.ERROR}
    assert found["schema"].exit is Exit.SCHEMA
    assert "curfewd migrate" in found["schema"].remedy


def test_rights_that_are_missing_are_named_one_by_one(rows: Rows, database: Database) -> None:
    """Each as the GRANT that mends it; without them the claim is not examined, and unreadable keys are a warning."""
    role = f"weak_{database.name}"
    rows.sql(f"CREATE ROLE {role} LOGIN")
    rows.sql(f"GRANT SELECT ON curfew_schema_version, flow_run_controls TO {role}")
    try:
        found = findings(make_conninfo(database.conninfo, user=role))
    finally:
        rows.sql(f"DROP OWNED BY {role}")
        rows.sql(f"DROP ROLE {role}")
    assert bad(found) == {"rights": Level.ERROR, "keys": Level.WARNING}
    assert "UPDATE" in found["rights"].remedy
    assert "claim" not in found


def test_a_role_that_may_not_even_see_the_version_is_denied(rows: Rows, database: Database) -> None:
    """The first look at the tables says which rights are needed."""
    role = f"blind_{database.name}"
    rows.sql(f"CREATE ROLE {role} LOGIN")
    try:
        found = findings(make_conninfo(database.conninfo, user=role))
    finally:
        rows.sql(f"DROP ROLE {role}")
    assert bad(found) == {"database": Level.ERROR}
    assert "SELECT" in found["database"].remedy


def test_a_claim_without_its_index_is_an_error_with_its_plan(rows: Rows, database: Database) -> None:
    """The operator sees what the server would do."""
    rows.sql("DROP INDEX ix_flow_run_controls_armed")
    found = findings(database.conninfo)
    assert bad(found) == {"claim": Level.ERROR}
    assert "flow_run_controls" in found["claim"].remedy


def test_another_engine_is_an_error_of_its_own(rows: Rows, database: Database) -> None:
    """With the exit code that `run` and `once` would end with."""
    rows.sql("CREATE TABLE flow_runs ()")
    found = findings(database.conninfo)
    assert bad(found) == {"engine": Level.ERROR}
    assert found["engine"].exit is Exit.UPSTREAM_ENGINE
    assert "`purge` to delete" in found["engine"].message


def test_keys_without_a_record_are_a_warning(rows: Rows, database: Database) -> None:
    """Counted, up to a bound; young ones may still get their record."""
    rows.insert_key(uuid4(), "young")
    assert bad(findings(database.conninfo)) == {}
    rows.insert_key(uuid4(), "old", created="now() - interval '2 hours'")
    found = findings(database.conninfo)
    assert bad(found) == {"keys": Level.WARNING}
    assert found["keys"].message.startswith("1 idempotency keys")


def test_a_defect_of_ours_is_not_taken_for_a_finding(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that does not come from the database is raised, not explained."""

    def broken(_conn: object) -> ServerFacts:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "server_facts", broken)
    with pytest.raises(ZeroDivisionError):
        findings(database.conninfo)
    monkeypatch.undo()
    monkeypatch.setattr(module, "keys_without_record", lambda *_, **__: broken(None))
    with pytest.raises(ZeroDivisionError):
        findings(database.conninfo)
    monkeypatch.undo()
    monkeypatch.setattr(module, "missing_purge_rights", lambda *_: broken(None))
    with pytest.raises(ZeroDivisionError):
        list(examine(settings_for(database, CURFEW_RETENTION="30d")))


def test_a_retention_is_examined_as_whoever_purges(rows: Rows, database: Database) -> None:
    """Off, nothing is said; on, no right to delete, no role or less than a day is a warning, with what to do."""
    role = f"daemon_{database.name}"
    rows.sql(f"CREATE ROLE {role} LOGIN")
    rows.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    rows.sql(f"GRANT UPDATE ON flow_run_controls TO {role}")
    own = make_conninfo(database.conninfo, options=GOOD)
    as_role = make_conninfo(own, user=role)

    def examined(kept: str = "30d", **variables: str) -> tuple[dict[str, Level], Finding]:
        found = {each.topic: each for each in examine(settings_for(as_role, CURFEW_RETENTION=kept, **variables))}
        return bad(found), found["retention"]

    try:
        assert "retention" not in findings(as_role)
        warned, finding = examined()
        assert warned == {"retention": Level.WARNING}
        assert 'DELETE ON "public"."flow_run_controls"' in finding.message
        assert "SELECT" not in finding.message
        assert "CURFEW_PURGE_URL" in finding.remedy
        warned, finding = examined(CURFEW_PURGE_URL=own)
        assert warned == {}
        assert "after 30 days" in finding.message
        assert examined("1d", CURFEW_PURGE_URL=own)[0] == {}
        warned, finding = examined("23h", CURFEW_PURGE_URL=own)
        assert warned == {"retention": Level.WARNING}
        assert "gone after 23:00:00" in finding.message
        assert "may still be queued" in finding.remedy
        warned, finding = examined(CURFEW_PURGE_URL="host=/nowhere")
        assert warned == {"retention": Level.WARNING}
        assert "CURFEW_PURGE_URL" in finding.remedy
    finally:
        rows.sql(f"DROP OWNED BY {role}")
        rows.sql(f"DROP ROLE {role}")
