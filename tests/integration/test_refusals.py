"""Every way in which a real server refuses, told apart: at the connection, on the session, as a standby."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
import sqlalchemy.exc
from psycopg.conninfo import make_conninfo

from curfew_daemon.database import BoundedConnection, Link
from curfew_daemon.failures import DatabaseRefusal, state_of
from curfew_daemon.results import DatabaseState
from curfew_store.embedded import EmbeddedPostgres
from curfew_store.errors import SchemaMismatch
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration.sessions import eventually, in_background

S = DatabaseState
PASSWORD = "canary@:/%25"


@pytest.fixture(scope="module")
def strict() -> Iterator[EmbeddedPostgres]:
    """A server that asks for passwords and has few connections, with roles that it turns away."""
    settings = {"max_connections": "5", "superuser_reserved_connections": "2"}
    with EmbeddedPostgres.start(password=PASSWORD, settings=settings) as server:
        with psycopg.connect(server.url(), autocommit=True) as conn:
            for role in ("ordinary", "unlisted", "rejected"):
                conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pass'".encode())
            conn.execute("CREATE ROLE groups_only PASSWORD 'pass'")
            conn.execute("CREATE ROLE limited LOGIN PASSWORD 'pass' CONNECTION LIMIT 0")
            conn.execute("CREATE DATABASE closed ALLOW_CONNECTIONS false")
            conn.execute("CREATE DATABASE private")
            conn.execute("REVOKE CONNECT ON DATABASE private FROM PUBLIC")
            listed = "postgres,ordinary,groups_only,limited"
            (server.data_dir / "pg_hba.conf").write_text(
                f"local all rejected reject\nlocal all {listed} scram-sha-256\n"
            )
            conn.execute("SELECT pg_reload_conf()")
        yield server


def _refusal(conninfo: str) -> BaseException:
    """What a link raises that cannot be made."""
    link = Link(
        tables_in("public"),
        lambda: conninfo,
        application_name="test",
        options={},
        connect_timeout=10,
        longest_dial=20,
        answer_timeout=20,
    )
    try:
        with pytest.raises((sqlalchemy.exc.OperationalError, DatabaseRefusal, SchemaMismatch)) as raised:
            link.connection()
    finally:
        link.close()
    return raised.value


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"password": "wrong"}, S.AUTHENTICATION),
        ({"password": ""}, S.AUTHENTICATION),
        ({"dbname": "nowhere"}, S.AUTHENTICATION),
        ({"dbname": "closed"}, S.AUTHENTICATION),
        ({"dbname": "private", "user": "ordinary", "password": "pass"}, S.AUTHENTICATION),
        ({"user": "nobody_i_know"}, S.AUTHENTICATION),
        ({"user": "unlisted", "password": "pass"}, S.AUTHENTICATION),
        ({"user": "rejected", "password": "pass"}, S.AUTHENTICATION),
        ({"user": "groups_only", "password": "pass"}, S.AUTHENTICATION),
        ({"user": "limited", "password": "pass"}, S.TOO_MANY_CONNECTIONS),
        ({"port": "1"}, S.UNREACHABLE),
        ({"host": "/nowhere"}, S.UNREACHABLE),
        ({"host": "no-such-host.invalid"}, S.UNREACHABLE),
    ],
)
def test_a_refused_connection(strict: EmbeddedPostgres, changes: dict[str, str], state: DatabaseState) -> None:
    """Password, database, role, pg_hba.conf, limits and wrong addresses; no error quotes the password."""
    error = _refusal(make_conninfo(strict.url(), **changes))
    assert state_of(error) is state, str(error)
    assert "canary" not in str(error)


def test_a_server_with_no_connection_left(strict: EmbeddedPostgres) -> None:
    """The last slots are the superusers', and then those are gone too."""
    ordinary = make_conninfo(strict.url(), user="ordinary", password="pass")
    with ExitStack() as held:
        errors: list[BaseException] = []
        for conninfo in (ordinary, strict.url()):
            with pytest.raises(psycopg.OperationalError) as raised:  # noqa: PT012  (the last of them is refused)
                while True:
                    held.enter_context(psycopg.connect(conninfo))
            errors += [raised.value, _refusal(conninfo)]
    assert [state_of(error) for error in errors] == [S.TOO_MANY_CONNECTIONS] * 4
    assert len({str(error).splitlines()[0] for error in errors}) > 1  # reserved slots; too many clients


