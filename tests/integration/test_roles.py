"""`deploy/postgres/roles.sql`: what it makes, what its roles are denied, and how little stands in its way."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from curfew_store.migrate import upgrade
from curfew_store.testing import DatabaseTemplate
from tests.conftest import Database
from tests.e2e.daemon_process import DaemonProcess, curfewd
from tests.integration.contract.rows import Rows
from tests.integration.deployed_roles import ACCOUNTS, GROUPS, Deployment, deployed, drop_roles, lifecycle, run_script

ODD_SCHEMA = 'Odd "run\'s" schéma'


@pytest.fixture(scope="module")
def deployment(curfew_database: DatabaseTemplate) -> Iterator[Deployment]:
    with deployed(curfew_database) as made:
        yield made


@pytest.fixture
def rows(deployment: Deployment) -> Iterator[Rows]:
    seen = Rows(deployment.sqlalchemy_url)
    yield seen
    seen.sql("TRUNCATE flow_run_controls, flow_idempotency_keys")
    seen.close()


def refused(deployment: Deployment, account: str, statement: str) -> bool:
    """Whether the server denies a statement to an account; everything that it did is rolled back.

    The account's own settings are set aside: any session may change them.
    """
    options = "-c search_path=public -c default_transaction_read_only=off"
    with psycopg.connect(make_conninfo(deployment.conninfo(account), options=options)) as conn:
        try:
            conn.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return True
        finally:
            conn.rollback()
    return False


def _updates(*columns: str) -> list[str]:
    return [f"UPDATE flow_run_controls SET {column} = {column}" for column in columns]


INSERT_RUN = "INSERT INTO flow_run_controls (run_id) VALUES (gen_random_uuid())"
INSERT_KEY = "INSERT INTO flow_idempotency_keys VALUES (gen_random_uuid(), 't', 'k', gen_random_uuid())"
ANY_DELETE = ["DELETE FROM flow_run_controls", "DELETE FROM flow_idempotency_keys"]
IDENTITY = ["run_id", "flow_id", "trigger_key", "idempotency_key", "created_at_utc"]
KEY_UPDATES = [
    f"UPDATE flow_idempotency_keys SET {column} = {column}"
    for column in ("flow_id", "trigger_key", "idempotency_key", "run_id", "created_at_utc")
]
MARK = ["cancel_requested", "cancel_reason", "cancel_requested_at_utc", "timed_out_at_utc"]
CONTROL_COLUMNS = [*IDENTITY, *MARK, "timeout_at_utc", "completed_at_utc"]
OWNERS = [
    "TRUNCATE flow_run_controls",
    "TRUNCATE flow_idempotency_keys",
    "ALTER TABLE flow_run_controls ADD COLUMN more int",
    "ALTER TABLE flow_run_controls DISABLE TRIGGER ALL",
    "DROP TABLE flow_idempotency_keys",
    "DROP INDEX ix_flow_run_controls_armed",
    "CREATE INDEX ON flow_run_controls (flow_id)",
    "CREATE TRIGGER t BEFORE UPDATE ON flow_run_controls EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE RULE r AS ON UPDATE TO flow_run_controls DO INSTEAD NOTHING",
    "CREATE POLICY p ON flow_run_controls",
    "CREATE TABLE flow_runs ()",
    "CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'",
    "UPDATE curfew_schema_version SET minimum_client = 99",
    "INSERT INTO curfew_schema_version VALUES ('9999', 99)",
    "DELETE FROM curfew_schema_version",
]
READ_KEYS = ["SELECT trigger_key FROM flow_idempotency_keys", "SELECT idempotency_key FROM flow_idempotency_keys"]

DENIED: dict[str, list[str]] = {
    "service": [
        *_updates("run_id", "created_at_utc"),
        *KEY_UPDATES,
        *ANY_DELETE,
        "INSERT INTO flow_run_controls (run_id, created_at_utc) VALUES (gen_random_uuid(), now())",
        "INSERT INTO flow_run_controls (run_id, timed_out_at_utc) VALUES (gen_random_uuid(), now())",
        "SELECT created_at_utc FROM flow_idempotency_keys",
    ],
    "step": [
        *_updates(*IDENTITY),
        INSERT_RUN,
        INSERT_KEY,
        *KEY_UPDATES,
        *ANY_DELETE,
        *READ_KEYS,
        "SELECT run_id FROM flow_idempotency_keys",
    ],
    "daemon": [
        *_updates(*IDENTITY, "timeout_at_utc", "completed_at_utc"),
        INSERT_RUN,
        INSERT_KEY,
        *KEY_UPDATES,
        *ANY_DELETE,
        *READ_KEYS,
    ],
    "monitor": [*_updates(*CONTROL_COLUMNS), INSERT_RUN, INSERT_KEY, *KEY_UPDATES, *ANY_DELETE],
    "purger": [
        *_updates(*(name for name in CONTROL_COLUMNS if name != "created_at_utc")),
        INSERT_RUN,
        INSERT_KEY,
        *(statement for statement in KEY_UPDATES if "created_at_utc" not in statement),
    ],
}


@pytest.mark.parametrize("account", DENIED)
def test_what_a_role_is_denied(account: str, deployment: Deployment, rows: Rows) -> None:
    """The deny matrix: every statement is refused to the account, and allowed to the owner's."""
    rows.insert_key(rows.insert(), "k")
    statements = DENIED[account] + OWNERS
    assert [each for each in statements if not refused(deployment, account, each)] == []
    # The server rather than a mistake in a statement says no: nothing of it is beyond the owner.
    assert [each for each in statements if refused(deployment, "migrator", each)] == []


