"""The purge job of a running daemon: it keeps the tables small, and whatever it meets, marking goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from curfew_daemon import app, cli, events, purge_once
from curfew_daemon.app import Daemon
from curfew_daemon.lifecycle import Exit
from curfew_daemon.purge_once import counted, purge_until_done
from curfew_store.retention import turn_key
from tests.conftest import Database
from tests.integration.contract.rows import Rows
from tests.integration.proxy import Stopwatch
from tests.integration.sessions import eventually
from tests.integration.settings import settings_for
from tests.integration.test_app import Running, Switch, await_marked

OLD = "now() - interval '2 hours'"
ROUNDS = "curfew_purge_rounds_total"
DELETED = "curfew_purged_rows_total"


@pytest.fixture
def start(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts a daemon that keeps an hour, with these settings on top; it is stopped at the end."""
    monkeypatch.setattr(app, "Signals", Switch)
    log = (tmp_path / "log").open("w")
    events.configure("json", "info", log)
    started: list[Running] = []

    def starting(**variables: str) -> Running:
        settings = settings_for(
            database,
            **{"CURFEW_HTTP_PORT": "0", "CURFEW_RETENTION": "1h", "CURFEW_PURGE_INTERVAL": "1", **variables},
        )
        started.append(Running(Daemon(settings)))
        return started[-1]

    yield starting
    for each in started:
        assert each.stop() is Exit.OK
    log.close()


