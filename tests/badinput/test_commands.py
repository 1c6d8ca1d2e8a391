"""Commands that are called in a bad way or in bare surroundings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curfew_daemon.cli import app
from curfew_daemon.lifecycle import Exit
from tests.conftest import Database
from tests.e2e.daemon_process import curfewd


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "postgresql://ann:canary@db/runs"),
        ("postgresql://ann:canary@db/runs",),
        ("check", "--database-url", "host=db password=canary"),
    ],
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(arguments: tuple[str, ...]) -> None:
    """Exit code 2, what to set instead, and nothing of what stood there."""
    done = curfewd(*arguments, CURFEW_DATABASE_URL="host=/nowhere")
    assert done.returncode == Exit.USAGE
    assert "CURFEW_DATABASE_URL_FILE" in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_the_demo_warns_of_a_password_on_its_command_line() -> None:
    """It goes on, since its server may be one to throw away, and does not repeat the password."""
    done = curfewd("demo", "--plain", "--database-url", "postgresql://ann:canary@127.0.0.1:1/runs")
    assert done.returncode == Exit.DATABASE
    assert done.stderr.startswith("curfewd: every user of this machine can read the password")
    assert "canary" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"CURFEW_SCHEMA": "pg_catalog"}, "curfewd: CURFEW_SCHEMA: 'pg_catalog' belongs to PostgreSQL itself\n"),
        ({"CURFEW_SCHEMA": "s" * 64}, "curfewd: CURFEW_SCHEMA: is 64 bytes long; PostgreSQL's names have at most 63\n"),
        ({"CURFEW_ENV_FILE": "/nowhere"}, "curfewd: CURFEW_ENV_FILE: '/nowhere' cannot be read: "),
    ],
)
def test_the_script_of_an_impossible_schema(settings: dict[str, str], words: str) -> None:
    """`migrate --sql` needs no other setting, and refuses a bad one like every command: code 3 and one line."""
    done = CliRunner().invoke(app, ["migrate", "--sql"], env=settings)
    assert (done.exit_code, done.stdout) == (Exit.SETTINGS, "")
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1


def test_the_script_is_for_the_schema_of_the_file_of_settings(tmp_path: Path) -> None:
    """The schema may be set where every other setting may be, and its name is quoted."""
    file = tmp_path / "curfewd.env"
    file.write_text("CURFEW_SCHEMA='a\"b'\n")
    done = CliRunner().invoke(app, ["migrate", "--sql"], env={"CURFEW_ENV_FILE": str(file)})
    assert done.exit_code == 0
    assert '"a""b"' in done.stdout


def test_bare_surroundings_are_enough(database: Database) -> None:
    """No home, no time zone, no locale, no path, no standard input: a command works as ever."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -m curfew_daemon once <&-', sys.executable],
        env={"CURFEW_DATABASE_URL": database.conninfo, "LANG": "C"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd="/",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("marked 0 runs in ")