def test_only_the_owner_and_retention_delete(deployment: Deployment, rows: Rows) -> None:
    """Asked of every account, both tables."""
    for table in ("flow_run_controls", "flow_idempotency_keys"):
        allowed = {each for each in ACCOUNTS if not refused(deployment, each, f"DELETE FROM {table}")}
        assert allowed == {"migrator", "purger"}


def test_somebody_with_no_role_sees_nothing(deployment: Deployment, rows: Rows) -> None:
    """What is not granted to a role of ours is granted to nobody."""
    stranger = deployment.role("stranger")
    rows.sql(f"CREATE ROLE {stranger} LOGIN PASSWORD 'x'")
    try:
        for table in ("flow_run_controls", "flow_idempotency_keys", "curfew_schema_version"):
            with (
                psycopg.connect(make_conninfo(deployment.admin, user=stranger, password="x")) as conn,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                conn.execute(f"SELECT FROM {table}".encode())
    finally:
        rows.sql(f"DROP ROLE {stranger}")


def test_the_accounts_do_the_work_of_a_whole_system(deployment: Deployment, rows: Rows) -> None:
    """Started, checked, planned, marked, refused, completed, read, purged; `check` has nothing to say."""
    lifecycle(deployment)


def test_the_daemon_and_its_commands_run_as_their_accounts(deployment: Deployment, rows: Rows) -> None:
    """The processes themselves: `migrate` as the migrator, `run` and `check` as the daemon, none complains."""
    run = rows.insert("overdue")
    rows.insert("active")
    migrate = curfewd("migrate", CURFEW_DATABASE_URL=deployment.conninfo("migrator"))
    assert migrate.returncode == 0, migrate.stderr
    url = deployment.conninfo("daemon")
    check = curfewd("check", CURFEW_DATABASE_URL=url)
    assert check.returncode == 0, check.stdout + check.stderr
    with DaemonProcess(url, CURFEW_OBSERVE_INTERVAL="0.5", CURFEW_OBSERVE_BUDGET="0.5") as daemon:
        daemon.wait_for("runs_timed_out", count=1)
        daemon.wait_sample("curfew_armed_runs", 1.0)
        assert daemon.stop() == 0
    assert (rows.row(run) or {})["timed_out_at_utc"]
    assert [line for line in daemon.lines if line.get("level") in {"warning", "error"}] == []


def test_a_schema_of_any_name(curfew_database: DatabaseTemplate) -> None:
    """Capitals, blanks, quotes and letters beyond ASCII, in the schema and in the names of the roles."""
    with deployed(curfew_database, ODD_SCHEMA, f'{uuid4().hex[:8]} "It\'s" ') as made:
        lifecycle(made)


GRANTS = (
    "SELECT c.relname, c.relowner::regrole::text, c.relacl::text, a.attname, a.attacl::text "
    "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
    "WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1, 4"
)
SETTINGS = "SELECT setrole::regrole::text, setconfig::text FROM pg_db_role_setting ORDER BY 1, 2"


def test_running_it_again_changes_nothing_and_takes_back_what_was_added(deployment: Deployment, rows: Rows) -> None:
    """It ends in the same state, whatever somebody has granted meanwhile."""
    before = rows.sql(GRANTS), rows.sql(SETTINGS)
    rows.sql(f"GRANT DELETE, UPDATE (flow_id) ON flow_run_controls TO {deployment.role('worker')}")
    rows.sql("GRANT SELECT ON flow_idempotency_keys TO PUBLIC")
    assert rows.sql(GRANTS) != before[0]
    again = deployment.run_script()
    assert (again.returncode, again.stderr) == (0, "")
    assert (rows.sql(GRANTS), rows.sql(SETTINGS)) == before


def test_tables_of_another_owner_stop_it(database: Database) -> None:
    """It names the owner and changes nothing; told the owner, it goes on."""
    prefix = f"{database.name}_"
    names = [prefix + each for each in GROUPS]
    refusal = run_script(database.conninfo, prefix=prefix)
    with psycopg.connect(database.conninfo) as conn:
        owner, made = conn.execute(
            "SELECT current_user, (SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s))", [names]
        ).fetchall()[0]
    assert (refusal.returncode, made) == (3, 0)
    assert f"-v owner={owner}" in refusal.stderr
    try:
        told = run_script(database.conninfo, prefix=prefix, owner=owner)
        assert (told.returncode, told.stderr) == (0, "")
    finally:
        drop_roles(database.conninfo, names)


def test_it_needs_no_superuser_and_goes_where_it_is_told(database: Database, empty_database: Database) -> None:
    """CREATEROLE and the ownership of the database are enough; `database` leads from one database to another."""
    name = empty_database.name
    operator, prefix = f"{name}_operator", f"{name}_"
    roles = [operator, *(prefix + each for each in (*GROUPS, *ACCOUNTS))]
    with psycopg.connect(empty_database.conninfo, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {operator} LOGIN CREATEROLE PASSWORD 'x'".encode())
        admin.execute(f"ALTER DATABASE {name} OWNER TO {operator}".encode())
    as_operator = make_conninfo(database.conninfo, user=operator, password="x")
    variables = {"database": name, "schema": "Mine", "prefix": prefix, "logins": "on"}
    try:
        first = run_script(as_operator, **variables)
        assert first.returncode == 0, first.stderr
        deployment = Deployment(empty_database.conninfo, "Mine", prefix)
        with psycopg.connect(empty_database.conninfo, autocommit=True) as admin:
            for account in ACCOUNTS:
                admin.execute(f"ALTER ROLE {prefix}{account} PASSWORD 'for this test alone'".encode())
        upgrade(deployment.engine("migrator"), schema="Mine")
        second = run_script(as_operator, **variables)
        assert (second.returncode, second.stderr) == (0, "")
        lifecycle(deployment)
    finally:
        with psycopg.connect(empty_database.conninfo, autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {name} OWNER TO CURRENT_USER".encode())
        drop_roles(empty_database.conninfo, roles)