@pytest.fixture
def said(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """The lines of an event so far."""

    def lines(event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.endswith("}")]
        return [line for line in found if line["event"] == event]

    return lines


@pytest.fixture
def weak_role(rows: Rows, database: Database) -> Iterator[str]:
    """A role that may do what the daemon's account may, and delete nothing."""
    role = f"weak_{database.name}"
    rows.sql(f"CREATE ROLE {role} LOGIN")
    rows.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    rows.sql(f"GRANT UPDATE ON flow_run_controls TO {role}")
    yield role
    rows.sql(f"DROP OWNED BY {role}")
    rows.sql(f"DROP ROLE {role}")


def old_run(rows: Rows) -> None:
    run = rows.insert()
    rows.insert_key(run, "key", created=OLD)
    # Only now may a round that is under way take it, and its key with it.
    rows.sql(f"UPDATE flow_run_controls SET completed_at_utc = {OLD} WHERE run_id = :run", run=run)


def is_empty(rows: Rows) -> bool:
    return bool(rows.sql("SELECT NOT EXISTS (SELECT FROM flow_idempotency_keys)")[0][0])


def test_what_is_old_goes_while_marking_goes_on(
    rows: Rows, start: Callable[..., Running], said: Callable[[str], list[dict[str, Any]]]
) -> None:
    """Old runs and their keys go in the first round and in a later one, live ones are marked, and it is said."""
    old_run(rows)
    running = start()
    eventually(lambda: is_empty(rows), "the first round deletes it")
    await_marked(rows, rows.insert("overdue"))
    old_run(rows)
    eventually(lambda: is_empty(rows), "a later round deletes it")
    eventually(lambda: running.count(DELETED, kind="key") == 2, "it is counted")
    assert running.count(DELETED, kind="run") == 2
    assert running.count("curfew_retention_seconds") == 3600
    eventually(lambda: len(said("purged")) == 2, "it is logged, once for each round that deleted something")
    assert running.count("curfew_last_successful_purge_timestamp_seconds") > 0


def test_without_a_retention_nothing_is_deleted(rows: Rows, start: Callable[..., Running]) -> None:
    """Off is the default: the job runs and looks at nothing."""
    old_run(rows)
    running = start(CURFEW_RETENTION="")
    await_marked(rows, rows.insert("overdue"))
    assert not is_empty(rows)
    assert running.count("curfew_retention_seconds") == 0
    assert sum(running.count(ROUNDS, outcome=each) for each in ("ok", "aside", "error")) == 0


def test_a_lack_of_rights_is_told_once_and_stops_nothing_else(
    rows: Rows,
    database: Database,
    weak_role: str,
    start: Callable[..., Running],
    said: Callable[[str], list[dict[str, Any]]],
) -> None:
    """A role that may not delete: one warning with the remedy, failures counted, runs marked; a grant mends it."""
    old_run(rows)
    running = start(CURFEW_PURGE_URL=make_conninfo(database.conninfo, user=weak_role))
    eventually(lambda: running.count(ROUNDS, outcome="error") >= 2, "it fails again and again")
    await_marked(rows, rows.insert("overdue"))
    assert not is_empty(rows)
    (line,) = said("purge_failed")
    assert (line["level"], line["state"]) == ("warning", "denied")
    assert "permission denied" in line["error"]
    assert "roles.sql" in line["remedy"]
    assert running.count("curfew_database_up") == 1
    assert running.count("curfew_last_successful_purge_timestamp_seconds") == 0
    rows.sql(f"GRANT DELETE, UPDATE ON flow_run_controls, flow_idempotency_keys TO {weak_role}")
    eventually(lambda: is_empty(rows), "granted, it goes on")
    eventually(lambda: len(said("purge_recovered")) == 1, "that is said")
    assert len(said("purge_failed")) == 1


def test_its_own_url_may_delete_where_the_daemons_role_may_not(
    rows: Rows, database: Database, weak_role: str, start: Callable[..., Running], tmp_path: Path
) -> None:
    """The daemon marks as one role and purges as another, whose URL is in a file."""
    old_run(rows)
    file = tmp_path / "purge-url"
    file.write_text(database.conninfo)
    start(CURFEW_DATABASE_URL=make_conninfo(database.conninfo, user=weak_role), CURFEW_PURGE_URL_FILE=str(file))
    await_marked(rows, rows.insert("overdue"))
    eventually(lambda: is_empty(rows), "the other role deletes")


def test_a_url_that_cannot_be_read_any_more_is_told(
    rows: Rows,
    database: Database,
    start: Callable[..., Running],
    said: Callable[[str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """The file with it gone, the purge fails with its name, without a word of what was in it, and marking goes on."""
    file = tmp_path / "purge-url"
    file.write_text(make_conninfo(database.conninfo, password="canary"))
    running = start(CURFEW_PURGE_URL_FILE=str(file))
    eventually(lambda: running.count(ROUNDS, outcome="ok") >= 1, "a round ends")
    file.unlink()
    eventually(lambda: said("purge_failed"), "it is told")
    (line,) = said("purge_failed")
    assert str(file) in line["error"]
    assert "canary" not in (tmp_path / "log").read_text()
    await_marked(rows, rows.insert("overdue"))


def test_a_stop_does_not_wait_for_a_round(rows: Rows, start: Callable[..., Running]) -> None:
    """With a statement of the purge held up by a lock on the table, a stop cancels it and ends the daemon."""
    old_run(rows)
    with rows.held("LOCK TABLE flow_idempotency_keys IN ACCESS EXCLUSIVE MODE"):
        running = start(CURFEW_LOCK_TIMEOUT="5", CURFEW_STATEMENT_TIMEOUT="10")
        rows.wait_until_blocked()
        with Stopwatch() as watch:
            assert running.stop() is Exit.OK
    assert watch.seconds < 4
    assert not running.daemon.abandoned
    assert not is_empty(rows)
    assert running.count(ROUNDS, outcome="error") == 0


def test_a_lock_that_stays_is_passed_by(rows: Rows, start: Callable[..., Running]) -> None:
    """A statement that ran into its lock timeout is a failure, and the round goes on behind its pages."""
    old_run(rows)
    with rows.held("SELECT FROM flow_idempotency_keys FOR UPDATE"):
        running = start(CURFEW_LOCK_TIMEOUT="0.1")
        eventually(lambda: running.count(ROUNDS, outcome="ok") >= 1, "a round ends")
        assert running.count(ROUNDS, outcome="error") >= 1
        assert not is_empty(rows)
    eventually(lambda: is_empty(rows), "a later round deletes it")


def test_another_purge_is_left_alone(rows: Rows, start: Callable[..., Running]) -> None:
    """While somebody else has the turn the round is left to it, and counted as that."""
    old_run(rows)
    with rows.held("SELECT pg_advisory_xact_lock(:turn)", turn=turn_key("public")):
        running = start()
        eventually(lambda: running.count(ROUNDS, outcome="aside") >= 1, "it steps aside")
        assert not is_empty(rows)
    eventually(lambda: is_empty(rows), "the next round deletes it")


def test_the_command_deletes_what_it_counted(rows: Rows, database: Database) -> None:
    """`curfewd purge` as functions: the count first, then one round."""
    old_run(rows)
    rows.insert_key(rows.insert("active"), "live", created=OLD)
    settings = settings_for(database)
    assert counted(settings, timedelta(hours=3)) == (0, 0)
    assert counted(settings, timedelta(hours=1)) == (1, 0)
    assert not is_empty(rows)
    deleted = purge_until_done(settings, timedelta(hours=1)).deleted
    assert (deleted.runs, deleted.keys, deleted.orphaned_keys) == (1, 1, 0)
    assert counted(settings, timedelta(hours=1)) == (0, 0)


def test_the_command_fails_where_it_gets_no_turn(
    rows: Rows, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`curfewd purge` waits while another purge has the turn, and does not end as if all had been gone through."""
    old_run(rows)
    monkeypatch.setenv("CURFEW_DATABASE_URL", database.conninfo)
    monkeypatch.setattr(purge_once, "TURN_WAIT", 0.1)
    with rows.held("SELECT pg_advisory_xact_lock(:turn)", turn=turn_key("public")):
        refused = CliRunner().invoke(cli.app, ["purge", "--older-than", "1h"])
    assert refused.exit_code == Exit.FAILURE
    assert "another purge of these tables kept the turn for 0.1 s" in refused.stderr
    assert not is_empty(rows)
    assert CliRunner().invoke(cli.app, ["purge", "--older-than", "1h"]).exit_code == Exit.OK
    assert is_empty(rows)
