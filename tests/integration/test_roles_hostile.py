"""Objects of others, with the names that our statements use: they stand in for nothing.

An attacker who may create objects somewhere tries to have them found by the accounts of `deploy/postgres/roles.sql`.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import make_url

from curfew_store import FlowRunControlStore
from curfew_store.testing import DatabaseTemplate
from tests.integration.calls_of_roles import CALLS, disconnect
from tests.integration.contract.rows import Rows
from tests.integration.deployed_roles import ACCOUNTS, Deployment, deployed, lifecycle

# Whatever name our statements use without a schema, each as PostgreSQL's own and with the types that would be an even
# better match for how the parameters are sent (varchar).
HOSTILE = """
CREATE SCHEMA hostile;
GRANT USAGE ON SCHEMA hostile TO PUBLIC;
CREATE TABLE hostile.touched (by text);
GRANT INSERT ON hostile.touched TO PUBLIC;
CREATE TABLE hostile.flow_run_controls AS SELECT * FROM public.flow_run_controls WITH NO DATA;
CREATE TABLE hostile.flow_idempotency_keys AS SELECT * FROM public.flow_idempotency_keys WITH NO DATA;
CREATE TABLE hostile.curfew_schema_version AS SELECT '0000'::varchar AS version_num, 99 AS minimum_client;
CREATE TABLE hostile.flow_runs ();
CREATE VIEW hostile.pg_settings AS SELECT 'statement_timeout'::text AS name, '1'::text AS setting;
GRANT ALL ON ALL TABLES IN SCHEMA hostile TO PUBLIC;
CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT 'infinity'::timestamptz$$;
CREATE FUNCTION hostile.statement_timestamp() RETURNS timestamptz LANGUAGE sql AS $$SELECT '-infinity'::timestamptz$$;
CREATE FUNCTION hostile.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$SELECT '2000-01-01'::timestamptz$$;
CREATE FUNCTION hostile.make_interval(secs double precision) RETURNS interval LANGUAGE sql
    AS $$SELECT interval '-1 year'$$;
CREATE FUNCTION hostile.to_regclass(text) RETURNS regclass LANGUAGE sql AS $$SELECT NULL::regclass$$;
CREATE FUNCTION hostile.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS $$SELECT true$$;
CREATE FUNCTION hostile.current_setting(text) RETURNS text LANGUAGE sql AS $$SELECT 'on'$$;
CREATE FUNCTION hostile.timezone(text, timestamptz) RETURNS timestamp LANGUAGE sql AS $$SELECT NULL::timestamp$$;
CREATE FUNCTION hostile.earlier(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS $$SELECT true$$;
CREATE FUNCTION hostile.same(uuid, uuid) RETURNS boolean LANGUAGE sql AS $$SELECT true$$;
CREATE FUNCTION hostile.same(text, text) RETURNS boolean LANGUAGE sql AS $$SELECT true$$;
CREATE OPERATOR hostile.<= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = hostile.earlier);
CREATE OPERATOR hostile.> (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = hostile.earlier);
CREATE OPERATOR hostile.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = hostile.same);
CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.same);
"""
BETTER_MATCHES = """
CREATE FUNCTION hostile.format(text, varchar, varchar) RETURNS text LANGUAGE sql
    AS $$INSERT INTO hostile.touched VALUES (current_user) RETURNING ''$$;
CREATE FUNCTION hostile.current_setting(varchar) RETURNS text LANGUAGE sql
    AS $$INSERT INTO hostile.touched VALUES (current_user) RETURNING ''$$;
CREATE FUNCTION hostile.same(varchar, varchar) RETURNS boolean LANGUAGE sql
    AS $$INSERT INTO hostile.touched VALUES (current_user) RETURNING true$$;
