"""The commands as a person or cron calls them: output, exit codes, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from curfew_daemon.lifecycle import Exit
from curfew_store import FlowRunControlStore
from tests.conftest import Database
from tests.e2e.conftest import Table
from tests.e2e.daemon_process import DaemonProcess, clean_environment, curfewd
from tests.integration.contract.rows import FLOW
from tests.integration.roles import new_role

COMMANDS = ("run", "once", "check", "migrate", "plan", "purge", "demo")


def test_help_names_every_command_and_the_least_setting() -> None:
    """What a person who knows nothing needs: the commands, the variable to set, the exit codes."""
    done = curfewd("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    assert "CURFEW_DATABASE_URL" in done.stdout
    assert curfewd("-h").stdout == done.stdout


def test_the_version_can_be_asked_for_without_settings() -> None:
    """One line, also with broken settings."""
    done = curfewd("--version", CURFEW_NONSENSE="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("curfewd ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("run", "--fast"),
        ("plan", "--within", "soon"),
        ("once", "--wait", "-3s"),
        ("purge", "--older-than", "0s"),
    ],
)
def test_a_command_line_that_is_not_understood(arguments: tuple[str, ...]) -> None:
    """Exit code 2, and the part that was not understood."""
    done = curfewd(*arguments, CURFEW_DATABASE_URL="host=/nowhere")
    assert done.returncode == Exit.USAGE
    assert arguments[-1] in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "CURFEW_DATABASE_URL"),
        ({"CURFEW_DATABASE_URL": "host=/x", "CURFEW_BATCH_SIZE": "0"}, "CURFEW_BATCH_SIZE"),
        ({"CURFEW_DATABASE_URL": "host=/x", "CURFEW_POLL_INTERVALL": "1"}, "CURFEW_POLL_INTERVAL"),
        ({"CURFEW_DATABASE_URL": "host=/x", "CURFEW_ENV_FILE": "/nowhere"}, "CURFEW_ENV_FILE"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, str], words: str) -> None:
    """Exit code 3, each line names a variable, nothing is started."""
    done = curfewd("run", **settings)
    assert done.returncode == Exit.SETTINGS
    assert words in done.stderr
    assert all(line.startswith("curfewd: CURFEW_") for line in done.stderr.splitlines())


@pytest.mark.parametrize("command", ["once", "plan", "check", "migrate"])
def test_no_database_is_exit_code_4(command: str) -> None:
    """The words of the driver, and what to do."""
    done = curfewd(command, CURFEW_DATABASE_URL="host=/nowhere")
    assert done.returncode == Exit.DATABASE
    assert "CURFEW_DATABASE_URL" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_purge_counts_and_deletes(database: Database, rows: Table) -> None:
    """The count first, then the runs with their keys; without an age a usage error; beside another engine refused."""
    url = {"CURFEW_DATABASE_URL": database.conninfo}
    store = FlowRunControlStore(database.engine)
    run = store.start_run(FLOW, "t", "k").run_id
    store.complete_run(run)
    rows.sql("UPDATE flow_run_controls SET completed_at_utc = now() - interval '3 days'")
    counted = curfewd("purge", "--dry-run", CURFEW_RETENTION="2d", **url)
    assert (counted.returncode, counted.stdout) == (0, "would delete 1 runs with their keys, and 0 orphaned keys\n")
    assert store.get_run_control(run)
    kept = curfewd("purge", "--older-than", "4d", CURFEW_RETENTION="2d", **url)
    assert (kept.returncode, kept.stdout.startswith("deleted 0 runs")) == (0, True)
    deleted = curfewd("purge", CURFEW_RETENTION="2d", CURFEW_PURGE_URL=database.conninfo)
    assert (deleted.returncode, deleted.stderr) == (0, "")
    assert deleted.stdout.startswith("deleted 1 runs with 1 keys, and 0 orphaned keys, in ")
    assert store.get_run_control(run) is None
    without = curfewd("purge", **url)
    assert (without.returncode, "--older-than" in without.stderr) == (Exit.USAGE, True)
    rows.sql("CREATE TABLE flow_runs ()")
    assert curfewd("purge", "--older-than", "1h", **url).returncode == Exit.UPSTREAM_ENGINE


@pytest.mark.parametrize(
    ("command", "variable"),
    [(("migrate",), "CURFEW_MIGRATION_DATABASE_URL"), (("purge", "--older-than", "1d"), "CURFEW_PURGE_URL")],
)
def test_a_remedy_names_the_url_that_was_used(command: tuple[str, ...], variable: str) -> None:
    """Not the database URL, which may be right, or not set at all."""
    done = curfewd(*command, **{variable: "host=/nowhere"})
    assert done.returncode == Exit.DATABASE
    assert f"its address in {variable} is right" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_purge_without_the_right_to_delete_is_told_which_role_to_use(database: Database) -> None:
    """And not to grant what the sweep needs."""
    with new_role(database, "reader") as role:
        with database.engine.begin() as conn:
            conn.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        url = f"{database.conninfo}{'&' if '?' in database.conninfo else '?'}options=-c%20role%3D{role}"
        done = curfewd("purge", "--older-than", "1d", CURFEW_PURGE_URL=url)
    assert done.returncode == Exit.DATABASE
    assert "permission denied" in done.stderr
    assert "CURFEW_PURGE_URL name a role that may delete" in done.stderr
    assert "UPDATE" not in done.stderr


@pytest.mark.parametrize("command", ["once", "plan", "check"])
def test_no_schema_is_exit_code_5(empty_database: Database, command: str) -> None:
    """And the command that makes it."""
    done = curfewd(command, CURFEW_DATABASE_URL=empty_database.conninfo)
    assert done.returncode == Exit.SCHEMA
    assert "curfewd migrate" in done.stdout + done.stderr


def test_migrate_says_what_it_did(empty_database: Database) -> None:
    """From nothing to the newest, and then nothing to do; the role of its own URL is used."""
    settings = {"CURFEW_MIGRATION_DATABASE_URL": empty_database.conninfo}
    first, second = curfewd("migrate", **settings), curfewd("migrate", **settings)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "migrated from nothing of ours" in first.stdout
    assert "up to date" in second.stdout


def test_migrate_prints_its_sql_without_a_database() -> None:
    """The script for whoever may not run it; in the schema that is set."""
    done = curfewd("migrate", "--sql", CURFEW_SCHEMA="mine")
    assert done.returncode == 0
    assert "flow_run_controls" in done.stdout
    assert "mine" in done.stdout


def test_once_sweeps_everything_and_says_so(database: Database, rows: Table) -> None:
    """2,000 due runs, exit code 0, one line; run again it has nothing to do."""
    rows.sql(
        "INSERT INTO flow_run_controls (run_id, timeout_at_utc) "
        "SELECT gen_random_uuid(), now() - interval '1 minute' FROM generate_series(1, 2000)"
    )
    first = curfewd("once", CURFEW_DATABASE_URL=database.conninfo)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("marked 2,000 runs in ")
    assert "after its deadline" in first.stdout
    second = curfewd("once", CURFEW_DATABASE_URL=database.conninfo)
    assert second.stdout.startswith("marked 0 runs in ")


def test_once_waits_for_held_runs_only_so_long(database: Database, rows: Table) -> None:
    """What stays held is an exit code, so that cron reports it."""
    held = rows.insert("overdue")
    rows.insert("overdue")
    with rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=held):
        done = curfewd("once", "--wait", "200ms", CURFEW_DATABASE_URL=database.conninfo)
    assert done.returncode == Exit.FAILURE
    assert done.stdout.startswith("marked 1 runs")
    assert "s for runs that others held" in done.stdout
    assert "locked" in done.stderr


def test_plan_lists_and_changes_nothing(database: Database, rows: Table) -> None:
    """With and without a look into the future."""
    rows.insert("overdue")
    rows.insert(timeout_at_utc="now() + interval '10 minutes'")
    before = rows.everything()
    done = curfewd("plan", "--within", "1h", CURFEW_DATABASE_URL=database.conninfo)
    assert done.returncode == 0
    assert str(FLOW) in done.stdout
    assert "1 overdue now, 1 more within 1h" in done.stdout
    assert rows.everything() == before


def test_check_ends_with_the_code_of_its_first_error(database: Database, rows: Table) -> None:
    """Warnings alone are 0; a finding shows its topic and its remedy."""
    good = curfewd("check", CURFEW_DATABASE_URL=database.conninfo)
    assert good.returncode == 0
    assert "warning" in good.stdout
    assert "ALTER ROLE" in good.stdout
    rows.sql("DROP INDEX ix_flow_run_controls_armed")
    bad = curfewd("check", CURFEW_DATABASE_URL=database.conninfo)
    assert bad.returncode == Exit.FAILURE
    assert "curfewd migrate" in bad.stdout


@pytest.mark.parametrize("missing", ["typer", "pydantic", "structlog"])
def test_without_the_extra_the_install_line_is_printed(missing: str) -> None:
    """Exit code 8 and one line, no traceback."""
    program = f"import sys; sys.modules[{missing!r}] = None; from curfew_daemon.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "run"], env=clean_environment({}), capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.MISSING_EXTRA
    assert done.stderr.count("\n") == 1
    assert "pip install 'curfewd[daemon]'" in done.stderr


def test_another_missing_module_is_not_taken_for_the_extra() -> None:
    """An error that the install line would not mend keeps its traceback."""
    program = "import sys; sys.modules['uuid'] = None; from curfew_daemon.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "run"], env=clean_environment({}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_service_links_are_ignored_with_one_line() -> None:
    """A Kubernetes service called curfew puts variables into every pod; the daemon starts and names them."""
    links: dict[str, Any] = {"CURFEW_PORT": "tcp://10.0.0.1:80", "CURFEW_SERVICE_HOST": "10.0.0.1"}
    with DaemonProcess("host=/nowhere", **links) as daemon:
        assert daemon.wait_for("settings_ignored_service_links")["names"] == sorted(links)
        daemon.wait_for("started")
        assert daemon.stop() == 0
