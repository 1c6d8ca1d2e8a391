"""Secrets: rotated without a restart, and shown nowhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from curfew_store.embedded import EmbeddedPostgres
from tests.e2e.daemon_process import DaemonProcess, curfewd
from tests.servers import migrated_server

CANARY = "canary@:/%25 'quoted'"
FORMS = ("canary", quote(CANARY, safe=""), "Y2FuYXJ5")


@pytest.fixture(scope="module")
def strict() -> Iterator[EmbeddedPostgres]:
    """A migrated server that asks for a password, over TCP."""
    with migrated_server(tcp=True, password=CANARY) as server:
        yield server


def assert_secret(*texts: str) -> None:
    for text in texts:
        assert not any(form in text for form in FORMS), text


def test_a_rotated_password_file_is_used_at_the_next_connect(strict: EmbeddedPostgres, tmp_path: Path) -> None:
    """The old password stops working while the daemon is connected; the new one is in the file by then."""
    file = tmp_path / "url"
    with psycopg.connect(strict.url(), autocommit=True) as admin:
        admin.execute("CREATE ROLE rotating SUPERUSER LOGIN PASSWORD 'first-canary'")
        base = f"@127.0.0.1:{strict.port}/postgres"
        file.write_text(f"postgresql://rotating:first-canary{base}\n")
        with DaemonProcess(None, CURFEW_DATABASE_URL_FILE=str(file)) as daemon:
            daemon.wait_up()
            admin.execute("ALTER ROLE rotating PASSWORD 'second-canary'")
            ours = "usename = 'rotating'"
            admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}".encode())
            refused = daemon.wait_for("database_state_changed", new="authentication")
            assert "read again" in refused["remedy"]
            file.write_text(f"postgresql://rotating:second-canary{base}\n")
            daemon.wait_for("database_state_changed", new="up", occurrence=2)
            file.unlink()
            admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}".encode())
            before = len(daemon.lines)
            daemon.wait_for("database_state_changed", new="unreachable")
            file.write_text(f"postgresql://rotating:second-canary{base}\n")
            daemon.wait_for("database_state_changed", new="up", after=before - 1)
            assert daemon.stop() == 0
    assert_secret(daemon.text)


def test_the_password_is_nowhere_to_be_seen(strict: EmbeddedPostgres, tmp_path: Path) -> None:
    """Not in a log at debug, on a page, in the command line, nor after a refused connection."""
    file = tmp_path / "env"
    file.write_text(f'CURFEW_LOG_LEVEL=debug\nCURFEW_DATABASE_URL="{strict.url()}"\n')
    with DaemonProcess(
        None, CURFEW_ENV_FILE=str(file), CURFEW_OBSERVE_INTERVAL="0.5", CURFEW_OBSERVE_BUDGET="0.1"
    ) as daemon:
        daemon.wait_up()
        with psycopg.connect(strict.url(), autocommit=True) as admin:
            admin.execute("ALTER ROLE postgres PASSWORD 'changed'")
            try:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'curfewd%'"
                )
                daemon.wait_for("database_state_changed", new="authentication")
                pages = [daemon.get(page)[1] for page in ("/", "/metrics", "/healthz", "/readyz", "/nowhere")]
                for content in (f"CURFEW_DATABASE_URL=postgresql://u:{CANARY}@h:x/\n", f"{CANARY}\n"):
                    file.write_text(content)
                    before = len(daemon.lines)
                    daemon.signal(signal.SIGHUP)
                    daemon.wait_for("reload_failed", after=before)
            finally:
                admin.execute(b"ALTER ROLE postgres PASSWORD '" + CANARY.replace("'", "''").encode() + b"'")
        pages.append(Path(f"/proc/{daemon.pid}/cmdline").read_text())
        assert daemon.stop() == 0
    assert_secret(daemon.text, *pages)


@pytest.mark.parametrize("command", ["check", "plan", "once", "migrate", "run"])
def test_no_command_shows_the_password(strict: EmbeddedPostgres, command: str) -> None:
    """Neither when the server refuses, nor when the URL cannot be read, nor when all is well."""
    good = strict.url()
    wrong = make_conninfo(good, user="somebody")
    broken = f"postgresql://u:{CANARY}@h:x/"
    for url in {"check": (good, wrong), "run": (broken,)}.get(command, (wrong,)):
        done = curfewd(command, CURFEW_DATABASE_URL=url)
        assert_secret(done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert (done.returncode == 0) == (url == good), done.stderr