CREATE OPERATOR hostile.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = hostile.same);
"""


@pytest.fixture(scope="module")
def deployment(curfew_database: DatabaseTemplate) -> Iterator[Deployment]:
    with deployed(curfew_database) as made:
        yield made


@pytest.fixture
def rows(deployment: Deployment) -> Iterator[Rows]:
    seen = Rows(deployment.sqlalchemy_url)
    yield seen
    seen.close()


@pytest.fixture
def hostile(rows: Rows, deployment: Deployment) -> Iterator[Rows]:
    """The schema of an attacker, who may create objects in it for everybody to find."""
    with psycopg.connect(deployment.admin, autocommit=True) as admin:
        admin.execute(HOSTILE.encode())
        try:
            yield rows
        finally:
            admin.execute(b"DROP SCHEMA hostile CASCADE")


@pytest.mark.parametrize("search_path", ["hostile, public", "hostile", '"$user", public, hostile'])
def test_objects_of_the_same_names_change_nothing(hostile: Rows, deployment: Deployment, search_path: str) -> None:
    """Tables, functions and operators called like ours and PostgreSQL's own, found first or last: the work is done."""
    for account in ACCOUNTS:
        role = sql.Identifier(deployment.role(account)).as_string()
        hostile.sql(f"ALTER ROLE {role} IN DATABASE {_name(deployment)} SET search_path = {search_path}")
    try:
        lifecycle(deployment)
        for table in ("flow_run_controls", "flow_idempotency_keys"):
            assert hostile.sql(f"SELECT count(*) FROM hostile.{table}") == [(0,)]
    finally:
        assert deployment.run_script().returncode == 0


def test_better_matches_are_not_found_with_the_accounts_settings(hostile: Rows, deployment: Deployment) -> None:
    """PostgreSQL prefers a function whose types fit better, in whatever schema: it must not be looked for there.

    The search path of the accounts sees to that, also against a default of the whole database.
    """
    database = _name(deployment)
    with psycopg.connect(deployment.admin, autocommit=True) as admin:
        admin.execute(BETTER_MATCHES.encode())
        admin.execute(f"ALTER DATABASE {database} SET search_path = public, hostile".encode())
        try:
            with psycopg.connect(deployment.admin) as elsewhere:  # an account without the settings falls for them
                found = elsewhere.execute("SELECT current_setting('server_version'::varchar)").fetchone()
                assert found == ("",)
                elsewhere.rollback()
            lifecycle(deployment)
        finally:
            admin.execute(f"ALTER DATABASE {database} RESET search_path".encode())
    assert hostile.sql("SELECT * FROM hostile.touched") == []


@pytest.mark.parametrize("name", [name for name in CALLS if name != "curfewd check"])
def test_better_matches_are_not_found_without_settings_either(name: str, hostile: Rows, deployment: Deployment) -> None:
    """Every call but the operator's `check` names PostgreSQL's own where another could fit better."""
    with psycopg.connect(deployment.admin, autocommit=True) as admin:
        admin.execute(BETTER_MATCHES.encode())
    try:
        CALLS[name](make_conninfo(deployment.admin, options="-c search_path=public,hostile"), hostile)
    finally:
        disconnect()
    assert hostile.sql("SELECT * FROM hostile.touched") == []


@pytest.mark.parametrize("account", ["service", "step", "daemon"])
def test_temporary_tables_change_nothing(account: str, deployment: Deployment, rows: Rows) -> None:
    """A session's temporary tables are found before all others, unless the schema is named."""
    run = rows.insert("overdue")
    engine = deployment.engine(account)
    with engine.begin() as conn:
        for table in ("flow_run_controls", "flow_idempotency_keys", "curfew_schema_version"):
            conn.exec_driver_sql(f"CREATE TEMP TABLE {table} (run_id uuid)")
        record = FlowRunControlStore(engine).get_run_control(run, connection=conn)
    assert record is not None


def _name(deployment: Deployment) -> str:
    name = make_url(deployment.admin).database
    assert name is not None
    return name