def test_a_server_on_its_way_down_and_up() -> None:
    """Shutting down while a session stays, and starting up while it recovers, are waited for, not alarms."""
    with EmbeddedPostgres.start() as server:
        session = psycopg.connect(server.url())
        with in_background(lambda: server.halt("smart")) as halted:
            try:
                eventually(lambda: state_of(_refusal(server.url())) is S.SHUTTING_DOWN, "it says that it goes down")
                assert not halted.done()
            finally:
                session.close()
        (server.data_dir / "recovery.signal").touch()
        gate = server.data_dir / "gate"
        with (server.data_dir / "postgresql.auto.conf").open("a") as conf:
            conf.write(f"restore_command = 'while [ ! -e {gate} ]; do sleep 0.1; done; false'\n")
        with in_background(server.resume) as resumed:
            try:
                eventually(lambda: state_of(_refusal(server.url())) is S.STARTING, "it says that it starts")
                assert not resumed.done()
            finally:
                gate.touch()
        # Still a standby for a moment; then it lacks nothing but our tables.
        eventually(lambda: state_of(_refusal(server.url())) is S.SCHEMA_MISSING, "it is up")


def test_a_standby_is_refused_until_it_is_promoted(database: Database) -> None:
    """A real standby, with one host and in a list of hosts; promoted, the same link may enforce."""
    with EmbeddedPostgres.start() as server:
        server.halt()
        (server.data_dir / "standby.signal").touch()
        server.resume()
        assert state_of(_refusal(server.url())) is S.STANDBY
        twice = f"host={server.host},{server.host} port={server.port} dbname=postgres user=postgres"
        assert state_of(_refusal(twice)) is S.STANDBY
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("SELECT pg_promote()")
        assert state_of(_refusal(server.url())) is S.SCHEMA_MISSING  # it may be written to


def _said(conninfo: str, *statements: str) -> DatabaseState:
    """The state that the last statement's error tells of."""
    with BoundedConnection.connect(conninfo, autocommit=True) as conn:
        for statement in statements[:-1]:
            conn.execute(statement.encode())
        with pytest.raises(psycopg.Error) as raised:
            conn.execute(statements[-1].encode())
    return state_of(raised.value)


@pytest.mark.parametrize(
    ("statements", "state"),
    [
        (("SET statement_timeout = 10", "SELECT pg_sleep(20)"), S.STATEMENT_TIMEOUT),
        (("SET default_transaction_read_only = on", "DELETE FROM flow_run_controls"), S.READ_ONLY),
        (("SELECT * FROM no_such_table",), S.SCHEMA_MISSING),
        (("SELECT * FROM no_such_schema.flow_run_controls",), S.SCHEMA_MISSING),
        (("SELECT no_such_column FROM flow_run_controls",), S.SCHEMA_OLD),
        (("SELECT pg_terminate_backend(pg_backend_pid())",), S.SHUTTING_DOWN),
        (("SELECT 1/0",), S.OTHER),
    ],
)
def test_an_error_on_the_session(database: Database, statements: tuple[str, ...], state: DatabaseState) -> None:
    """What the SQLSTATE of a running server says."""
    assert _said(database.conninfo, *statements) is state


def test_a_lock_that_is_not_had_in_time(database: Database) -> None:
    """A table locked by somebody is neither an outage nor a slow server."""
    with psycopg.connect(database.conninfo) as holder:
        holder.execute("LOCK TABLE flow_run_controls")
        said = _said(database.conninfo, "SET lock_timeout = 10", "SELECT * FROM flow_run_controls")
    assert said is S.LOCK_TIMEOUT


def test_a_role_without_rights(database: Database) -> None:
    """Denied is told from a failed login."""
    role = f"weak_{database.name}"
    with psycopg.connect(database.conninfo, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            said = _said(database.conninfo, f"SET ROLE {role}", "SELECT * FROM flow_run_controls")
        finally:
            conn.execute(f"DROP ROLE {role}".encode())
    assert said is S.DENIED


def test_a_full_disk(database: Database) -> None:
    """The SQLSTATE of a server that cannot extend a file, raised by a server."""
    said = _said(
        database.conninfo, "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
    )
    assert said is S.DISK_FULL
