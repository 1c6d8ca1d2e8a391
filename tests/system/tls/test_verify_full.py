"""`sslmode=verify-full` against Debian's PostgreSQL: who is not who it should be is refused, and said so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from curfew_daemon.check import examine
from curfew_daemon.lifecycle import Exit
from curfew_daemon.results import DatabaseState
from curfew_store import FlowRunControlStore
from curfew_store.embedded import EmbeddedPostgres
from curfew_store.migrate import upgrade
from tests.e2e.daemon_process import DaemonProcess, curfewd
from tests.integration.contract.rows import FLOW
from tests.integration.deployed_roles import engine_at
from tests.integration.settings import settings_for
from tests.system.tls.certificates import OUTDATED, Certificate, new_authority, signed

pytestmark = pytest.mark.system

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
HOST = "db.curfew.example"
SECRET = "never to be sent in clear"


class Database:
    """A migrated database that can be served with one certificate after the other, or with none."""

    def __init__(self, server: EmbeddedPostgres, authority: Certificate) -> None:
        self._server = server
        self.authority = authority
        where = conninfo_to_dict(server.conninfo)
        # A name that no resolver needs to know: libpq verifies `host` and connects to `hostaddr`.
        self.url = (
            f"host={HOST} hostaddr={where['host']} port={where['port']} user=postgres dbname=postgres "
            f"password='{SECRET}' sslmode=verify-full sslrootcert={authority.certificate}"
        )

    def serve(self, certificate: Certificate | None) -> None:
        """Present this certificate from now on; ``None`` switches TLS off."""
        settings = ["ssl = off"]
        if certificate is not None:
            for source, name in ((certificate.certificate, "server.crt"), (certificate.key, "server.key")):
                target = self._server.data_dir / name
                shutil.copyfile(source, target)
                owner = self._server.data_dir.stat()
                shutil.chown(target, owner.st_uid, owner.st_gid)
                target.chmod(0o600)
            settings = ["ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'"]
        (self._server.data_dir / "postgresql.auto.conf").write_text("\n".join(settings) + "\n")
        self._server.restart()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    authority = new_authority(tmp_path_factory.mktemp("tls") / "authority")
    with EmbeddedPostgres.start(bin_dir=PROGRAMS, tcp=True, password=SECRET) as server:
        upgrade(create_engine(server.sqlalchemy_url(), poolclass=NullPool))
        yield Database(server, authority)


@pytest.fixture
def good(database: Database) -> Certificate:
    """A certificate for the right name, by the right authority, at the right time."""
    return signed(database.authority, HOST)


@pytest.fixture(params=["another name", "expired", "another authority", "no TLS"])
def wrong(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> tuple[str, str]:
    """Serves what must not be trusted; the words that libpq has for it, and the state that the daemon tells."""
    if request.param == "another name":
        database.serve(signed(database.authority, "elsewhere.curfew.example"))
        return f'does not match host name "{HOST}"', DatabaseState.AUTHENTICATION.value
    if request.param == "expired":
        database.serve(signed(database.authority, HOST, OUTDATED))
        return "certificate verify failed", DatabaseState.AUTHENTICATION.value
    if request.param == "another authority":
        database.serve(signed(new_authority(tmp_path / "other", "another authority"), HOST))
        return "certificate verify failed", DatabaseState.AUTHENTICATION.value
    database.serve(None)
    return "server does not support SSL, but SSL was required", DatabaseState.UNREACHABLE.value


def test_the_right_server_is_trusted(database: Database, good: Certificate) -> None:
    """Encrypted by TLS, for a producer and for every command; `check` has nothing to say about it."""
    database.serve(good)
    engine = engine_at(database.url)
    run = FlowRunControlStore(engine).start_run(FLOW, "t").run_id
    assert FlowRunControlStore(engine).get_run_control(run) is not None
    with engine.connect() as conn:
        assert conn.exec_driver_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").scalar_one()
    for command in ("once", "plan", "check"):
        done = curfewd(command, CURFEW_DATABASE_URL=database.url)
        assert done.returncode == Exit.OK, done.stderr
    assert "tls" not in {finding.topic for finding in examine(settings_for(database.url))}


def test_a_wrong_server_is_refused_by_name(database: Database, wrong: tuple[str, str]) -> None:
    """`once`, `plan` and `check` end with the documented code, say why, and never the password."""
    words, _ = wrong
    for command in ("once", "plan", "check"):
        done = curfewd(command, CURFEW_DATABASE_URL=database.url)
        said = done.stdout + done.stderr
        assert done.returncode == Exit.DATABASE, said
        assert words in " ".join(said.split())
        assert "Traceback" not in said
        assert SECRET not in said


def test_a_producer_is_refused_as_well(database: Database, wrong: tuple[str, str]) -> None:
    """The store hands on what libpq says; nothing was written."""
    engine = engine_at(database.url)
    with pytest.raises(OperationalError) as refused:
        FlowRunControlStore(engine).start_run(FLOW, "t")
    assert wrong[0] in str(refused.value)
    assert SECRET not in str(refused.value)


def test_the_daemon_waits_for_the_right_server(database: Database, wrong: tuple[str, str], good: Certificate) -> None:
    """The state is told with libpq's words; with the certificate put right it goes on by itself."""
    words, state = wrong
    with DaemonProcess(database.url, CURFEW_RECONNECT_MAX="0.5") as daemon:
        told = daemon.wait_for("database_state_changed")
        assert told["new"] == state, told
        assert any(words in str(value) for value in told.values()), told
        database.serve(good)
        daemon.wait_up()
        assert SECRET not in daemon.text
        assert daemon.stop() == Exit.OK


def test_without_verification_the_downgrade_goes_unnoticed(database: Database) -> None:
    """Why verify-full: libpq's default takes a server without TLS, and the password goes to whoever asks."""
    database.serve(None)
    with psycopg.connect(make_conninfo(database.url, sslmode="prefer")) as conn:
        assert not conn.pgconn.ssl_in_use
